"""Weights & Biases: a mirror of the row, never its source.

A finished row and its models' curves become one W&B run whose id is the row's, once per mode. What goes wrong here is
printed and never fails a run.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn.lab import ROLES, Lab


def mirror(row: Mapping[str, Any], lab: Lab, choices: Mapping[str, str]) -> None:
    """Send a row to W&B unless it was sent in this mode before. `WANDB_MODE` in the environment beats `wandb.mode`."""
    mode = os.environ.get("WANDB_MODE") or lab.settings["wandb"]["mode"]
    mark = lab.store.root / "wandb" / str(mode) / row["id"]
    if mode == "disabled" or mark.exists():
        return
    try:
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
        for role in ROLES:
            run.define_metric(f"{role}/*", step_metric=f"{role}/epoch")
            for number, line in enumerate(curves(lab, role), start=1):
                values = {f"{role}/{key}": value for key, value in line.items() if key != "epoch"}
                run.log({f"{role}/epoch": number} | values)
            run.summary.update({f"{role}/{name}": value for name, value in row["metrics"][role].items()})


def curves(lab: Lab, role: str) -> list[dict[str, Any]]:
    """One dict an epoch, over all fits and all requests of a role, in order."""
    return [line for stored in lab.stored(role) for line in stored.json("history.json")]
