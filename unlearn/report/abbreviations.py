"""The papers' abbreviations of our metrics; docs/glossary.md says the same."""

from collections.abc import Mapping, Sequence

from unlearn.metrics import Metric

ABBREVIATIONS: Mapping[str, str] = {
    "forget_accuracy": "FA",
    "retain_accuracy": "RA",
    "test_accuracy": "TA",
    "mia_svc_confidence": "MIA",
    "loss_attack_auc": "U-MIA",
    "average_gap": "Avg. Gap",
    "tug_of_war": "ToW",
    "seconds": "RTE",
}
COMPLEMENTS: Mapping[str, str] = {"forget_accuracy": "UA"}
"""What papers print as one minus the metric."""


def heading(metric: Metric, abbreviated: bool) -> str:
    """What heads a metric's column: its title, or its abbreviation if there is one and it is asked for."""
    return ABBREVIATIONS.get(metric.name, metric.title) if abbreviated else metric.title


def legend(metrics: Sequence[Metric]) -> list[str]:
    """One line for each abbreviation that heads a column."""
    lines = []
    for metric in metrics:
        if metric.name in ABBREVIATIONS:
            short = ABBREVIATIONS[metric.name]
            other = f" ({COMPLEMENTS[metric.name]} = 1 - {short})" if metric.name in COMPLEMENTS else ""
            lines.append(f"{short}: {metric.title}{other}")
    return lines
