"""AMUN: fit each forgotten image's nearest adversarial neighbour, under the class that the model sees there.

    minimise CE of R, F and {(x', y')}: x' is the image nearest to x in F with y' = argmax f(x'; theta_o) not y

Ebrahimpour-Boroojeny, Sundaram & Chandrasekaran (ICML 2025, arXiv:2503.00917); code Ali-E/AMUN. The neighbours (D_A)
join the training set (D_R and D_F, the forget set under its true labels), and plain fine-tuning on all of them lowers
the confidence around each forgotten image without moving decisions elsewhere. `retain` and `forget` say which of D_R
and D_F stay in: both for the main method; D_A with D_R or alone is the released `advonly`. Without `retain` the
retained images are not looked at, though they are declared. Requests in turn all use neighbours on the original model,
or on the model as it is by then (the paper's AMUN-A, `neighbours_of: current`). `control` puts an ablation's set in the
place of D_A (Fig. 1 of the paper), to see what is owed to it.

Their smooth models, of a bounded spectral norm, are another original and not another method: `train=spectral_clip
model=resnet18_no_norm`, or `experiment=amun_smooth_cifar10_random10` and its like.

Deviations from the released code. `compat: released` brings the last three back; the search is the same with it:
- The neighbours are searched for as `attacks.py` does and with its deviations, once for a model, and kept in the store
  under its bits. The released code reads them from a file, which may stem from another checkpoint (issue #1 there).
  It searches around the whole training set, `searched: train`, which all forget sets then share.
- A forgotten image without a neighbour has no part in D_A; how many, goes to the history and to standard error.
- A mask is kept to: what it leaves out does not move. The released one filters gradients alone, and lets weight decay
  and momentum by.
- `random_direction` reflects the coordinates that would leave [0, 1], which keeps the length that the control is about;
  the released code clamps them. Like the released code it draws a direction, and the other controls a label, once an
  epoch for each image.
- Beside `second_copy` the training set is augmented as ever; the released code then augments nothing at all.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from unlearn.attacks import Adversarial, Norm
from unlearn.batches import Batch, Batches, anew, sizes
from unlearn.data.augment import augment
from unlearn.data.images import Images, as_model_input
from unlearn.loop import cross_entropy, descend, fit
from unlearn.masks import filtered, salient
from unlearn.request import Of, Request, Searched
from unlearn.schedules import multistep
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Positive, Probability, SettingError
from unlearn.streams import Streams

NEEDS = frozenset({"forget", "retain"})

Control = Literal[
    "none",
    "random_direction",
    "random_label",
    "adversarial_random_label",
    "clean_adversarial_label",
    "second_copy",
]


def amun(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    lr_step: Count,
    gamma: Positive,
    retain: bool,
    forget: bool,
    adversarial_augmented: bool,
    norm: Norm,
    eps_init: Positive,
    steps: Count,
    neighbours_of: Of,
    searched: Searched,
    control: Control,
    mask_share: Probability | None,
    compat: Literal["released"] | None,
) -> nn.Module:
    """Descend on the cross-entropy of the images asked for and of the forget set's adversarial neighbours.

    With a `mask_share` only that share of the model's entries moves, those most salient to the forget set (`masks.py`).
    """
    if control in ("random_label", "adversarial_random_label") and request.class_count < 3:
        raise SettingError("method.control", control, "needs a third class, neither the true nor the adversarial one")
    search = partial(request.neighbours, neighbours_of, searched, norm, eps_init, steps)
    adversarial = in_place(request, search, norm, control, streams, clamped=bool(compat))
    images = clean(request, retain, forget)
    if compat and control == "second_copy":
        images = replace(images, augment=())
    mask = None if mask_share is None else salient(model, request.forget, mask_share)
    batches = anew(
        len(sizes(len(images) + len(adversarial(0).labels), batch_size)),
        lambda epoch: mixed(images, adversarial(epoch), batch_size, streams, ready_augmented=adversarial_augmented),
    )
    return fit(
        model,
        batches,
        cross_entropy,
        streams,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=partial(multistep, milestones=range(lr_step, epochs, lr_step), gamma=gamma),
        backward=descend if mask is None or not compat else filtered(mask),
        mask=None if compat else mask,
    )


def clean(request: Request, retain: bool, forget: bool) -> Images:
    """The part of the training set that stays in, under its true labels."""
    if retain and forget:
        return request.retain.joined(request.forget)
    return request.retain if retain else request.forget[torch.arange(len(request.forget) if forget else 0)]


def in_place(
    request: Request,
    search: Callable[[], Adversarial],
    norm: Norm,
    control: Control,
    streams: Streams,
    *,
    clamped: bool = False,
) -> Callable[[int], Batch]:
    """By the number of the epoch, D_A, or what `control` puts in its place: images that are ready for the model.

    `clamped` makes the random direction as the released code does.
    """
    if control == "second_copy":
        copy = Batch(as_model_input(request.forget.pixels, request.forget.pixels.device), request.forget.labels)
        return lambda epoch: copy
    searched = search()
    report(searched)
    found = searched.found.nonzero().flatten()
    start = as_model_input(request.forget[found].pixels, searched.images.device)
    true, there, labels = request.forget.labels[found], searched.images[found], searched.labels[found]

    def drawn(epoch: int) -> Batch:
        generator = streams("control", epoch)
        match control:
            case "random_direction":
                return Batch(aside(start, searched.norms[found], norm, generator, clamped=clamped), labels)
            case "random_label" | "adversarial_random_label":
                third = third_label(true, labels, request.class_count, generator)
                return Batch(start if control == "random_label" else there, third)
            case "clean_adversarial_label":
                return Batch(start, labels)
            case _:
                return Batch(there, labels)

    return drawn


def report(searched: Adversarial) -> None:
    """Put the outcome of the search into the history; without any neighbour there is nothing to unlearn with."""
    line = {"adversarial": len(searched) - searched.failures, "adversarial_failures": searched.failures}
    if searched.failures:
        print(f"amun: {searched.failures} of {len(searched)} images have no adversarial neighbour", file=sys.stderr)
    if not line["adversarial"]:
        allowed = f"finds no adversarial neighbour of any of the {len(searched)} forgotten images"
        raise SettingError("method", "amun", allowed)
    current().history.append(line | {"adversarial_norm": float(searched.norms[searched.found].mean())})


def aside(start: Tensor, lengths: Tensor, norm: Norm, generator: torch.Generator, *, clamped: bool = False) -> Tensor:
    """Each image moved by its length in a random direction.

    A coordinate that would leave [0, 1] goes the other way, and is clamped if it moves by more than a half or if all
    are to be.
    """
    direction = torch.randn(start.shape, generator=generator).to(start.device)
    if norm == "linf":
        direction = direction.sign()  # as the attack's steps are
    else:
        direction = direction / torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
    change = direction * lengths[:, None, None, None]
    moved = start + change
    if clamped:
        return moved.clamp(0, 1)
    return torch.where((moved < 0) | (moved > 1), start - change, moved).clamp(0, 1)


def third_label(true: Tensor, adversarial: Tensor, class_count: int, generator: torch.Generator) -> Tensor:
    """One label each, uniform over the classes that are neither of the two."""
    drawn = torch.randint(class_count - 2, true.shape, generator=generator).to(true.device)
    lower, upper = torch.minimum(true, adversarial), torch.maximum(true, adversarial)
    drawn = drawn + (drawn >= lower)
    return drawn + (drawn >= upper)


def mixed(
    images: Images,
    ready: Batch,
    batch_size: int,
    streams: Streams,
    *,
    ready_augmented: bool = False,
    visits: Tensor | None = None,
) -> Batches:
    """Every image of both once an epoch, shuffled together; `images` augmented as their data set asks.

    `ready` is float, in [0, 1], and reaches the model as it is, or augmented too; its pixels are never rounded. If it
    is empty this is `shuffled`, draw for draw. `visits` are the positions in it that an epoch visits, if not each once.
    Data sets too large for a GPU may be on another device than what is `ready`.
    """
    visits = torch.arange(len(ready.labels)) if visits is None else visits
    batch_sizes = sizes(len(images) + len(visits), batch_size)
    floats, device = ready.images.permute(0, 2, 3, 1).contiguous(), ready.images.device

    def epoch(number: int) -> Iterator[Batch]:
        order = torch.randperm(sum(batch_sizes), generator=streams("order", number))
        generator, other = streams("augment", number), streams("augment ready", number)
        for chosen in order.split(batch_sizes):
            first = chosen[chosen < len(images)].to(images.pixels.device)
            second = visits[chosen[chosen >= len(images)] - len(images)].to(device)
            pixels = augment(images.pixels[first], images.augment, generator)
            nearby = augment(floats[second], images.augment if ready_augmented else (), other)
            both = torch.cat([as_model_input(pixels, device).permute(0, 2, 3, 1), nearby])
            yield Batch(both.permute(0, 3, 1, 2), torch.cat([images.labels[first].to(device), ready.labels[second]]))

    return Batches(len(batch_sizes), epoch)
