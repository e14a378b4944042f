"""What a store holds beside its rows: each model's answer to every image, and the neighbours that AMUN found.

Nothing is computed anew and no data set is read: what is not in the store, or is damaged there, is not shown.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlearn.report.rows import HEADS, Lines, Row, Run, line_names
from unlearn.row import LEGEND
from unlearn.signals import Floats, Signals
from unlearn.store import Store, Stored
from unlearn.subject import of_classes

KINDS = {"original": "originals", "retrained": "retrained", "unlearned": "unlearned"}


class Answers(NamedTuple):
    """What one model answers on the images to forget and on the test images; `clip` is the row's `loss_attack.clip`."""

    forget: Signals
    test: Signals
    clip: float

    @property
    def losses(self) -> tuple[Floats, Floats]:
        """What `loss_attack` compares: of the images to forget, and of test images of their classes."""
        return self.forget.loss.clip(max=self.clip), of_classes(self.test, self.forget).loss.clip(max=self.clip)


class Neighbours(NamedTuple):
    """Of each image to forget: its label, its adversarial neighbour's, their distance, and whether one was found."""

    labels: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    norms: NDArray[np.float32]
    found: NDArray[np.bool_]


def answers(its: Lines, store: Store) -> dict[str, dict[Run, Answers]]:
    """The answers of each line's models that the store has, by run; a line without any is left out."""
    found: dict[str, dict[Run, Answers]] = {line.name: {} for line in its.lines}
    for line, run, row, role in _models(its):
        if run not in found[line]:
            known = _answers(row, role, store)
            found[line] |= {} if known is None else {run: known}
    return {line: runs for line, runs in found.items() if runs}


def neighbours(its: Lines, store: Store) -> dict[str, dict[Run, Neighbours]]:
    """The neighbours that each line's unlearned models were made with, by run; a line without any is left out."""
    found: dict[str, dict[Run, Neighbours]] = {}
    for line, run, row, role in _models(its):
        known = _neighbours(row, store) if role == "unlearned" else None
        if known is not None:
            found.setdefault(line, {})[run] = known
    return found


def _models(its: Lines) -> Iterator[tuple[str, Run, Row, str]]:
    """Line, run, row and role of every model of a setting; an original comes once for each row that starts from it."""
    names = line_names(its.rows)
    for row in its.rows:
        for role in KINDS:
            yield HEADS.get(role, names[row["id"]]), (row["seed"], row["split"]), row, role


def _answers(row: Row, role: str, store: Store) -> Answers | None:
    legend, models = _legend(row, store), row["models"].get(role)
    model = _stored(store, KINDS[role], models[-1]) if models else None
    if legend is None or model is None:
        return None
    signals = store.find("signals", {"model": model.key, "content": model.content})
    if signals is None:
        return None
    forget = legend["request"] >= 0
    train, test = (np.load(signals.folder / f"{part}.npy", mmap_mode="r") for part in ("train", "test"))
    labels = {part: legend[part].astype(np.int64) for part in ("train", "test")}
    return Answers(
        Signals(train[forget], labels["train"][forget]),
        Signals(np.asarray(test), labels["test"]),
        row["config"]["auditor"].get("loss_attack", {}).get("clip", np.inf),
    )


def _neighbours(row: Row, store: Store) -> Neighbours | None:
    """Those of all requests, one after the other."""
    legend = _legend(row, store)
    models = [_stored(store, "unlearned", key) for key in row["models"].get("unlearned", ())]
    names = ("labels", "norms", "found")
    if legend is None or any(its is None or not (its.folder / "neighbours_labels.npy").exists() for its in models):
        return None
    parts = []
    for number, its in enumerate(models):
        assert its is not None
        searched = [np.load(its.folder / f"neighbours_{name}.npy") for name in names]
        parts.append([legend["train"][legend["request"] == number].astype(np.int64), *searched])
    return Neighbours(*(np.concatenate(each) for each in zip(*parts, strict=True))) if parts else None


def _legend(row: Row, store: Store) -> Mapping[str, NDArray[np.int32]] | None:
    kept = _stored(store, "rows", row["id"])
    file = None if kept is None else kept.folder / LEGEND
    if file is None or not file.exists():  # of a row made before there were legends
        return None
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _stored(store: Store, kind: str, key: str) -> Stored | None:
    """A complete folder by its key; None if there is none, or if its recipe has another key in this version."""
    try:
        recipe: dict[str, Any] = json.loads((store.root / kind / key / "recipe.json").read_text())
    except (OSError, ValueError):
        return None
    found = store.find(kind, recipe)
    return found if found is not None and found.key == key else None
