"""Adversarial images: for each image the nearest one, up to a factor, that a model takes for another class.

The search of AMUN (Ebrahimpour-Boroojeny et al., ICML 2025, arXiv:2503.00917, code Ali-E/AMUN): projected gradient
ascent (Madry et al., ICLR 2018, arXiv:1706.06083) within a ball around the image, whose radius doubles after every
`steps` steps until the prediction is wrong. The ascent goes on from where it is when the ball grows.

Deviations from the released code:
- The gradient is that of log sum exp of the other classes' scores minus the true class's. It is cross-entropy's divided
  by 1 - p, which is the same direction and so the same step, but it does not vanish where float32 rounds p to 1, on the
  very images that a model knows by heart.
- An image that stays right in a ball that holds every image is a failure, and counted; the released code never ends.
- The place of an image that is done is taken by the next, so that batches stay full until no image is waiting.
- The maximum norm, with signs for the gradient, is added here.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of
from unlearn.session import current

Norm = Literal["l2", "linf"]

STRIDE = 0.1  # the length of a step, in radii
DIVISION = 1e-10  # a gradient of zero stays zero


@dataclass(frozen=True)
class Adversarial:
    """What was found for each of N images, on their device.

    `images` are float, N x C x H x W, in [0, 1] and never rounded to 8 bits, which would undo steps this small;
    `labels` is the class that the model takes them for; `norms` is their distance to the image and `eps` the radius of
    the ball they were found in, both as `norm` measures; `steps` is the number of gradients it took. `found` is false
    for failures: they hold the last image tried and are still labelled right.

    An image that was wrong to begin with is its own, at distance 0, with the first radius and no step.
    """

    images: Tensor
    labels: Tensor
    norms: Tensor
    eps: Tensor
    steps: Tensor
    found: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def failures(self) -> int:
        """How many images kept their label in every ball."""
        return int((~self.found).sum())


def doublings(shape: tuple[int, ...], norm: Norm, eps_init: float) -> int:
    """After so many the ball around any image of this shape (C, H, W) holds all others, and the search ends."""
    diameter = math.sqrt(math.prod(shape)) if norm == "l2" else 1.0
    return max(0, math.ceil(math.log2(diameter / eps_init)))


def nearest(
    model: nn.Module, images: Images, *, norm: Norm, eps_init: float, steps: int, batch_size: int = 500
) -> Adversarial:
    """Search around every image for the nearest that `model`, in eval mode, does not give its label to.

    The ball's radius starts at `eps_init`, doubles after every `steps` steps of a tenth of it, and ends where the ball
    holds all images (`doublings`). At most `batch_size` images are in the model at a time, each only until it is done.
    Nothing is drawn, the model comes back as it was, and the session counts one gradient an image and step.
    """
    device, count = device_of(model), len(images)
    pixels, labels = images.pixels.to(device), images.labels.to(device)
    here = as_model_input(pixels, device).permute(0, 2, 3, 1)  # N x H x W x C, contiguous, as the pixels are
    predicted, taken = torch.empty_like(labels), torch.zeros_like(labels)
    limit = steps * (1 + doublings(images.pixels.shape[1:], norm, eps_init))

    rows = torch.arange(min(batch_size, count), device=device)
    begun = len(rows)
    with evaluating(model), torch.enable_grad():
        while len(rows):
            batch = here[rows].permute(0, 3, 1, 2).requires_grad_()
            scores = model(batch)
            predicted[rows] = scores.detach().argmax(1)
            going = (predicted[rows] == labels[rows]) & (taken[rows] < limit)
            if going.any():
                (gradient,) = torch.autograd.grad(scores, batch, _away(scores.detach(), labels[rows], going))
                rows, batch = rows[going], batch.detach()[going]
                start, radius = as_model_input(pixels[rows], device), _radius(taken[rows], eps_init, steps)
                here[rows] = _stepped(start, batch, gradient[going], radius, norm).permute(0, 2, 3, 1)
                taken[rows] += 1
            else:
                rows = rows[:0]
            fresh = torch.arange(begun, min(begun + batch_size - len(rows), count), device=device)
            rows, begun = torch.cat([rows, fresh]), begun + len(fresh)

    current().sample_gradients += int(taken.sum())
    home, found = images.pixels.device, here.permute(0, 3, 1, 2)
    norms = _length(found - as_model_input(pixels, device), norm)
    eps = _radius((taken - 1).clamp(min=0), eps_init, steps)
    return Adversarial(*(part.to(home) for part in (found, predicted, norms, eps, taken, predicted != labels)))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, and each of its modules in its own mode again after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _radius(taken: Tensor, eps_init: float, steps: int) -> Tensor:
    return eps_init * torch.exp2((taken // steps).float())


def _away(scores: Tensor, labels: Tensor, going: Tensor) -> Tensor:
    """The gradient by the scores of log sum exp of the others minus the true one, for the images still going."""
    true = nn.functional.one_hot(labels, scores.shape[1])
    others = scores.masked_fill(true.bool(), -torch.inf).softmax(1)
    return (others - true) * going[:, None]


def _stepped(start: Tensor, here: Tensor, gradient: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """One step up the gradient, back into the ball around `start`, and into [0, 1]."""
    radius = radius[:, None, None, None]
    if norm == "linf":
        change = (here + STRIDE * radius * gradient.sign() - start).clamp(-radius, radius)
    else:
        direction = gradient / (_length(gradient, norm)[:, None, None, None] + DIVISION)
        change = here + STRIDE * radius * direction - start
        change = change * (radius / _length(change, norm)[:, None, None, None]).clamp(max=1)
    return (start + change).clamp(0, 1)


def _length(images: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(images, math.inf if norm == "linf" else 2, dim=(1, 2, 3))
