"""How far a model's numbers lie from the retrained model's: absolute gaps, their mean, and the tug-of-war score.

The average gap of the SalUn family's tables (Fan et al., ICLR 2024, arXiv:2310.12508), here the absolute differences
within one row, in fractions; tug-of-war is the product of one minus each accuracy gap (Zhao et al., NeurIPS 2024,
arXiv:2406.01257). Both are kind to a method that does nothing on a random forget set: read them beside `none`.
"""

import math
from typing import Annotated

from annotated_types import MinLen

from unlearn.metrics import Measured, Metric
from unlearn.subject import Laboratory, Subject

ACCURACIES = ("forget_accuracy", "retain_accuracy", "test_accuracy")
METRICS = (
    Metric(
        "average_gap", "Mean absolute gap to retrained", "fraction", "lower", "Fan et al., ICLR 2024, arXiv:2310.12508"
    ),
    Metric("tug_of_war", "Tug-of-war", "fraction", "higher", "Zhao et al., NeurIPS 2024, arXiv:2406.01257"),
)


def gap(subject: Subject, lab: Laboratory, *, metrics: Annotated[list[str], MinLen(1)]) -> Measured:
    """Mean of |subject - retrained| over `metrics`, and tug-of-war if the three accuracies are among them."""
    gaps = {name: _gap(name, subject, lab) for name in metrics}
    measured = {"average_gap": sum(gaps.values()) / len(gaps)}
    if gaps.keys() >= set(ACCURACIES):
        measured["tug_of_war"] = math.prod(1 - gaps[name] for name in ACCURACIES)
    return measured


def _gap(metric: str, subject: Subject, lab: Laboratory) -> float:
    return abs(lab.measure(metric, subject) - lab.measure(metric, lab.reference()))
