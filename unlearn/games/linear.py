"""What the linear auditors share: coordinates in which they are solved, and the gradient that reaches the features.

All four have an optimum whose derivative is `push_i p + w_i beta` at row i, in which only the adjoint solution (p, w)
depends on the utility. They are solved for centred features of unit spread, which changes nothing as the bias is not
regularised. More features than rows are rotated into the row space, where every least-norm optimum lies (Kimeldorf &
Wahba, 1971): fourteen rows of a hundred logits cost what fourteen features cost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Pullback = Callable[[Tensor], Tensor]


class Optimum(NamedTuple):
    """The optimum of each problem and what its derivative needs, in the coordinates in which it was solved."""

    theta: Tensor  # [P, r + 1], weights and bias; the score is x.beta - b
    push: Tensor  # [P, n]
    stiffness: Tensor  # [P], curvature of the objective in directions that no row has
    adjoint: Callable[[Tensor], tuple[Tensor, Tensor]]  # dU/dtheta [P, r + 1] -> p [P, r], w [P, n]
    outcomes: dict[str, Tensor]  # bool [P] each


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, theta: Tensor, pullback: Pullback) -> Tensor:
        ctx.pullback = pullback
        return theta.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pullback(gradient), None, None


def attach(features: Tensor, theta: Tensor, pullback: Pullback) -> Tensor:
    """`theta` as a function of `features`: `pullback` turns dU/dtheta into dU/dfeatures (no second derivative)."""
    attached: Tensor = _Implicit.apply(features, theta, pullback)
    return attached


def best_response(
    x: Tensor, y: Tensor, solve: Callable[[Tensor, Tensor, Tensor], Optimum], *, rotate: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Optimal [P, d + 1] for rows `x` [P, n, d] with memberships `y` [P, n] (0 for padding), differentiable in `x`.

    `solve(rows, y, spread)` gets rows divided by `spread` [P]; `rotate` allows it rotated ones. A problem with rows of
    one membership or none keeps the rule that answers just that: zero weights, and a gradient of exactly zero.
    """
    members, others = ((y * side > 0).sum(1) for side in (1, -1))
    one_membership = (members == 0) | (others == 0)
    fitted = torch.where(one_membership[:, None], 0.0, y)
    rows, mean, spread, basis = _coordinates(x.detach(), fitted, rotate)
    optimum = solve(rows, fitted, spread)
    bias = torch.where(one_membership, torch.sign(others - members).to(x.dtype), optimum.theta[:, -1])
    beta = torch.where(one_membership[:, None], 0.0, optimum.theta[:, :-1])
    beta = beta if basis is None else times(basis, beta)

    def pullback(gradient: Tensor) -> Tensor:
        slope = (gradient[:, :-1] + gradient[:, -1:] * mean) / spread[:, None]
        inner = slope if basis is None else times(basis.mT, slope)
        p, w = optimum.adjoint(torch.cat([inner, gradient[:, -1:]], 1))
        if basis is not None:
            p = times(basis, p) + (slope - times(basis, inner)) / optimum.stiffness[:, None]
        moved = optimum.push[..., None] * p[:, None] + w[..., None] * beta[:, None]
        return moved / spread[:, None, None]

    theta = torch.cat([beta / spread[:, None], (bias + (beta / spread[:, None] * mean).sum(1))[:, None]], 1)
    outcomes = {name: hit & ~one_membership for name, hit in optimum.outcomes.items()}
    empty = (members + others) == 0
    return attach(x, theta, pullback), {"one_membership": one_membership & ~empty, "no_rows": empty, **outcomes}


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """A matrix [P, a, b] times a vector [P, b], for each problem."""
    # A row times a matrix: on the CPU several times as fast as a matrix times a column
    return torch.bmm(vector.unsqueeze(1), matrix.mT).squeeze(1)


def _coordinates(x: Tensor, y: Tensor, rotate: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    used = (y != 0)[..., None]
    count = used.sum(1).clamp(min=1)
    mean = (x * used).sum(1) / count
    centred = (x - mean[:, None]) * used
    spread = (centred.square().sum((1, 2)) / (count[:, 0] * x.shape[2])).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    rows = centred / spread[:, None, None]
    if not rotate or x.shape[2] <= x.shape[1]:
        return rows, mean, spread, None
    basis, triangle = torch.linalg.qr(rows.mT)
    return triangle.mT, mean, spread, basis
