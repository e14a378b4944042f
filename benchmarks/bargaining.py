"""What bargaining adds to two backward passes: the Gram matrix, the closed form and the sum, or a convex solver's call.

Milliseconds of CPU time on one thread, best of several, so that other work on the machine hardly shows. What is added
is a share of the two backward passes, and in the last but one column of both players' forward and backward passes.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import cvxpy as cp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from unlearn.games.bargaining import Outcome, Weights, combine, gram, gram_matrix, nash_weights
from unlearn.models.convnet import convnet
from unlearn.models.resnet20 import resnet20
from unlearn.streams import Streams


def best(run: Callable[[], object], repetitions: int) -> float:
    """The least CPU time of a call, in milliseconds."""
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return 1e3 * min(times)


def gradients(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The retaining and the forgetting player's gradient, each from its own backward pass."""
    return [list(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in losses]


def convex_bargain() -> Callable[[np.ndarray], Weights]:
    """The same bargain as a CVXPY problem, compiled once; the Gram matrix is its parameter."""
    root, weights = cp.Parameter((2, 2)), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(root.T @ weights) / 2 - cp.sum(cp.log(weights))))

    def solve(matrix: np.ndarray) -> Weights:
        norms = np.sqrt(np.diag(matrix))
        root.value = np.linalg.cholesky(matrix / np.outer(norms, norms))
        problem.solve(solver=cp.CLARABEL)
        retain, forget = (weights.value / norms).tolist()
        return Weights(retain, forget, Outcome.SOLVED)

    return solve


def measured(name: str, model: nn.Module, shape: tuple[int, ...], repetitions: int) -> list[str]:
    """One row of the table."""
    generator = Streams("benchmark")("batch")
    images, labels = torch.rand(shape, generator=generator), torch.randint(10, shape[:1], generator=generator)
    model.train()
    parameters = list(model.parameters())

    def forward() -> list[Tensor]:
        return [nn.functional.cross_entropy(model(images), targets) for targets in (labels, labels.roll(1))]

    losses = forward()
    first, second = gradients(losses, parameters)
    convex, matrix = convex_bargain(), gram_matrix([first, second])
    closed_form = nash_weights(*gram(first, second))
    apart = max(abs(one / two - 1) for one, two in zip(convex(matrix)[:2], closed_form[:2], strict=True))

    backward = best(lambda: gradients(losses, parameters), repetitions)
    passes = backward + best(forward, repetitions)
    inner = best(lambda: gram(first, second), 100)
    rule = best(partial(nash_weights, *gram(first, second)), 200)
    summed = best(lambda: combine(first, second, Weights(0.5, 0.5)), 100)
    solver = best(lambda: convex(matrix), 20)
    ours, theirs = inner + rule + summed, inner + solver + summed
    cells = (backward, inner, rule, summed, solver)
    added = [f"{100 * share:.2f} %" for share in (ours / backward, theirs / backward, ours / passes)]
    return [name, *(f"{cell:.3f}" for cell in cells), *added, f"{apart:.0e}"]


def main() -> None:
    torch.set_num_threads(1)
    table = Table(title="Nash bargaining: CPU milliseconds a step, and what they add to the backward passes")
    heads = ["two backward", "Gram", "closed form", "sum", "CVXPY"]
    heads += ["ours adds", "CVXPY adds", "ours, of all passes", "weights differ by"]
    table.add_column("model, batch")
    for head in heads:
        table.add_column(head, justify="right")
    with Streams("benchmark").seeded("weights"):
        nets = [
            ("convnet, 128 x 1 x 8 x 8", convnet((1, 8, 8), 10, widths=[16, 32]), (128, 1, 8, 8), 30),
            ("resnet20, 128 x 3 x 32 x 32", resnet20((3, 32, 32), 10), (128, 3, 32, 32), 4),
        ]
    for name, net, shape, repetitions in nets:
        table.add_row(*measured(name, net, shape, repetitions))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
