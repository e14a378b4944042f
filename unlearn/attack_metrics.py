"""What an attack's scores of forgotten and of held-out images are summed up in, beside those of the retrained model."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from unlearn.metrics import Metric
from unlearn.statistics import auc, auc_difference, tpr_at_fpr

Floats = NDArray[np.float64]
FPRS = (0.01, 0.001)
"""False-positive rates at which attacks are compared since Carlini et al., S&P 2022, arXiv:2112.03570."""


def attack_metrics(name: str, title: str, source: str) -> tuple[Metric, ...]:
    """The metrics of `measured`."""
    rates = (
        Metric(
            f"{name}_tpr_at_fpr_{fpr}", f"{title}: TPR at {100 * fpr:g} % FPR", "fraction", "reference", source, True
        )
        for fpr in FPRS
    )
    difference = f"{title}: AUC minus the retrained model's"
    return (
        Metric(f"{name}_auc", f"{title}: AUC, forgotten against held-out", "fraction", "reference", source, True),
        *rates,
        Metric(f"{name}_auc_difference", difference, "number", "reference", "DeLong et al., Biometrics 1988", True),
        Metric(f"{name}_passed", f"{title}: not told from retrained", "verdict", "higher", "this project"),
    )


def measured(name: str, ours: tuple[Floats, Floats], theirs: tuple[Floats, Floats]) -> Mapping[str, float | str]:
    """AUC, TPR at low FPR, the paired difference of AUC to the retrained model's, and the verdict that it may be zero.

    `ours` and `theirs` are scores of forgotten and of held-out images, higher for members, in the same order of images.
    """
    forget, held_out = ours
    difference = auc_difference(ours, theirs, f"{name}_auc_difference")
    rates: dict[str, float | str] = {}
    for fpr in FPRS:
        rates |= tpr_at_fpr(forget, held_out, fpr, f"{name}_tpr_at_fpr_{fpr}")
    low, high = difference[f"{name}_auc_difference_low"], difference[f"{name}_auc_difference_high"]
    return {
        **auc(forget, held_out, f"{name}_auc"),
        **rates,
        **difference,
        f"{name}_passed": float(low <= 0 <= high),
    }
