"""Are the two classes, whose swapped labels are to be forgotten, still taken for each other more than after retraining?

Goel, Prabhu, Sanyal, Lim, Torr & Kumaraguru (arXiv:2201.06640), for `scenario=confusion`. Of all images of the two
classes A and B in a part of the data, by their true labels: the share that is not recognised (the paper's IC-ERR), and
the number that is taken for the other of the two, cm[A,B] + cm[B,A]. On the forget set this tells what is memorised of
the swap, on test images what was generalised from it; the retained images are clean and were trained on.

Intervals are Wilson's. Differences to the retrained model are paired, image by image, with the adjusted interval of
Agresti & Min (Statistics in Medicine 2005), which is never of no width. Both are of images: that two trainings differ
is not in them.

Deviations: the released code counts; here shares stand beside counts, and everything has its interval.

The verdict: a model passes if, of the images that it and the retrained model do not agree on as to taking them for the
other class, no more are its own than chance allows: McNemar's exact test, two-sided, at 5 % after Holm's correction for
the forget set and the test images. Too little confusion fails as well as too much.

Exact retraining: has never seen a swapped label, and confuses the two as often as any model trained on clean data; an
independent one would pass in nineteen cases of twenty if only images differed. Two trainings that part the two classes
at another place differ on many images at once, and are told apart more often, on large sets above all. The original
takes nearly all of the forget set for the other class if it has memorised it, and fails.

Known failure modes: it is a test of mislabelled data, which a model has cause to forget, and says little of privacy.
With a few images swapped the test set hardly notices; there the forget set alone decides. A method that ruins the model
recognises nothing, takes little for the other class, and may pass: read it beside the error, and the accuracies.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from unlearn.checks import name_of
from unlearn.metrics import Measured, Metric
from unlearn.settings import SettingError
from unlearn.signals import Signals
from unlearn.statistics import LEVEL, holm, paired_shares, proportion
from unlearn.subject import Laboratory, Subject

SCENARIO = "confusion"
PARTS = {"forget": "forget set", "test": "test images", "retain": "retained images"}
JUDGED = ("forget", "test")
SOURCE = "Goel et al., arXiv:2201.06640"
PAIRED = "Agresti & Min, Statistics in Medicine 2005"
Bools = NDArray[np.bool_]

METRICS = (
    *(
        metric
        for part, title in PARTS.items()
        for metric in (
            Metric(
                f"interclass_confusion_{part}_error",
                f"Interclass confusion: {title} of the two classes misclassified",
                "fraction",
                "reference",
                SOURCE,
                interval=True,
            ),
            Metric(
                f"interclass_confusion_{part}_error_difference",
                f"Interclass confusion: {title} misclassified, minus the retrained model's share",
                "number",
                "reference",
                PAIRED,
                interval=True,
            ),
            Metric(
                f"interclass_confusion_{part}_count",
                f"Interclass confusion: {title} taken for the other class",
                "count",
                "reference",
                SOURCE,
                interval=True,
            ),
            Metric(
                f"interclass_confusion_{part}_count_difference",
                f"Interclass confusion: {title} taken for the other class, minus the retrained model's",
                "count",
                "reference",
                PAIRED,
                interval=True,
            ),
        )
    ),
    Metric(
        "interclass_confusion_passed",
        "Interclass confusion: not told from retrained",
        "verdict",
        "higher",
        "McNemar, Psychometrika 1947",
    ),
)


def check(lab: Any) -> None:
    """The forget set is that of the interclass confusion test."""
    if name_of(lab, "scenario") != SCENARIO:
        allowed = "needs scenario=confusion, whose original is trained with swapped labels of two classes"
        raise SettingError("auditor", "interclass_confusion", allowed)


def interclass_confusion(subject: Subject, lab: Laboratory) -> Measured:
    """Error and confusion of the two classes on every part, each with its difference to retrained, and the verdict."""
    reference = lab.reference()
    classes = np.unique(subject.forget.labels)  # swapped ones, of either class as many
    measured: dict[str, float] = {}
    pvalues: dict[str, float] = {}
    for part in PARTS:
        ours, theirs = (mistakes(part, its, classes) for its in (subject, reference))
        name = f"interclass_confusion_{part}"
        count = len(ours["count"])
        if count == 0:  # the part has no image of the two classes
            continue
        measured |= proportion(ours["error"], f"{name}_error")
        measured |= difference(ours["error"], theirs["error"], f"{name}_error_difference")
        in_shares = proportion(ours["count"], f"{name}_count")
        in_shares |= difference(ours["count"], theirs["count"], f"{name}_count_difference")
        measured |= {key: value * count for key, value in in_shares.items()}
        if part in JUDGED:
            pvalues[part] = mcnemar(ours["count"], theirs["count"])
    return measured | {"interclass_confusion_passed": float(min(holm(pvalues).values()) > 1 - LEVEL)}


def mistakes(part: str, subject: Subject, classes: NDArray[np.int64]) -> Mapping[str, Bools]:
    """Of each image of the two classes in a part: is it misclassified, is it taken for the other of them?"""
    signals: Signals = getattr(subject, part)
    signals = signals[np.isin(signals.labels, classes)]
    other = classes.sum() - signals.labels
    true, other = (other, signals.labels) if part == "forget" else (signals.labels, other)  # there labels are swapped
    given = signals.logits.argmax(axis=1)
    return {"error": given != true, "count": given == other}


def difference(ours: Bools, theirs: Bools, name: str) -> dict[str, float]:
    """The difference of two shares of the same images, with the 95 % interval of Agresti & Min."""
    centre, error = paired_shares(ours, theirs)
    half = float(norm.ppf((1 + LEVEL) / 2)) * error
    shares = float(ours.mean() - theirs.mean())
    return {name: shares, f"{name}_low": max(-1.0, centre - half), f"{name}_high": min(1.0, centre + half)}


def mcnemar(ours: Bools, theirs: Bools) -> float:
    """The exact two-sided p-value of McNemar: of the images of which just one says yes, is it each as often?"""
    more, less = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return float(binomtest(more, more + less).pvalue) if more + less else 1.0
