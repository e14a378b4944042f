"""RMIA's scores of 60,000 images, all of them the population: one sorted search against every x beside every z.

python benchmarks/rmia.py

The direct form compares ratios as the published definition does, in chunks of x, since its whole matrix would need
27 GiB. CPU seconds on one thread, best of three for the search and of one for the others; peak of what is allocated.
"""

import math
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from unlearn.auditors.rmia import scores

Floats = NDArray[np.float64]
COUNT, GAMMA = 60_000, 2.0  # CIFAR-10's training and test images; AMUN's gamma


def planted() -> Floats:
    """p(x | model) / p(x) of images whose margins are normal, under a model and under sixteen references."""
    draw = np.random.default_rng(0)
    difficulty = draw.normal(2, 2, COUNT)
    own, *others = (1 / (1 + np.exp(-difficulty - draw.normal(0, 1, COUNT))) for _ in range(17))
    expected: Floats = np.mean(others, axis=0)
    return own / expected


def ours(ratios: Floats) -> Floats:
    return scores(ratios, np.sort(ratios), GAMMA, included=True)


def direct(ratios: Floats, chunk: int) -> Floats:
    """The share of all other z with ratio(x) / ratio(z) > gamma; an image is never gamma times itself."""
    answer, beside = np.empty(COUNT), np.empty((chunk, COUNT))
    above = np.empty((chunk, COUNT), dtype=bool)
    for start in range(0, COUNT, chunk):
        np.divide(ratios[start : start + chunk, None], ratios[None, :], out=beside)
        np.greater(beside, GAMMA, out=above)
        answer[start : start + chunk] = np.count_nonzero(above, axis=1) / (COUNT - 1)
    return answer


def measured(run: Callable[[Floats], Floats], ratios: Floats, times: int) -> tuple[float, int, Floats]:
    """Seconds, bytes and scores."""
    seconds = math.inf
    tracemalloc.start()
    for _ in range(times):
        began = time.process_time()
        answer = run(ratios)
        seconds = min(seconds, time.process_time() - began)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, peak, answer


def main() -> None:
    ratios = planted()
    table = Table(title=f"RMIA's scores of {COUNT:,} images beside {COUNT:,}")
    for head in ("way", "seconds", "ratio", "peak MiB", "largest difference", "equal scores"):
        table.add_column(head, justify="left" if head == "way" else "right")
    fastest, memory, expected = measured(ours, ratios, 3)
    rows = [("ours, sorted search", (fastest, memory, expected))]
    rows += [
        (f"direct, {chunk} images at a time", measured(partial(direct, chunk=chunk), ratios, 1)) for chunk in (10, 100)
    ]
    for name, (seconds, peak, answer) in rows:
        apart = np.abs(answer - expected)
        cells = (f"{seconds:.3f}", f"{seconds / fastest:,.0f}", f"{peak / 2**20:,.1f}")
        table.add_row(name, *cells, f"{apart.max():.1e}", f"{100 * np.mean(apart == 0):.2f} %")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
