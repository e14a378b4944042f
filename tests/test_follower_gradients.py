"""The auditors' optima and their gradients, against finite differences, cvxpy and cvxpylayers."""

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from unlearn.games.follower import best_response_utility

AUDITORS = [("hinge_l1", 0.0), ("hinge_l1", 0.02), ("hinge_l2", 0.05), ("squared_hinge", 0.05), ("logistic", 0.05)]
SIZES = [(140, 11), (40, 3), (200, 1)]


def problem(rows: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlapping classes, a third of the rows for validation: one problem, float64."""
    generator = torch.Generator().manual_seed(seed)
    member = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0).double()
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64) + 0.4 * member[:, None]
    validation = torch.arange(rows) % 3 == 0
    return x[None], member[None], ~validation[None], validation[None]


def utility(x: Tensor, rest: tuple[Tensor, Tensor, Tensor], **changes: Any) -> tuple[Tensor, Any]:
    settings: dict[str, Any] = {
        "auditor": "hinge_l2",
        "regularisation": 0.05,
        "utility": "hinge",
        "direct": True,
        "implicit": True,
        "solver": "closed",
    }
    return best_response_utility(x, *rest, **(settings | changes))


def gradient(x: Tensor, rest: tuple[Tensor, Tensor, Tensor], **changes: Any) -> Tensor:
    x = x.clone().requires_grad_()
    utility(x, rest, **changes)[0].sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("auditor", "regularisation"), AUDITORS)
def test_gradients_are_those_of_finite_differences(size: tuple[int, int], auditor: str, regularisation: float) -> None:
    x, *rest = problem(*size)
    its = {"auditor": auditor, "regularisation": regularisation}
    found = gradient(x, tuple(rest), **its)
    generator, step = torch.Generator().manual_seed(1), 1e-6
    for _ in range(5):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        ends = [utility(x + sign * step * direction, tuple(rest), **its)[0].item() for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((found * direction).sum()) == pytest.approx(expected, rel=2e-6, abs=2e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # cvxpylayers 1.2 with numpy 2
@pytest.mark.parametrize(("auditor", "regularisation"), AUDITORS)
def test_gradients_are_those_of_the_papers_route(auditor: str, regularisation: float) -> None:
    x, *rest = problem(60, 4)
    its = {"auditor": auditor, "regularisation": regularisation}
    ours = gradient(x, tuple(rest), **its)
    theirs = gradient(x, tuple(rest), **its, solver="cvxpylayers_tight")
    limit = 1e-3 if auditor == "squared_hinge" else 1e-4  # Clarabel's dual of the squared hinge is that exact
    assert float((ours - theirs).abs().max() / ours.abs().max()) < limit


@pytest.mark.parametrize(("auditor", "regularisation"), AUDITORS)
def test_optima_are_cvxpys(auditor: str, regularisation: float) -> None:
    x, member, train, _ = problem(60, 4)
    _, info = utility(x, problem(60, 4)[1:], auditor=auditor, regularisation=regularisation)
    rows, signs = x[train].numpy(), member[train].numpy()
    weights, bias = cp.Variable(4), cp.Variable()

    def objective(theta: Any, offset: Any) -> Any:
        margin = cp.multiply(signs, rows @ theta - offset)
        losses = {
            "hinge_l1": cp.pos(1 - margin),
            "hinge_l2": cp.pos(1 - margin),
            "squared_hinge": cp.square(cp.pos(1 - margin)) / 2,
            "logistic": cp.logistic(-margin),
        }
        penalty = cp.norm1(theta) if auditor == "hinge_l1" else cp.sum_squares(theta) / 2
        return cp.sum(losses[auditor]) / len(rows) + regularisation * penalty

    best = cp.Problem(cp.Minimize(objective(weights, bias))).solve(solver=cp.CLARABEL)
    theta = info.parameters[0].numpy()
    assert float(objective(theta[:-1], theta[-1]).value) == pytest.approx(best, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", ["hinge", "balanced_accuracy", "auc"])
def test_both_paths_add_up_to_the_whole_gradient(kind: str) -> None:
    x, *rest = problem(60, 4)
    paths = [gradient(x, tuple(rest), utility=kind, direct=direct, implicit=not direct) for direct in (True, False)]
    torch.testing.assert_close(paths[0] + paths[1], gradient(x, tuple(rest), utility=kind))
    train = rest[1][0]
    assert paths[0][0][train].eq(0).all()  # what the auditor is fitted on has no direct path
    assert paths[1][0][~train].eq(0).all()


def test_a_batch_with_padding_is_its_problems_one_by_one() -> None:
    one, two = problem(40, 3, 0), problem(61, 3, 1)
    padded = [torch.nn.functional.pad(part, (0, 0, 0, 21) if part.ndim == 3 else (0, 21)) for part in one]
    both = [torch.cat(parts) for parts in zip(padded, two, strict=True)]
    values, _ = utility(both[0], tuple(both[1:]))
    alone = [utility(its[0], its[1:])[0].item() for its in (one, two)]
    assert values.tolist() == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize(("auditor", "regularisation"), AUDITORS)
@pytest.mark.parametrize("case", ["one_membership", "separable", "duplicates"])
def test_degenerate_problems_have_finite_gradients_and_are_counted(
    auditor: str, regularisation: float, case: str
) -> None:
    x, member, train, validation = problem(40, 3)
    if case == "one_membership":
        member = torch.ones_like(member)
    if case == "separable":
        x = x + 20 * member[..., None]
    if case == "duplicates":
        x = x[:, :10].repeat(1, 4, 1)
        member = member[:, :10].repeat(1, 4)
    its = {"auditor": auditor, "regularisation": regularisation}
    found = gradient(x, (member, train, validation), **its)
    _, info = utility(x, (member, train, validation), **its)
    assert found.isfinite().all()
    assert info.outcomes["problems"] == 1
    if case == "one_membership":
        assert info.outcomes["one_membership"] == 1
        assert found.abs().max() < 1e-6
    if case == "separable" and (auditor, regularisation) == ("hinge_l1", 0.0):
        assert info.outcomes["separable"] == 1


def test_what_cannot_be_an_audit_is_refused() -> None:
    x, member, train, validation = problem(12, 2)
    with pytest.raises(ValueError, match="regularisation"):
        utility(x, (member, train, validation), auditor="logistic", regularisation=0.0)
    with pytest.raises(ValueError, match="membership"):
        utility(x, (member * 2, train, validation))
    with pytest.raises(ValueError, match="finite"):
        utility(x * np.nan, (member, train, validation))
    with pytest.raises(ValueError, match=r"\[P, n, d\]"):
        utility(x[0], (member, train, validation))
