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
from typing import Literal, NamedTuple

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
    limit = steps * (1 + doublings(images.pixels.shape[1:], norm, eps_init))
    found, waiting = as_model_input(images.pixels, device), torch.arange(count, device=device)
    predicted, taken = torch.empty_like(waiting), torch.empty_like(waiting)

    with evaluating(model), torch.enable_grad():
        search, waiting = _begun(images, waiting[:batch_size]), waiting[batch_size:]
        while len(search.rows):
            scores = model(search.here.requires_grad_())
            answers = scores.detach().argmax(1)
            (slope,) = torch.autograd.grad(scores, search.here, _away(scores.detach(), search.labels))
            going = (answers == search.labels) & (search.taken < limit)
            if not going.all():
                done = search.only(~going)
                found[done.rows], predicted[done.rows], taken[done.rows] = (
                    done.here.detach(),
                    answers[~going],
                    done.taken,
                )
                search, slope = search.only(going), slope[going]
            search = search.stepped(slope, eps_init, steps, norm)
            if len(waiting) and len(search.rows) < batch_size:
                room = batch_size - len(search.rows)
                search, waiting = search.joined(_begun(images, waiting[:room])), waiting[room:]

    current().sample_gradients += int(taken.sum())
    norms = _length(found - as_model_input(images.pixels, device), norm)
    eps = _radius((taken - 1).clamp(min=0), eps_init, steps)
    wrong = predicted != images.labels.to(device)
    return Adversarial(*(part.to(images.pixels.device) for part in (found, predicted, norms, eps, taken, wrong)))


class _Search(NamedTuple):
    """The images in the model: which, their classes, where they were and are, and how many steps they have taken."""

    rows: Tensor
    labels: Tensor
    start: Tensor
    here: Tensor
    taken: Tensor

    def only(self, chosen: Tensor) -> "_Search":
        return _Search(*(part[chosen] for part in self))

    def joined(self, other: "_Search") -> "_Search":
        return _Search(*(torch.cat(parts) for parts in zip(self, other, strict=True)))

    def stepped(self, slope: Tensor, eps_init: float, steps: int, norm: Norm) -> "_Search":
        """One step up the slope, back into the ball around the start, and into [0, 1]."""
        radius = _radius(self.taken, eps_init, steps)[:, None, None, None]
        here = self.here.detach()
        if norm == "linf":
            change = (here + STRIDE * radius * slope.sign() - self.start).clamp(-radius, radius)
        else:
            change = (
                here + STRIDE * radius * slope / (_length(slope, norm)[:, None, None, None] + DIVISION) - self.start
            )
            change = change * (radius / _length(change, norm)[:, None, None, None]).clamp(max=1)
        return self._replace(here=(self.start + change).clamp(0, 1), taken=self.taken + 1)


def _begun(images: Images, rows: Tensor) -> _Search:
    chosen = images[rows]
    start = as_model_input(chosen.pixels, rows.device)
    return _Search(rows, chosen.labels.to(rows.device), start, start, torch.zeros_like(rows))


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


def _away(scores: Tensor, labels: Tensor) -> Tensor:
    """The gradient, by the scores, of log sum exp of the others minus the true one."""
    true = nn.functional.one_hot(labels, scores.shape[1]).bool()
    return scores.masked_fill(true, -torch.inf).softmax(1).masked_fill_(true, -1)


def _length(images: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(images, math.inf if norm == "linf" else 2, dim=(1, 2, 3))
