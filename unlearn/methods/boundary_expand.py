"""Boundary expand: send the forget set to a new class of its own, then take that class away.

    minimise CE(F, C + 1) with an output more, and take that output away

Chen, Gao, Liu, Peng & Wang, "Boundary unlearning" (CVPR 2023, arXiv:2303.11570); code
TY-LEE-KR/Boundary-Unlearning-Code. The last linear layer gets one row more, the model learns to answer the forget set
with it, and the row is dropped again: what is left of a forgotten image's scores decides where it goes. The method
never sees what stays.

Deviations from the released code:
- The new row is initialised as torch does by default, like the port in SalUn's code. `compat: released` draws it from
  Xavier's normal law, its bias 0.
- The row is dropped, as the released code does. SalUn's port keeps it, and all its figures are those of C + 1 classes:
  an image in the new class counts as unlearned there.
- Forgotten images are augmented as their data set asks.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from unlearn.batches import shuffled
from unlearn.head import last_linear
from unlearn.loop import cross_entropy, fit
from unlearn.request import Request
from unlearn.settings import Count, NotNegative, Probability
from unlearn.streams import Streams

NEEDS = frozenset({"forget"})


def check(lab: Any, **_: Any) -> None:
    """The model ends in a linear layer."""
    last_layer(lab.training.initialised(Streams("check")), lab.data.train, lab.data.class_count)


last_layer = partial(last_linear, "boundary_expand")


def boundary_expand(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    compat: Literal["released"] | None,
) -> nn.Module:
    """Descend on the forget images' cross-entropy, all of them under a class that exists no longer afterwards."""
    name, head = last_layer(model, request.forget, request.class_count)
    wide = widened(head, streams, released=compat == "released")
    model.set_submodule(name, wide)
    new = request.forget.relabelled(torch.full_like(request.forget.labels, request.class_count))
    batches = shuffled(new, batch_size, streams)
    fit(model, batches, cross_entropy, streams, epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay)
    copy_rows(wide, head)
    model.set_submodule(name, head)
    return model.eval()


def widened(head: nn.Linear, streams: Streams, *, released: bool) -> nn.Linear:
    """A layer with the rows of `head` and a new one behind them, which learns if they do."""
    with streams.seeded("new class"):
        wide = nn.Linear(head.in_features, head.out_features + 1, bias=head.bias is not None)
        if released:
            nn.init.xavier_normal_(wide.weight)
            for bias in list(wide.parameters())[1:]:
                nn.init.zeros_(bias)
    wide.to(head.weight)
    copy_rows(head, wide)
    for ours, its in zip(wide.parameters(), head.parameters(), strict=True):
        ours.requires_grad_(its.requires_grad)
    return wide


@torch.no_grad()
def copy_rows(source: nn.Linear, target: nn.Linear) -> None:
    """Copy the rows that both layers have, with their biases."""
    rows = min(source.out_features, target.out_features)
    for its, ours in zip(source.parameters(), target.parameters(), strict=True):
        ours[:rows] = its[:rows]
