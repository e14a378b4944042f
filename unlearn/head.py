"""The classifier of a network and the features that enter it, on any architecture.

Two ways to find a classifier. `last_linear` looks at a forward pass and wants a linear layer. `classifier` looks at
shapes alone, and takes a convolution too. Where a network has such a linear layer at its end both find the same one.
Features are what enters it: the class token of a transformer, what a pool leaves of a convolutional net. What a network
does behind it, such as the factor of `fastnet`, belongs to its scores.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unlearn.attacks import evaluating
from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of
from unlearn.settings import SettingError
from unlearn.streams import Streams
from unlearn.teachers import answers


class Observed(NamedTuple):
    """What enters the classifier, B x D in fp32, and what the model answers, B x C."""

    features: Tensor
    scores: Tensor


def last_linear(method: str, model: nn.Module, images: Images, class_count: int) -> tuple[str, nn.Linear]:
    """The linear layer that the model uses last, and its name; a `SettingError` unless it has a row for each class.

    It is found by looking: the first of `images` is shown to the model, which comes back as it was. The error names
    `method`.
    """
    used: list[nn.Linear] = []

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        used.append(layer)

    handles = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        with evaluating(model):
            answers(model, as_model_input(images.pixels[:1], device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    if not used or used[-1].out_features != class_count:
        raise SettingError("method", method, f"needs a model whose last layer is linear, to {class_count}")
    return next(name for name, module in model.named_modules() if module is used[-1]), used[-1]


def head_of(method: str, model: nn.Module, images: Images, class_count: int) -> str:
    """That layer's name, for methods that use features: what enters it must be one vector an image."""
    head, _ = last_linear(method, model, images, class_count)
    with evaluating(model), torch.no_grad():
        features, _ = observed(model, head, as_model_input(images.pixels[:1], device_of(model)))
    if features.ndim != 2:
        shape = " x ".join(map(str, features.shape[1:]))
        raise SettingError("method", method, f"needs one vector of features an image, and this model has {shape}")
    return head


def check_head(method: str, lab: Any) -> None:
    """The lab's model has a head that `head_of` finds. Raises `SettingError`."""
    head_of(method, lab.training.initialised(Streams("check")), lab.data.train, lab.data.class_count)


def classifier(model: nn.Module, class_count: int) -> set[str]:
    """Names of the parameters with a row for each class in the last module that has such a parameter of its own."""
    names: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim and len(parameter) == class_count:
            names.setdefault(name.rpartition(".")[0], set()).add(name)
    return list(names.values())[-1] if names else set()


def observed(model: nn.Module, head: str, images: Tensor) -> Observed:
    """One forward pass of `model` on B x C x H x W images in [0, 1], and what entered its module `head` in it."""
    seen: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = model.get_submodule(head).register_forward_pre_hook(note)
    try:
        scores: Tensor = model(images)
    finally:
        handle.remove()
    return Observed(seen[-1].float(), scores)


@torch.no_grad()
def features_of(model: nn.Module, head: str, images: Images, batch_size: int = 500) -> Tensor:
    """The features of all images, N x D in fp32 on the model's device, in eval mode and without augmentation."""
    device = device_of(model)
    with evaluating(model):
        parts = images.pixels.split(batch_size)
        return torch.cat([observed(model, head, as_model_input(pixels, device)).features for pixels in parts])
