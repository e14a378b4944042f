"""What methods' own tests begin with: a trained original, a request to it, and what is done with both."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from laws import yaml_of
from torch import Tensor, nn

from unlearn.batches import Batch, Batches
from unlearn.data.images import Images, as_model_input
from unlearn.lab import Lab
from unlearn.request import Request, needed
from unlearn.settings import build
from unlearn.streams import Streams

CPU = torch.device("cpu")


def cut(lab: Lab, forget: Tensor, retain: Tensor) -> Request:
    """A request to forget the training images at some places and to keep those at others."""
    train, numbers = lab.data.train, lab.data.train_index
    return replace(lab.request(0), forget=train[forget], forget_numbers=numbers[forget], retain=train[retain])


def few_of(request: Request, **sizes: int) -> Request:
    """The first images of each part that is named."""
    return replace(request, **{part: getattr(request, part)[torch.arange(size)] for part, size in sizes.items()})


@dataclass(frozen=True)
class Problem:
    """A trained original, a request to it, and the streams and settings of methods whose tests name no others."""

    lab: Lab
    request: Request
    streams: Streams
    settings: Mapping[str, Any] = field(default_factory=dict)

    def original(self) -> nn.Module:
        return self.lab.load(self.lab.original())

    def student(self) -> nn.Module:
        """The original, its weights a little off."""
        model, generator = self.original(), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=generator))
        return model.to(memory_format=torch.channels_last)

    def whole(self, classes: Sequence[int], retain: int | None = None) -> Request:
        """All images of some classes to forget, and all others to keep, or the first of them."""
        gone = torch.isin(self.lab.data.train.labels, torch.tensor(classes))
        return cut(self.lab, gone, (~gone).nonzero().flatten()[:retain])

    def unlearned(
        self,
        name: str,
        request: Request | None = None,
        *,
        model: nn.Module | None = None,
        streams: Streams | None = None,
        **changes: Any,
    ) -> nn.Module:
        """What a method makes of the original, given those parts of the request that it needs."""
        settings = yaml_of("method", name)
        own = {key: value for key, value in self.settings.items() if key in settings}
        method = build(settings | own | changes, "method")
        limited = (request or self.request).limited_to(needed(method))
        result: nn.Module = method(model or self.original(), limited, streams or self.streams)
        return result

    def handed(self, name: str, *given: Any, **changes: Any) -> list[dict[str, Any]]:
        return handed(name, partial(self.unlearned, name, *given, **changes))


def handed(name: str, run: Callable[[], nn.Module]) -> list[dict[str, Any]]:
    """What a method gives to each of its calls of the loop, none of which trains."""
    given: list[dict[str, Any]] = []

    def fit(model: nn.Module, batches: Batches, loss: Any, streams: Streams, **settings: Any) -> nn.Module:
        given.append(settings | {"model": model, "batches": batches, "loss": loss})
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"unlearn.methods.{name}.fit", fit)
        run()
    return given


def batch_of(images: Images, count: int | None = None) -> Batch:
    """All images, or the first of them, as a model takes them."""
    return Batch(as_model_input(images.pixels[:count], CPU), images.labels[:count])


def keys(images: Images | Tensor) -> list[bytes]:
    """One key an image, as a model takes it; images differ if a single bit does."""
    inputs = batch_of(images).images if isinstance(images, Images) else images
    return [image.contiguous().numpy().tobytes() for image in inputs]


def counted(images: Images | Tensor) -> Counter[bytes]:
    return Counter(keys(images))


def norm_batches(model: nn.Module) -> set[int]:
    """How many batches the norm layers have seen."""
    return {int(value) for name, value in model.state_dict().items() if "num_batches" in name}


class Linear(nn.Module):
    """Scores of 4 classes that are linear in 16 pixels."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(4, 16, generator=torch.Generator().manual_seed(3)))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T
