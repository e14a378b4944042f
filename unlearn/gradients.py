"""Gradients of a model that stands still, of single images or of batches, and what is made of them.

For methods that compute a change of the weights instead of training. All of it is in fp32, in eval mode and without
augmentation, for the parameters that require a gradient alone; it leaves the model in eval mode and no gradient behind,
and the session counts one gradient an image (and class, where each class is tried as the label).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of
from unlearn.session import current

ELEMENTS = 2**27  # numbers in the gradients of images that are held at a time, unless one image has more
AT_A_TIME = 500  # images in the model at a time, at most, when each has a gradient of its own

Losses = Callable[[Tensor, Tensor], Tensor]
"""(B x C scores, B labels) -> B losses."""


class Part(NamedTuple):
    """Gradients of the mean losses of some batches of `size` images each: K x the parameter's shape, by its name."""

    size: int
    gradients: dict[str, Tensor]


def cross_entropies(scores: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each image."""
    return nn.functional.cross_entropy(scores, labels, reduction="none")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by their names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(
    model: nn.Module, images: Images, losses: Losses = cross_entropies, *, batch_size: int = 1
) -> Iterator[Part]:
    """The gradient of the mean loss of each batch of `images`, in their order; the last batch may be smaller.

    A batch of one has its image's own gradient; of these, several come in one part, as many as `ELEMENTS` has room for.
    """
    model.eval()
    if batch_size == 1:
        yield from _of_images(model, images, losses)
        return
    named = trained(model)
    for rows in torch.arange(len(images)).split(batch_size):
        inputs, labels = _on_device(model, images[rows])
        loss = losses(model(inputs), labels).mean()
        found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        current().sample_gradients += len(rows)
        yield Part(len(rows), {name: gradient[None] for name, gradient in zip(named, found, strict=True)})


def mean_gradient(model: nn.Module, images: Images, batch_size: int) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy over all of `images`, put together from those of batches."""
    means = {name: torch.zeros_like(parameter) for name, parameter in trained(model).items()}
    for size, parts in gradients(model, images, batch_size=batch_size):
        for name, part in parts.items():
            means[name] += part.sum(0) * (size / len(images))
    return means


def fisher_diagonal(model: nn.Module, images: Images, class_count: int) -> dict[str, Tensor]:
    """The diagonal of the Fisher information: the mean over `images` of sum_y p(y) g_y squared.

    g_y is an image's gradient of its cross-entropy under the label y, and p(y) is what the model thinks of that label.
    It takes `class_count` gradients an image.
    """
    diagonal = {name: torch.zeros_like(parameter) for name, parameter in trained(model).items()}
    for label in range(class_count):
        labelled = images.relabelled(torch.full_like(images.labels, label))
        for _, parts in gradients(model, labelled, _weighted):
            for name, part in parts.items():
                diagonal[name] += part.square().sum(0) / len(images)
    return diagonal


def flat(parts: dict[str, Tensor]) -> Tensor:
    """K gradients as the rows of a matrix, the parameters' entries one behind the other."""
    return torch.cat([part.flatten(1) for part in parts.values()], dim=1)


@torch.no_grad()
def move(model: nn.Module, step: Tensor) -> None:
    """Add a row as `flat` makes them to the trained parameters."""
    named = trained(model)
    pieces = step.split([parameter.numel() for parameter in named.values()])
    for parameter, piece in zip(named.values(), pieces, strict=True):
        parameter.add_(piece.view_as(parameter))


def _of_images(model: nn.Module, images: Images, losses: Losses) -> Iterator[Part]:
    named = {name: parameter.detach() for name, parameter in trained(model).items()}
    one = vmap(grad(partial(_loss_of_one, model, losses)), in_dims=(None, 0, 0))
    room = ELEMENTS // sum(parameter.numel() for parameter in named.values())
    for rows in torch.arange(len(images)).split(max(1, min(room, AT_A_TIME))):
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be mapped over images, and fall back on a loop
            found = one(named, *_on_device(model, images[rows]))
        current().sample_gradients += len(rows)
        yield Part(1, found)


def _loss_of_one(
    model: nn.Module, losses: Losses, parameters: dict[str, Tensor], image: Tensor, label: Tensor
) -> Tensor:
    scores: Tensor = functional_call(model, parameters, (image[None],))
    return losses(scores, label[None])[0]


def _on_device(model: nn.Module, images: Images) -> tuple[Tensor, Tensor]:
    device = device_of(model)
    return as_model_input(images.pixels, device), images.labels.to(device)


def _weighted(scores: Tensor, labels: Tensor) -> Tensor:
    """Losses whose squared gradients are p(label) times those of the cross-entropy."""
    chance = scores.detach().softmax(1).gather(1, labels[:, None])[:, 0]
    return chance.sqrt() * cross_entropies(scores, labels)
