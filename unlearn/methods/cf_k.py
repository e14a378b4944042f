"""CF-k: fine-tune the last k layers on what stays, and leave the others as they are ("catastrophic forgetting").

    minimise CE(R) over the last k layers, from theta_o

Goel, Prabhu, Sanyal, Lim, Torr & Kumaraguru (preprint, 2022, arXiv:2201.06640); code
shash42/Evaluating-Inexact-Unlearning. Layers are counted from the output backwards, convolutions and dense layers alike
(`last_layers.py`). With as many as the model has this is `finetune`.

Deviations from the released code:
- Frozen layers are in eval mode; there they go on updating batch norm's running values.
- All that lies behind the first trained layer is trained; there convolutions, dense layers and batch norm only.
- The settings are those of fine-tuning, with k as in WorstCase's comparison (Fan et al., ECCV 2024), so that the budget
  is that of other methods. The code takes as many epochs as for EU-k, with its settings (see `eu_k`).
"""

from typing import Any

from torch import nn

from unlearn.batches import shuffled
from unlearn.last_layers import check_last, only_last
from unlearn.loop import cross_entropy, fit
from unlearn.request import Request
from unlearn.settings import Count, NotNegative, Probability
from unlearn.streams import Streams

NEEDS = frozenset({"retain"})


def check(lab: Any, *, k: int, **_: Any) -> None:
    """There are `k` layers, and some of the last ones to train."""
    check_last(lab, k)


def cf_k(
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
) -> nn.Module:
    """Descend on the retained images' cross-entropy with the last `k` layers."""
    retain = shuffled(request.retain, batch_size, streams)
    with only_last(model, k):
        return fit(
            model, retain, cross_entropy, streams, epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay
        )
