"""Weights & Biases: a mirror of the row, never its source.

A finished row and its models' curves become one W&B run whose id is the row's, once per mode. What goes wrong here is
printed and never fails a run.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.lab import Lab

PATIENCE = {"WANDB_INIT_TIMEOUT": "20", "WANDB_FINISH_TIMEOUT": "120", "WANDB_FINISH_TIMEOUT_RAISES": "true"}
"""W&B's own settings, in seconds, where the environment has no others: without a network it would wait for ever."""


def mirror(row: Mapping[str, Any], lab: Lab, choices: Mapping[str, str]) -> None:
    """Send a row to W&B unless it was sent in this mode before. `WANDB_MODE` in the environment beats `wandb.mode`."""
    mode = os.environ.get("WANDB_MODE") or lab.settings["wandb"]["mode"]
    mark = lab.store.root / "wandb" / str(mode) / row["id"]
    if mode == "disabled" or mark.exists():
        return
    try:
        lab.store.check_writable()  # without a mark the row would be sent by every run
        for name, seconds in PATIENCE.items():
            os.environ.setdefault(name, seconds)
        _send(row, lab, mode, choices.get("sweep") or choices.get("experiment"))
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except Exception as error:  # noqa: BLE001  a mirror's faults are many and none is the row's
        print(f"wandb: row {row['id']} was not mirrored ({error!r}); run again to try again", file=sys.stderr)


def _send(row: Mapping[str, Any], lab: Lab, mode: Any, group: str | None) -> None:
    import wandb  # half a second that a run without a new row need not pay

    settings = lab.settings["wandb"]
    Path(settings["dir"]).mkdir(parents=True, exist_ok=True)
    with wandb.init(
        mode=mode,
        project=settings["project"],
        dir=settings["dir"],
        id=row["id"],
        resume="allow",
        name=f"{row['method']}-{row['scenario']}-{row['dataset']}-s{row['seed']}",
        group=group,
        job_type=row["method"],
        tags=[row["dataset"], row["model"], row["scenario"], row["method"], (row["commit"] or "no-commit")[:12]],
        config=dict(row["config"]),
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    ) as run:
        for role in row["models"]:
            run.define_metric(f"{role}/*", step_metric=f"{role}/epoch")
            history = [line for stored in lab.stored(role) for line in stored.json("history.json")]
            for line in curves(history):
                run.log({f"{role}/{key}": value for key, value in line.items()})
            run.summary.update({f"{role}/{key}": value for key, value in once(history).items()})
            run.summary.update({f"{role}/{name}": value for name, value in row["metrics"][role].items()})
        run.summary.update({f"remarks/{name}": reason for name, reason in row["remarks"].items()})


def curves(history: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The epochs' lines, their seconds called `epoch_seconds`, because `seconds` is the metric of the whole.

    Where another fit or request begins, epochs go on from the last one before it.
    """
    before = last = 0
    for line in history:
        if "epoch" in line:
            if line["epoch"] <= last:
                before += last
            last = line["epoch"]
            named = {"epoch_seconds" if key == "seconds" else key: value for key, value in line.items()}
            yield named | {"epoch": before + last}


def once(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a history says of no epoch, such as what a search found; of several requests, the last one's."""
    return {key: value for line in history if "epoch" not in line for key, value in line.items()}
