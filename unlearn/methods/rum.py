"""RUM: part the forget set by how much of it was memorised, and unlearn part after part, each by the method for it.

    split F into strata by memorisation; theta_s = method_s(theta_s-1, stratum s) for each in turn

Zhao, Kurmanji, Bărbulescu, Triantafillou & Triantafillou, "What makes unlearning hard and what to do about it"
(NeurIPS 2024, arXiv:2406.01257); code kairanzhao/RUM; the proxies of memorisation are those of its sequel (Zhao &
Triantafillou, FITML workshop 2024, arXiv:2410.16516, not checked). Every stage starts from the model of the stage
before and treats one stratum of the forget set; images of strata whose turn is still to come count as retained.

Memorisation (Feldman, arXiv:1906.05271, not checked) is how much likelier a model is to get an image right for having
been trained on it. It takes many models, so without a file of `scores` it is replaced by what the original alone says:
- confidence: the less the original believes in the true label, the more it is taken to have memorised the image. Loss
  and margin give the same order.
- entropy: of the original's answer.
- holdout: how far its answer moves when a copy of it is trained on validation images, which it has not seen.
- random: nothing. The paper's control, to see what is owed to the strata.

`scores` holds a number for each image of the official training set, in its order and before the validation part is
taken out, as `scenario=indices` counts them: an .npy, or an .npz with one array, or with one called `memorization` or
`tr_mem`, which are the names in the published files. Larger is more memorised. `scripts/memorisation.py` writes one.

Strata have equal counts; of a remainder the later strata get one image more each, so that a single image is in the
last. A stratum without an image skips its stage. There is no learning rate for all stages, so `layers` must be `all`.

Deviations from the released code:
- It forgets the images with the lowest, middle and highest scores of the whole training set, a thousand each. Here any
  forget set is parted, at the ranks of its own scores.
- Its confidence and entropy are averages over the epochs of the original's training; here they are the original's own.
- Its held-out retraining takes test images, and stops after four epochs without progress; here the images are
  validation's and the epochs fixed.
- SalUn's mask is that of its stage: of the model that the stage starts from, and of its stratum.
- The default sequence of stages is one example of several there; weight decay and batch size are the methods' own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import MinLen
from omegaconf import OmegaConf
from pydantic import AfterValidator
from torch import Tensor, nn

from unlearn.attacks import Adversarial, Norm
from unlearn.batches import shuffled
from unlearn.checks import check_own
from unlearn.loop import cross_entropy, fit
from unlearn.memorisation import PROXIES, of_images, read
from unlearn.request import Of, Request, Searched, needed
from unlearn.session import current
from unlearn.settings import Count, NotNegative, SettingError, build, checked, companion
from unlearn.signals import Floats, Signals, logits
from unlearn.streams import Streams

NEEDS = frozenset({"forget", "retain"})
FILES = ("scores", "surrogate")  # its own, and those of its stages
CONF = Path(__file__).resolve().parents[2] / "conf" / "method"

OF_THE_REQUEST = {"variant": "exact", "neighbours_of": "current"}  # of amnesiac and of amun

Proxy = Literal["confidence", "entropy", "holdout", "random"]


def completed(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages with all settings of their methods, each checked. Raises a `SettingError` that names `NUMBER.KEY`.

    Settings for which a method looks at the whole request, or at the model before it, are for a single stage.
    """
    every = [_completed(number, stage) for number, stage in enumerate(stages)]
    for number, stage in enumerate(every) if len(every) > 1 else ():
        for key, value in OF_THE_REQUEST.items():
            if stage.get(key) == value:
                allowed = "looks at the whole request and not at its stage, and cannot be one of several stages"
                raise SettingError(f"{number}.{key}", value, allowed)
    return every


def _completed(number: int, stage: Mapping[str, Any]) -> dict[str, Any]:
    name = stage.get("method")
    names = sorted({file.stem for file in CONF.glob("*.yaml")} - {"rum", "imported"})
    if name not in names:
        raise SettingError(f"{number}.method", name, f"must be one of {', '.join(names)}")
    own: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    for key, value in stage.items():
        if key not in own.keys() - {"_target_"} | {"method"}:
            allowed = ", ".join(key for key in own if key != "_target_") or "none"
            raise SettingError(f"{number}.{key}", value, f"is not a setting of {name}, which has {allowed}")
    settings = own | {key: value for key, value in stage.items() if key != "method"}
    method = build(settings, str(number))
    if train := companion(method, "TRAIN", None):
        raise SettingError(f"{number}.method", name, f"can be no stage, because it follows train={train} alone")
    all_checked = checked(settings, method)
    return {"method": name} | {key: value for key, value in all_checked.items() if key != "_target_"}


def readable(file: str) -> str:
    """The name of a file of scores, which can be read. Raises a `SettingError`."""
    read(file)
    return file


Stages = Annotated[list[dict[str, Any]], MinLen(1), AfterValidator(completed)]
Scores = Annotated[str, AfterValidator(readable)]


def needs(*, stages: list[dict[str, Any]], proxy: Proxy, scores: str | None, **_: Any) -> frozenset[str]:
    """What the stages ask for, and the held-out images of a proxy that takes them."""
    held_out = {"validation"} if proxy == "holdout" and scores is None else set[str]()
    return frozenset(held_out).union(*(needed(built(stage, number)) for number, stage in enumerate(stages)))


def check(lab: Any, *, stages: list[dict[str, Any]], scores: str | None, **_: Any) -> None:
    """What the methods of the stages ask for is given, and so are the scores of all that is to be forgotten."""
    if scores is not None:
        of_file(scores, lab.data.train_index[lab.forget])
    for number, stage in enumerate(stages):
        method = built(stage, number)
        check_own(method, lab)


def rum(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    stages: Stages,
    proxy: Proxy,
    scores: Scores | None,
    order: Literal["ascending", "descending"],
    holdout_epochs: Count,
    holdout_batch_size: Count,
    holdout_lr: NotNegative,
) -> nn.Module:
    """Unlearn stratum after stratum; each stage is `{method: NAME, KEY: VALUE, ...}`."""
    if scores is not None:
        memorised = of_file(scores, request.forget_numbers)
    elif proxy == "holdout":
        with _checkpoints_in("holdout"):
            memorised = held_out(model, request, streams, holdout_epochs, holdout_batch_size, holdout_lr)
    elif proxy == "random":
        memorised = torch.rand(len(request.forget), generator=streams("random"), dtype=torch.float64).numpy()
    else:
        outputs = Signals(logits(model, request.forget), request.forget.labels.cpu().numpy())
        memorised = PROXIES[proxy](outputs)
    strata = strata_of(memorised, len(stages))
    current().history.append({"strata": [len(stratum) for stratum in strata]})
    if order == "descending":
        strata.reverse()
    for number, stage in enumerate(stages):
        if len(strata[number]):
            method = built(stage, number)
            part = part_of(request, strata, number).limited_to(needed(method))
            with _checkpoints_in(f"stage{number}"):
                model = method(model, part, streams.child(f"stage {number}"))
    return model.eval()


def built(stage: Mapping[str, Any], number: int) -> partial[nn.Module]:
    """The method of a completed stage, with its settings."""
    name = stage["method"]
    own = {key: value for key, value in stage.items() if key != "method"}
    return build({"_target_": f"unlearn.methods.{name}.{name}"} | own, f"method.stages.{number}")


def strata_of(scores: Floats, count: int) -> list[Tensor]:
    """Positions of the lowest scores, of the next, and so on, in `count` parts of equal size; each part in order.

    Equal scores are ranked as they stand, and of a remainder the later parts have one more each.
    """
    ranked = torch.from_numpy(np.argsort(scores, kind="stable"))
    bounds = [number * len(ranked) // count for number in range(count + 1)]
    return [ranked[low:high].sort().values for low, high in pairwise(bounds)]


def part_of(request: Request, strata: list[Tensor], number: int) -> Request:
    """The request of one stage: forget its stratum, retain the strata of later stages with what is retained anyway."""
    now, later = strata[number], torch.cat([*strata[number + 1 :], strata[0][:0]])

    def neighbours(of: Of, searched: Searched, norm: Norm, eps: float, steps: int) -> Adversarial:
        return request.neighbours(of, searched, norm, eps, steps)[now]

    return replace(
        request,
        forget=request.forget[now],
        forget_numbers=request.forget_numbers[now],
        retain=request.retain.joined(request.forget[later]),
        neighbours=neighbours,
    )


def of_file(file: str, numbers: Tensor) -> Floats:
    """The scores of images, by their numbers in the official training order. Raises a `SettingError`."""
    found = of_images(file, numbers, "method.scores")
    if np.isnan(found).any():
        first = int(numbers[torch.from_numpy(np.isnan(found))][0])
        raise SettingError("method.scores", file, f"has no score for image {first}, which is to be forgotten")
    return found


def held_out(model: nn.Module, request: Request, streams: Streams, epochs: int, batch_size: int, lr: float) -> Floats:
    """For each forget image, the symmetric divergence between the answers before and after held-out training, in nats.

    It is the mean of the two Kullback-Leibler divergences (the retraining distance of Carlini et al., arXiv:1910.13427,
    not checked). A copy is trained, and `model` stays as it is.
    """
    batches = shuffled(request.validation, batch_size, streams.child("holdout"))
    after = fit(
        deepcopy(model),
        batches,
        cross_entropy,
        streams.child("holdout"),
        epochs=epochs,
        lr=lr,
        momentum=0.9,
        weight_decay=5e-4,
    )
    labels = request.forget.labels.cpu().numpy()
    one, other = (Signals(logits(each, request.forget), labels) for each in (model, after))
    distances = (one.probabilities - other.probabilities) * (one.log_probabilities - other.log_probabilities)
    result: Floats = distances.sum(axis=1) / 2
    return result


@contextmanager
def _checkpoints_in(name: str) -> Iterator[None]:
    """Inside the block unfinished work goes to a folder of its own, which no other stage writes to."""
    now = current()
    kept = now.checkpoint
    now.checkpoint = kept / name if kept else None
    try:
        yield
    finally:
        now.checkpoint = kept
