"""MSG, masked small gradients: draw anew the weights that tell what goes from what stays least, then fine-tune.

    draw anew the weights with the smallest |grad CE(R) - grad CE(F)|, then minimise CE(R)

The entry ranked second in Deep Unlearn's order (kgltop2) of the NeurIPS 2023 unlearning competition (Triantafillou et
al., 2024, arXiv:2406.09073). It comes from no paper of its own; this follows its port in xcadet/deepunlearn (Cadet et
al., 2024, arXiv:2410.01276), the entry itself was not read. The contrast is the gradient of cross-entropy on a random
subset of the retained images, of the forget set's size, less that on the forget set, both at the original. In every
convolution the `share` of the weights with the smallest absolute contrast is drawn anew (He et al., ICCV 2015, normal,
fan-out). The retained images are then learned at a rate that rises and falls linearly, epoch by epoch; gradients of the
convolutions' other weights are damped to `kept_gradient` of themselves, while momentum and weight decay are not.

Networks without convolutions are refused unless `weights` is all, which is ours: dense layers, the head among them, are
then treated alike. Of a plain vision transformer, convolutions are the patch embedding alone.

Deviations from the released code:
- The contrast is of means over images, in eval mode. There gradients of the means of batches of 64 are added up, so
  that the images of a smaller last batch weigh more, in training mode, which also moves batch norm's running values.
- Biases of convolutions stay. There they are lost to a default initialisation, which its networks do not show.
- With fewer retained than forgotten images all of them are the subset, and the two sides still weigh the same.
- Batches are not augmented, as there.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearn.batches import shuffled
from unlearn.convolutions import learning_weights, weighted_layers
from unlearn.gradients import mean_gradient, trained
from unlearn.loop import cross_entropy, fit
from unlearn.masks import filtered
from unlearn.request import Request
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Probability
from unlearn.streams import Streams

NEEDS = frozenset({"retain", "forget"})
AT_A_TIME = 500  # images in a batch of the contrast, which does not depend on it


def msg(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    share: Probability,
    kept_gradient: Probability,
    weights: Literal["convolutions", "all"],
) -> nn.Module:
    """Descend on retained images from weights partly drawn anew; without a learning rate nothing is drawn."""
    layers = learning_weights(model, weighted_layers(model, weights))
    anew = smallest(contrast(model, request, streams), layers, share)
    if lr:
        draw_anew(layers, anew, streams)
    factors = {
        name: torch.where(anew[name], 1.0, kept_gradient) if name in anew else torch.ones(()) for name in trained(model)
    }
    current().history.append({"drawn_anew": sum(int(entries.sum()) for entries in anew.values()) if lr else 0})
    return fit(
        model,
        shuffled(request.retain, batch_size, streams, augmented=False),
        cross_entropy,
        streams,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=up_and_down,
        backward=filtered(factors),
    )


def check(lab: Any, *, weights: str, **_: Any) -> None:
    """The model has layers of the kind that `weights` names."""
    weighted_layers(lab.training.initialised(Streams("check")), weights)


def contrast(model: nn.Module, request: Request, streams: Streams) -> dict[str, Tensor]:
    """The gradient on as many random retained images as there are to forget, less that on the forget set."""
    order = torch.randperm(len(request.retain), generator=streams("subset"))
    retain = request.retain[order[: len(request.forget)]]
    of_retain, of_forget = (mean_gradient(model, images, AT_A_TIME) for images in (retain, request.forget))
    return {name: of_retain[name] - of_forget[name] for name in of_retain}


def smallest(contrasts: Mapping[str, Tensor], layers: Mapping[str, nn.Parameter], share: float) -> dict[str, Tensor]:
    """Which entries of each layer's weight are among its round(share * entries) of smallest absolute contrast."""
    chosen = {}
    for name, weight in layers.items():
        entries = torch.zeros_like(weight, dtype=torch.bool)
        sizes = contrasts[name].abs().flatten()
        entries.view(-1)[sizes.topk(round(share * len(sizes)), largest=False).indices] = True
        chosen[name] = entries
    return chosen


@torch.no_grad()
def draw_anew(layers: Mapping[str, nn.Parameter], chosen: Mapping[str, Tensor], streams: Streams) -> None:
    """Replace the `chosen` entries of each weight by those of a new one: normal, of variance 2 / fan-out."""
    for number, (name, weight) in enumerate(layers.items()):
        fan_out = weight.numel() // weight.shape[1]
        fresh = torch.randn(weight.shape, generator=streams("weights", number)) * math.sqrt(2 / fan_out)
        weight.copy_(torch.where(chosen[name], fresh.to(weight.device), weight))


def up_and_down(step: int, per_epoch: int, epochs: int) -> float:
    """Up to 1 by equal parts in the first half of the epochs, rounded up, and down to one part above 0 in the rest."""
    number, peak = step // per_epoch + 1, (epochs + 1) // 2
    return number / peak if number <= peak else (epochs + 1 - number) / (epochs + 1 - peak)
