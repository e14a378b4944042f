"""Statistics of the same images seen twice, and of one sample's order."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from unlearn.statistics import LEVEL, proportion

Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]


def share_difference(first: Hits, second: Hits, name: str) -> dict[str, float]:
    """The share of hits in `first` minus that in `second`, of the same images, with its 95 % interval.

    The interval adds the squared distances of the two Wilson intervals and takes off what the pairs have in common, by
    their correlation phi with its continuity correction (Newcombe, Statistics in Medicine 1998;17:2635, method 10). It
    has a width even where no image differs, and covers nearly 95 % with few images. Nothing at all for no images.
    """
    if len(first) == 0:
        return {}
    one, two = proportion(first, "p"), proportion(second, "p")
    phi = _agreement(first, second)
    below, above = ([abs(each[f"p{end}"] - each["p"]) for each in (one, two)] for end in ("_low", "_high"))
    difference = one["p"] - two["p"]
    low = difference - np.sqrt(below[0] ** 2 - 2 * phi * below[0] * above[1] + above[1] ** 2)
    high = difference + np.sqrt(above[0] ** 2 - 2 * phi * above[0] * below[1] + below[1] ** 2)
    return {name: difference, f"{name}_low": float(low), f"{name}_high": float(high)}


def _agreement(first: Hits, second: Hits) -> float:
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    margins = float(np.prod([float(both + one), both + other, neither + one, neither + other]))
    if margins == 0:
        return 0.0
    excess = both * neither - one * other
    return (max(excess - len(first) / 2, 0.0) if excess > 0 else excess) / np.sqrt(margins)


def quantile(values: Floats, share: float, name: str) -> dict[str, float]:
    """The smallest value that at least `share` of all are at or below, with its 95 % interval of order statistics.

    The interval holds for every distribution (Conover, Practical Nonparametric Statistics 1999, section 3.2). Too few
    values to bound it leave an end infinite.
    """
    ordered = np.concatenate([[-np.inf], np.sort(values), [np.inf]])
    n = len(values)
    low, high = binom.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], n, share).astype(int)
    point = max(1, int(np.ceil(n * share * (1 - 1e-12))))
    return {name: float(ordered[point]), f"{name}_low": float(ordered[low]), f"{name}_high": float(ordered[high + 1])}
