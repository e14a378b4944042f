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

`targeted` is the plain attack, a fixed number of steps towards a given class within a fixed ball.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unlearn.data.images import Images, as_model_input
from unlearn.files import load_state, save_state
from unlearn.loop import device_of
from unlearn.session import current, session
from unlearn.store import write_json

Norm = Literal["l2", "linf"]

STRIDE = 0.1  # the length of a step, in radii
PART = 2000  # images: what an interrupted search can lose
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

    def __getitem__(self, index: Tensor) -> "Adversarial":
        return self._each(lambda part: part[index.to(part.device)])

    def to(self, device: torch.device) -> "Adversarial":
        """The same on `device`."""
        return self._each(lambda part: part.to(device))

    def save(self, file: Path) -> None:
        """Write all of it to an .npz file, of which labels, norms and the like can be read without the images."""
        arrays = {field.name: getattr(self, field.name).cpu().contiguous().numpy() for field in fields(self)}
        np.savez(file, **arrays)

    @staticmethod
    def load(file: Path) -> "Adversarial":
        """What `save` wrote, on the CPU."""
        with np.load(file) as arrays:
            return Adversarial(**{field.name: torch.from_numpy(arrays[field.name]) for field in fields(Adversarial)})

    @staticmethod
    def joined(parts: Sequence["Adversarial"]) -> "Adversarial":
        """All images of several searches, in order."""
        return Adversarial(*(torch.cat([getattr(p, field.name) for p in parts]) for field in fields(Adversarial)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Adversarial":
        return Adversarial(*(change(getattr(self, field.name)) for field in fields(self)))

    @property
    def failures(self) -> int:
        """How many images kept their label in every ball."""
        return int((~self.found).sum())


def doublings(shape: tuple[int, ...], norm: Norm, eps_init: float) -> int:
    """After so many, the ball around any image of this shape holds all others, and the search ends."""
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
    limit = steps * (1 + doublings(images.pixels.shape[1:], norm, eps_init))
    waiting = torch.arange(len(images), device=device_of(model))

    with evaluating(model), torch.enable_grad():
        search, waiting = _begun(images, waiting[:batch_size]), waiting[batch_size:]
        done = [search.only(search.rows < 0)]  # nothing yet, in the right shapes
        while len(search.rows):
            search, slope = search.answered(model)
            going = (search.answers == search.labels) & (search.taken < limit)
            if not going.all():
                done.append(search.only(~going))
                search, slope = search.only(going), slope[going]
            search = search.stepped(slope, eps_init, steps, norm)
            room = batch_size - len(search.rows)
            if room and len(waiting):
                search, waiting = _joined([search, _begun(images, waiting[:room])]), waiting[room:]

    ended = _joined(done)
    ended = ended.only(ended.rows.argsort())
    current().sample_gradients += int(ended.taken.sum())
    norms = _length(ended.here - ended.start, norm)
    eps = _radius((ended.taken - 1).clamp(min=0), eps_init, steps)
    results = (ended.here, ended.answers, norms, eps, ended.taken, ended.answers != ended.labels)
    return Adversarial(*(result.to(images.pixels.device) for result in results))


def targeted(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    begin: Tensor,
    *,
    radius: float,
    stride: float,
    steps: int,
    batch_size: int = 500,
) -> Tensor:
    """Images that `model`, in eval mode, is led to take for `labels`, B, after `steps` steps of length `stride`.

    They are float, B x C x H x W, in [0, 1] and at most `radius` from `images` in the l2 norm, and come from `begin`,
    down the gradient of cross-entropy, or rather up that of the margin, which does not vanish. Whether the model is
    led that far is not asked. The model comes back as it was, and the session counts one gradient an image and step.
    """
    ends = []
    with evaluating(model), torch.enable_grad():
        for rows in torch.arange(len(images), device=images.device).split(batch_size):
            start, here = images[rows], begin[rows]
            for _ in range(steps):
                here = here.detach().requires_grad_()
                scores = model(here)
                (slope,) = torch.autograd.grad(scores, here, away(scores.detach(), labels[rows]))
                moved = here.detach() - stride * _direction(slope)
                here = (start + _shortened(moved - start, radius)).clamp(0, 1)
            current().sample_gradients += len(rows) * steps
            ends.append(here.detach())
    return torch.cat(ends)


def anywhere_within(images: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Random images: uniform in [0, 1], then brought to within `radius` of `images` in the l2 norm if beyond it."""
    change = torch.rand(images.shape, generator=generator).to(images) - images
    return (images + _shortened(change, radius)).clamp(0, 1)


def search_in_parts(
    folder: Path,
    model: nn.Module,
    images: Images,
    norm: Norm,
    eps_init: float,
    steps: int,
    show: Callable[..., None] | None = None,
) -> None:
    """Write what `nearest` finds to `folder`, as adversarial.npz, with its cost.json; an interrupted search goes on.

    Each part of `PART` images is kept in `folder/checkpoints` when it is done, and shown.
    """
    parts = torch.arange(len(images)).split(PART)
    found, seconds = [], 0.0
    for number, part in enumerate(parts):
        file = folder / "checkpoints" / f"{number}.pt"
        if not file.exists():
            with session() as done:
                its = nearest(model, images[part], norm=norm, eps_init=eps_init, steps=steps)
                save_state(file, {"found": vars(its), "seconds": done.seconds(device_of(model))})
        state = load_state(file, torch.device("cpu"))
        found.append(Adversarial(**state["found"]))
        seconds += state["seconds"]
        if show:
            show("adversarial images", {"epoch": number + 1, "seconds": state["seconds"]}, len(parts))
    whole = Adversarial.joined(found)
    whole.save(folder / "adversarial.npz")
    write_json(folder / "cost.json", {"seconds": seconds, "sample_gradients": int(whole.steps.sum())})


class _Search(NamedTuple):
    """Images at some place of their search: which, their classes, where they were and are, steps and last answers."""

    rows: Tensor
    labels: Tensor
    start: Tensor
    here: Tensor
    taken: Tensor
    answers: Tensor

    def only(self, chosen: Tensor) -> "_Search":
        return _Search(*(part[chosen] for part in self))

    def answered(self, model: nn.Module) -> tuple["_Search", Tensor]:
        """What the model takes the images for now, and the way up."""
        here = self.here.detach().requires_grad_()
        scores = model(here)
        (slope,) = torch.autograd.grad(scores, here, away(scores.detach(), self.labels))
        return self._replace(answers=scores.detach().argmax(1)), slope

    def stepped(self, slope: Tensor, eps_init: float, steps: int, norm: Norm) -> "_Search":
        """One step up the slope, back into the ball around the start, and into [0, 1]."""
        radius = _radius(self.taken, eps_init, steps)[:, None, None, None]
        if norm == "linf":
            change = (self.here + STRIDE * radius * slope.sign() - self.start).clamp(-radius, radius)
        else:
            change = _shortened(self.here + STRIDE * radius * _direction(slope) - self.start, radius)
        return self._replace(here=(self.start + change).clamp(0, 1), taken=self.taken + 1)


def _begun(images: Images, rows: Tensor) -> _Search:
    chosen = images[rows]
    start, labels = as_model_input(chosen.pixels, rows.device), chosen.labels.to(rows.device)
    return _Search(rows, labels, start, start, torch.zeros_like(rows), labels)


def _joined(parts: list[_Search]) -> _Search:
    return _Search(*map(torch.cat, zip(*parts, strict=True)))


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


def away(scores: Tensor, labels: Tensor) -> Tensor:
    """The gradient, by B x C scores, of log sum exp of the other classes' minus the true class's."""
    true = nn.functional.one_hot(labels, scores.shape[1]).bool()
    return scores.masked_fill(true, -torch.inf).softmax(1).masked_fill_(true, -1)


def _direction(slope: Tensor) -> Tensor:
    return slope / (_length(slope, "l2")[:, None, None, None] + DIVISION)


def _shortened(change: Tensor, radius: Tensor | float) -> Tensor:
    return change * (radius / _length(change, "l2")[:, None, None, None]).clamp(max=1)


def _length(images: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(images, math.inf if norm == "linf" else 2, dim=(1, 2, 3))
