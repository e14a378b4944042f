"""Fewer images than there are: a fixed choice, so that every model is asked about the same ones."""

import numpy as np
from numpy.typing import NDArray


def evenly(count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of `count` positions, evenly spaced, the first and the last among them."""
    return np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64)
