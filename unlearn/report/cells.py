"""What a cell says: the mean over runs and its interval, and which method's is the best beyond chance."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from unlearn.metrics import Metric
from unlearn.report.rows import CONTESTANTS, HEADS, Line, Run, crossed
from unlearn.report.terminal import number

LEVEL = 0.05


class Summary(NamedTuple):
    """The mean of `n` of `runs` runs, and half of its 95 % t-interval; None where there is none.

    Of runs that are not independent (see `independent`) the interval is that of the seeds' means.
    """

    mean: float
    half: float | None
    n: int
    runs: int

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        return None if self.half is None else self.mean + self.half


def independent(values: Mapping[Run, float], runs: Iterable[Run] = ()) -> dict[Run | int, float]:
    """Values that are independent of each other: a mean for each seed where seeds and splits are crossed.

    Every model of a seed comes from the same original, whatever the split; three seeds with three splits each are
    three times as many runs and no more originals. Splits of one seed only are runs. `runs` are others to look at,
    too, so that two methods are averaged alike.
    """
    if not crossed({*values, *runs}):
        return dict(values)
    of_seed: dict[Run | int, list[float]] = defaultdict(list)
    for (seed, _), value in values.items():
        of_seed[seed].append(value)
    return {seed: sum(its) / len(its) for seed, its in of_seed.items()}


def summarise(values: Mapping[Run, float | None], metric: Metric) -> Summary | None:
    """Mean and interval over the runs that have a value; None where none has. Verdicts and counts have no interval.

    Where seeds and splits are crossed, runs are averaged within each seed first, and the interval is over seeds.
    """
    known = {run: value for run, value in values.items() if value is not None}
    if not known:
        return None
    # A verdict's mean is that of all runs, which counts them
    its = np.array([*(known if metric.unit == "verdict" else independent(known)).values()], dtype=np.float64)
    half = None
    if len(its) > 1 and metric.unit not in ("verdict", "bytes", "count"):
        half = float(t.ppf(0.975, len(its) - 1) * its.std(ddof=1) / math.sqrt(len(its)))
    return Summary(float(its.mean()), half, len(known), len(values))


def text(found: Summary | None, metric: Metric) -> str:
    """A summary as a cell; a verdict is counted, and a cell that fewer runs have than its line says how many."""
    if found is None:
        return ""
    if metric.unit == "verdict":
        return f"{found.mean * found.n:.0f} of {found.n}"
    fewer = f" (n = {found.n})" if found.n < found.runs else ""
    half = "" if found.half is None else f" ± {number(found.half, metric)}"
    return f"{number(found.mean, metric)}{half}{fewer}"


def best(lines: Sequence[Line], metric: Metric) -> str | None:
    """The line that is better than every other beyond chance, or None.

    The methods compete, without `none`, `retrain` and those that lack the metric in some run. Best is the highest, the
    lowest, or, for a metric whose best value is the retrained model's, the nearest to that of the same run on average.
    A t-test at 5 % compares the best two: paired over the runs that both have if there are two of them, Welch's
    otherwise. Verdicts have no best.
    """
    if metric.unit == "verdict":
        return None
    retrained = next((line.runs for line in lines if line.name == HEADS["retrained"]), {})
    losses: list[tuple[float, str, Mapping[Run, float]]] = []
    for line in lines:
        if line.method is None or line.method in CONTESTANTS:
            continue
        loss = {run: _loss(metric, its, retrained.get(run, {})) for run, its in line.runs.items()}
        known = {run: value for run, value in loss.items() if value is not None}
        if len(known) == len(loss):
            losses.append((float(np.mean(list(known.values()))), line.name, known))
    if len(losses) < 2:
        return None
    (_, name, first), (_, _, second) = sorted(losses, key=lambda loss: loss[:2])[:2]
    pvalue = difference_pvalue(first, second)
    return name if pvalue is not None and pvalue < LEVEL else None


def _loss(metric: Metric, its: Mapping[str, float], retrained: Mapping[str, float]) -> float | None:
    value, target = its.get(metric.name), retrained.get(metric.name)
    if value is None or (metric.better == "reference" and target is None):
        return None
    if metric.better == "reference" and target is not None:
        return abs(value - target)
    return -value if metric.better == "higher" else value


def difference_pvalue(first: Mapping[Run, float], second: Mapping[Run, float]) -> float | None:
    """Of the hypothesis that two methods' means are equal; paired if two runs are shared, None if a spread is unknown.

    What differs equally in every run, without any spread, differs for certain; what does not differ has 1. Of runs that
    are not `independent` the seeds' means are compared.
    """
    one, other = independent(first, second), independent(second, first)
    shared = [run for run in one if run in other]
    if len(shared) > 1:
        differences = np.array([one[run] - other[run] for run in shared])
        return _pvalue(float(differences.mean()), _squared_error(differences), len(shared) - 1.0)
    values = [np.array(list(its.values()), dtype=np.float64) for its in (one, other)]
    if min(len(its) for its in values) < 2:
        return None
    errors = [_squared_error(its) for its in values]
    freedom = sum(error**2 / (len(its) - 1) for error, its in zip(errors, values, strict=True))
    of_both = sum(errors) ** 2 / freedom if freedom > 0 else 1.0
    return _pvalue(float(values[0].mean() - values[1].mean()), sum(errors), of_both)


def _squared_error(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) / len(values)


def _pvalue(difference: float, squared_error: float, freedom: float) -> float:
    if abs(difference) < 1e-12:
        return 1.0
    if squared_error < 1e-24:
        return 0.0
    return float(2 * t.sf(abs(difference) / math.sqrt(squared_error), freedom))
