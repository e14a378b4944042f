"""Intervals and tests for the numbers we print."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, rankdata
from scipy.stats import t as student

Floats = NDArray[np.float64]
LEVEL = 0.95


def proportion(hits: NDArray[np.bool_], name: str) -> dict[str, float]:
    """A share with its 95 % Wilson interval, as `name`, `name_low`, `name_high`; nothing at all for no trials."""
    if len(hits) == 0:
        return {}
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL, method="wilson")
    return {name: float(hits.mean()), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def proportion_exact(hits: Sequence[bool], name: str) -> dict[str, float]:
    """A share of a few trials with its exact 95 % interval (Clopper & Pearson, Biometrika 1934)."""
    interval = binomtest(sum(hits), len(hits)).proportion_ci(LEVEL, method="exact")
    return {name: sum(hits) / len(hits), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def paired_shares(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> tuple[float, float]:
    """The difference of two shares of the same trials, and its standard error, half a trial added on either side.

    Agresti & Min, Statistics in Medicine 2005: full agreement on a few trials proves nothing.
    """
    more, less, count = float((ours & ~theirs).sum()), float((theirs & ~ours).sum()), len(ours) + 2
    return (more - less) / count, float(np.sqrt(more + less + 1 - (more - less) ** 2 / count)) / count


def mean(values: Floats, name: str) -> dict[str, float]:
    """The mean of independent values with its 95 % t-interval; of a single value, no interval."""
    measured = {name: float(values.mean())}
    if len(values) > 1:
        half = float(student.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        measured |= {f"{name}_low": measured[name] - half, f"{name}_high": measured[name] + half}
    return measured


def auc_components(positive: Floats, negative: Floats) -> tuple[float, Floats, Floats]:
    """Area under the ROC curve, ties counted half, and DeLong's placement of every positive and negative score."""
    m, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    of_positive = (ranks[:m] - rankdata(positive)) / n
    of_negative = 1 - (ranks[m:] - rankdata(negative)) / m
    return float(of_positive.mean()), of_positive, of_negative


def auc(positive: Floats, negative: Floats, name: str) -> dict[str, float]:
    """AUC with its 95 % DeLong interval on the logit scale (DeLong et al., Biometrics 1988).

    At AUC 0 or 1, and where all scores are equal, DeLong's variance is zero, because every pair of a positive and a
    negative score says the same. There the bound is that of no other pair out of min(m, n) independent ones
    (Clopper & Pearson, Biometrika 1934): of all pairs at most 1 - 0.025^(1/k), k = min(m, n), can be others, and the
    area moves as if these all went one way.
    """
    area, a, b = auc_components(positive, negative)
    m, n = len(positive), len(negative)
    if positive.min() == positive.max() == negative.min() == negative.max():
        low = ((1 - LEVEL) / 2) ** (1 / min(m, n)) / 2
        high = 1 - low
    elif area in (0.0, 1.0) or min(m, n) < 2:
        k = min(m, n)
        low, high = binomtest(round(area * k), k).proportion_ci(LEVEL, method="exact")
    else:
        spread = np.sqrt(a.var(ddof=1) / m + b.var(ddof=1) / n) / (area * (1 - area))
        centre, half = np.log(area / (1 - area)), norm.ppf((1 + LEVEL) / 2) * spread
        low, high = 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
    return {name: area, f"{name}_low": float(low), f"{name}_high": float(high)}


def auc_difference(first: tuple[Floats, Floats], second: tuple[Floats, Floats], name: str) -> dict[str, float]:
    """AUC(first) - AUC(second) for two scores of the same images, with its paired 95 % DeLong interval.

    Of few images their variance is estimated badly, hence Student's t with Satterthwaite's degrees of freedom
    (Biometrics Bulletin 1946), without which three forgotten images would tell one exact retrain in five apart.
    Each argument is (positive, negative) scores, in the same order of images. Equal scores differ by exactly nothing.
    Others whose paired variance is zero, as where both separate the sides perfectly, have the interval of two unpaired
    areas: their own intervals' distances, squared and added (Newcombe, Statistics in Medicine 1998, method 10).
    """
    area1, a1, b1 = auc_components(*first)
    area2, a2, b2 = auc_components(*second)
    a, b = a1 - a2, b1 - b2
    half = spread = np.inf
    if min(len(a), len(b)) > 1:
        parts = np.array([its.var(ddof=1) / len(its) for its in (a, b)])
        spread = np.sqrt(parts.sum())
        freedom = parts.sum() ** 2 / (parts**2 / [len(a) - 1, len(b) - 1]).sum() if spread else np.inf
        half = student.ppf((1 + LEVEL) / 2, freedom) * spread
    difference = area1 - area2
    low, high = difference - half, difference + half
    if _constant(a, len(b)) and _constant(b, len(a)) and np.isfinite(spread) and not _equal(first, second):
        one, two = auc(*first, "x"), auc(*second, "x")
        low = difference - np.hypot(area1 - one["x_low"], two["x_high"] - area2)
        high = difference + np.hypot(one["x_high"] - area1, area2 - two["x_low"])
    return {name: difference, f"{name}_low": float(max(-1.0, low)), f"{name}_high": float(min(1.0, high))}


def _constant(placements: Floats, others: int) -> bool:
    """Whether differences of placements, which are multiples of 1 / (2 `others`) but for rounding, are all equal."""
    return bool(np.ptp(placements) * 4 * others < 1)


def _equal(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> bool:
    return all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))


def tpr_at_fpr(positive: Floats, negative: Floats, fpr: float, name: str) -> dict[str, float | str]:
    """The largest true-positive rate at a false-positive rate of at most `fpr`; equal scores share one threshold.

    The interval is that of Clopper & Pearson (Biometrika 1934) for the positive scores at that threshold. Where fewer
    than 10 negatives are expected above it the point means nothing, and the answer is the reason in words.
    """
    if len(negative) * fpr < 10:
        return {name: f"needs at least {round(10 / fpr)} negative images, and there are {len(negative)}"}
    allowed = int(np.floor(len(negative) * fpr * (1 + 1e-12)))
    threshold = np.sort(negative)[-allowed - 1]  # one more at or above it would be too many
    hits = int((positive > threshold).sum())
    interval = binomtest(hits, len(positive)).proportion_ci(LEVEL, method="exact")
    return {name: hits / len(positive), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def best_threshold(positive: Floats, negative: Floats) -> tuple[float, float]:
    """The threshold at or above which to call a score positive, and its balanced accuracy, the highest there is.

    On the scores it was chosen on that accuracy is optimistic: judge it on others.
    """
    candidates = np.append(np.unique(np.concatenate([positive, negative])), np.inf)
    missed = np.searchsorted(np.sort(positive), candidates, side="left") / len(positive)
    rejected = np.searchsorted(np.sort(negative), candidates, side="left") / len(negative)
    balanced = (1 - missed + rejected) / 2
    best = int(balanced.argmax())
    return float(candidates[best]), float(balanced[best])


def permutation_pvalue(
    statistic: Callable[[Floats, Floats], float],
    first: Floats,
    second: Floats,
    generator: np.random.Generator,
    permutations: int = 999,
) -> float:
    """The share of random divisions of all values whose statistic is at least the observed one, itself among them."""
    observed = statistic(first, second)
    values = np.concatenate([first, second])
    count = 1
    for _ in range(permutations):
        shuffled = generator.permutation(values)
        count += statistic(shuffled[: len(first)], shuffled[len(first) :]) >= observed
    return count / (permutations + 1)


def bootstrapped(
    statistic: Callable[[NDArray[np.int64]], float],
    clusters: int,
    generator: np.random.Generator,
    name: str,
    resamples: int = 999,
) -> dict[str, float]:
    """A statistic with its 95 % percentile interval over resampled clusters (Efron & Tibshirani 1993, chapter 13).

    `statistic(chosen)` computes it from the clusters numbered in `chosen`, which may repeat; images that one model
    answers for are one cluster. Resamples in which it is not finite are left out.
    """
    value = statistic(np.arange(clusters))
    drawn = [statistic(generator.integers(clusters, size=clusters)) for _ in range(resamples)]
    finite = np.array([each for each in drawn if np.isfinite(each)])
    if len(finite) == 0:
        return {name: value}
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}


def equivalence_pvalue(estimate: float, error: float, margin: float, freedom: float = np.inf) -> float:
    """Two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 1987): is the true value within `margin` of zero?

    `error` is the estimate's standard error and `freedom` its degrees of freedom. Small values say: yes, it is.
    """
    if error == 0:
        return 0.0 if abs(estimate) < margin else 1.0
    return float(max(student.sf((margin - side) / error, freedom) for side in (estimate, -estimate)))


def holm(pvalues: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm, Scand. J. Statist. 1979): reject those at most the level."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for position, (name, value) in enumerate(sorted(pvalues.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(pvalues) - position) * value))
        adjusted[name] = highest
    return adjusted


def spearman(first: Floats, second: Floats, controls: Sequence[Floats] = ()) -> float:
    """Spearman's rho; with `controls`, the partial one given their ranks; nan where it is not defined."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    ranks = rankdata([first, second, *controls], axis=1)
    left, right = _residuals(np.stack([np.ones(len(first)), *ranks[2:]], axis=1), ranks[:2].T).T
    spread = np.linalg.norm(left) * np.linalg.norm(right)
    return float(left @ right / spread) if spread > 1e-9 * len(first) ** 2 else float("nan")


def rank_correlation(
    first: Floats,
    second: Floats,
    generator: np.random.Generator,
    name: str,
    controls: Sequence[Floats] = (),
    clusters: NDArray[Any] | None = None,
) -> dict[str, float]:
    """Spearman's rho, partial with `controls`, with its bootstrap interval over points.

    `clusters` says to which run each point belongs; whole runs are then resampled, because points of one run are not
    independent. Few runs have few resamples, and intervals from fewer than ten are too narrow.
    """
    numbers = np.arange(len(first)) if clusters is None else clusters
    members = [np.flatnonzero(numbers == its) for its in np.unique(numbers)]

    def statistic(chosen: NDArray[np.int64]) -> float:
        points = np.concatenate([members[its] for its in chosen])
        return spearman(first[points], second[points], [its[points] for its in controls])

    return bootstrapped(statistic, len(members), generator, name)


def _residuals(given: Floats, values: Floats) -> Floats:
    residuals: Floats = values - given @ np.linalg.lstsq(given, values, rcond=None)[0]
    return residuals
