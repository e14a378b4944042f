"""Linear auditors with the hinge loss, many at once: an interior point, then the vertex it points to, exactly.

min over (beta, b) of  ridge/2 |beta|^2 + lasso |beta|_1 + sum_i max(0, 1 - y_i (x_i.beta - b))

With `ridge` it is the usual support-vector machine; without, a linear program. The lasso is d more rows, of target 0,
as |beta_j| = beta_j + 2 max(0, -beta_j). Mehrotra's predictor-corrector on rows with two-sided multipliers needs some
15 systems of d + 1 unknowns, and strict complementarity then tells rows on the margin (M) from rows inside it (E). The
optimum solves, to the last digit, a linear system

    [ ridge I  A_M' ] [ theta ]   [ sum of E's rows ]
    [ A_M      0    ] [  -s   ] = [ targets of M    ]

and its derivative is another solution with the same symmetric matrix.

The linear program has one optimum when M has d + 1 rows. Where the rows are separable it has infinitely many; ours is
the one of least norm, the hard-margin machine: the limit of the ridge going to 0, and exactly optimal (Mangasarian &
Meyer, 1979) at any ridge below 1 / |beta|^2 of any beta that separates with margin 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unlearn.games.linear import Optimum, times

ITERATIONS = 80
CAREFUL = 16  # the iteration from which steps are kept near the central path: slower, and needed by hardly any problem
GAP = 1e-13  # relative duality gap at which the interior point stops
STALLED = 1e-25  # and at which it stops whatever it has reached, as a step more would not be seen
CERTIFIED = 1e-8  # relative duality gap that the exact solution must not exceed,
ROUNDING = 1e-14  # and what rounding adds to it for each row
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


@torch.inference_mode()  # a tenth faster, for operations this small
def solve(x: Tensor, y: Tensor, ridge: Tensor, lasso: Tensor | None) -> Optimum:
    """Optima for features `x` [P, n, d] and memberships `y` [P, n] (0 for padding), `ridge` and `lasso` [P]."""
    program = _program(x, y, ridge, lasso)
    idle = ~program.data.any(1)
    point, separable = _interior_point(program, idle, separating=lasso is None)
    if separable.any():
        program, point = _hard_margin(program, point, separable.nonzero()[:, 0])
    members, others = ((y * side > 0).sum(1).to(x.dtype) for side in (1, -1))
    # The rule that never looks is optimal when no plane beats it, as hard and unbalanced data bring about
    value = program.value(point.theta, program.above(point.theta))
    constant = idle | (2 * torch.minimum(members, others) <= value * (1 + CERTIFIED))
    rule = torch.cat([torch.zeros_like(point.theta[:, 1:]), torch.sign(others - members)[:, None]], 1)
    optimum = _exact(program, point, y, constant, rule)
    return optimum._replace(outcomes={**optimum.outcomes, "separable": separable & (ridge == 0)})


def _program(x: Tensor, y: Tensor, ridge: Tensor, lasso: Tensor | None) -> Program:
    data = y != 0
    rows = torch.cat([y[..., None] * x, -y[..., None]], 2)
    target = torch.where(data, 1.0, -1.0).to(x.dtype)
    weight, linear = torch.ones_like(target), torch.zeros_like(rows[:, 0])
    if lasso is not None:
        units = torch.eye(*linear.shape[1:] * 2, dtype=x.dtype, device=x.device)[:-1].expand(len(x), -1, -1)
        rows, extra = torch.cat([rows, units], 1), torch.zeros_like(units[..., 0])
        linear[:, :-1] = lasso[:, None]
        weight, target = torch.cat([weight, extra + 2 * lasso[:, None]], 1), torch.cat([target, extra], 1)
        data = torch.cat([data, extra.bool()], 1)
    inertia = torch.ones_like(linear) * ridge[:, None]
    inertia[:, -1] = 0
    return Program(rows, rows.mT.contiguous(), target, weight, inertia, linear, data)


def _interior_point(program: Program, done: Tensor, *, separating: bool) -> tuple[Point, Tensor]:
    """Mehrotra's predictor-corrector; problems that are `done` stand still.

    With `separating`, a problem also stops when a plane separates its rows and its ridge is low enough for the
    hard-margin machine to be optimal; the second result says which.
    """
    total, sign = program.weight.sum(1), program.weight.new_tensor([[1.0], [-1.0]])
    point, tolerance, separated = _start(program), GAP * total, torch.zeros_like(done)
    for iteration in range(ITERATIONS):
        theta, product = point.theta, point.force * point.room
        gap, above = product.sum((1, 2)), point.room[:, 0] - point.room[:, 1]
        clear = above.amin(1) + 1  # padding is a constant 2 here
        apart = clear >= SEPARATES if separating else torch.zeros_like(done)
        if iteration == 0 or (~done & ((gap <= tolerance) | apart)).any():
            low_ridge = 200 * (program.inertia * theta.square()).sum(1) <= clear.square()
            separated = separated | (~done & low_ridge & apart)
            value = program.value(theta, above)
            open_gap = program.infeasibility(program.residual(theta, point.force[:, 0]))
            done = done | separated | ((gap <= GAP * value) & (open_gap <= CERTIFIED / 10 * value))
            done = done | (gap <= STALLED * total)
            if done.all():
                break
        point = _advance(program, point, product, gap, done, sign, careful=iteration >= CAREFUL)
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


def _advance(
    program: Program, point: Point, product: Tensor, gap: Tensor, done: Tensor, sign: Tensor, *, careful: bool
) -> Point:
    """One predictor and one corrector, with one factorisation; changes of force and room are relative to them.

    `product` is force times room, and `gap` its sum. There are as few operations as will do: their number is the time.
    """
    theta, force, room = point.theta[:, None], point.force, point.room
    mean, alpha = gap[:, None, None] / product[0].numel(), force[:, :1]
    # Proximal terms, here and on the diagonal: they change steps, not the optimum
    pliancy = ((room / force).sum(1, True) + 1e-11).reciprocal()
    hessian = torch.bmm(program.columns * pliancy, program.rows)
    hessian.diagonal(dim1=1, dim2=2).add_(program.inertia + (mean[:, 0] + 1e-11))
    factor, opposed = _cholesky(hessian), sign * force
    load = torch.addcmul(program.linear[:, None], program.inertia[:, None], theta)

    def newton(pull: Tensor) -> tuple[Tensor, Tensor]:
        """The changes of theta and of the forces that would change each room by `pull`, were forces fixed."""
        wanted = pull[:, :1] - pull[:, 1:]
        right = torch.baddbmm(load, torch.addcmul(alpha, pliancy, wanted), program.rows, beta=-1)
        change = torch.cholesky_solve(right.mT, factor).mT
        return change, pliancy * torch.baddbmm(wanted, change, program.columns, alpha=-1) / opposed

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


def _hard_margin(program: Program, point: Point, which: Tensor) -> tuple[Program, Point]:
    """The problems `which`, separated by `point`, solved with a ridge at which the least-norm separator is optimal."""
    theta = point.theta[which]
    part = Program(*(field[which] for field in program))
    clear = torch.where(part.data, part.above(theta) + 1, torch.inf).amin(1)
    ridge = clear.square() / (2 * theta[:, :-1].square().sum(1))
    inertia = torch.cat([torch.ones_like(theta[:, 1:]) * ridge[:, None], torch.zeros_like(theta[:, :1])], 1)
    solved, _ = _interior_point(
        part._replace(inertia=inertia), torch.zeros_like(ridge, dtype=torch.bool), separating=False
    )
    merged = Point(*(old.index_copy(0, which, new) for old, new in zip(point, solved, strict=True)))
    return program._replace(inertia=program.inertia.index_copy(0, which, inertia)), merged


def _exact(program: Program, point: Point, y: Tensor, constant: Tensor, rule: Tensor) -> Optimum:
    """The optimum on the face that the interior point is next to, certified by the interior point's multipliers."""
    (size, count), alive, ridge = (rule.shape[1], y.shape[1]), ~constant[:, None], program.inertia[:, 0]
    margin, inside = _sides(program, point)
    # The optimum of a linear program does not move with the rows inside, as long as it is one point
    margin, inside = margin & alive, program.weight * (inside & alive & (ridge > 0)[:, None])
    floating = ~(margin & program.data).any(1) & ~constant
    held = _held(program, point, y, margin, floating)
    equations, empty = held @ program.rows, ~held.any(2)
    stiffness = torch.where(ridge > 0, ridge, 1.0)
    diagonal = [stiffness[:, None].expand(-1, size - 1), constant[:, None], empty]
    system = torch.diag_embed(torch.cat([part.to(y.dtype) for part in diagonal], 1))
    system[:, size:, :size], system[:, :size, size:] = equations, equations.mT
    solve_system, singular = _solver(system)
    solution = solve_system(torch.cat([times(program.rows.mT, inside), times(held, program.target)], 1))
    theta, push = solution[:, :size], inside - times(held.mT, solution[:, size:])
    certified = _certified(program, point, theta)
    theta = torch.where(certified[:, None], theta, point.theta)

    def adjoint(gradient: Tensor) -> tuple[Tensor, Tensor]:
        solution = solve_system(torch.cat([gradient, torch.zeros_like(empty, dtype=y.dtype)], 1))
        return solution[:, : size - 1], -y * times(held.mT, solution[:, size:])[:, :count]

    outcomes = {
        "not_unique": (ridge == 0) & (margin.sum(1) < size),
        "bias_not_unique": (ridge > 0) & floating,
        "singular": singular,
        "uncertified": ~certified,
    }
    outcomes = {"constant": constant} | {name: hit & ~constant for name, hit in outcomes.items()}
    return Optimum(torch.where(alive, theta, rule), y * push[:, :count], stiffness, adjoint, outcomes)


def _sides(program: Program, point: Point) -> tuple[Tensor, Tensor]:
    """Which rows are on the margin, and which inside it, bool [P, N] each: forces against rooms, in their own units."""
    alpha, spare = (point.force / program.weight[:, None]).unbind(1)
    slack, excess = (point.room / point.theta[:, None, :-1].norm(dim=2, keepdim=True).clamp(max=1)).unbind(1)
    margin = (alpha > slack * alpha.amax(1, keepdim=True)) & (spare > excess)
    return margin, ~margin & (excess > slack)


def _held(program: Program, point: Point, y: Tensor, margin: Tensor, floating: Tensor) -> Tensor:
    """Which rows are held at their target, [P, m, N]: those on the margin, one an equation.

    With none, a whole interval of biases is optimal. Its middle is held: the mean of the rows that end it.
    """
    on, order = margin.to(y.dtype).topk(int(margin.sum(1).max()), dim=1)
    held = on.new_zeros(*on.shape, margin.shape[1])
    held.scatter_(2, order[..., None], on[..., None])
    if not floating.any():
        return held
    distance = y * program.above(point.theta)[:, : y.shape[1]]
    ends = [torch.where(side * distance > 0, side * distance, torch.inf).argmin(1, keepdim=True) for side in (1, -1)]
    middle = torch.zeros_like(program.target)
    for end in ends:
        middle.scatter_add_(1, end, y.gather(1, end) / 2)
    return torch.cat([held, (middle * floating[:, None])[:, None]], 1)


def _certified(program: Program, point: Point, theta: Tensor) -> Tensor:
    """Whether `theta` is optimal, bool [P], by the duality gap to the interior point's multipliers."""
    above = program.above(theta)
    missed = (torch.stack([above, -above], 1).relu() * point.force).sum((1, 2))
    gap = missed + program.infeasibility(program.residual(theta, point.force[:, 0]))
    return gap <= CERTIFIED * program.value(theta, above) + ROUNDING * above.shape[1]


def _solver(matrix: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Solutions with symmetric matrices [P, k, k], and which were singular: there, the solution of least norm."""
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    diagonal = factors.diagonal(dim1=1, dim2=2).abs()
    singular = ~(diagonal.amin(1) > 1e-13 * diagonal.amax(1))
    inverse = torch.linalg.pinv(matrix[singular], hermitian=True, rtol=1e-12)

    def solve_system(right: Tensor) -> Tensor:
        solution = torch.linalg.lu_solve(factors, pivots, right[..., None])[..., 0]
        if len(inverse):
            solution[singular] = times(inverse, right[singular])
        return solution

    return solve_system, singular
