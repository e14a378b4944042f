"""A neural auditor: one hidden layer of tanh, trained on the scores of each audit, and differentiated.

Ours, not the paper's, whose auditors are all linear. Full-batch Adam from one initialisation for all problems, on
features standardised by the training rows (the gradient passes through that too). Its gradient is either implicit
(Newton's method with conjugate gradients to a stationary point, then conjugate gradients once more for the adjoint) or
that of the last Adam steps, unrolled.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from unlearn.games.linear import attach, times

STATIONARY = 1e-7  # the largest entry of a gradient that counts as a stationary point
SOLVED = 1e-10  # relative residual of conjugate gradients
CONSTANT = 1e-3  # scores of training rows that differ by less: the penalty has taken the network away


class Network(NamedTuple):
    """How the neural auditor is trained and differentiated.

    `generator` (CPU) draws the initialisation. `gradient="implicit"` runs at most `newton_steps` after Adam, each and
    the adjoint with at most `cg_steps` Hessian-vector products; `"unrolled"` differentiates the last `unrolled_steps`.
    """

    width: int
    steps: int
    learning_rate: float
    gradient: Literal["implicit", "unrolled"]
    newton_steps: int
    cg_steps: int
    unrolled_steps: int
    generator: torch.Generator


def best_response(
    x: Tensor, y: Tensor, decay: float, network: Network
) -> tuple[Tensor, Callable[[Tensor], Tensor], dict[str, int]]:
    """Parameters [P, m] trained on rows `x` [P, n, d] with memberships `y` [P, n] (0: padding), and their score map.

    The loss is the mean logistic loss plus `decay`/2 times the squared parameters. Both results are differentiable in
    `x`. The counts gain `adjoint_unsolved` during the backward pass: conjugate gradients that ran out of steps or met
    negative curvature.
    """
    mean, spread = _standard(x, y != 0)
    z = (x - mean) / spread
    unrolled = network.unrolled_steps if network.gradient == "unrolled" else 0
    start = _initial(x, network)
    with torch.enable_grad():
        phi = _adam(z, y, decay, start, network, unrolled)
    outcomes = {"adjoint_unsolved": 0, "constant": 0}
    if network.gradient == "implicit":
        phi, gradient = _newton(z.detach(), y, decay, phi, network)
        outcomes["unconverged"] = int((gradient.abs().amax(1) > STATIONARY).sum())

        def pullback(right: Tensor) -> Tensor:
            moved, unsolved = _adjoint(z.detach(), y, decay, phi.detach(), right, network.cg_steps)
            outcomes["adjoint_unsolved"] += int(unsolved.sum())
            return moved

        phi = attach(z, phi, pullback)
    scores, absent = _score(phi.detach(), z.detach()), y == 0
    ends = scores.masked_fill(absent, -torch.inf).amax(1), scores.masked_fill(absent, torch.inf).amin(1)
    outcomes["constant"] = int((ends[0] - ends[1] < CONSTANT).sum())  # minus infinity for a problem without rows
    return phi, lambda rows: _score(phi, (rows - mean) / spread), outcomes


def _standard(x: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    count = used.sum(1).clamp(min=1)[:, None, None]
    mean = (x * used[..., None]).sum(1, keepdim=True) / count
    variance = ((x - mean).square() * used[..., None]).sum(1, keepdim=True) / count
    return mean, torch.where(variance > 1e-24, variance, 1.0).sqrt()


def _initial(x: Tensor, network: Network) -> Tensor:
    # One draw for all problems, so that none depends on how many there are
    width, inputs = network.width, x.shape[2]
    size, source = width * (inputs + 2) + 1, network.generator
    draw = torch.randn(size, generator=source, dtype=torch.float64, device=source.device)
    draw[: width * inputs] /= inputs**0.5
    draw[width * inputs :] /= width**0.5
    return draw.to(x.device).expand(x.shape[0], -1)


def _score(phi: Tensor, z: Tensor) -> Tensor:
    inputs = z.shape[2]
    width = (phi.shape[1] - 1) // (inputs + 2)
    first, shift, second, bias = phi.split([width * inputs, width, width, 1], 1)
    hidden = torch.tanh(z @ first.reshape(-1, width, inputs).mT + shift[:, None])
    return times(hidden, second) - bias


def _loss(phi: Tensor, z: Tensor, y: Tensor, decay: float) -> Tensor:
    used = y != 0
    lost = (softplus(-y * _score(phi, z)) * used).sum(1) / used.sum(1).clamp(min=1)
    return lost + decay / 2 * phi.square().sum(1)


def _adam(z: Tensor, y: Tensor, decay: float, phi: Tensor, network: Network, unrolled: int) -> Tensor:
    first = second = torch.zeros_like(phi)
    for step in range(1, network.steps + 1):
        track = step > network.steps - unrolled
        rows = z if track else z.detach()
        phi = phi if track and phi.requires_grad else phi.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_loss(phi, rows, y, decay).sum(), phi, create_graph=track)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        # Inside the root, so that a vanished gradient has a derivative
        scale = (second / (1 - 0.999**step) + 1e-16).sqrt()
        phi = phi - network.learning_rate * first / (1 - 0.9**step) / scale
    return phi if unrolled else phi.detach()


def _slope(z: Tensor, y: Tensor, decay: float, phi: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The gradient [P, m], with its graph, and the product of the Hessian with a vector."""
    (slope,) = torch.autograd.grad(_loss(phi, z, y, decay).sum(), phi, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        return torch.autograd.grad(slope, phi, vector, retain_graph=True)[0]

    return slope, product


def _newton(z: Tensor, y: Tensor, decay: float, phi: Tensor, network: Network) -> tuple[Tensor, Tensor]:
    gradient = torch.zeros_like(phi)
    for step in range(network.newton_steps + 1):
        phi = phi.detach().requires_grad_()
        with torch.enable_grad():
            slope, product = _slope(z, y, decay, phi)
        gradient = slope.detach()
        moving = gradient.abs().amax(1) > 1e-6 * STATIONARY
        if step == network.newton_steps or not moving.any():
            break
        direction, _ = conjugate_gradients(product, -gradient, network.cg_steps)
        now, decrease = _loss(phi, z, y, decay).detach(), (direction * gradient).sum(1)
        length = moving.to(phi.dtype)
        for _ in range(30):
            ahead = _loss((phi + length[:, None] * direction).detach(), z, y, decay)
            long = ahead > now * (1 + 1e-13) + 1e-4 * length * decrease
            if not long.any():
                break
            length = torch.where(long, length / 2, length)
        phi = phi + length[:, None] * direction
    return phi.detach(), gradient


def _adjoint(z: Tensor, y: Tensor, decay: float, phi: Tensor, right: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z, phi = z.requires_grad_(), phi.requires_grad_()
        slope, product = _slope(z, y, decay, phi)
        solution, solved = conjugate_gradients(product, right, steps)
        (moved,) = torch.autograd.grad((slope * solution).sum(), z)
    return -moved, ~solved


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """H^-1 `right`, each [P, m], and where it is solved; a problem stops at the first negative curvature.

    If that is the very first direction, `right` itself is returned, along which the quadratic falls.
    """
    solution, residual, direction = torch.zeros_like(right), right, right
    size = goal = right.square().sum(1)
    goal = goal * SOLVED**2
    for _ in range(steps):
        curved = product(direction)
        curvature = (direction * curved).sum(1)
        active = (size > goal) & (curvature > 0)
        if not active.any():
            break
        length = torch.where(active, size / curvature, 0.0)[:, None]
        solution, residual = solution + length * direction, residual - length * curved
        after = residual.square().sum(1)
        direction = torch.where(active[:, None], residual + (after / size)[:, None] * direction, direction)
        size = torch.where(active, after, size)
    blocked = (solution == 0).all(1, keepdim=True)
    return torch.where(blocked, right, solution), size <= goal
