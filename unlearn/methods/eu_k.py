"""EU-k: draw the last k layers anew and train them, on what stays, for a whole training's budget ("exact unlearning").

    minimise CE(R) over the last k layers, from a new initialisation of these

Goel, Prabhu, Sanyal, Lim, Torr & Kumaraguru (preprint, 2022, arXiv:2201.06640); code
shash42/Evaluating-Inexact-Unlearning. Layers are counted from the output backwards, convolutions and dense layers alike
(`last_layers.py`). With as many as the model has, and the settings of its training, this is `retrain`. Weights that are
never trained, such as the stem of a `fastnet`, stay the original's.

Deviations from the released code:
- Norm layers among the last k start afresh too, gains and running values; there they keep what the original learned.
- Frozen layers are in eval mode; there they go on updating batch norm's running values.
- All that lies behind the first trained layer is trained; there convolutions, dense layers and batch norm only.

SCRUB's code has another EU-k, which goes back to the weights that the original itself began with.
"""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from unlearn.batches import shuffled
from unlearn.last_layers import check_last, only_last
from unlearn.loop import cross_entropy, fit
from unlearn.request import Request
from unlearn.schedules import Schedule, constant, cosine
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Positive, Probability
from unlearn.streams import Streams

NEEDS = frozenset({"retain"})


def check(lab: Any, *, k: int, **_: Any) -> None:
    """There are `k` layers, and some of the last ones to train."""
    check_last(lab, k)


def eu_k(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    k: Count,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    schedule: Literal["warm_restarts", "cosine", "constant"],
    floor: Probability,
    clip: Positive | None,
) -> nn.Module:
    """Train the last `k` layers from a new initialisation; without a learning rate nothing is drawn anew either."""
    restarts = partial(warm_restarts, floor=floor)
    schedules: dict[str, Schedule] = {"warm_restarts": restarts, "cosine": cosine, "constant": constant}
    retain = shuffled(request.retain, batch_size, streams)
    with only_last(model, k) as modules:
        if lr:
            renew(modules, model, request.recipe.initialised(streams))
        return fit(
            model,
            retain,
            cross_entropy,
            streams,
            epochs=epochs,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedules[schedule],
            clip=clip,
        )


@torch.no_grad()
def renew(modules: list[nn.Module], model: nn.Module, new: nn.Module) -> None:
    """Give some modules of `model` the trained parameters and the statistics that `new` has in their places."""
    frozen = current().frozen
    for module, its in zip(model.modules(), new.modules(), strict=True):
        if not any(module is one for one in modules):
            continue
        for parameter, drawn in zip(module.parameters(recurse=False), its.parameters(recurse=False), strict=True):
            if parameter.requires_grad:
                parameter.copy_(drawn)
        for buffer, initial in zip(module.buffers(recurse=False), its.buffers(recurse=False), strict=True):
            if not any(module is one for one in frozen):
                buffer.copy_(initial)


def warm_restarts(step: int, per_epoch: int, epochs: int, *, floor: float) -> float:
    """Half a cosine from 1 to `floor` over 1, 2, 4, ... epochs, epoch by epoch (SGDR, ICLR 2017, arXiv:1608.03983)."""
    epoch = step // per_epoch
    length = 1 << ((epoch + 1).bit_length() - 1)
    done = epoch + 1 - length
    return floor + (1 - floor) * (1 + math.cos(math.pi * done / length)) / 2
