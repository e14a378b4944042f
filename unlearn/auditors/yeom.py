"""Is the forget set's loss as low as that of training images? An attack with one threshold, the mean training loss.

Yeom et al. (CSF 2018, arXiv:1709.01604) call an image a member if its loss is at most the mean loss of the training
set, which an attacker may read in a paper; their advantage is the share of members called so (true positives) less that
of others called so (false positives). Here the threshold is the mean loss of the retained images, the members to be
found are the forget set, and the others are test images of the classes that occur in it.

Deviations: after unlearning the training set is what is retained. The advantage is twice the area under the ROC curve
of the yes-or-no answers, less one, and has that area's interval (DeLong et al., Biometrics 1988), as has its difference
to the retrained model; the threshold counts as given.

The verdict: a model passes when the 95 % interval of its advantage's difference to the retrained model's contains zero,
so an independent retrain passes in about nineteen cases of twenty, and the original fails where it memorised enough
that losses cross the threshold.

Exact retraining: an advantage of zero on a random forget set, because forgotten and test images are then equally new.
Both rates are the share of new images that the model fits better than its average training image, not one half.

Known failure modes: the threshold is a mean, which a few badly fitted images (wrong labels, say) move far up; then
nearly all images of either side lie below it, and the attack is blind. It sees nothing that does not cross the
threshold. Of a wholly forgotten class it asks only whether its training images are known better than its test images: a
model that still knows the class passes. A population attack: a small advantage does not say that every image is safe.
The rate of one in twenty holds for forget sets that are drawn as the held-out images are, at random or class by class.
Of images chosen for how hard they are, named by a file or given wrong labels, every retrained model has an AUC of its
own, which is in no interval, and more of them are told apart.
"""

import numpy as np
from numpy.typing import NDArray

from unlearn.metrics import Answer, Metric
from unlearn.statistics import auc, auc_difference, proportion
from unlearn.subject import Laboratory, Subject

Floats = NDArray[np.float64]
SOURCE = "Yeom et al., CSF 2018, arXiv:1709.01604"
METRICS = (
    Metric("yeom_threshold", "Mean loss of the retained images", "number", "reference", SOURCE),
    Metric("yeom_true_positive_rate", "Forget set called members by it", "fraction", "reference", SOURCE, True),
    Metric("yeom_false_positive_rate", "Test images called members by it", "fraction", "reference", SOURCE, True),
    Metric("yeom_advantage", "Their difference", "number", "reference", SOURCE, True),
    Metric("yeom_advantage_difference", "It less the retrained model's", "number", "reference", SOURCE, True),
    Metric("yeom_passed", "Mean-loss attack: not told from retrained", "verdict", "higher", "this project"),
)


def yeom(subject: Subject, lab: Laboratory) -> Answer:
    """Both rates, the advantage, and its difference to the retrained model."""
    if min(len(subject.held_out), len(subject.retain)) == 0:
        reason = "needs retained images, and test images of the classes that are in the forget set"
        return {metric.name: reason for metric in METRICS}
    forget, held_out = _called(subject)
    area = auc(forget, held_out, "yeom_advantage")
    difference = auc_difference((forget, held_out), _called(lab.reference()), "yeom_advantage_difference")
    low, high = difference["yeom_advantage_difference_low"], difference["yeom_advantage_difference_high"]
    return {
        "yeom_threshold": float(subject.retain.loss.mean()),
        **proportion(forget == 1, "yeom_true_positive_rate"),
        **proportion(held_out == 1, "yeom_false_positive_rate"),
        **{name: 2 * value - 1 for name, value in area.items()},
        **{name: 2 * value for name, value in difference.items()},
        "yeom_passed": float(low <= 0 <= high),
    }


def _called(subject: Subject) -> tuple[Floats, Floats]:
    """Forgotten and held-out images: 1 where called a member, else 0."""
    threshold = subject.retain.loss.mean()
    forget, held_out = (side.loss <= threshold for side in (subject.forget, subject.held_out))
    return forget.astype(np.float64), held_out.astype(np.float64)
