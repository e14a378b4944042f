"""What a method is handed: the data it may use, and how the original was made. There is no test set in it."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from unlearn.attacks import Adversarial, Norm
from unlearn.data.images import Images
from unlearn.settings import companion
from unlearn.streams import Streams


@dataclass(frozen=True)
class Recipe:
    """How originals and references are made: `build()` is the architecture, `train(model, images, streams)` fits it."""

    build: Callable[[], nn.Module]
    train: Callable[[nn.Module, Images, Streams], nn.Module]

    def initialised(self, streams: Streams) -> nn.Module:
        """A new model, its weights drawn from `streams`."""
        with streams.seeded("initialisation"):
            return self.build()

    def trained(self, images: Images, streams: Streams) -> nn.Module:
        """A new model trained on `images` from scratch, in eval mode."""
        return self.train(self.initialised(streams), images, streams)


Of = Literal["original", "current"]
Searched = Literal["forget", "train"]


class Neighbours(Protocol):
    """Finds the nearest adversarial image of each image of a forget set, or reads what an earlier search found."""

    def __call__(self, of: Of, searched: Searched, norm: Norm, eps: float, steps: int) -> Adversarial:
        """As `attacks.nearest` does; around the forget set, or around all of the training set and so for all requests.

        `of` is the model to search on: the `original`, or the `current` one, which has met the requests before this.
        """


Report = Callable[[Tensor, Mapping[str, Tensor]], None]
"""(which images of a step's batch are to be forgotten, B bools; what the step added to each trained parameter)."""


class Replay(Protocol):
    """Goes through the original's training again, and gives the original; the session is charged for all of it."""

    def __call__(self, report: Report) -> nn.Module:
        """Call `report` after each step, in order. Images of earlier requests are to be forgotten too.

        Raises `SettingError` if the training does not end where it ended before (`replay.TOLERANCE`).
        """


@dataclass(frozen=True)
class Request:
    """One request for deletion. A part that the method did not declare in its `NEEDS` is empty.

    `forget_numbers` are the forget set's numbers in the data set's official training order, image by image.
    """

    forget: Images
    forget_numbers: Tensor
    retain: Images
    validation: Images
    class_count: int
    recipe: Recipe
    neighbours: Neighbours
    replay: Replay

    def limited_to(self, needs: Set[str]) -> "Request":
        """The same request with every part that is not in `needs` emptied."""
        nothing = torch.zeros(0, dtype=torch.int64)
        parts = {"forget", "retain", "validation"} - needs
        if "forget" in parts:
            parts |= {"forget_numbers"}
        return replace(self, **{part: getattr(self, part)[nothing] for part in parts})


def needed(method: partial[Any]) -> frozenset[str]:
    """The parts of a request that a method, built with its settings, may look at.

    These are its `NEEDS`, without those whose setting in `NEEDED_IF` is off, and what its `needs(**settings)` adds.
    """
    switches = companion(method, "NEEDED_IF", {})
    added = companion(method, "needs", None)
    always = {part for part in companion(method, "NEEDS") if method.keywords.get(switches.get(part), True)}
    return frozenset(always | (added(**method.keywords) if added else set()))
