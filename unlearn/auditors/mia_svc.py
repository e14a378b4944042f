"""The field's "MIA": a support-vector classifier trained on retained and test images, asked about the forget set.

Jia et al. (NeurIPS 2023, arXiv:2304.04934), as used by SalUn, AMUN and most tables since. For each of five features of
the model's output an RBF-SVC learns retained = member against test = non-member; the number is the share of the forget
set that it calls non-members. Higher is not better: the gap to the retrained model counts. It is kept for comparison
with the literature; it is a population attack whose attacker is calibrated on two other populations.

Deviations from the released code: the modified entropy is the correct one of Song & Mittal (arXiv:2003.10595); the
released one takes log p for log(1 - p) and overwrites whole columns, and is here under `compat: released`.

Exact retraining: on a random forget set, the share of any unseen images that the attack calls non-members, which is
small for a model that generalises (about 0.13 in published CIFAR-10 tables); for a wholly forgotten class nearly one.

Known failure modes: the attacker never learns how well it attacks, because it is judged on the forget set alone; its
number moves with the gap between retained and test accuracy, and on correctness it is the forget error under another
name. Methods that teach wrong labels overshoot. A population attack, which overestimates how well single images are
protected (Hayes et al., SaTML 2025, arXiv:2403.01218). Its members are the first retained images, as many as there are
test images, in the data set's own order: where that is by class, as in a folder of images, they are of the first
classes alone.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from unlearn.metrics import Answer, Metric
from unlearn.settings import Count, Positive
from unlearn.signals import Signals
from unlearn.statistics import proportion
from unlearn.subject import NO_OTHERS, Laboratory, Subject
from unlearn.thinning import evenly

FEATURES = ("correctness", "confidence", "entropy", "modified_entropy", "probabilities")
SOURCE = "Jia et al., NeurIPS 2023, arXiv:2304.04934"
METRICS = tuple(
    Metric(
        f"mia_svc_{feature}",
        f"SVC attack on {feature}: forget set called non-member",
        "fraction",
        "reference",
        SOURCE,
        True,
    )
    for feature in FEATURES
)


def mia_svc(
    subject: Subject, lab: Laboratory, *, C: Positive, limit: Count, compat: Literal["released"] | None
) -> Answer:
    """Share of the forget set called non-member, for each feature.

    Members are the first retained images, as many as there are test images of classes that remain. With more than
    `limit` a side, both are thinned evenly to `limit`, which keeps the quadratic SVC affordable.
    """
    others = subject.test[~np.isin(subject.test.labels, subject.forgotten_classes)]
    count = min(len(others), len(subject.retain))
    if count == 0:
        return {metric.name: NO_OTHERS for metric in METRICS}
    members = subject.retain[np.arange(count)]
    members, others = (side[evenly(len(side), limit)] for side in (members, others))
    member = np.repeat([1, 0], [len(members), len(others)])
    measured: dict[str, float | str] = {}
    for feature in FEATURES:
        known = np.concatenate([_feature(members, feature, compat), _feature(others, feature, compat)])
        attack = SVC(C=C, gamma="auto", kernel="rbf", random_state=0).fit(known, member)
        called_non_member = attack.predict(_feature(subject.forget, feature, compat)) == 0
        measured |= proportion(called_non_member, f"mia_svc_{feature}")
    return measured


def _feature(signals: Signals, feature: str, compat: str | None) -> NDArray[np.float64]:
    if feature == "modified_entropy" and compat == "released":
        values = -((1 - signals.probabilities) * signals.log_probabilities).sum(axis=1)
    else:
        values = getattr(signals, "correct" if feature == "correctness" else feature)
    return np.asarray(values, dtype=np.float64).reshape(len(signals), -1)
