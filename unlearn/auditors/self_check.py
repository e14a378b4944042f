"""Do the other audits work? An exact retrain must pass them, and the untouched original must fail.

Every other auditor that was chosen is also put to a second, independent retrained model, which gets a column of its
own in the row, beside the original's. What is counted here are the verdicts on what is left of the forget set, and not
whether a model's equivalence is shown or its gradients can be believed. A verdict that lets the original pass has
found nothing to find, and says nothing about the method; one that an exact retrain fails is out of tune, or has met the
one case in twenty in which it may.

Exact retraining: `self_check_retrained_passed` is 1 but for one verdict in about twenty.

Known failure modes: where the original memorised nothing, it passes too, rightly; read its forget accuracy beside that
of the retrained model. Verdicts on the same models are not independent of each other.
"""

from unlearn.metrics import Answer, Metric
from unlearn.settings import companion
from unlearn.statistics import proportion_exact
from unlearn.subject import Laboratory, Subject

EVERY = True  # it audits with all other auditors
SOURCE = "this project"
METRICS = (
    Metric("self_check_retrained_passed", "Verdicts that an exact retrain passes", "fraction", "higher", SOURCE, True),
    Metric("self_check_original_failed", "Verdicts that the original fails", "fraction", "higher", SOURCE, True),
)


def self_check(subject: Subject, lab: Laboratory) -> Answer:
    """Shares of the verdicts, with exact intervals; the same for every subject of a row."""
    retrained, original = (verdicts(lab.subject(role), lab) for role in ("independent", "original"))
    if not retrained or not original:
        return {metric.name: "no auditor that was chosen gives a verdict" for metric in METRICS}
    return {
        **proportion_exact([value == 1 for value in retrained.values()], METRICS[0].name),
        **proportion_exact([value == 0 for value in original.values()], METRICS[1].name),
    }


def verdicts(subject: Subject, lab: Laboratory) -> dict[str, float]:
    """What all other auditors that were chosen say of a model: metric -> 1 for passed, 0 for failed."""
    names = [name for name, auditor in lab.auditors.items() if not companion(auditor, "EVERY", False)]
    measured = {metric: value for name in names for metric, value in lab.audit(name, subject).items()}
    declared = {name for name, (_, metric) in lab.metrics.items() if metric.unit == "verdict" and metric.of_forgetting}
    return {name: value for name, value in measured.items() if name in declared and value is not None}
