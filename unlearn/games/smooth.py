"""Linear auditors with a smooth loss, many at once: Newton's method, and its Hessian once more for the gradient.

min over (beta, b) of  ridge/2 |beta|^2 + sum_i loss(y_i (x_i.beta - b)),  ridge > 0

The squared hinge is half its square, as in LIBLINEAR's L2-loss machines up to the factor.
"""

from typing import Literal

import torch
from torch import Tensor

from unlearn.games.linear import Optimum, times

Loss = Literal["squared_hinge", "logistic"]
ITERATIONS = 200
BISECTIONS = 40


def solve(x: Tensor, y: Tensor, ridge: Tensor, loss: Loss) -> Optimum:
    """Optima for features `x` [P, n, d] and memberships `y` [P, n] (0 for padding), `ridge` [P]."""
    used = y != 0
    rows = torch.cat([x, -used[..., None].to(x.dtype)], 2)
    idle = ~used.any(1)
    ridge = torch.where(idle, 1.0, ridge)
    inertia = torch.cat([ridge[:, None].expand(-1, x.shape[2]), idle[:, None].to(x.dtype)], 1)
    theta = torch.zeros_like(inertia)
    done = idle
    for _ in range(ITERATIONS):
        slope, curvature = _derivatives(y * times(rows, theta), loss)
        gradient = inertia * theta + times(rows.mT, slope * y)
        step = -torch.cholesky_solve(gradient[..., None], _hessian(rows, curvature * used, inertia))[..., 0]
        length = torch.where(done, 0.0, _length(y, loss, theta, step, rows, inertia))
        theta = theta + length[:, None] * step
        # Convergence is quadratic: a step of 1e-9 leaves an error of 1e-18
        done = done | (step.abs().amax(1) <= 1e-9 * theta.abs().amax(1))
        if done.all():
            break
    slope, curvature = _derivatives(y * times(rows, theta), loss)
    factor = _hessian(rows, curvature * used, inertia)

    def adjoint(gradient: Tensor) -> tuple[Tensor, Tensor]:
        solution = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        return solution[:, :-1], -curvature * times(rows, solution) * used

    return Optimum(theta, -slope * y, ridge, adjoint, {"unconverged": ~done})


def _derivatives(margin: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    if loss == "logistic":
        share = torch.sigmoid(-margin)
        return -share, share * (1 - share)
    return -(1 - margin).relu(), (margin < 1).to(margin.dtype)


def _hessian(rows: Tensor, curvature: Tensor, inertia: Tensor) -> Tensor:
    """Its Cholesky factor."""
    return torch.linalg.cholesky(rows.mT @ (curvature[..., None] * rows) + torch.diag_embed(inertia))


def _length(y: Tensor, loss: Loss, theta: Tensor, step: Tensor, rows: Tensor, inertia: Tensor) -> Tensor:
    """How far to go along `step`, [P]: all of it, or to the minimum before, by bisection on the derivative."""
    margin, moved = y * times(rows, theta), y * times(rows, step)

    def derivative(length: Tensor) -> Tensor:
        slope, _ = _derivatives(margin + length[:, None] * moved, loss)
        return (slope * moved).sum(1) + (inertia * (theta + length[:, None] * step) * step).sum(1)

    low, high = torch.zeros_like(theta[:, 0]), torch.ones_like(theta[:, 0])
    beyond = derivative(high) > -0.1 * derivative(low)
    if not beyond.any():
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        past = derivative(middle) > 0
        low, high = torch.where(past, low, middle), torch.where(past, middle, high)
    return torch.where(beyond, low, 1.0)
