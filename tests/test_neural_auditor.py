"""The neural auditor against its definition: dense Hessians, an explicit loop of Adam, differences, and odd folds."""

from typing import Any, get_args

import pytest
import torch
from test_follower import Audit, audit, gradient, network, padded, respond
from torch import Tensor
from torch.nn.functional import softplus

from unlearn.games.follower import UTILITIES, Info, Utility
from unlearn.games.neural_auditor import conjugate_gradients

DECAY = 0.05
AT_THE_START = {"steps": 0, "newton_steps": 0}


def of_network(problem: Audit, decay: float = DECAY, utility: Utility = "hinge", **changes: Any) -> Any:
    """Utilities, gradient and info of a new network: each audit consumes its generator."""
    return gradient(problem, "neural", decay, utility=utility, network=network(**changes))


def standardised(problem: Audit, features: Tensor, used: Tensor) -> Tensor:
    """The rows `used` of the first problem, by the mean and spread of its training rows."""
    rows = features[0][problem.train[0]]
    return (features[0][used[0]] - rows.mean(0)) / rows.var(0, unbiased=False).sqrt()


def score(phi: Tensor, z: Tensor, width: int = 4) -> Tensor:
    first, rest = phi[: width * z.shape[1]].reshape(width, -1), phi[width * z.shape[1] :]
    return torch.tanh(z @ first.T + rest[:width]) @ rest[width : 2 * width] - rest[-1]


def loss(phi: Tensor, problem: Audit, features: Tensor) -> Tensor:
    z, y = standardised(problem, features, problem.train), problem.membership[problem.train]
    return softplus(-y * score(phi, z)).mean() + DECAY / 2 * phi @ phi


def reached(phi: Tensor, problem: Audit, features: Tensor) -> Tensor:
    z, y = standardised(problem, features, problem.validation), problem.membership[problem.validation]
    return UTILITIES["auc"](score(phi, z)[None], y[None]).sum()


def dense_gradient(problem: Audit, phi: Tensor) -> Tensor:
    """The direct gradient less what the implicit function theorem takes off, by a dense solution."""
    features = problem.features.clone().requires_grad_()
    phi = phi.clone().requires_grad_()
    direct, of_phi = torch.autograd.grad(reached(phi, problem, features), (features, phi))
    slope = slope_of(phi, problem, features, track=True)
    hessian = torch.stack([torch.autograd.grad(entry, phi, retain_graph=True)[0] for entry in slope])
    (implicit,) = torch.autograd.grad(slope @ torch.linalg.solve(hessian, of_phi), features)
    return direct - implicit


def slope_of(phi: Tensor, problem: Audit, features: Tensor, *, track: bool = False) -> Tensor:
    phi = phi if track else phi.detach().requires_grad_()
    return torch.autograd.grad(loss(phi, problem, features), phi, create_graph=track)[0]


@pytest.mark.parametrize("way", ["implicit", "unrolled"])
@pytest.mark.parametrize("utility", get_args(Utility))
def test_gradient_is_the_slope(way: str, utility: Utility) -> None:
    """Differences solve the inner problem again: once to a stationary point, once by Adam's steps."""
    problem = audit(2, 40, 3, held=30)
    _, moved, info = of_network(problem, utility=utility, gradient=way)
    assert info.outcomes.get("unconverged", 0) == info.outcomes.get("adjoint_unsolved", 0) == 0
    aside = torch.randn(problem.features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sides = torch.cat([problem.features + 1e-5 * aside, problem.features - 1e-5 * aside])
    both = Audit(sides, *(part.repeat(2, 1) for part in tuple(problem)[1:]))
    ahead, behind = respond(both, "neural", DECAY, utility=utility, network=network(gradient=way))[0].reshape(2, 2)
    torch.testing.assert_close((moved * aside).sum((1, 2)), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9)


def test_implicit_gradient_is_that_of_the_dense_hessian() -> None:
    problem = audit(1, 40, 3, held=30)
    _, moved, info = of_network(problem, utility="auc", steps=150)
    phi = info.parameters[0]
    assert slope_of(phi, problem, problem.features).abs().max() < 1e-12  # stationary by the definition too
    torch.testing.assert_close(moved, dense_gradient(problem, phi), rtol=1e-7, atol=1e-10)


def test_conjugate_gradients_are_a_dense_solution() -> None:
    draw = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 12, 12, generator=draw, dtype=torch.float64)
    matrix = factor @ factor.mT + torch.eye(12)
    right = torch.randn(3, 12, generator=draw, dtype=torch.float64)
    right[1] = 0
    solution, solved = conjugate_gradients(lambda vector: (matrix @ vector[..., None])[..., 0], right, 100)
    assert solved.all()
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, right), rtol=1e-8, atol=1e-10)
    _, solved = conjugate_gradients(lambda vector: (matrix @ vector[..., None])[..., 0], right, 3)
    assert solved.tolist() == [False, True, False]


def test_conjugate_gradients_stop_at_negative_curvature() -> None:
    curvatures = torch.tensor([[-1.0, -1.0, -1.0], [4.0, 1.0, -1.0], [1.0, 2.0, 3.0]]).double()
    right = torch.ones(3, 3).double()
    solution, solved = conjugate_gradients(lambda vector: curvatures * vector, right, 20)
    assert solved.tolist() == [False, False, True]
    assert solution[0].tolist() == [1, 1, 1]
    # One step along the right side, of mean curvature 4/3; the next direction curves down
    torch.testing.assert_close(solution[1], right[1] * 3 / 4)
    torch.testing.assert_close(solution[2], 1 / curvatures[2])


@pytest.mark.parametrize("unrolled", [6, 2])
def test_unrolled_gradient_is_that_of_an_explicit_loop(unrolled: int) -> None:
    problem, steps, rate = audit(1, 40, 3, held=30), 6, 0.05
    phi = of_network(problem, **AT_THE_START)[2].parameters[0].requires_grad_()
    features = problem.features.clone().requires_grad_()
    first = second = torch.zeros_like(phi)
    for step in range(1, steps + 1):
        tracked = step > steps - unrolled
        slope = slope_of(phi, problem, features if tracked else problem.features, track=tracked)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        scale = (second / (1 - 0.999**step) + 1e-16).sqrt()
        phi = phi - rate * (first / (1 - 0.9**step)) / scale
        if not tracked:
            phi = phi.detach().requires_grad_()
    (expected,) = torch.autograd.grad(reached(phi, problem, features), features)
    settings = {"gradient": "unrolled", "steps": steps, "unrolled_steps": unrolled, "learning_rate": rate}
    _, moved, info = of_network(problem, utility="auc", **settings)
    torch.testing.assert_close(info.parameters[0], phi.detach(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(moved, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("way", ["implicit", "unrolled"])
def test_a_network_does_not_depend_on_its_company(way: str) -> None:
    problem = padded(audit(3, 40, 3, held=30), 7)
    utility, moved, _ = of_network(problem, gradient=way)
    for index in range(3):
        alone, moved_alone, _ = of_network(problem[index : index + 1], gradient=way)
        torch.testing.assert_close(utility[index], alone[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moved[index], moved_alone[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("way", ["implicit", "unrolled"])
def test_degenerate_folds_are_finite(way: str) -> None:
    problem = audit(6, 40, 3, held=30)
    problem.train[0] = False
    problem.validation[1] = False
    problem.train[2] &= problem.train[2].cumsum(0) == 1
    problem.membership[3] = 1
    problem.features[4] = 2
    problem.features[5, ..., 0] += 20 * problem.membership[5]
    utility, moved, info = of_network(problem, utility="auc", gradient=way)
    assert utility.isfinite().all()
    assert moved.isfinite().all()
    assert info.parameters.isfinite().all()
    assert (info.outcomes["no_validation"], info.outcomes["one_sided_validation"]) == (1, 1)
    assert (moved[1] == 0).all()
    assert moved[5].abs().max() > 0


def converged(info: Info) -> tuple[int, int]:
    return info.outcomes["unconverged"], info.outcomes["adjoint_unsolved"]


def test_an_unconverged_network_has_the_gradient_of_the_formula_where_it_stopped() -> None:
    # Adam alone, near enough to the optimum for a Hessian without negative curvature
    problem = audit(1, 40, 3, held=30)
    _, moved, info = of_network(problem, utility="auc", steps=150, newton_steps=0)
    assert converged(info) == (1, 0)
    assert slope_of(info.parameters[0], problem, problem.features).abs().max() > 1e-7
    torch.testing.assert_close(moved, dense_gradient(problem, info.parameters[0]), rtol=1e-6, atol=1e-9)


def test_conjugate_gradients_that_run_out_are_counted() -> None:
    problem = audit(2, 40, 3)
    _, moved, info = of_network(problem, cg_steps=2, newton_steps=1)
    assert converged(info) == (2, 2)
    assert moved.isfinite().all()
    assert converged(of_network(problem)[2]) == (0, 0)


def test_a_network_finds_what_a_line_cannot() -> None:
    problem = audit(1, 140, 2, shift=0.0)
    crossed = torch.sign(problem.features[..., 0] + 3) * torch.sign(problem.features[..., 1] - 3)
    problem = problem._replace(membership=crossed)
    line, _ = respond(problem, "logistic", 1e-3, utility="auc")
    net, _ = respond(problem, "neural", 1e-3, utility="auc", network=network(width=8, steps=150, newton_steps=3))
    assert line < 0.6 < 0.85 < net
