"""Seconds to solve and differentiate the linear auditors of one audit: ours together, cvxpylayers one by one.

    python benchmarks/follower.py

One process, one thread, processor seconds (other work on the machine counts less), the best of several rounds for ours
and of three for cvxpylayers, whose layers are built beforehand. SCS at its default tolerances is what the paper ran;
SCS at 1e-10 is the reference of the agreement. Agreement is the largest relative difference of a problem's gradient,
the smallest cosine, and how many problems have a cosine below 0.99. Fourteen rows of 101 features are separable: there
`hinge_l1 0` has no single optimum, and each solver differentiates another one.
"""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from unlearn.games.follower import Auditor, Solver, best_response_utility

ROUNDS = 20


class Case(NamedTuple):
    """`problems` auditors, each trained on `rows` x `features`; cvxpylayers solves the first `measured`."""

    problems: int
    rows: int
    features: int
    measured: int
    auditor: Auditor
    regularisation: float


CASES = [
    Case(30, 140, 11, 30, "hinge_l1", 0.0),
    Case(1, 2000, 11, 1, "hinge_l1", 0.0),
    Case(150, 140, 11, 30, "hinge_l1", 0.0),  # the five pairs of an epoch at once
    Case(300, 14, 101, 10, "hinge_l1", 0.0),
    Case(300, 14, 101, 10, "hinge_l2", 0.1),
    Case(30, 140, 11, 30, "hinge_l2", 0.01),
    Case(30, 140, 11, 30, "squared_hinge", 0.01),
    Case(30, 140, 11, 5, "logistic", 0.01),
]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| problems | auditor | ours, s | SCS, s | ratio | tight, s | ratio | ours/tight | SCS/tight | ours/SCS |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        audit = scores(case)
        ours, gradient = best(audit, case, "closed", ROUNDS)
        few = [part[: case.measured] for part in audit]
        share = case.problems / case.measured
        (scs, of_scs), (tight, of_tight) = (best(few, case, name, 3) for name in ("cvxpylayers", "cvxpylayers_tight"))
        name = f"{case.problems} x ({case.rows} x {case.features})" + f", theirs {case.measured} scaled" * (share > 1)
        ratios = [f"{seconds * share:.3f} | {seconds * share / ours:.0f}" for seconds in (scs, tight)]
        times = f"{ours:.4f} | {ratios[0]} | {ratios[1]}"
        pairs = ((gradient[: case.measured], of_tight), (of_scs, of_tight), (gradient[: case.measured], of_scs))
        agreement = " | ".join(compare(*pair) for pair in pairs)
        print(f"| {name} | {case.auditor} {case.regularisation:g} | {times} | {agreement} |", flush=True)


def scores(case: Case) -> list[Tensor]:
    """Logits and loss as in an audit of a model that remembers a little: features, membership, train, validation."""
    draw = torch.Generator().manual_seed(case.rows)
    held = round(case.rows * 3 / 7)
    shape = (case.problems, case.rows + held)
    membership = torch.arange(shape[1]).remainder(2).mul(2).sub(1).double().expand(shape)
    direction = torch.randn(case.problems, 1, case.features, generator=draw, dtype=torch.float64)
    features = torch.randn(*shape, case.features, generator=draw, dtype=torch.float64)
    features = features + 0.7 * membership[..., None] * direction / case.features**0.5
    train = (torch.arange(shape[1]) < case.rows).expand(shape)
    return [features, membership, train, ~train]


def best(audit: list[Tensor], case: Case, solver: Solver, rounds: int) -> tuple[float, Tensor]:
    """The least processor time of a forward and a backward pass, after one to warm up, and the gradient."""
    seconds, features = [], audit[0].clone().requires_grad_()
    for _ in range(rounds + 1):
        features.grad = None
        start = time.process_time()
        utility, _ = best_response_utility(
            features,
            *audit[1:],
            auditor=case.auditor,
            regularisation=case.regularisation,
            utility="hinge",
            direct=True,
            implicit=True,
            solver=solver,
        )
        utility.sum().backward()
        seconds.append(time.process_time() - start)
    assert features.grad is not None
    return min(seconds[1:]), features.grad


def compare(gradient: Tensor, reference: Tensor) -> str:
    """Largest relative difference, smallest cosine, and the share of problems with a cosine below 0.99."""
    difference = (gradient - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    cosine = torch.cosine_similarity(gradient.flatten(1), reference.flatten(1))
    return f"{difference.max():.0e}, {cosine.min():.4f}, {int((cosine < 0.99).sum())}/{len(cosine)}"


if __name__ == "__main__":
    main()
