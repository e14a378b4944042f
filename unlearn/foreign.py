"""Models that are known only by their answers: a laboratory of logits that were made elsewhere, for `scripts/audit.py`.

A file holds the answers of one model, as arrays of a NumPy `.npz`: `forget_logits` (N x C), `forget_labels` (N), and so
on for `retain`, `test` and, if there is one, `validation`. That of a reference model also says which images the model
was trained on: `forget_members` and so on, booleans. All files have the same images in the same order.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from unlearn.metrics import Measured, Metric
from unlearn.request import Recipe
from unlearn.settings import SettingError, companion
from unlearn.signals import Signals
from unlearn.streams import Streams
from unlearn.subject import Shadow, Subject

PARTS = ("forget", "retain", "validation", "test")
OPTIONS = {
    "unlearned": "--logits",
    "retrained": "--retrained",
    "original": "--original",
    "independent": "--independent",
    "references": "--references",
    "shadows": "--shadows",
    "oracles": "--oracles",
    "repeats": "--repeats",
}
"""Which models an audit may ask for, and the option of `scripts/audit.py` that gives their files."""


class Foreign:
    """A laboratory of files. Raises `SettingError` for what is wrong with one, and for models that were not given.

    `files` has the files of each kind of `OPTIONS`; `auditors` are built as those of `unlearn.lab.Lab`.
    """

    def __init__(
        self, files: Mapping[str, Sequence[Path]], auditors: Mapping[str, partial[Any]], seed: int = 0
    ) -> None:
        self.files, self.auditors = files, dict(auditors)
        self.streams = Streams("foreign", seed)
        self.metrics: dict[str, tuple[str, Metric]] = {
            metric.name: (name, metric)
            for name, auditor in auditors.items()
            for metric in companion(auditor, "METRICS")
        }
        self._labels: dict[str, tuple[Path, NDArray[np.int64]]] = {}
        self._subjects: dict[str, Subject] = {}
        self.refusals: dict[str, str] = {}

    @property
    def training(self) -> Recipe:
        """Unknown."""
        raise SettingError("auditor", ", ".join(self.auditors), "needs to train a model, and only answers are known")

    # What auditors' own conditions look at (`checks.check_auditors`)

    @property
    def forget(self) -> Signals:
        """The forget set."""
        return self.subject("unlearned").forget

    @property
    def forgotten_classes(self) -> NDArray[np.int64]:
        """Those of which no image is retained."""
        return self.subject("unlearned").forgotten_classes

    @property
    def data(self) -> SimpleNamespace:
        """The parts beside the training set, and the number of classes."""
        its = self.subject("unlearned")
        return SimpleNamespace(validation=its.validation, test=its.test, class_count=its.test.logits.shape[1])

    @property
    def settings(self) -> dict[str, Any]:
        """Of the scenario only whether it can be that of two swapped classes."""
        two = len(np.unique(self.forget.labels)) == 2
        return {"scenario": {"_target_": "confusion" if two else "elsewhere"}}

    def build_model(self) -> NoReturn:
        """Unknown."""
        raise SettingError("auditor", ", ".join(self.auditors), "needs the model, and only answers are known")

    def subject(self, role: str) -> Subject:
        """The model of a role."""
        if role not in self._subjects:
            self._subjects[role] = self._subject(role, self._files(role, 1)[0])
        return self._subjects[role]

    def original(self) -> Subject:
        """The model before unlearning."""
        return self.subject("original")

    def reference(self) -> Subject:
        """The retrained model."""
        return self.subject("retrained")

    def references(self, count: int) -> Iterator[Shadow]:
        """The first `count` reference models."""
        return map(self._shadow, self._files("references", count))

    def shadows(self, role: str, count: int) -> Iterator[Shadow]:
        """The first `count` reference models after unlearning; before it they are the references."""
        if role == "original":
            return self.references(count)
        if role != "unlearned":
            raise SettingError("auditor", role, "shadows of this role are not known: only unlearned ones can be given")
        return map(self._shadow, self._files("shadows", count))

    def oracles(self, count: int) -> Iterator[Subject]:
        """The first `count` further retrained models."""
        return map(partial(self._subject, "retrained"), self._files("oracles", count))

    def repeats(self, role: str, count: int, *, same_original: bool) -> Iterator[Subject]:
        """The first `count` unlearned models, whichever originals they come from; or further oracles, for the null."""
        if role == "unlearned":
            return map(partial(self._subject, role), self._files("repeats", count))
        if role in ("retrained", "independent"):
            return map(partial(self._subject, role), self._files("oracles", 2 * count)[count:])
        return iter([self.original()] * count)

    def audit(self, name: str, subject: Subject) -> Measured:
        """All metrics of one auditor; what it refuses goes to `refusals`, and its arrays go nowhere."""
        answer = self.auditors[name](subject, self)
        self.refusals |= {key: value for key, value in answer.items() if isinstance(value, str)}
        return {key: value for key, value in answer.items() if not isinstance(value, str | np.ndarray)}

    def measure(self, metric: str, subject: Subject) -> float:
        """One metric of whichever chosen auditor declares it."""
        if metric not in self.metrics:
            raise SettingError(
                "auditor", metric, f"is not measured by the auditors chosen ({', '.join(self.auditors)})"
            )
        value = self.audit(self.metrics[metric][0], subject).get(metric)
        if value is None:
            raise SettingError("auditor", metric, f"has no value for the {subject.role} model, and is built on")
        return value

    def _files(self, kind: str, count: int) -> Sequence[Path]:
        found = self.files.get(kind, [])
        if len(found) < count:
            asked = "models" if count > 1 else "model"
            raise SettingError(
                OPTIONS[kind], len(found), f"must give {count} {asked}, which the chosen auditors ask for"
            )
        return found[:count]

    def _subject(self, role: str, file: Path) -> Subject:
        parts = {part: self._signals(file, part) for part in PARTS}
        return Subject(
            role=role,
            **parts,
            forgotten_classes=np.setdiff1d(parts["forget"].labels, parts["retain"].labels),
            cost={},
            model=unknown("the model"),
            images=unknown("the images"),
        )

    def _shadow(self, file: Path) -> Shadow:
        members: dict[str, NDArray[np.bool_]] = {}
        parts = {part: self._signals(file, part) for part in PARTS}
        for part in PARTS:
            known = part != "validation"
            members[part] = _array(file, f"{part}_members").astype(bool) if known else np.zeros(len(parts[part]), bool)
            if len(members[part]) != len(parts[part]):
                raise SettingError(f"{part}_members", file, f"must be {len(parts[part])} booleans, one an image")
        return Shadow(**parts, members=members)

    def _signals(self, file: Path, part: str) -> Signals:
        names = f"{part}_logits", f"{part}_labels"
        if part == "validation" and not all(name in _names(file) for name in names):
            classes = _array(file, "test_logits").shape[1:]
            return Signals(np.zeros((0, *classes), np.float32), np.zeros(0, np.int64))
        logits, labels = (_array(file, name) for name in names)
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or not np.isfinite(logits).all():
            shapes = f"{logits.shape} and {labels.shape}"
            raise SettingError(
                part, file, f"must have finite logits, images by classes, and a label each; has {shapes}"
            )
        if len(labels) and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
            raise SettingError(names[1], file, f"must be classes from 0 to {logits.shape[1] - 1}")
        first, known = self._labels.setdefault(part, (file, labels.astype(np.int64)))
        if not np.array_equal(known, labels):
            raise SettingError(names[1], file, f"must be those of {first}: the same images in the same order")
        return Signals(logits.astype(np.float32), known)


def unknown(what: str) -> Callable[..., NoReturn]:
    """Stands for what answers alone do not tell: raises `SettingError` when it is asked for."""

    def asked(*part: str) -> NoReturn:
        raise SettingError("auditor", what, "is needed by an auditor that was chosen, and only answers are known")

    return asked


def _names(file: Path) -> list[str]:
    with _opened(file) as arrays:
        return list(arrays)


def _array(file: Path, name: str) -> NDArray[Any]:
    with _opened(file) as arrays:
        if name not in arrays:
            raise SettingError(name, file, f"is not in this file, which has {', '.join(arrays) or 'nothing'}")
        try:
            return np.asarray(arrays[name])
        except ValueError as error:  # an array of objects would have to be unpickled
            raise SettingError(name, file, f"cannot be read: {error}") from error


def _opened(file: Path) -> Any:
    try:
        arrays = np.load(file, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SettingError("logits", file, f"must be a NumPy .npz file ({error})") from error
    if not hasattr(arrays, "files"):
        raise SettingError("logits", file, "must be a NumPy .npz file of several arrays, and is a single array")
    return arrays
