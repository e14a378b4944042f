"""The paper's own route to the linear auditors, as a reference: cvxpylayers, one problem at a time, on the CPU.

The released code solves with SCS at its default tolerances; `tight` is SCS at 1e-10, with a direct solution of the
adjoint system where that is affordable. (Clarabel is less exact on the squared hinge, where its gap says little about
the optimum.) diffcp returns zeros for an adjoint whose right side is below 1e-8 (numpy's `allclose`), whatever the
utility's scale.
"""

from functools import lru_cache

import cvxpy as cp
import torch
from cvxpylayers.torch import CvxpyLayer
from torch import Tensor

TIGHT = {"eps": 1e-10, "max_iters": 10**6}
DENSE_ROWS = 300


def best_response(x: Tensor, y: Tensor, auditor: str, regularisation: float, *, tight: bool) -> Tensor:
    """Optimal [P, d + 1] for rows `x` [P, n, d] with memberships `y` [P, n] (0 for padding), differentiable in `x`.

    A problem with rows of one membership or none gets the constant rule, as in the closed form.
    """
    theta = [
        _solve(rows[kept != 0], kept[kept != 0], auditor, regularisation, tight)
        for rows, kept in zip(x, y, strict=True)
    ]
    return torch.stack(theta).to(x.device)


def _solve(x: Tensor, y: Tensor, auditor: str, regularisation: float, tight: bool) -> Tensor:
    if len(y.unique()) < 2:
        return torch.cat([0 * x.sum(0).cpu(), -y.sum(0, keepdim=True).sign().cpu()])
    options: dict[str, object] = {"n_jobs_forward": 1, "n_jobs_backward": 1}
    if tight:
        options |= TIGHT | {"mode": "dense" if len(x) <= DENSE_ROWS else "lsmr"}
    layer = _layer(*x.shape, auditor, regularisation)
    beta, bias = layer((x * y[:, None]).cpu(), y.cpu(), solver_args=options)
    return torch.cat([beta, bias[None]])


@lru_cache(maxsize=64)
def _layer(count: int, inputs: int, auditor: str, regularisation: float) -> CvxpyLayer:
    beta, bias = cp.Variable(inputs), cp.Variable()
    rows, membership = cp.Parameter((count, inputs)), cp.Parameter(count)
    short = 1 - rows @ beta + membership * bias
    ridge = regularisation / 2 * cp.sum_squares(beta)
    objective = {
        # Without the norm, cvxpy sees a linear program and does not hand it to a cone solver
        "hinge_l1": lambda: cp.sum(cp.pos(short)) / count + regularisation * cp.norm1(beta),
        "hinge_l2": lambda: cp.sum(cp.pos(short)) / count + ridge,
        "squared_hinge": lambda: cp.sum_squares(cp.pos(short)) / (2 * count) + ridge,
        "logistic": lambda: cp.sum(cp.logistic(short - 1)) / count + ridge,
    }[auditor]()
    return CvxpyLayer(cp.Problem(cp.Minimize(objective)), [rows, membership], [beta, bias], solver=cp.DIFFCP)
