"""Linear followers: optima against other people's solvers, odd problems, padding, utilities and what is refused."""

from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC, LinearSVC
from torch import Tensor

from unlearn.games.follower import UTILITIES, Auditor, Info, Utility, best_response_utility
from unlearn.games.neural_auditor import Network

LINEAR: list[tuple[Auditor, float]] = [
    ("hinge_l1", 0.0),
    ("hinge_l1", 0.01),
    ("hinge_l2", 0.01),
    ("squared_hinge", 0.01),
    ("logistic", 0.01),
]
SIZES = [(140, 11), (40, 3), (200, 1)]  # CIFAR-10's audits; few rows; the loss alone


class Audit(NamedTuple):
    features: Tensor
    membership: Tensor
    train: Tensor
    validation: Tensor

    def __getitem__(self, index: Any) -> "Audit":  # type: ignore[override]
        return Audit(*(part[index] for part in tuple(self)))


def audit(problems: int, rows: int, features: int, shift: float = 0.7, held: int = 60, seed: int = 0) -> Audit:
    """Rows of two Gaussians, in columns of different units and offsets, their training rows drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    shape = (problems, rows + held)
    membership = torch.where(torch.rand(shape, generator=draw) < 0.5, 1.0, -1.0).double()
    direction = torch.randn(problems, 1, features, generator=draw, dtype=torch.float64) / features**0.5
    x = torch.randn(*shape, features, generator=draw, dtype=torch.float64)
    x = (x + shift * membership[..., None] * direction) * torch.linspace(0.5, 4, features) + torch.linspace(
        -3, 3, features
    )
    train = torch.rand(shape, generator=draw).argsort(1) < rows
    return Audit(x, membership, train, ~train)


def padded(problem: Audit, rows: int, features: float = float("nan")) -> Audit:
    """The same problem with `rows` more that are in neither set, before and after the others."""

    def around(part: Tensor, value: float) -> Tensor:
        fill = torch.full((len(part), rows, *part.shape[2:]), value, dtype=part.dtype)
        return torch.cat([fill[:, : rows // 2], part, fill[:, rows // 2 :]], 1)

    return Audit(*(around(part, value) for part, value in zip(tuple(problem), (features, 0, 0, 0), strict=True)))


def network(**changes: Any) -> Network:
    settings: dict[str, Any] = {
        "width": 4,
        "steps": 40,
        "learning_rate": 0.05,
        "gradient": "implicit",
        "newton_steps": 40,
        "cg_steps": 100,
        "unrolled_steps": 40,
    }
    return Network(**{**settings, **changes}, generator=torch.Generator().manual_seed(0))


def respond(problem: Audit, auditor: Auditor, regularisation: float, **changes: Any) -> tuple[Tensor, Info]:
    settings: dict[str, Any] = {"utility": "hinge", "direct": True, "implicit": True, "solver": "closed"}
    if auditor == "neural" and "network" not in changes:
        changes["network"] = network()
    settings |= changes
    return best_response_utility(*tuple(problem), auditor=auditor, regularisation=regularisation, **settings)


def gradient(problem: Audit, auditor: Auditor, regularisation: float, **changes: Any) -> tuple[Tensor, Tensor, Info]:
    """Utilities, their gradient with respect to all features, and the info."""
    features = problem.features.clone().requires_grad_()
    utility, info = respond(problem._replace(features=features), auditor, regularisation, **changes)
    (moved,) = torch.autograd.grad(utility.sum(), features)
    return utility.detach(), moved, info


def assert_gradient_is_the_slope(
    problem: Audit, auditor: Auditor, regularisation: float, step: float = 1e-6, copies: int = 1, **changes: Any
) -> None:
    """Central differences along random directions of all features, all in one batch; padding does not move.

    The rows of the `copies` blocks that a problem consists of move together. Larger steps than 1e-6 meet kinks.
    """
    _, moved, _ = gradient(problem, auditor, regularisation, **changes)
    draw = torch.Generator().manual_seed(1)
    count, rows, features = problem.features.shape
    ways = torch.randn(5, count, rows // copies, features, generator=draw, dtype=torch.float64).repeat(1, 1, copies, 1)
    ways = ways * (problem.train | problem.validation)[..., None]
    sides = torch.cat([problem.features + step * ways, problem.features - step * ways]).flatten(0, 1)
    others = (part.repeat(10, 1) for part in tuple(problem)[1:])
    utility, _ = respond(Audit(sides, *others), auditor, regularisation, **changes)
    ahead, behind = utility.reshape(2, 5, -1)
    slopes = (ahead - behind) / (2 * step)
    errors = (slopes - (moved.nan_to_num() * ways).sum((2, 3))).abs().amax(0)
    rounding = 1e-15 / step
    assert (errors <= 1e-6 * slopes.abs().amax(0) + rounding).all(), (errors, slopes)


def objective(problem: Audit, auditor: Auditor, regularisation: float, theta: np.ndarray[Any, Any]) -> float:
    x, y, beta, bias = *numpy_rows(problem), theta[:-1], theta[-1]
    margin = y * (x @ beta - bias)
    short, ridge = np.maximum(0, 1 - margin), regularisation / 2 * beta @ beta
    return float(
        {
            "hinge_l1": np.mean(short) + regularisation * np.abs(beta).sum(),
            "hinge_l2": np.mean(short) + ridge,
            "squared_hinge": np.mean(short**2) / 2 + ridge,
            "logistic": np.mean(np.logaddexp(0, -margin)) + ridge,
        }[auditor]
    )


def numpy_rows(problem: Audit) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The training rows of a batch of one."""
    return problem.features[problem.train].numpy(), problem.membership[problem.train].numpy()


# Gradients


@pytest.mark.parametrize(("auditor", "regularisation"), LINEAR)
def test_padding_changes_nothing(auditor: Auditor, regularisation: float) -> None:
    small, large = audit(2, 40, 3), audit(2, 140, 3, seed=1)
    together = Audit(*(torch.cat(parts) for parts in zip(tuple(padded(small, 100)), tuple(large), strict=True)))
    utility, moved, _ = gradient(together, auditor, regularisation)
    for problem, rows, slots in ((small, slice(0, 2), slice(50, 150)), (large, slice(2, 4), slice(None))):
        alone, moved_alone, _ = gradient(problem, auditor, regularisation)
        torch.testing.assert_close(utility[rows], alone, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(moved[rows, slots], moved_alone, rtol=1e-7, atol=1e-9)
    assert (moved[:2, :50] == 0).all()
    assert_gradient_is_the_slope(padded(small, 9, 0.0), auditor, regularisation)


@pytest.mark.parametrize(("auditor", "regularisation"), LINEAR)
def test_one_by_one_equals_together(auditor: Auditor, regularisation: float) -> None:
    problem = audit(6, 60, 5)
    utility, moved, _ = gradient(problem, auditor, regularisation)
    for index in range(6):
        alone, moved_alone, _ = gradient(problem[index : index + 1], auditor, regularisation)
        torch.testing.assert_close(utility[index], alone[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(moved[index], moved_alone[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("auditor", "regularisation"), [*LINEAR, ("neural", 0.05)])
def test_the_two_paths_add_up(auditor: Auditor, regularisation: float) -> None:
    problem = audit(2, 50, 4)
    paths = {(True, True), (True, False), (False, True)}
    parts = {path: gradient(problem, auditor, regularisation, direct=path[0], implicit=path[1]) for path in paths}
    _, both, _ = parts[True, True]
    torch.testing.assert_close(parts[True, False][1] + parts[False, True][1], both, rtol=1e-9, atol=1e-12)
    assert (parts[True, False][1][problem.train] == 0).all()
    assert (parts[False, True][1][problem.validation] == 0).all()
    assert len({tuple(utility.tolist()) for utility, _, _ in parts.values()}) == 1
    utility, _ = respond(problem, auditor, regularisation, direct=False, implicit=False)
    assert not utility.requires_grad


def test_rows_off_the_margin_of_a_linear_program_do_not_matter() -> None:
    problem = audit(3, 140, 11)
    _, moved, info = gradient(problem, "hinge_l1", 0.0, direct=False)
    beta, bias = info.parameters[:, :-1], info.parameters[:, -1:]
    margin = problem.membership * ((problem.features * beta[:, None]).sum(2) - bias)
    on = (margin - 1).abs() < 1e-9
    assert (on & problem.train).sum(1).tolist() == [12, 12, 12]
    assert ((moved.abs().amax(2) > 1e-9) == (on & problem.train)).all()


# Optima


@pytest.mark.parametrize(("rows", "features"), SIZES)
@pytest.mark.parametrize("lasso", [0.0, 0.01])
def test_optimum_is_that_of_a_linear_program_solver(rows: int, features: int, lasso: float) -> None:
    problem = audit(1, rows, features)
    _, info = respond(problem, "hinge_l1", lasso)
    x, y = numpy_rows(problem)
    signed = y[:, None] * x
    # beta = plus - minus, b, and one slack per row
    costs = np.concatenate([np.full(2 * features, lasso), [0], np.full(rows, 1 / rows)])
    left = -np.hstack([signed, -signed, -y[:, None], np.eye(rows)])
    bounds = [(0, None)] * (2 * features) + [(None, None)] + [(0, None)] * rows
    best = linprog(costs, left, -np.ones(rows), bounds=bounds).fun
    assert objective(problem, "hinge_l1", lasso, info.parameters[0].numpy()) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(("rows", "features"), SIZES)
@pytest.mark.parametrize("ridge", [1e-4, 0.01, 1.0])
def test_optimum_is_that_of_libsvm(rows: int, features: int, ridge: float) -> None:
    problem = audit(1, rows, features)
    _, info = respond(problem, "hinge_l2", ridge)
    machine = SVC(C=1 / (rows * ridge), kernel="linear", tol=1e-8).fit(*numpy_rows(problem))
    theirs = objective(problem, "hinge_l2", ridge, np.append(machine.coef_[0], -machine.intercept_))
    ours = objective(problem, "hinge_l2", ridge, info.parameters[0].numpy())
    assert ours <= theirs * (1 + 1e-12)
    assert ours == pytest.approx(theirs, rel=1e-4)  # its tolerance is on other quantities


@pytest.mark.parametrize(("rows", "features"), SIZES)
@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_optimum_is_that_of_scikit_learn(rows: int, features: int, ridge: float) -> None:
    problem = audit(1, rows, features)
    machines = {
        # Its intercept is regularised, the less the larger its column
        "squared_hinge": LinearSVC(
            C=1 / (2 * rows * ridge), intercept_scaling=1e3, dual=False, tol=1e-9, max_iter=10**5
        ),
        "logistic": LogisticRegression(C=1 / (rows * ridge), tol=1e-10, max_iter=10**4),
    }
    for auditor, machine in machines.items():
        _, info = respond(problem, auditor, ridge)  # type: ignore[arg-type]
        machine.fit(*numpy_rows(problem))
        theirs = objective(problem, auditor, ridge, np.append(machine.coef_[0], -machine.intercept_))  # type: ignore[arg-type]
        ours = objective(problem, auditor, ridge, info.parameters[0].numpy())  # type: ignore[arg-type]
        assert ours <= theirs * (1 + 1e-12)
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_many_optima_are_certified() -> None:
    for shift in (0.0, 1.0, 3.0):
        for auditor, regularisation in [("hinge_l1", 0.0), ("hinge_l1", 0.03), ("hinge_l2", 1e-6), ("hinge_l2", 1.0)]:
            _, info = respond(audit(100, 40, 6, shift), auditor, regularisation)  # type: ignore[arg-type]
            assert info.outcomes["uncertified"] == 0


# Odd problems


@pytest.mark.parametrize(("auditor", "regularisation"), LINEAR)
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_one_membership_answers_just_that(auditor: Auditor, regularisation: float, side: float) -> None:
    problem = audit(2, 30, 4)
    problem.membership[0] = torch.where(problem.train[0], side, problem.membership[0])
    utility, moved, info = gradient(problem, auditor, regularisation)
    assert info.outcomes["one_membership"] == 1
    assert info.parameters[0].tolist() == [0, 0, 0, 0, -side]
    assert (moved[0] == 0).all()
    assert utility[0] == -2 * ((problem.membership[0] == -side) & problem.validation[0]).sum()
    assert moved[1].abs().max() > 0


@pytest.mark.parametrize(("auditor", "regularisation"), LINEAR)
def test_no_rows_are_no_opinion(auditor: Auditor, regularisation: float) -> None:
    problem = audit(3, 30, 4)
    problem.train[0] = False
    problem.validation[1] = False
    utility, moved, info = gradient(problem, auditor, regularisation)
    assert (info.outcomes["no_rows"], info.outcomes["no_validation"]) == (1, 1)
    assert info.parameters[0].tolist() == [0] * 5
    assert utility[0] == -problem.validation[0].sum()
    assert utility[1] == 0
    assert (moved[:2] == 0).all()


@pytest.mark.parametrize(("auditor", "regularisation"), [("hinge_l1", 0.0), ("hinge_l1", 0.01), ("hinge_l2", 0.01)])
def test_an_auditor_that_cannot_do_better_answers_the_same_to_all(auditor: Auditor, regularisation: float) -> None:
    problem = audit(20, 60, 2, shift=0.0)
    problem.membership[:] = torch.where(torch.arange(120) % 3 == 0, -1.0, 1.0)
    utility, moved, info = gradient(problem, auditor, regularisation)
    constant = (info.parameters[:, :-1] == 0).all(1)
    assert info.outcomes["constant"] == constant.sum() >= 10
    assert (info.parameters[constant, -1] == -1).all()
    assert (moved[constant] == 0).all()
    nudged = problem._replace(features=problem.features + 1e-6)
    torch.testing.assert_close(respond(nudged, auditor, regularisation)[0][constant], utility[constant], rtol=0, atol=0)


def test_separable_rows_have_the_hard_margin_machine() -> None:
    problem = audit(4, 30, 3, shift=8.0)
    _, info = respond(problem, "hinge_l1", 0.0)
    assert info.outcomes["separable"] == 4
    for index in range(4):
        machine = SVC(C=1e8, kernel="linear", tol=1e-10).fit(*numpy_rows(problem[index : index + 1]))
        theirs = torch.from_numpy(np.append(machine.coef_[0], -machine.intercept_))
        torch.testing.assert_close(info.parameters[index], theirs, rtol=1e-5, atol=1e-6)
    assert_gradient_is_the_slope(problem, "hinge_l1", 0.0, utility="auc")
    limit, moved, _ = gradient(problem, "hinge_l2", 1e-9, utility="auc")
    utility, of_program, _ = gradient(problem, "hinge_l1", 0.0, utility="auc")
    torch.testing.assert_close(limit, utility, rtol=1e-9, atol=0)
    torch.testing.assert_close(moved, of_program, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("auditor", "regularisation"), LINEAR)
def test_rows_twice_share_what_one_would_get(auditor: Auditor, regularisation: float) -> None:
    once = audit(3, 40, 3)
    twice = Audit(*(torch.cat([part, part], 1) for part in tuple(once)))
    utility, moved, info = gradient(twice, auditor, regularisation)
    alone, moved_alone, _ = gradient(once, auditor, regularisation)
    torch.testing.assert_close(utility, 2 * alone, rtol=1e-9, atol=0)
    halves = moved.reshape(3, 2, *once.features.shape[1:])
    torch.testing.assert_close(halves[:, 0], halves[:, 1], rtol=1e-7, atol=1e-9)
    # The utility sums over twice as many validation rows
    torch.testing.assert_close(halves.sum(1), 2 * moved_alone, rtol=1e-6, atol=1e-8)
    assert info.outcomes.get("singular", 0) == (3 if auditor.startswith("hinge") else 0)


@pytest.mark.parametrize(("auditor", "regularisation"), [*LINEAR, ("neural", 0.05)])
def test_features_that_say_nothing_are_harmless(auditor: Auditor, regularisation: float) -> None:
    problem = audit(3, 40, 4)
    problem.features[0, :, 1] = 7  # constant
    problem.features[1, :, 1] = problem.features[1, :, 0]  # repeated
    problem.features[2] = 2  # all rows alike
    utility, moved, info = gradient(problem, auditor, regularisation)
    assert utility.isfinite().all()
    assert moved.isfinite().all()
    if (auditor, regularisation) == ("hinge_l1", 0.0):
        assert (info.outcomes["not_unique"], info.outcomes["constant"]) == (2, 1)
        assert info.parameters[0, 1] == pytest.approx(0, abs=1e-9)
        assert info.parameters[1, 0] == pytest.approx(info.parameters[1, 1].item(), rel=1e-6)


@pytest.mark.parametrize(("auditor", "regularisation"), LINEAR)
def test_rows_alike_but_for_rounding_are_harmless(auditor: Auditor, regularisation: float) -> None:
    problem = audit(200, 3, 8, held=2)
    # Their mean is not always themselves, and what is left of them is scaled up to units
    problem.features[:] = problem.features[:, :1]
    utility, moved, info = gradient(problem, auditor, regularisation)
    assert utility.isfinite().all()
    assert moved.isfinite().all()
    assert info.parameters.isfinite().all()


def test_a_bias_that_is_not_unique_is_the_middle_one() -> None:
    problem = audit(20, 30, 2, shift=0.3)
    problem.membership[:] = problem.train.cumsum(1).where(problem.train, problem.validation.cumsum(1)) % 2 * 2 - 1
    _, info = respond(problem, "hinge_l2", 10.0)
    assert info.outcomes["bias_not_unique"] >= 5
    assert_gradient_is_the_slope(problem, "hinge_l2", 10.0, step=1e-4, utility="balanced_accuracy")


# Utilities


def test_utilities_by_hand() -> None:
    score = torch.tensor([[2.0, -1.0, 0.5, 9.0], [1.0, 3.0, 9.0, 9.0], [9.0] * 4]).double()
    y = torch.tensor([[1.0, 1.0, -1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4]).double()

    def logistic(value: float) -> float:
        return 1 / (1 + np.exp(-value))

    balanced = ((logistic(2) + logistic(-1)) / 2 + logistic(-0.5)) / 2
    expected = {
        "hinge": [-(0 + 2 + 1.5), 0, 0],
        "balanced_accuracy": [balanced, (logistic(1) + logistic(3)) / 2, 0.5],
        "auc": [(logistic(1.5) + logistic(-1.5)) / 2, 0.5, 0.5],
    }
    for name, utility in UTILITIES.items():
        assert utility(score, y).tolist() == pytest.approx(expected[name]), name


@pytest.mark.parametrize("utility", get_args(Utility))
def test_one_sided_validation_is_counted_and_finite(utility: Utility) -> None:
    problem = audit(2, 30, 3)
    problem.membership[0] = torch.where(problem.validation[0], 1.0, problem.membership[0])
    _, moved, info = gradient(problem, "hinge_l2", 0.1, utility=utility)
    assert info.outcomes["one_sided_validation"] == 1
    assert moved.isfinite().all()


# In use


@pytest.mark.parametrize(("auditor", "regularisation"), [*LINEAR, ("neural", 0.05)])
def test_single_precision_comes_back_as_it_went_in(auditor: Auditor, regularisation: float) -> None:
    problem = audit(2, 40, 3)
    single = problem._replace(features=problem.features.float(), membership=problem.membership.float())
    utility, moved, info = gradient(single, auditor, regularisation)
    exact, moved_exact, _ = gradient(problem._replace(features=single.features.double()), auditor, regularisation)
    assert utility.dtype == moved.dtype == torch.float32
    assert info.parameters.dtype == torch.float64
    torch.testing.assert_close(utility, exact.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved, moved_exact.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "features"), [(40, 3), (14, 31)])
@pytest.mark.parametrize(("auditor", "regularisation"), [*LINEAR, ("neural", 0.05)])
def test_all_tensors_are_made_where_the_features_are(
    auditor: Auditor, regularisation: float, rows: int, features: int
) -> None:
    problem = audit(2, rows, features)
    utility, moved, _ = gradient(problem, auditor, regularisation)
    with torch.device("meta"):  # as on a machine with a GPU, a tensor without a device of its own is on a wrong one
        there, moved_there, _ = gradient(problem, auditor, regularisation)
    torch.testing.assert_close((there, moved_there), (utility, moved), rtol=0, atol=0)


def test_gradient_reaches_a_networks_weights() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4)
    labels = torch.arange(100) % 4
    logits = model(torch.randn(100, 6))
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    features = torch.cat([logits, loss[:, None]], 1).expand(3, -1, -1)
    train = torch.rand(3, 100) < 0.7
    membership = torch.where(torch.rand(3, 100) < 0.5, 1.0, -1.0)
    utility, _ = respond(Audit(features, membership, train, ~train), "hinge_l1", 0.0)
    utility.sum().backward()  # type: ignore[no-untyped-call]
    for weight in model.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert weight.grad.abs().max() > 0


def test_following_the_gradient_brings_the_auditor_to_chance() -> None:
    # Section 9, test 3 of the specification: scores that are free to move
    problem = audit(1, 70, 3, shift=2.0, held=30)
    features = problem.features.clone().requires_grad_()
    before = respond(problem, "hinge_l2", 0.1, utility="auc")[0].item()
    optimiser = torch.optim.Adam([features], lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        utility, _ = respond(problem._replace(features=features), "hinge_l2", 0.1, utility="auc")
        utility.sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    after = respond(problem._replace(features=features.detach()), "hinge_l2", 0.1, utility="auc")[0].item()
    assert before > 0.75
    assert after <= 0.55


def test_there_is_no_second_derivative() -> None:
    problem = audit(1, 30, 3)
    features = problem.features.clone().requires_grad_()
    utility, _ = respond(problem._replace(features=features), "logistic", 0.1, direct=False)
    (moved,) = torch.autograd.grad(utility.sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        moved.sum().backward()  # type: ignore[no-untyped-call]


def test_what_cannot_be_is_refused() -> None:
    problem = audit(2, 30, 3)
    infinite = problem._replace(features=problem.features.clone().index_fill_(1, torch.tensor([4]), torch.inf))
    with pytest.raises(ValueError, match="2 training or validation rows have features that are not finite"):
        respond(infinite, "logistic", 0.1)
    with pytest.raises(ValueError, match=r"must be \+1 or -1"):
        respond(problem._replace(membership=problem.membership.clamp(min=0)), "logistic", 0.1)
    with pytest.raises(ValueError, match=r"\[P, n, d\]"):
        respond(problem._replace(train=problem.train[:, 1:]), "logistic", 0.1)
    with pytest.raises(ValueError, match="must be > 0 for hinge_l2"):
        respond(problem, "hinge_l2", 0.0)
    with pytest.raises(ValueError, match="must be > 0"):
        respond(problem, "hinge_l1", -0.1)
    with pytest.raises(ValueError, match="neural alone needs a network"):
        respond(problem, "logistic", 0.1, network=network())
    with pytest.raises(ValueError, match="neural alone needs a network"):
        respond(problem, "neural", 0.1, solver="cvxpylayers")
