"""Every auditor's gradient, on ordinary and degenerate folds: against differences, and against cvxpylayers."""

from typing import Literal, get_args

import pytest
import torch
from test_follower import (
    LINEAR,
    SIZES,
    Audit,
    assert_gradient_is_the_slope,
    audit,
    gradient,
    objective,
    respond,
)

from unlearn.games.follower import Auditor, Utility

CASES = [(*auditor, *size) for auditor in LINEAR for size in SIZES] + [("neural", 0.05, 40, 3)]
Kind = Literal["ordinary", "separable", "repeated", "one_membership", "one_row", "one_row_each"]


def fold(kind: Kind, rows: int, features: int, problems: int = 2) -> Audit:
    """Problems whose training rows are of this kind."""
    problem = audit(problems, rows, features, held=30)
    train, membership = problem.train, problem.membership
    if kind == "separable":
        problem.features[..., 0] += 3 * membership
    if kind == "repeated":
        problem = audit(problems, rows // 2, features, held=30)
        return Audit(*(torch.cat([part, part], 1) for part in tuple(problem)))
    if kind == "one_membership":
        problem = problem._replace(membership=torch.where(train, 1.0, membership))
    if kind == "one_row":
        problem = problem._replace(train=train & (train.cumsum(1) == 1))
    if kind == "one_row_each":
        firsts = [(side & (side.cumsum(1) == 1)) for side in (train & (membership > 0), train & (membership < 0))]
        problem = problem._replace(train=firsts[0] | firsts[1])
    return problem


@pytest.mark.parametrize(("auditor", "regularisation", "rows", "features"), CASES)
@pytest.mark.parametrize("kind", get_args(Kind))
def test_gradient_is_the_slope(kind: Kind, auditor: Auditor, regularisation: float, rows: int, features: int) -> None:
    # Copies of a row on the margin of a hinge auditor have a derivative only where they move together
    copies = 2 if kind == "repeated" and auditor.startswith("hinge") else 1
    problem = fold(kind, rows, features)
    assert_gradient_is_the_slope(problem, auditor, regularisation, copies=copies, utility="auc")


@pytest.mark.parametrize(("auditor", "regularisation"), LINEAR)
@pytest.mark.parametrize("utility", get_args(Utility))
def test_gradient_of_each_utility_is_the_slope(auditor: Auditor, regularisation: float, utility: Utility) -> None:
    assert_gradient_is_the_slope(audit(3, 40, 3), auditor, regularisation, utility=utility)


@pytest.mark.parametrize("rows", [14, 40])
@pytest.mark.parametrize(("auditor", "regularisation"), [*LINEAR, ("hinge_l2", 1e-6), ("squared_hinge", 1e-4)])
def test_more_features_than_rows(rows: int, auditor: Auditor, regularisation: float) -> None:
    assert_gradient_is_the_slope(audit(3, rows, 51, held=20), auditor, regularisation, utility="auc")


def test_a_linear_programs_optimum_jumps_from_vertex_to_vertex() -> None:
    """The gradient is that of the side one is on: larger differences, across the jump, have nothing to do with it."""
    start = audit(3, 40, 51, held=20)[1:2]
    ways = torch.randn(5, 3, 60, 51, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def at(length: float) -> Audit:
        return start._replace(features=start.features + length * ways[:1, 1])

    def optimum(length: float) -> torch.Tensor:
        return respond(at(length), "hinge_l1", 0.01)[1].parameters[0]

    low, high = 0.0, 1e-5
    ends = [optimum(low), optimum(high)]
    for _ in range(10):
        middle = (low + high) / 2
        here = optimum(middle)
        if (here - ends[0]).norm() > (ends[1] - here).norm():
            high, ends[1] = middle, here
        else:
            low, ends[0] = middle, here
    assert (ends[1] - ends[0]).norm() > 1e-2 * ends[0].norm()
    # Either is optimal for the other's rows
    for length in (low, high):
        values = [objective(at(length), "hinge_l1", 0.01, theta.numpy()) for theta in ends]
        assert values[0] == pytest.approx(values[1], rel=1e-7)
    sides = [gradient(at(length), "hinge_l1", 0.01, utility="auc")[1] for length in (low, high)]
    assert (sides[1] - sides[0]).norm() > 1e-2 * sides[0].norm()
    for length in (low - 1e-5, high + 1e-5):
        assert_gradient_is_the_slope(at(length), "hinge_l1", 0.01, utility="auc")


# The same by cvxpylayers, whose conversions numpy 2 warns of


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "rows", "features"),
    [*(("ordinary", *size) for size in SIZES), ("separable", 40, 3), ("repeated", 40, 3), ("one_row_each", 40, 3)],
)
@pytest.mark.parametrize(("auditor", "regularisation"), LINEAR)
@pytest.mark.parametrize("utility", ["auc", "balanced_accuracy"])
def test_gradient_is_that_of_cvxpylayers(
    kind: Kind, rows: int, features: int, auditor: Auditor, regularisation: float, utility: Utility
) -> None:
    pytest.importorskip("cvxpylayers")
    if regularisation == 0 and kind in ("separable", "one_row_each"):
        pytest.skip("no single optimum: ours is the hard-margin machine, theirs what the solver stops at")
    problem = fold(kind, rows, features, problems=1)
    ours, moved, info = gradient(problem, auditor, regularisation, utility=utility)
    if utility != "auc" and info.outcomes.get("bias_not_unique"):
        pytest.skip("several optimal biases: ours is the middle one, theirs any; the AUC does not depend on it")
    theirs, moved_theirs, _ = gradient(problem, auditor, regularisation, utility=utility, solver="cvxpylayers_tight")
    if kind == "repeated":  # how a hinge auditor's copies share their gradient is a convention
        moved, moved_theirs = (part.reshape(2, -1, features).sum(0) for part in (moved, moved_theirs))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert (moved - moved_theirs).norm() <= 1e-4 * moved_theirs.norm() > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_papers_solver_at_its_own_tolerance_is_near() -> None:
    pytest.importorskip("cvxpylayers")
    problem = audit(1, 140, 11)
    ours, moved, _ = gradient(problem, "hinge_l1", 0.0)
    theirs, moved_theirs, _ = gradient(problem, "hinge_l1", 0.0, solver="cvxpylayers")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-2)
    assert torch.cosine_similarity(moved.flatten(), moved_theirs.flatten(), dim=0) > 0.99
