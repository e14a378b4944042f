"""Scissorhands: draw the weights anew that the forget set is most connected to, and repair, never to learn it again.

    draw anew the entries with the largest |theta_j grad_j CE(F)|, then minimise CE(R) - lambda CE(F) and CE(R)

Wu & Harandi, "Scissorhands: Scrub data influence via connection sensitivity in networks" (ECCV 2024, arXiv:2401.06187);
code JingWu321/Scissorhands, which was read; of the paper, the abstract alone. The entries of all parameters are ranked
by their connection sensitivity to the forget set, |gradient * value| (SNIP: Lee, Ajanthan & Torr, ICLR 2019,
arXiv:1810.02340), and the `trim_share` of them with the largest are drawn anew, those of norm layers excepted. Repair
is fine-tuning: each epoch begins with one pass over the forget set, in steps on CE(retain) - `forget_weight` *
CE(forget) that walk over as many retained batches, and plain steps on the other retained batches follow; of a forget
set that is longer than the retained one, an epoch meets as many batches as there are of these. In the first
kind of step, a gradient g with an inner product below 0 with m, minus the gradient of the forget set's cross-entropy
when the epoch began, becomes g + v m with v = max(-<g, m> / <m, m>, `margin`), by which the step does not lower that
loss, to first order (GEM: Lopez-Paz & Ranzato, NeurIPS 2017, arXiv:1706.08840). The released `sparsity: 0.97` is the
share that is not trimmed.

Deviations from the released code:
- It takes both gradients of 256 forget images drawn at random (`gradient_images`), that of the sensitivity in training
  mode with moving norm statistics; here they are of the whole forget set, in eval mode, without augmentation.
- It trims and projects in the last two of a ResNet-18's four stages and in its last layer alone, though it ranks all
  entries: `modules: [layer3, layer4, fc]`. Here all of the network is trimmed.
- New values are the architecture's own initialisation. There they are uniform, as torch's convolutions and dense layers
  begin, and 0 for biases; gains and biases of norm layers in its shortcuts, which its names do not tell, are redrawn.
- It adds 1e-3 to <m, m>, so that where gradients are small its steps do lower the forget set's loss.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.attacks import evaluating
from unlearn.batches import Batch, announced, shuffled
from unlearn.data.images import Images
from unlearn.games.bargaining import Weights, combine, gram_matrix
from unlearn.gradients import mean_gradient, trained
from unlearn.layers import scope
from unlearn.loop import cross_entropy, descend, fit
from unlearn.masks import largest
from unlearn.methods.munba import first_batches
from unlearn.request import Request
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Probability, SettingError
from unlearn.spectral_clip import NORMS
from unlearn.streams import Streams

NEEDS = frozenset({"retain", "forget"})


def check(lab: Any, *, modules: list[str] | None, **_: Any) -> None:
    """The model has the modules to trim, and some of what is trained is in them."""
    model = lab.training.initialised(Streams("check"))
    with scope(model, lab.layers):
        to_trim(model, modules)


GRADIENT_BATCH = 500  # images at a time; the result does not depend on it, but for rounding


def scissorhands(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    trim_share: Probability,
    modules: list[str] | None,
    gradient_images: Count | None,
    forget_weight: NotNegative,
    project: bool,
    margin: NotNegative,
) -> nn.Module:
    """Trim the entries most sensitive to the forget set, and repair with gradients that are projected from it."""
    chosen = to_trim(model, modules)
    if lr:
        few = some(request.forget, gradient_images, streams("sensitive images"))
        trim(model, request.recipe.initialised(streams.child("new")), few, trim_share, chosen)
    places = [place for place, name in enumerate(trained(model)) if name in chosen]
    memory: list[Tensor] = []

    def begin(epoch: int) -> None:
        if project:
            few = some(request.forget, gradient_images, streams("remembered images", epoch))
            memory[:] = forgotten_gradient(model, few, chosen)

    def losses(model: nn.Module, batch: Any) -> Any:
        if isinstance(batch, Batch):
            return cross_entropy(model, batch)
        retain, forget = batch
        return (cross_entropy(model, retain) - forget_weight * cross_entropy(model, forget),)

    def backward(loss: Any, parameters: list[nn.Parameter]) -> tuple[Tensor, Mapping[str, float]]:
        if isinstance(loss, Tensor):
            return descend(loss, parameters)
        (both,) = loss
        slopes = list(torch.autograd.grad(both, parameters, materialize_grads=True))
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope
        if not project:
            return both, {}
        against = projected([slopes[place] for place in places], memory, margin)
        return both, {"projected": float(against)}

    retain = shuffled(request.retain, batch_size, streams.child("retain"))
    forget = shuffled(request.forget, batch_size, streams.child("forget"))
    return fit(
        model,
        announced(first_batches(retain, forget), begin),
        losses,
        streams,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        backward=backward,
    )


def to_trim(model: nn.Module, modules: list[str] | None) -> list[str]:
    """The names of what is trained in some modules of the model's network, or in all; `SettingError` for nothing."""
    chosen = [name for name in trained(model) if modules is None or within(model, name, modules)]
    if not chosen:
        raise SettingError("method.modules", modules, "leaves nothing to trim, beside what `layers` freezes")
    return chosen


def within(model: nn.Module, name: str, modules: list[str]) -> bool:
    """Whether a parameter of the model belongs to some modules of its network; `SettingError` for an unknown one."""
    prefix, net = list(model.named_children())[-1]
    known = [module for module, _ in net.named_modules() if module]
    if unknown := [module for module in modules if module not in known]:
        raise SettingError("method.modules", unknown[0], f"must be names of this model's modules: {', '.join(known)}")
    return any(name.startswith(f"{prefix}.{module}.") for module in modules)


def some(images: Images, count: int | None, generator: torch.Generator) -> Images:
    """`count` of the images, drawn at random, or all of them."""
    if count is None or count >= len(images):
        return images
    return images[torch.randperm(len(images), generator=generator)[:count]]


@torch.no_grad()
def trim(model: nn.Module, new: nn.Module, images: Images, share: float, names: list[str]) -> None:
    """Give the `share` of the model's trained entries with the largest |gradient * value| the values of `new`.

    Of those entries only the ones in parameters of these `names` are changed, and none in a norm layer.
    """
    with evaluating(model), torch.enable_grad():
        slopes = mean_gradient(model, images, GRADIENT_BATCH)
    parameters, drawn = trained(model), dict(new.named_parameters())
    sensitive = largest({name: (slope * parameters[name]).abs() for name, slope in slopes.items()}, share)
    norms = {id(weight) for module in model.modules() if isinstance(module, NORMS) for weight in module.parameters()}
    count = 0
    for name in names:
        parameter = parameters[name]
        if id(parameter) not in norms:
            parameter.copy_(torch.where(sensitive[name], drawn[name].to(parameter), parameter))
            count += int(sensitive[name].sum())
    current().history.append({"trimmed": count, "trimmed_share": count / sum(p.numel() for p in parameters.values())})


def forgotten_gradient(model: nn.Module, images: Images, names: list[str]) -> list[Tensor]:
    """Minus the gradient of the mean cross-entropy over the images, in eval mode, for parameters of these names."""
    with evaluating(model):
        slopes = mean_gradient(model, images, GRADIENT_BATCH)
    return [-slopes[name] for name in names]


def projected(gradient: list[Tensor], memory: list[Tensor], margin: float) -> bool:
    """Add `memory` to a gradient against it, in place, until they are not against each other; whether they were.

    At least `margin` times the memory is added then, as GEM's code does.
    """
    (_, both), (_, square) = gram_matrix([gradient, memory]).tolist()
    if both >= 0:
        return False
    combine(gradient, memory, Weights(1.0, max(margin, -both / square)))
    return True
