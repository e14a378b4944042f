"""What a method is handed: the data it may use, and how the original was made. There is no test set in it."""

from collections.abc import Callable, Set
from dataclasses import dataclass, replace

import torch
from torch import nn

from unlearn.data.images import Images
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


@dataclass(frozen=True)
class Request:
    """One request for deletion. A part that the method did not declare in its `NEEDS` is empty."""

    forget: Images
    retain: Images
    validation: Images
    class_count: int
    recipe: Recipe

    def limited_to(self, needs: Set[str]) -> "Request":
        """The same request with every part that is not in `needs` emptied."""
        nothing = torch.zeros(0, dtype=torch.int64)
        parts = ("forget", "retain", "validation")
        return replace(self, **{part: getattr(self, part)[nothing] for part in parts if part not in needs})
