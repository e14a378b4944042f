"""PRMQ: prune nearly all weights, draw them anew, and train on what stays until the answers are as sure as they were.

    draw anew all but the largest |theta_j|, then minimise CE(R) + (H(theta) - H(theta_o))^2 on R

The fourth place of the NeurIPS 2023 unlearning competition (Triantafillou et al., "Are we making progress in
unlearning?", 2024, arXiv:2406.09073), as it was ported for Deep Unlearn (Cadet, Borovykh, Malekzadeh, Ahmadi-Abhari &
Haddadi, 2024, arXiv:2410.01276; code xcadet/deepunlearn, `kgltop4`); there is no paper of its own. Of all entries of
convolutions and dense layers the `prune_share` with the smallest magnitudes are taken out: weights are drawn anew,
uniformly within 1 / sqrt(inputs) around 0, and biases become 0. Then the retained images are fitted, a class of n
images weighing n^-`class_exponent`, and so is the entropy of each answer to that of the original's, by the squared
difference. At the end the model is rounded to half precision; it stays float32. It looks at no forgotten image, and at
no augmented one.

A network without convolutions needs no other rule: there all pruned entries are in dense layers. Weights of attention
that are no layer of their own (torch's `MultiheadAttention`) stay.

Deviations from the released code:
- A class without a retained image has a weight too, which no image uses; the released code fails there.
- The number of steps is int(`epochs` * steps an epoch), at least 1; the released code makes one more.
- Only pruned entries are drawn anew; in the released code so is every other weight that is exactly 0.
- What is rounded are the trained parameters and the statistics of batch norm, not the normalisation of the input; a
  number that half precision cannot hold becomes the largest that it can.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlearn.batches import Batch, Batches, shuffled
from unlearn.gradients import trained
from unlearn.last_layers import LAYERS
from unlearn.layers import scope
from unlearn.loop import device_of, fit
from unlearn.request import Request
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Positive, Probability, SettingError
from unlearn.streams import Streams
from unlearn.teachers import answers, frozen

NEEDS = frozenset({"retain"})


def prmq(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Positive,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    prune_share: Probability,
    class_exponent: NotNegative,
    entropy_weight: NotNegative,
    half_precision: bool,
) -> nn.Module:
    """Descend on weighted cross-entropy and on the entropies' distance to the original's; without `lr` do nothing."""
    original = frozen(model)
    counts = request.retain.labels.cpu().bincount(minlength=request.class_count).clamp(min=1)
    weights = (counts.float() ** -class_exponent).to(device_of(model))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        scores = model(batch.images).float()
        distance = nn.functional.mse_loss(entropies(scores), entropies(answers(original, batch.images).float()))
        return nn.functional.cross_entropy(scores, batch.labels, weight=weights) + entropy_weight * distance

    if lr:
        prune(model, prune_share, streams)
    batches, whole = shortened(shuffled(request.retain, batch_size, streams, augmented=False), epochs)
    fit(model, batches, loss, streams, epochs=whole, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if lr and half_precision:
        round_to_half(model)
    return model


def entropies(scores: Tensor) -> Tensor:
    """The entropy of the softmax of each row of B x C scores, in nats."""
    logs = nn.functional.log_softmax(scores, dim=1)
    return -(logs.exp() * logs).sum(1)


def check(lab: Any, **_: Any) -> None:
    """Something of what is trained can be pruned."""
    model = lab.training.initialised(Streams("check"))
    with scope(model, lab.layers):
        prunable(model)


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained of convolutions and dense layers, by name; `SettingError` for nothing."""
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    theirs = {id(parameter) for layer in layers for parameter in layer.parameters()}
    named = {name: parameter for name, parameter in trained(model).items() if id(parameter) in theirs}
    if not named:
        raise SettingError("method", "prmq", "prunes convolutions and dense layers, and none of them is trained here")
    return named


@torch.no_grad()
def prune(model: nn.Module, share: float, streams: Streams) -> None:
    """Replace the `share` of layers' trained entries with the smallest magnitudes: weights drawn anew, biases 0.

    Magnitudes are ranked over the whole model.
    """
    named = prunable(model)
    magnitudes = torch.cat([parameter.abs().flatten() for parameter in named.values()])
    pruned = torch.zeros_like(magnitudes, dtype=torch.bool)
    pruned[magnitudes.topk(round(share * len(magnitudes)), largest=False).indices] = True
    parts = pruned.split([parameter.numel() for parameter in named.values()])
    for (name, parameter), part in zip(named.items(), parts, strict=True):
        fresh = torch.zeros_like(parameter)
        if parameter.ndim > 1:
            uniform = torch.rand(parameter.shape, generator=streams("pruned", name)).to(parameter)
            fresh = (2 * uniform - 1) / parameter[0].numel() ** 0.5
        parameter.copy_(torch.where(part.view_as(parameter), fresh, parameter))


def shortened(batches: Batches, epochs: float) -> tuple[Batches, int]:
    """The same batches up to int(`epochs` * steps an epoch), at least one; and how many epochs have a part in them."""
    total = max(1, int(epochs * batches.steps))

    def epoch(number: int) -> Iterator[Batch]:
        return islice(batches(number), total - number * batches.steps)

    return Batches(batches.steps, epoch), -(-total // batches.steps)


@torch.no_grad()
def round_to_half(model: nn.Module) -> None:
    """Round trained parameters and the statistics of batch norm that are not frozen to numbers of half precision."""
    frozen_norms = {id(module) for module in current().frozen}
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and id(module) not in frozen_norms]
    statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]
    largest = torch.finfo(torch.float16).max
    for number in [*trained(model).values(), *statistics]:
        number.copy_(number.clamp(-largest, largest).half())
