"""Intervals and tests for the numbers we print."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, rankdata

Floats = NDArray[np.float64]
LEVEL = 0.95


def proportion(hits: NDArray[np.bool_], name: str) -> dict[str, float]:
    """A share with its 95 % Wilson interval, as `name`, `name_low`, `name_high`; nothing at all for no trials."""
    if len(hits) == 0:
        return {}
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL, method="wilson")
    return {name: float(hits.mean()), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


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

    Each argument is (positive, negative) scores, in the same order of images. Equal scores differ by exactly nothing.
    Others whose paired variance is zero, as where both separate the sides perfectly, have the interval of two unpaired
    areas: their own intervals' distances, squared and added (Newcombe, Statistics in Medicine 1998, method 10).
    """
    area1, a1, b1 = auc_components(*first)
    area2, a2, b2 = auc_components(*second)
    a, b = a1 - a2, b1 - b2
    spread = np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) if min(len(a), len(b)) > 1 else np.inf
    half = norm.ppf((1 + LEVEL) / 2) * spread
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
