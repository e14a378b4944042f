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

import torch
from torch import Tensor

from unlearn.games.interior_point import CERTIFIED, Point, Program, interior_point
from unlearn.games.linear import Optimum, times

ROUNDING = 1e-14  # what rounding adds to the duality gap of the exact solution, for each row


@torch.inference_mode()  # a tenth faster, for operations this small
def solve(x: Tensor, y: Tensor, ridge: Tensor, lasso: Tensor | None) -> Optimum:
    """Optima for features `x` [P, n, d] and memberships `y` [P, n] (0 for padding), `ridge` and `lasso` [P]."""
    program = _program(x, y, ridge, lasso)
    idle = ~program.data.any(1)
    point, separable = interior_point(program, idle, separating=lasso is None)
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


def _hard_margin(program: Program, point: Point, which: Tensor) -> tuple[Program, Point]:
    """The problems `which`, separated by `point`, solved with a ridge at which the least-norm separator is optimal."""
    theta = point.theta[which]
    part = Program(*(field[which] for field in program))
    clear = torch.where(part.data, part.above(theta) + 1, torch.inf).amin(1)
    ridge = clear.square() / (2 * theta[:, :-1].square().sum(1))
    inertia = torch.cat([torch.ones_like(theta[:, 1:]) * ridge[:, None], torch.zeros_like(theta[:, :1])], 1)
    solved, _ = interior_point(
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
