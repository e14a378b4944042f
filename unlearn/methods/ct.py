"""CT, convolution transpose: swap height and width of every convolution's kernels, then fine-tune.

    W[o, i, h, w] = W[o, i, w, h], then minimise CE(R)

The entry ranked fifth in Deep Unlearn's order (kgltop5) of the NeurIPS 2023 unlearning competition (Triantafillou et
al., 2024, arXiv:2406.09073). It comes from no paper of its own; this follows its port in xcadet/deepunlearn (Cadet et
al., 2024, arXiv:2410.01276), the entry itself was not read. A transposed network is the network of transposed images
up to its dense layers, so that the features are not lost but looked for in the wrong direction. The retained images
are then learned at a rate that falls by a cosine, epoch by epoch.

A kernel of one pixel is its own transpose. A network without a square kernel larger than that is refused: nothing
would be left but fine-tuning. Of a plain vision transformer, the patch embedding alone is transposed.

Deviations from the released code:
- Kernels that are not square stay. There they are transposed too, and their outputs get another shape.
- Batches are not augmented, as there.
"""

from typing import Any

import torch
from torch import nn

from unlearn.batches import shuffled
from unlearn.convolutions import learning_weights
from unlearn.loop import cross_entropy, fit
from unlearn.request import Request
from unlearn.schedules import cosine_by_epoch
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Probability, SettingError
from unlearn.streams import Streams

NEEDS = frozenset({"retain"})


def ct(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
) -> nn.Module:
    """Descend on retained images from transposed kernels; without a learning rate nothing is transposed."""
    kernels = learning_weights(model, square_layers(model))
    with torch.no_grad():
        for kernel in kernels.values() if lr else ():
            kernel.copy_(kernel.transpose(2, 3).clone())
    current().history.append({"transposed": sum(kernel.numel() for kernel in kernels.values()) if lr else 0})
    return fit(
        model,
        shuffled(request.retain, batch_size, streams, augmented=False),
        cross_entropy,
        streams,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=cosine_by_epoch,
    )


def check(lab: Any, **_: Any) -> None:
    """The model has a kernel to transpose."""
    square_layers(lab.training.initialised(Streams("check")))


def square_layers(model: nn.Module) -> list[nn.Conv2d]:
    """The convolutions whose kernels have a transpose; none at all is a `SettingError`."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d) and is_square(module)]
    if not layers:
        allowed = "needs a model with a convolution whose kernel is square and larger than one pixel"
        raise SettingError("method", "ct", allowed)
    return layers


def is_square(layer: nn.Conv2d) -> bool:
    """Say whether a kernel has a transpose of its own shape that is not itself."""
    height, width = layer.kernel_size
    return height == width > 1
