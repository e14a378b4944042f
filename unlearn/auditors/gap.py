"""How far a model's numbers lie from the retrained model's: absolute gaps, their mean, and the tug-of-war score.

The average gap of the SalUn family's tables (Fan et al., ICLR 2024, arXiv:2310.12508), here the absolute differences
within one row, in fractions; tug-of-war is the product of one minus each accuracy gap (Zhao et al., NeurIPS 2024,
arXiv:2406.01257). Its second form has the confidence attack of `mia_svc` in the place of the forget accuracy.

Exact retraining: the reference has gaps of zero and a tug-of-war of one. An independent retrain does not: two retrained
models differ by chance, and no method can be asked to be nearer than that. `method=retrain` shows how near.

Known failure modes: both are kind to a method that does nothing, which on a random forget set is only a few points off
and reaches a tug-of-war of 0.95: read them beside `none`. An average hides which gap is large, and gaps that say the
same count twice. Tables often print the gaps of means over seeds, which are smaller than these means of gaps. Where
classes go wholly, `test_accuracy` counts their images too, so that a model that keeps them is charged twice, and its
test accuracy is the higher for it; `auditor.gap.metrics` can have `test_accuracy_remaining_classes` in its place.
"""

import math
from typing import Annotated, Any

from annotated_types import MinLen

from unlearn.metrics import Measured, Metric
from unlearn.settings import SettingError
from unlearn.subject import Laboratory, Subject

TUG_OF_WAR = "Zhao et al., NeurIPS 2024, arXiv:2406.01257"
FACTORS = {
    "tug_of_war": {"forget_accuracy", "retain_accuracy", "test_accuracy"},
    "tug_of_war_mia": {"mia_svc_confidence", "retain_accuracy", "test_accuracy"},
}
METRICS = (
    Metric(
        "average_gap", "Mean absolute gap to retrained", "fraction", "lower", "Fan et al., ICLR 2024, arXiv:2310.12508"
    ),
    Metric("tug_of_war", "Tug-of-war", "fraction", "higher", TUG_OF_WAR),
    Metric("tug_of_war_mia", "Tug-of-war with the confidence attack", "fraction", "higher", TUG_OF_WAR),
)


def check(lab: Any, *, metrics: list[str], **_: Any) -> None:
    """Accuracies of whole classes, forgotten and others, are there to be compared."""
    of_classes = [name for name in metrics if name.endswith("_classes")]
    if of_classes and not len(lab.forgotten_classes):
        allowed = "has no value, because no class is wholly forgotten"
        raise SettingError("auditor.gap.metrics", of_classes[0], allowed)


def gap(subject: Subject, lab: Laboratory, *, metrics: Annotated[list[str], MinLen(1)]) -> Measured:
    """Mean of |subject - retrained| over `metrics`, and each tug-of-war whose three factors are among them."""
    gaps = {name: _gap(name, subject, lab) for name in metrics}
    measured = {"average_gap": sum(gaps.values()) / len(gaps)}
    for name, factors in FACTORS.items():
        if gaps.keys() >= factors:
            measured[name] = math.prod(1 - gaps[factor] for factor in sorted(factors))
    return measured


def _gap(metric: str, subject: Subject, lab: Laboratory) -> float:
    return abs(lab.measure(metric, subject) - lab.measure(metric, lab.reference()))
