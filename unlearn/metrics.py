"""What a metric is. Each is declared once, in the `METRICS` of the auditor that computes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

Measured = Mapping[str, float]
"""Metric name -> value; an interval adds `<name>_low` and `<name>_high`."""

Answer = Mapping[str, float | str | NDArray[Any]]
"""What an auditor gives: metrics; for a metric that it refuses to give, the reason in words; and arrays, which are kept
beside the metrics under any name (`audits/<key>/arrays.npz`) for pictures and further analysis."""


@dataclass(frozen=True)
class Metric:
    """One number of a row.

    `better` is `higher`, `lower`, or `reference` when the best value is that of the retrained model; `interval` says
    that `<name>_low` and `<name>_high`, its 95 % interval, stand beside it. A verdict is 1 for passed and 0 for failed;
    it is `of_forgetting` if an exact retrain passes it and the original is to fail.
    """

    name: str
    title: str
    unit: Literal["fraction", "number", "verdict", "seconds", "bytes", "count"]
    better: Literal["higher", "lower", "reference"]
    source: str
    interval: bool = False
    of_forgetting: bool = True
