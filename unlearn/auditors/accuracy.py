"""Accuracy on every part of the data, forgotten and remaining classes apart, each with its Wilson interval.

The basic block of every unlearning table (Jia et al., NeurIPS 2023, arXiv:2304.04934). For a random forget set neither
a high nor a low forget accuracy is good: the target is the retrained model's. Some tables print the forget set's error,
as "UA" (unlearning accuracy): one minus our forget accuracy.

Exact retraining: on a random forget set a retrained model is as accurate as on the test set, because both are images it
has never seen. Of a wholly forgotten class it knows nothing, and is right on none of its images.

Known failure modes: a method that does nothing is only as far off as the original memorised, a few points on CIFAR-10
with 10 % to forget, so agreement says little about a random forget set. Wilson intervals hold for these images under
this one model; how much models differ, only several seeds or retrains can say.
"""

import numpy as np

from unlearn.metrics import Measured, Metric
from unlearn.statistics import proportion
from unlearn.subject import Laboratory, Subject

SOURCE = "Jia et al., NeurIPS 2023, arXiv:2304.04934"


def _metric(name: str, title: str, better: str) -> Metric:
    return Metric(name, title, "fraction", better, SOURCE, interval=True)  # type: ignore[arg-type]


METRICS = (
    _metric("forget_accuracy", "Accuracy on the forget set", "reference"),
    _metric("retain_accuracy", "Accuracy on the retained training set", "higher"),
    _metric("validation_accuracy", "Accuracy on the validation part", "higher"),
    _metric("test_accuracy", "Accuracy on the test set", "higher"),
    _metric("test_accuracy_forgotten_classes", "Test accuracy on classes wholly forgotten", "reference"),
    _metric("test_accuracy_remaining_classes", "Test accuracy on the other classes", "higher"),
)


def accuracy(subject: Subject, lab: Laboratory) -> Measured:
    """Accuracies as fractions; the class-wise pair only when a class is wholly forgotten."""
    measured: dict[str, float] = {}
    for part in ("forget", "retain", "validation", "test"):
        measured |= proportion(getattr(subject, part).correct, f"{part}_accuracy")
    if len(subject.forgotten_classes):
        forgotten = np.isin(subject.test.labels, subject.forgotten_classes)
        measured |= proportion(subject.test.correct[forgotten], "test_accuracy_forgotten_classes")
        measured |= proportion(subject.test.correct[~forgotten], "test_accuracy_remaining_classes")
    return measured
