"""What can be known to be wrong before anything is trained: each check raises a `SettingError` with one clear line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pydantic import StrictBool

from unlearn.layers import scope
from unlearn.request import needed
from unlearn.settings import Name, SettingError, check, companion
from unlearn.streams import Streams

if TYPE_CHECKING:
    from unlearn.foreign import Foreign
    from unlearn.lab import Lab


CHOSEN = ("dataset", "model", "train", "scenario", "method", "auditor")
"""Groups of the configuration in which something must be chosen."""


WANDB = ("mode", "project", "dir")
TOP = (
    "seed", "split", "requests", "layers", "device", "precision", "deterministic", "store", "checkpoint_seconds",
    "objective", "debug",
)  # fmt: skip
LONGEST_NAME = 200
"""Letters of a choice's name; a file system takes 255 bytes."""
KNOWN = (*CHOSEN, *TOP, "wandb")
"""All keys of a configuration, the groups first."""


def refusal(group: str, value: object) -> SettingError:
    """The error of a group of which `value`, such as null, chooses nothing."""
    return SettingError(group, value, f"must be one of the choices in conf/{group}, which `run.py --help` lists")


def check_word(word: str) -> None:
    """A word of a command line chooses no file outside its group's folder, nor what can be no file or number at all."""
    key, _, value = word.partition("=")
    group = key.lstrip("+").partition("@")[0]
    names = re.split(r"[][/,\s\"']+", value)
    if group in (*CHOSEN, "experiment", "sweep", "cluster") and (".." in names or max(map(len, names)) > LONGEST_NAME):
        raise refusal(group, value)
    if re.search(r"[\d_]{4300}", value):  # where Python stops reading, and Hydra with an error that names no key
        raise SettingError(key, value, "has a number of too many digits")


def check_groups(settings: Mapping[str, Any]) -> None:
    """Every group that must be chosen is there, the mirror's settings and the store's place too, and nothing else."""
    for key, known in (("", KNOWN), ("wandb", WANDB)):
        its = settings.get(key, {}) if key else settings
        for name in its if isinstance(its, Mapping) else ():
            if name not in known:
                allowed = f"is not a setting; there are {', '.join(known)}"
                raise SettingError(f"{key}.{name}".lstrip("."), its[name], allowed)
    for name in KNOWN[len(CHOSEN) :]:
        if name not in settings:
            raise SettingError(name, "nothing", "must be there")
    for group in CHOSEN:
        # With auditor=[] the group is not there, which `check_metrics` says
        if not isinstance(settings.get(group, {} if group == "auditor" else None), Mapping):
            raise refusal(group, settings.get(group))
    if not isinstance(settings["wandb"], Mapping):
        raise SettingError("wandb", settings["wandb"], "cannot be set as a whole; set wandb.mode=disabled, say")
    for name in WANDB:
        if name not in settings["wandb"]:
            raise SettingError(f"wandb.{name}", "nothing", "must be there")
    for name in ("project", "dir"):
        check(Name, f"wandb.{name}", settings["wandb"][name])
    check(Name, "store", settings["store"])
    check(str | None, "objective", settings["objective"])
    check(StrictBool, "debug", settings["debug"])


def check_metrics(lab: Lab) -> None:
    """The objective, and every metric that an auditor builds on, is measured by an auditor that was chosen."""
    if not lab.auditors:
        raise refusal("auditor", "[]")
    ends = [f"{name}{end}" for name, (_, its) in lab.metrics.items() if its.interval for end in ("_low", "_high")]
    objective = lab.settings["objective"]
    wanted = [] if objective is None else [("objective", objective, {*lab.metrics, *ends})]
    for name, auditor in lab.auditors.items():
        builds_on = auditor.keywords.get("metrics", [])
        wanted += [(f"auditor.{name}.metrics", metric, {*lab.metrics}) for metric in builds_on]
    for key, metric, measured in wanted:
        if metric not in measured:
            allowed = f"not measured by the auditors chosen ({', '.join(lab.auditors)}), which measure "
            raise SettingError(key, metric, allowed + ", ".join(sorted(lab.metrics)))


def check_method(lab: Lab) -> None:
    """Every part of the data that the method needs with its settings has images, at every request.

    The `METHODS` of a training, if it declares them, are all that it goes with, and a method's `TRAIN` is the one that
    it goes with. Its own conditions it declares, as an auditor does, as `check(lab, **settings)` beside it.
    """
    method, train = name_of(lab, "method"), name_of(lab, "train")
    allowed = companion(lab.train, "METHODS", {method})
    if method not in allowed:
        raise SettingError("method", method, f"must be one of {', '.join(sorted(allowed))} with train={train}")
    if train != companion(lab.method, "TRAIN", train):
        raise SettingError("method", method, f"needs train={companion(lab.method, 'TRAIN')}")
    for number in range(len(lab.requests)):
        request = lab.request(number)
        for part in sorted(needed(lab.method)):
            if len(getattr(request, part)) == 0:
                raise SettingError("method", method, f"needs {part} images, and this configuration leaves none")
    check_own(lab.method, lab)


def check_auditors(lab: Lab | Foreign) -> None:
    """Every auditor's own conditions hold."""
    for auditor in lab.auditors.values():
        check_own(auditor, lab)


def check_own(built: partial[Any], lab: Any) -> None:
    """The conditions hold that a method or an auditor declares as `check(lab, **settings)` beside it, if it does."""
    if own := companion(built, "check", None):
        own(lab, **built.keywords)


def check_model(lab: Lab) -> None:
    """The architecture takes images of this shape and answers with one score a class."""
    name, shape = name_of(lab, "model"), lab.data.shape
    try:
        with Streams("check").seeded("model"):
            scores = lab.build_model().train()(torch.zeros(2, *shape, device=lab.device))
    except SettingError:
        raise
    except (RuntimeError, ValueError) as error:
        raise SettingError("model", name, f"cannot take images of {shape[0]}x{shape[1]}x{shape[2]}: {error}") from error
    if scores.shape != (2, lab.data.class_count):
        raise SettingError(
            "model", name, f"gives {tuple(scores.shape)} for two images of {lab.data.class_count} classes"
        )


def check_layers(lab: Lab) -> None:
    """The layers that a method may change exist, and the method changes layers by gradients."""
    if lab.layers == "all":
        return
    if "lr" not in lab.method.keywords:
        raise SettingError(
            "layers", lab.layers, f"must be all: method {name_of(lab, 'method')} has no learning rate of its own"
        )
    with Streams("check").seeded("model"):
        model = lab.build_model()
    with scope(model, lab.layers):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise SettingError("layers", lab.layers, "has no parameters that could change")


def name_of(lab: Lab, group: str) -> str:
    """The choice of a group, as its file is called."""
    return str(lab.settings[group]["_target_"].rsplit(".", 1)[-1])
