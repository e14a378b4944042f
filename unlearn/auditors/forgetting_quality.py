"""Could anyone bound by (epsilon, delta) tell unlearned models from retrained ones? The NeurIPS 2023 competition's F.

    epsilon = max over attacks of max(log(1 - delta - FPR) - log FNR, log(1 - delta - FNR) - log FPR)
    F = mean over forgotten images of 2^-floor(2 epsilon)

Triantafillou et al., arXiv:2406.09073. For each forgotten image the logit-scaled confidences of `models` unlearned
models are attacked against those of as many retrained ones: by a threshold, above which an answer belongs to the side
with the larger median, and by an interval, within which it belongs to the side with the smaller range, both on grids of
100 a unit. An attack of which exactly one error rate is 0 does not count; if both are, or one side's range is less
than a hundredth of the other's, epsilon is `cap`. Epsilon is counted up to the logarithm of the models less one,
rounded up; an image beyond gets no points. The final score is F times the ratios of retain and test accuracy to the
retrained models'.

Epsilon is a maximum over thousands of attacks, so perfect unlearning does not score 1 but near .18, whatever the number
of models from 8 on: F is given beside `forgetting_quality_null`, that of other retrained models, and divided by it.
`attacks: threshold` leaves the intervals out (.31-.38). `rates: upper_bounds` puts Clopper and Pearson's upper bounds
(97.5 % each) for the error rates: a bound for each attack, not for the best of them. No attack is discarded then, no
epsilon is infinite, and the ranges are not compared.

Intervals are of the mean over other images (bootstrap), of these very models. The verdict asks about other models: it
fails where F is below that of the second set of retrained models by more than 19 of 20 random mixtures of the two sets
are.

Exact retraining: F is that of the null, the normalised F near 1, and a method that retrains passes in nineteen of
twenty cases, its models and the other retrained ones being exchangeable. The column `retrained` is the null itself,
which passes always. The original, always the same model, is told by its range alone, and gets no points.

Deviations from released code: all models are counted at once rather than in one large array for each image, which gives
the same rates; two sides that do not overlap have epsilon `cap` even where no threshold of the grid lies between them;
an image of which no attack counts has epsilon 0, where the code stops; of two constant sides, equal ones have epsilon 0
and others `cap`, where the code divides by 0.

Known failure modes: with one original (`same_original: true`, the competition) a method without randomness gets no
points however well it forgets; `false` gives each model an original of its own. A grid of a fixed step is coarse where
margins hardly vary. Below 32 models few values of epsilon exist. Nothing is said about retained images.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from unlearn.many_models import Models, exchange_verdict, models_by_images, over_images
from unlearn.metrics import Answer, Metric
from unlearn.settings import Count, Positive, Share
from unlearn.signals import Signals
from unlearn.statistics import LEVEL, bootstrapped
from unlearn.subject import Laboratory, Subject

Floats = NDArray[np.float64]
Attacks = Literal["both", "threshold"]
Rates = Literal["observed", "upper_bounds"]

PER_UNIT, REACH = (
    100,
    2.0,
)  # the released code's grid: thresholds a unit, and how far beyond the range an interval may end
SOURCE = "Triantafillou et al., arXiv:2406.09073"
METRICS = (
    Metric("forgetting_quality", "Forgetting quality F", "fraction", "higher", SOURCE, True),
    Metric("forgetting_quality_null", "F of other retrained models", "fraction", "reference", "this project", True),
    Metric(
        "forgetting_quality_normalised", "F over that of retrained models", "number", "higher", "this project", True
    ),
    Metric("forgetting_quality_epsilon", "Mean epsilon of the forget set", "number", "lower", SOURCE, True),
    Metric("forgetting_quality_score", "F times the ratios of accuracy", "number", "higher", SOURCE),
    Metric("forgetting_quality_pvalue", "F: p-value of the mixed sets", "fraction", "reference", "this project"),
    Metric("forgetting_quality_passed", "F: not told from retrained", "verdict", "higher", "this project"),
)


def forgetting_quality(
    subject: Subject,
    lab: Laboratory,
    *,
    models: Models,
    same_original: bool,
    attacks: Attacks,
    rates: Rates,
    delta: Share,
    cap: Positive,
    exchanges: Count,
) -> Answer:
    """F, its null, their ratio, the final score and the verdict; epsilon of each image, of ours and of the null."""
    hits: dict[str, list[tuple[float, float]]] = {"ours": [], "oracles": []}
    repeats = lab.repeats(subject.role, models, same_original=same_original)
    ours = _margins(_counted(repeats, hits["ours"]))
    oracles = _margins(_counted(lab.oracles(models), hits["oracles"]))
    others = _margins(lab.repeats("retrained", models, same_original=False))
    table = epsilon_table(models, delta, cap, rates)
    measure = partial(epsilons, table=table, cap=cap, attacks=attacks, rates=rates)
    found, null = measure(ours, oracles), measure(others, oracles)
    points, null_points = points_of(found, models), points_of(null, models)

    def generator(name: str) -> np.random.Generator:
        return np.random.default_rng(lab.streams.seed("forgetting_quality", name))

    def ratio(chosen: NDArray[np.int64]) -> float:
        below = null_points[chosen].mean()
        return float(points[chosen].mean() / below) if below > 0 else float("nan")

    def distance(first: Floats, second: Floats) -> float:
        return -float(points_of(measure(first, second), models).mean())

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.mean(hits["ours"], axis=0) / np.mean(hits["oracles"], axis=0)
    name = "forgetting_quality"
    answer: dict[str, Any] = {
        **over_images(points, generator("images"), name),
        **over_images(null_points, generator("images"), f"{name}_null"),
        **over_images(found, generator("images"), f"{name}_epsilon"),
        **exchange_verdict(distance, ours, others, oracles, generator("exchange"), exchanges, name),
        f"{name}_score": float(points.mean() * ratios.prod()),
        f"{name}_epsilons": found.astype(np.float32),
        f"{name}_epsilons_null": null.astype(np.float32),
    }
    if null_points.any():
        normalised = bootstrapped(ratio, len(points), generator("images"), f"{name}_normalised")
        return answer | (normalised if len(points) > 1 else {f"{name}_normalised": ratio(np.zeros(1, dtype=np.int64))})
    return answer | {f"{name}_normalised": "retrained models get no points from each other to divide by"}


def _counted(subjects: Iterator[Subject], accuracies: list[tuple[float, float]]) -> Iterator[Subject]:
    for subject in subjects:
        accuracies.append((subject.retain.accuracy, subject.test.accuracy))
        yield subject


def _margins(subjects: Iterator[Subject]) -> Floats:
    def finite(signals: Signals) -> Floats:
        return signals.margin.clip(-100, 100)

    return models_by_images(subjects, finite, ("forget",))["forget"]


def points_of(epsilon: Floats, models: int) -> Floats:
    """2^-i for an epsilon in the i-th half unit; none beyond what so many models can show."""
    place = np.floor(2 * epsilon)
    return np.where(place < 2 * np.ceil(np.log(models - 1)), 0.5**place, 0.0)


def epsilon_table(models: int, delta: float, cap: float, rates: Rates) -> Floats:
    """Epsilon of an attack that calls so many of the one side's models (row) and of the other's (column) positive."""
    counts = np.arange(models + 1)
    share = counts / models
    if rates == "upper_bounds":
        share[:-1] = beta.ppf((1 + LEVEL) / 2, counts[:-1] + 1, models - counts[:-1])
    missed, false = share[::-1, None], share[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        one = np.log(np.maximum(1 - delta - false, 0)) - np.log(missed)
        two = np.log(np.maximum(1 - delta - missed, 0)) - np.log(false)
        table = np.fmax(one, two).clip(0, cap)
    table[(missed == 0) != (false == 0)] = 0
    table[(missed == 0) & (false == 0)] = cap
    return table


def epsilons(ours: Floats, oracles: Floats, *, table: Floats, cap: float, attacks: Attacks, rates: Rates) -> Floats:
    """Epsilon of each image, given the margins of equally many models, models x images."""
    sides = zip(np.sort(ours, axis=0).T, np.sort(oracles, axis=0).T, strict=True)
    return np.array([_epsilon(one, two, table, cap, attacks, rates) for one, two in sides])


def _epsilon(one: Floats, two: Floats, table: Floats, cap: float, attacks: Attacks, rates: Rates) -> float:
    """Of one image, both sides sorted."""
    narrow, wide = sorted((one, two), key=np.ptp)
    low, high = (two, one) if np.median(one) >= np.median(two) else (one, two)
    if np.ptp(wide) == 0 and low[0] == high[0]:
        return 0.0
    if rates == "observed" and np.ptp(narrow) < 0.01 * np.ptp(wide):
        return cap
    if low[-1] < high[0]:
        return float(table[-1, 0])
    best = _by_thresholds(low, high, table)
    return max(best, _by_intervals(narrow, wide, table)) if attacks == "both" else best


def _by_thresholds(low: Floats, high: Floats, table: Floats) -> float:
    first, last = min(low[0], high[0]), max(low[-1], high[-1])
    thresholds = np.linspace(first, last, int(np.ceil((last - first) * PER_UNIT)))
    above = [len(side) - np.searchsorted(side, thresholds, side="left") for side in (high, low)]
    return float(table[above[0], above[1]].max(initial=0.0))


def _by_intervals(narrow: Floats, wide: Floats, table: Floats) -> float:
    count = int(2 * REACH * PER_UNIT)
    step = 2 * REACH / (count - 1)
    right = narrow[-1] - REACH + step * np.arange(count)
    # Both grids have the same step: the left ends of each interval's right end are a window of one long grid
    left = right[0] - np.ptp(narrow) - REACH + step * np.arange(2 * count - 1)
    # Both counts in one number, whose differences below 0 are those of empty intervals and clipped to them
    columns = len(table)
    below = np.searchsorted(narrow, left, side="left") * columns + np.searchsorted(wide, left, side="left")
    until = np.searchsorted(narrow, right, side="right") * columns + np.searchsorted(wide, right, side="right")
    # Ends between which no answer lies are one; two such runs make an interval if any of their ends do
    (low, low_last), (high, high_last) = _runs(below), _runs(until)
    possible = (low <= high_last[:, None] + count - 1) & (low_last >= high[:, None])
    values = table.ravel().take(until[high][:, None] - below[low], mode="clip")
    return float(values.max(where=possible, initial=0.0))


def _runs(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last positions of equal values in ascending ones."""
    first = np.flatnonzero(np.diff(values, prepend=-1))
    return first, np.append(first[1:], len(values)) - 1
