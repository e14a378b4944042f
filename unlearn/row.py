"""The row: what one configuration produced, as one JSON document."""

import datetime
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unlearn.files import write_arrays
from unlearn.lab import ROLES, Lab
from unlearn.loop import DivergedError
from unlearn.remarks import remarks
from unlearn.settings import SettingError
from unlearn.store import key_of, write_json

SCHEMA = 1
LEGEND = "legend.npz"
"""What lies beside a row, so that signals can be read without the data (`Lab.legend`)."""
GROUPS = ("dataset", "model", "train", "scenario", "method")
ELSEWHERE = ("store=", "wandb.", "debug=", "checkpoint_seconds=", "cluster=", "dataset.root=", "hydra.")
"""Words of where things lie, what is shown and how often unfinished work is kept; `portable` leaves them out, too."""
PACKAGES = ("unlearn", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "hydra-core")


def row(lab: Lab, choices: Mapping[str, str], overrides: list[str]) -> tuple[dict[str, Any], Path]:
    """The row of a lab's configuration and its file: read from the store, or made and stored now.

    `choices` names the file chosen in each configuration group; `overrides` are the words of the command line. Whatever
    ends the making before the row is complete leaves its reason beside it, in `<store>/rows/<id>.failed`.
    """
    recipe = identity(lab, choices)

    def make(folder: Path) -> None:
        roles, found = sound(lab)
        document = {
            "schema": SCHEMA,
            "id": folder.stem,
            **{group: choices[group] for group in GROUPS},
            "auditors": list(lab.auditors),
            "seed": lab.seed,
            "split": lab.split,
            "requests": len(lab.requests),
            "layers": lab.layers,
            "data": lab.data.content,
            "forget": {"count": len(lab.forget), "sha256": lab.hash(lab.forget)},
            "overrides": [word for word in overrides if not word.startswith(ELSEWHERE)],
            "config": portable(lab.settings),
            "remarks": found,
            "metrics": {role: measured(lab, role) if role in roles else {} for role in lab.roles},
            "refused": {role: refusals for role in roles if (refusals := refused(lab, role))},
            "cost": {role: lab.subject(role).cost for role in roles},
            "models": {role: [stored.key for stored in lab.stored(role)] for role in roles},
            "precision": lab.precision,
            **surroundings(lab.device),
        }
        write_arrays(folder / LEGEND, lab.legend())
        write_json(folder / "row.json", document)

    failed = lab.store.root / "rows" / f"{key_of('rows', recipe)}.failed"
    try:
        kept = lab.store.get("rows", recipe, make)
    except BaseException as error:
        with suppress(OSError):  # on a full disk the error itself still comes out
            write_json(failed, {"reason": reason(error), "overrides": overrides, **surroundings(lab.device)})
        raise
    with suppress(OSError):  # a complete row may be read where nothing can be written
        failed.unlink()
    file = kept.folder / "row.json"
    return readable(kept.json("row.json"), file), file


def readable(document: Any, file: Path) -> Any:
    """A row of the schema that this version knows; of any other, which is left as it is, a `SettingError` says so."""
    if document["schema"] != SCHEMA:
        allowed = f"has schema {document['schema']}; this version reads {SCHEMA}"
        raise SettingError("row", file, f"{allowed} and leaves it as it is: use the version that made it")
    return document


def reason(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, KeyboardInterrupt | SystemExit):  # submitit leaves by the latter, to be queued again
        return "interrupted"
    return " ".join(f"{type(error).__name__}: {error}".split())


def identity(lab: Lab, choices: Mapping[str, str]) -> dict[str, Any]:
    """What makes two rows the same: the recipes of their models, the forget set and the auditors' settings."""
    return {
        **{group: choices[group] for group in GROUPS},
        **lab.recipe(),
        "forget": [lab.hash(part) for part in lab.requests],
        "method_settings": lab.method_recipe(),
        "auditor": lab.settings["auditor"],
        "split": lab.split,
        **({"layers": lab.layers} if lab.layers != "all" else {}),
    }


def sound(lab: Lab) -> tuple[tuple[str, ...], dict[str, str]]:
    """The roles whose models can be audited, and what must be said of the unlearned one.

    A method that diverges has no model to audit, and its row says why. An original or reference that does is an error.
    """
    made = ROLES[:2]
    for role in made:
        lab.subject(role)
    try:
        return lab.roles, remarks(lab)
    except DivergedError as error:
        return made, {"diverged": str(error)}


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that only say where things lie on this machine and what is shown of them."""
    kept = {key: value for key, value in settings.items() if not {f"{key}=", f"{key}."} & {*ELSEWHERE}}
    return kept | {"dataset": {key: value for key, value in settings["dataset"].items() if key != "root"}}


def measured(lab: Lab, role: str) -> dict[str, float]:
    """Every chosen auditor's metrics for one role."""
    metrics: dict[str, float] = {}
    for name in lab.auditors:
        metrics |= lab.audit(name, lab.subject(role))
    return metrics


def refused(lab: Lab, role: str) -> dict[str, str]:
    """The metrics that the chosen auditors refuse to give for one role, each with the reason."""
    return {metric: why for name in lab.auditors for metric, why in lab.refused(name, lab.subject(role)).items()}


def surroundings(device: torch.device) -> dict[str, Any]:
    """Where and with what a row was made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "commit": COMMIT,
        "device": f"{device.type} {name}, {torch.get_num_threads()} threads",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str | None:
    """The code's commit, with `+changes` when the tree differs from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if status.stdout else "")


COMMIT = commit()  # of the code that runs: the checkout may be another by the end of a long run
