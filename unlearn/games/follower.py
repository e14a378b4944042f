"""The auditor's side of the game: its utility at its best response, differentiable in what the unlearner lets it see.

Di, Yu, Vorobeychik, Liu, "Adversarial Machine Unlearning" (ICLR 2025, arXiv:2406.07687; released code
github.com/marsplus/SG-Unlearn). An auditor is fitted on the features of training rows, forgotten (+1) against unseen
(-1), and judged on validation rows. The gradient has two paths: the direct one through the validation features, and the
implicit one through the training features and the optimum.

Deviations. The paper differentiates its solver's cone program (cvxpylayers), one problem at a time; here all problems
(folds times classes) are solved and differentiated together, in closed form, and the paper's route is one `solver` of
the reference. The paper prints the implicit path only; its code has both; here each can be switched off. Its auditor is
`hinge_l1` with regularisation 0, a linear program; the other ones are ours. Rows that a plane separates leave that
program no single optimum: the released code differentiates whatever SCS stops at, here it is the hard-margin machine.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unlearn.games import hinge, linear, neural_auditor, smooth
from unlearn.games.neural_auditor import Network

Auditor = Literal["hinge_l1", "hinge_l2", "squared_hinge", "logistic", "neural"]
Utility = Literal["hinge", "balanced_accuracy", "auc"]
Solver = Literal["closed", "cvxpylayers", "cvxpylayers_tight"]


class Info(NamedTuple):
    """What the auditors were, and how many of them were out of the ordinary.

    `parameters` [P, m], float64: weights and bias, the score being x.weights - bias; of a network, all it has.
    `outcomes` counts problems:

    - `problems`: all of them; `no_rows`, `one_membership`: no training rows, or only of one membership. Zero weights,
      the bias that answers this membership, no implicit gradient.
    - `constant`: a hinge auditor's optimum is to give every row the answer of the more frequent membership. The same.
      Of networks: all training rows have the same score, to a thousandth; a smaller regularisation brings them back.
    - `separable`: `hinge_l1` without regularisation, rows that a plane separates: the hard-margin machine.
    - `not_unique`: the linear program has other optima (features that depend on each other, say), and a gradient that
      does not exist; the one given keeps the margin rows where they are.
    - `bias_not_unique`: `hinge_l2` with no row on the margin: the middle of the optimal biases.
    - `singular`: rows on the margin that repeat each other share their gradient.
    - `uncertified`: the interior point did not reach its tolerance, or the exact solution was not better.
    - `unconverged`: Newton's method left a gradient; the implicit gradient is that of its formula where it stopped.
      `adjoint_unsolved` (network): conjugate gradients left a residual, and their last solution is used; counted when
      the backward pass runs.
    - `no_validation`, `one_sided_validation`: no validation rows, or only of one membership.
    """

    parameters: Tensor
    outcomes: dict[str, int]


def best_response_utility(
    features: Tensor,
    membership: Tensor,
    train: Tensor,
    validation: Tensor,
    *,
    auditor: Auditor,
    regularisation: float,
    utility: Utility,
    direct: bool,
    implicit: bool,
    solver: Solver,
    network: Network | None = None,
) -> tuple[Tensor, Info]:
    """Utility [P] of P auditors at their best responses, in the dtype of `features`, differentiable in them.

    `features` [P, n, d]; `membership` [P, n], +1 forgotten or -1 unseen; `train` and `validation`, bool [P, n]. Rows in
    neither are padding and may hold anything. All inside is float64.

    Auditors minimise a mean loss over their training rows plus a penalty: `hinge_l1` (regularisation |weights|_1, may
    be 0), `hinge_l2`, `squared_hinge` (halved) and `logistic` (regularisation/2 |weights|^2), `neural` (as `network`
    says, logistic loss, the penalty on all parameters). Utilities of the validation scores: `hinge`, minus the summed
    hinge loss; `balanced_accuracy`, the sigmoid of the margin, averaged over each membership and then over those
    present, 1/2 for none; `auc`, the mean sigmoid of score differences between memberships, 1/2 where one is absent.

    The optimum of a hinge auditor jumps (`hinge_l1`) or bends (`hinge_l2`) where its margin rows or the weights of its
    lasso change. The gradient is that of the side one is on, and differences across such a point are not near it.

    `direct` lets the gradient through the validation features, `implicit` through the training features. `solver` is
    the closed form or, for linear auditors, the paper's cvxpylayers, with SCS as released or `tight`.

    Raises `ValueError` for shapes that do not match, features that are not finite, memberships other than +1 and -1,
    and a regularisation that the auditor cannot have.
    """
    _check(features, membership, train, validation, auditor, regularisation, solver, network)
    x, y = features.double(), membership.double()
    x_train, y_train = _rows(x if implicit else x.detach(), y, train)
    x_held, y_held = _rows(x if direct else x.detach(), y, validation)
    parameters, score, outcomes = _respond(x_train, y_train, auditor, regularisation, solver, network)
    reached = UTILITIES[utility](score(x_held), y_held)
    sides = (y_held > 0).any(1).int() + (y_held < 0).any(1).int()
    outcomes |= {"problems": len(x), "no_validation": int((sides == 0).sum())}
    outcomes["one_sided_validation"] = int((sides == 1).sum())
    return reached.to(features.dtype), Info(parameters.detach(), outcomes)


def _respond(
    x: Tensor, y: Tensor, auditor: Auditor, regularisation: float, solver: Solver, network: Network | None
) -> tuple[Tensor, Callable[[Tensor], Tensor], dict[str, int]]:
    if network is not None:
        return neural_auditor.best_response(x, y, regularisation, network)
    outcomes: dict[str, int] = {}
    if solver == "closed":
        theta, hits = _closed(x, y, auditor, regularisation)
        outcomes = dict(zip(hits, torch.stack(list(hits.values())).sum(1).tolist(), strict=True))
    else:
        # Slow to import, and needed by this reference alone
        from unlearn.games import cone_layers

        theta = cone_layers.best_response(x, y, auditor, regularisation, tight=solver == "cvxpylayers_tight")
    return theta, lambda rows: linear.times(rows, theta[:, :-1]) - theta[:, -1:], outcomes


def _closed(x: Tensor, y: Tensor, auditor: Auditor, regularisation: float) -> tuple[Tensor, dict[str, Tensor]]:
    total = regularisation * (y != 0).sum(1).to(x.dtype)
    lasso = auditor == "hinge_l1" and regularisation > 0

    def solve(rows: Tensor, y: Tensor, spread: Tensor) -> linear.Optimum:
        if auditor == "hinge_l1":
            return hinge.solve(rows, y, torch.zeros_like(total), total / spread if lasso else None)
        if auditor == "hinge_l2":
            return hinge.solve(rows, y, total / spread**2, None)
        if auditor == "neural":
            raise AssertionError(auditor)
        return smooth.solve(rows, y, total / spread**2, auditor)

    return linear.best_response(x, y, solve, rotate=not lasso)


def _rows(x: Tensor, y: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The rows `kept` [P, n], first in each problem, with membership 0 and zeros where a problem has fewer."""
    order = kept.byte().argsort(dim=1, descending=True, stable=True)[:, : int(kept.sum(1).amax())]
    used = kept.gather(1, order)
    picked = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
    return torch.where(used[..., None], picked, 0.0), torch.where(used, y.gather(1, order), 0.0)


def _hinge(score: Tensor, y: Tensor) -> Tensor:
    return -((1 - y * score).relu() * (y != 0)).sum(1)


def _balanced_accuracy(score: Tensor, y: Tensor) -> Tensor:
    sides = [y > 0, y < 0]
    rates = [(torch.sigmoid(y * score) * side).sum(1) / side.sum(1).clamp(min=1) for side in sides]
    present = torch.stack([side.any(1) for side in sides]).sum(0)
    return torch.where(present > 0, torch.stack(rates).sum(0) / present.clamp(min=1), 0.5)


def _auc(score: Tensor, y: Tensor) -> Tensor:
    pairs = (y > 0)[:, :, None] & (y < 0)[:, None]
    won = (torch.sigmoid(score[:, :, None] - score[:, None]) * pairs).sum((1, 2))
    count = pairs.sum((1, 2))
    return torch.where(count > 0, won / count.clamp(min=1), 0.5)


UTILITIES: dict[Utility, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": _hinge,
    "balanced_accuracy": _balanced_accuracy,
    "auc": _auc,
}


def _check(
    features: Tensor,
    membership: Tensor,
    train: Tensor,
    validation: Tensor,
    auditor: Auditor,
    regularisation: float,
    solver: Solver,
    network: Network | None,
) -> None:
    if features.ndim != 3 or any(part.shape != features.shape[:2] for part in (membership, train, validation)):
        shapes = [tuple(part.shape) for part in (features, membership, train, validation)]
        raise ValueError(f"features must be [P, n, d] and the others [P, n], not {shapes}")
    used = train | validation
    odd = ~features.detach().double().sum(2).isfinite() & used
    if odd.any():
        raise ValueError(f"{int(odd.sum())} training or validation rows have features that are not finite")
    if not ((membership.abs() == 1) | ~used).all():
        raise ValueError("membership must be +1 or -1 in every training and validation row")
    if regularisation < 0 or (regularisation == 0 and auditor != "hinge_l1"):
        raise ValueError(f"regularisation={regularisation}: must be > 0 for {auditor}, or >= 0 for hinge_l1")
    if (auditor == "neural") != (network is not None) or (auditor == "neural" and solver != "closed"):
        raise ValueError(f"auditor={auditor}, solver={solver}: neural alone needs a network, and solver=closed")
