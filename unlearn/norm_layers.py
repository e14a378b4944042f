"""What passes through the normalisation layers of a model, summed up feature by feature in one pass over images."""

from collections.abc import Callable
from copy import deepcopy
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of

Where = Literal["output", "input", "scale_free", "scatter"]
KINDS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
BATCH = 100  # images; in float64 the outputs of early layers are large


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every batch, layer and group norm of a model by name; the standardisation of its input is none of them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


@torch.no_grad()
def moments(
    model: nn.Module, images: Images, cells: NDArray[np.int64], count: int, where: Where
) -> dict[str, NDArray[np.float64]]:
    """For each norm layer a `count` x 3 x K array: for each cell and feature the number of values, their sum, and that
    of their squares, all in float64; `cells` says to which cell each image belongs.

    Layers are in the order of their first use, and one that is never used is not there. `where` takes the values from a
    layer's `output`, from its `input`, from its output without scale and shift (`scale_free`), or takes only the mean
    of an image's output over positions (`scatter`).
    """
    device = device_of(model)
    model.eval()
    sums: dict[str, Tensor] = {}
    given = torch.from_numpy(cells)

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        plain = _without_affine(module) if where == "scale_free" else module

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            values = inputs[0] if where == "input" else output
            if where == "scale_free":
                values = plain.forward(inputs[0])
            values = _by_feature(module, values).double()
            if where == "scatter":
                values = values.mean(dim=1, keepdim=True)
            number = torch.full_like(values[:, 0], values.shape[1])
            added = torch.stack([number, values.sum(dim=1), values.square().sum(dim=1)], dim=1).cpu()
            sums.setdefault(name, added.new_zeros(count, *added.shape[1:])).index_add_(0, shown, added)

        return hook

    handles = [module.register_forward_hook(watch(name, module)) for name, module in norm_layers(model).items()]
    try:
        for start in range(0, len(images), BATCH):
            shown = given[start : start + BATCH]  # to the hooks
            model(as_model_input(images.pixels[start : start + BATCH], device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: its.numpy() for name, its in sums.items()}


def _by_feature(module: nn.Module, values: Tensor) -> Tensor:
    """A layer's input or output as images x positions x features."""
    if isinstance(module, nn.LayerNorm) and not isinstance(module, LayerNorm2d):
        features = values.flatten(values.ndim - len(module.normalized_shape))
        return features.reshape(len(values), -1, features.shape[-1])
    return values.reshape(*values.shape[:2], -1).transpose(1, 2)


def _without_affine(module: nn.Module) -> nn.Module:
    plain = deepcopy(module)
    for parameter, value in ((plain.weight, 1.0), (plain.bias, 0.0)):
        if isinstance(parameter, Tensor):
            parameter.fill_(value)
    return plain
