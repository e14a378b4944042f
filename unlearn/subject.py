"""A model under audit: its signals on every part of the data, and the model itself for audits that need it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from unlearn.data.images import Images
from unlearn.metrics import Measured, Metric
from unlearn.request import Recipe
from unlearn.signals import Signals
from unlearn.streams import Streams

NO_HELD_OUT = "the test set has no image of the classes that are in the forget set"
NO_OTHERS = "needs retained images, and test images of classes that remain"


@dataclass(frozen=True)
class Subject:
    """One model of a row. `forgotten_classes` are those of which no training image remains.

    `model()` is the model itself, in eval mode, and `images(part)` the images of `forget`, `retain`, `validation` or
    `test`, in the order of the signals. Both raise `SettingError` where only signals are known (`scripts/audit.py`).
    """

    role: str
    forget: Signals
    retain: Signals
    validation: Signals
    test: Signals
    forgotten_classes: NDArray[np.int64]
    cost: dict[str, Any]
    model: Callable[[], nn.Module]
    images: Callable[[str], Images]

    @property
    def held_out(self) -> Signals:
        """Test images of the classes that occur in the forget set: what forgotten images are compared with."""
        return of_classes(self.test, self.forget)


def of_classes(images: Signals, forget: Signals) -> Signals:
    """Those `images` whose classes occur in the forget set."""
    return images[np.isin(images.labels, np.unique(forget.labels))]


@dataclass(frozen=True)
class Shadow:
    """A model that was trained on a random half of all training and test images: its signals on every part.

    `members` tells of each part's images which the model was trained on. Of a shadow that has unlearned, the members
    of `forget` are what it has forgotten, and those of `retain` and `test` what it has retained.
    """

    forget: Signals
    retain: Signals
    validation: Signals
    test: Signals
    members: Mapping[str, NDArray[np.bool_]]


class Laboratory(Protocol):
    """What an auditor may ask for besides its subject.

    Every model comes from the store, where it is made when somebody first asks. Whoever asks for `count` of them gets
    the same first ones as whoever asks for fewer.
    """

    streams: Streams
    auditors: Mapping[str, partial[Any]]
    metrics: Mapping[str, tuple[str, Metric]]

    @property
    def training(self) -> Recipe:
        """How models are made from scratch."""

    def reference(self) -> Subject:
        """The retrained model."""

    def subject(self, role: str) -> Subject:
        """The model of a role: `original`, `retrained`, `unlearned`, or `independent`, a second retrained model."""

    def references(self, count: int) -> Iterator[Shadow]:
        """`count` reference models, an even number, shared by all methods, forget sets and seeds.

        Models 2 i and 2 i + 1 are trained on complementary halves, so each image is a member of `count` / 2 of them.
        """

    def shadows(self, role: str, count: int) -> Iterator[Shadow]:
        """`count` reference models that have each met a request: to forget what they know of the forget set.

        They meet it as the model of that `role` did: by the method, by retraining, or (`original`) not at all.
        """

    def oracles(self, count: int) -> Iterator[Subject]:
        """`count` retrained models, independent of the reference."""

    def repeats(self, role: str, count: int, *, same_original: bool) -> Iterator[Subject]:
        """`count` models made as that of `role` was, independent of the oracles.

        With `same_original` the method starts from the row's original each time, in streams of its own; otherwise from
        an original of its own.
        """

    def audit(self, name: str, subject: Subject) -> Measured:
        """All metrics of another auditor for a subject."""

    def measure(self, metric: str, subject: Subject) -> float:
        """One metric of whichever auditor declares it."""


def total_cost(costs: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds and sample-gradients added up, the highest of the peaks."""
    peaks = [cost["peak_memory_bytes"] for cost in costs if cost["peak_memory_bytes"] is not None]
    sums = {key: sum(cost[key] for cost in costs) for key in ("seconds", "sample_gradients")}
    return sums | {"peak_memory_bytes": max(peaks, default=None)}
