"""An interior point for linear and quadratic programs with hinges, many at once: Mehrotra's predictor-corrector.

Rows have multipliers with two bounds, 0 and a weight. Some 15 systems of as many unknowns as there are columns lead so
close to the optimum that it shows which rows are on the margin; `hinge.py` goes on from there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unlearn.games.linear import times

ITERATIONS = 80
CAREFUL = 16  # the iteration from which steps are kept near the central path: slower, and needed by hardly any problem
GAP = 1e-13  # relative duality gap at which the interior point stops
STALLED = 1e-25  # and at which it stops whatever it has reached, as a step more would not be seen
CERTIFIED = 1e-8  # relative duality gap that an exact solution must not exceed; a tenth of it is left to what is open
SEPARATES = 0.5  # margin at which rows count as separated; where they can be, the program drives it to 1


class Program(NamedTuple):
    """min over theta of inertia.theta^2 / 2 + linear.theta + sum_k weight_k max(0, target_k - rows_k.theta)."""

    rows: Tensor  # [P, N, k], y (x, -1); zero for padding
    columns: Tensor  # its transpose, laid out as such: products are three times as fast
    target: Tensor  # [P, N]; -1 for padding, which so never binds
    weight: Tensor  # [P, N]
    inertia: Tensor  # [P, k]: the ridge, and 0 for the bias
    linear: Tensor  # [P, k]
    data: Tensor  # bool [P, N]: neither padding nor lasso

    def above(self, theta: Tensor) -> Tensor:
        """Distance from the targets, [P, N]: positive on the right side."""
        return times(self.columns.mT, theta) - self.target

    def value(self, theta: Tensor, above: Tensor) -> Tensor:
        """The objective, [P]."""
        return (self.weight * (-above).relu()).sum(1) + ((self.inertia * theta / 2 + self.linear) * theta).sum(1)

    def residual(self, theta: Tensor, alpha: Tensor) -> Tensor:
        """Stationarity [P, k], zero at the optimum."""
        return self.inertia * theta + self.linear - times(self.rows.mT, alpha)

    def infeasibility(self, residual: Tensor) -> Tensor:
        """What a residual adds to the duality gap, [P]."""
        slope, ridge = residual[:, :-1].square().sum(1), self.inertia[:, 0]
        return torch.where(ridge > 0, slope / (2 * ridge), slope.sqrt()) + residual[:, -1].abs()


class Point(NamedTuple):
    """Inside all bounds. Row n pushes with `force[0, n]` to one side and has `room[0, n]` to go to the other.

    In the second place are the opposite bounds: the two forces sum to the weight, the two rooms differ by the distance
    from the target, and at the optimum every force times room is 0.
    """

    theta: Tensor  # [P, k]
    force: Tensor  # [P, 2, N]
    room: Tensor  # [P, 2, N]


def interior_point(program: Program, done: Tensor, *, separating: bool) -> tuple[Point, Tensor]:
    """Mehrotra's predictor-corrector; problems that are `done` stand still.

    With `separating`, a problem also stops when a plane separates its rows and its ridge is low enough for the
    hard-margin machine to be optimal; the second result says which.
    """
    total, point, separated = program.weight.sum(1), _start(program), torch.zeros_like(done)
    for iteration in range(ITERATIONS):
        theta, product = point.theta, point.force * point.room
        gap, above = product.sum((1, 2)), point.room[:, 0] - point.room[:, 1]
        clear = above.amin(1) + 1  # padding is a constant 2 here
        apart = clear >= SEPARATES if separating else torch.zeros_like(done)
        if iteration == 0 or (~done & ((gap <= GAP * total) | apart)).any():
            low_ridge = 200 * (program.inertia * theta.square()).sum(1) <= clear.square()
            separated = separated | (~done & low_ridge & apart)
            value = program.value(theta, above)
            open_gap = program.infeasibility(program.residual(theta, point.force[:, 0]))
            done = done | separated | ((gap <= GAP * value) & (open_gap <= CERTIFIED / 10 * value))
            done = done | (gap <= STALLED * total)
            if done.all():
                break
        point = _advance(program, point, product, gap, done, careful=iteration >= CAREFUL)
    return point, separated


def _start(program: Program) -> Point:
    """Least squares on the data's targets, and forces such that all products of force and room are near each other."""
    hessian = program.columns @ program.rows
    hessian.diagonal(dim1=1, dim2=2).add_(program.inertia + 1e-6 * program.target.shape[1])
    right = times(program.rows.mT, program.target * program.data)[..., None]
    theta = torch.cholesky_solve(right, _cholesky(hessian))[..., 0]
    above = program.above(theta)
    room = torch.stack([above, -above], 1).relu() + 2  # with 1, slow problems take up to five steps more
    return Point(theta, (program.weight / room.sum(1))[:, None] * room.flip(1), room)


def _advance(program: Program, point: Point, product: Tensor, gap: Tensor, done: Tensor, *, careful: bool) -> Point:
    """One predictor and one corrector, with one factorisation; changes of force and room are relative to them.

    `product` is force times room, and `gap` its sum. There are as few operations as will do: their number is the time.
    """
    theta, force, room = point.theta[:, None], point.force, point.room
    mean, alpha = gap[:, None, None] / product[0].numel(), force[:, :1]
    # Proximal terms, here and on the diagonal: they change steps, not the optimum
    pliancy = ((room / force).sum(1, True) + 1e-11).reciprocal()
    hessian = torch.bmm(program.columns * pliancy, program.rows)
    hessian.diagonal(dim1=1, dim2=2).add_(program.inertia + (mean[:, 0] + 1e-11))
    factor = _cholesky(hessian)
    load = torch.addcmul(program.linear[:, None], program.inertia[:, None], theta)

    def newton(pull: Tensor) -> tuple[Tensor, Tensor]:
        """The changes of theta and of the forces that would change each room by `pull`, were forces fixed."""
        wanted = pull[:, :1] - pull[:, 1:]
        right = torch.baddbmm(load, torch.addcmul(alpha, pliancy, wanted), program.rows, beta=-1)
        change = torch.cholesky_solve(right.mT, factor).mT
        share = pliancy * torch.baddbmm(wanted, change, program.columns, alpha=-1) / force
        share[:, 1].neg_()  # what one bound's force gains, the other's loses
        return change, share

    # The predictor aims at products of zero: its changes of force and room add up to -1
    share = newton(-room)[1]
    reach = ((share + 0.5).abs().amax((1, 2), True) + 0.5).clamp(min=1).reciprocal()
    product = product / mean
    bend = torch.addcmul(share, share, share) * product
    aim = (1 - reach - reach.square() * bend.mean((1, 2), True)) ** 3
    if careful:
        lag = program.residual(point.theta, alpha[:, 0]).abs().amax(1) / gap
        aim = aim.clamp(min=lag.clamp(max=1)[:, None, None])
    # Without a bound on the second-order terms, the method can cycle
    pull = (bend.clamp(-10, 10) + aim) / product - 1
    change, share = newton(pull * room)
    other = pull - share
    least = torch.minimum(share, other).amin((1, 2), True)
    length = ((1 - mean.clamp(1e-6, 0.005)) / -least.clamp(max=-1e-30)).clamp(max=1)
    length = length.masked_fill(done[:, None, None], 0.0)
    for _ in range(8 * careful):
        products = product * (1 + length * share) * (1 + length * other)
        short = products.amin((1, 2), True) < 1e-3 * products.mean((1, 2), True)
        length = torch.where(short, 0.7 * length, length)
    return Point(
        torch.addcmul(theta, length, change)[:, 0],
        torch.addcmul(force, force, length * share),
        torch.addcmul(room, room, length * other),
    )


def _cholesky(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed.any():
        return factor
    damping = 1e-14 * matrix.diagonal(dim1=1, dim2=2).amax(1)
    while failed.any() and damping.isfinite().all():
        damping = damping * 10
        matrix = matrix + torch.diag_embed((damping * (failed > 0))[:, None].expand(matrix.shape[:2]))
        factor, failed = torch.linalg.cholesky_ex(matrix)
    return factor
