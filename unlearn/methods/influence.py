"""Influence unlearning: one Newton step from the optimum on all images towards that on the retained ones.

    theta_u = theta_o + alpha (damping + G' G / N)^-1 v,  v = sum_F grad / n - n_f sum_R grad / (n n_r)

Influence functions: Koh & Liang (ICML 2017, arXiv:1703.04730); as unlearning: Izzo et al. (AISTATS 2021,
arXiv:2002.10077); with the inverse Hessian of WoodFisher, Singh & Alistarh (NeurIPS 2020, arXiv:2004.14340), the
baseline "IU" of Jia et al. (NeurIPS 2023, arXiv:2304.04934); code OPTML-Group/Unlearn-Sparse.

The step is `alpha` H^-1 v. v is the mean loss's gradient over all images minus that over the retained ones, which is
n_forget / n times the difference of the mean gradients on the forget set and on the retained images; theory says
`alpha: 1`. H is the empirical Fisher information of `samples` retained images, drawn at random, plus `damping` times
the identity, inverted exactly by Woodbury's identity: one system of `samples` equations, and memory for `samples`
gradients. All gradients are those of the original in eval mode; norm statistics and what is frozen stay.

`compat: released` is the recursion of the released code, in which H^-1 is not one. It rescales a vector that is the
first image's gradient and never leaves that direction, so that along all others the result is v itself: the published
"IU" is a step along v, which may be why its `alpha` goes from 1 to 20. There `samples` is its constant N (1000; 300000
for ImageNet), the images are the first N + 2 retained ones in their order, where the released loop ends, and `damping`
has no part.

Deviations from the released code:
- Without `compat`, the inverse, and that its images are drawn at random.
- The released ImageNet branch is reported to add up the retained gradient over the forget set; not so here.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from unlearn.gradients import flat, gradients, mean_gradient, move
from unlearn.request import Request
from unlearn.settings import Count, NotNegative, Positive
from unlearn.streams import Streams

NEEDS = frozenset({"retain", "forget"})


def influence(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    batch_size: Count,
    alpha: NotNegative,
    samples: Count,
    damping: Positive,
    compat: Literal["released"] | None,
) -> nn.Module:
    """Take one step along the difference of the two sets' gradients, by the inverse of the curvature."""
    contrast = contrasted(model, request, batch_size)
    if compat == "released":
        first = torch.arange(min(samples + 2, len(request.retain)))
        parts = gradients(model, request.retain[first])
        step = released_recursion((row for _, part in parts for row in flat(part)), contrast, samples)
    else:
        chosen = torch.randperm(len(request.retain), generator=streams("samples"))[:samples]
        rows = contrast.new_empty(len(chosen), len(contrast))  # all at once, or they would be held twice
        parts = gradients(model, request.retain[chosen])
        for number, row in enumerate(row for _, part in parts for row in flat(part)):
            rows[number] = row
        step = woodbury(rows, contrast, damping)
    move(model, alpha * step)
    return model.eval()


def contrasted(model: nn.Module, request: Request, batch_size: int) -> Tensor:
    """The gradient of the mean loss over all images minus that over the retained ones, as one row."""
    forget, retain = (mean_gradient(model, images, batch_size) for images in (request.forget, request.retain))
    share = len(request.forget) / (len(request.forget) + len(request.retain))
    return flat({name: share * (forget[name] - retain[name])[None] for name in forget})[0]


def woodbury(rows: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(damping I + G^T G / N)^-1 times a vector, for the N `rows` G, by one system of N equations in double precision.

    (1 / damping) [v - G^T (damping N I + G G^T)^-1 G v].
    """
    system = (rows @ rows.T).double()
    system.diagonal().add_(damping * len(rows))
    solved = torch.linalg.solve(system, (rows @ vector).double())
    return (vector - solved.to(rows) @ rows) / damping


def released_recursion(rows: Iterable[Tensor], vector: Tensor, count: int) -> Tensor:
    """What the released code makes of a vector and of single images' gradients, with the constant N = `count`."""
    result, direction = vector.clone(), None
    for row in rows:
        if direction is None:
            direction = row.clone()
            continue
        overlap = direction @ row
        result -= (result @ row) / (count + overlap) * direction
        direction -= overlap / (count + overlap) * direction
    return result
