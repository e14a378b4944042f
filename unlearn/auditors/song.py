"""Does each class's own threshold tell the forget set from images never seen? Song & Mittal's four signals.

Song & Mittal (USENIX Security 2021, arXiv:2003.10595) call an image a member if the model is right on it (correctness,
the only signal without a threshold), or if its confidence in the true class is high, its entropy low, or its modified
entropy low. Each class has a threshold of its own, the one with the highest balanced accuracy on shadow data, whose
members are known. As in Goel et al. (arXiv:2201.06640) the model under audit is its own shadow: thresholds are chosen
on a random half of the retained and half of the test images, and judged on the forget set against the other half of the
test images; that is done for several random halves, and the balanced accuracies are averaged.

Deviations: of the other half only test images of classes that occur in the forget set are judged, because those of
other classes have other thresholds and say nothing about the forget set. A class of which the shadow data lack a side,
as a wholly forgotten class lacks members, takes the threshold of all classes pooled; `song_pooled` counts for each
class the halvings in which it did. Halvings that leave a side empty are left out. The ends of an interval are the means
of the halvings' ends (DeLong et al., Biometrics 1988, for yes-or-no answers): halvings share images, so it is a little
wide.

The verdict: a model passes when the 95 % interval of its balanced accuracy by confidence, less the retrained model's,
contains zero. An independent retrain passes in at least nineteen cases of twenty, and the original fails wherever it
memorised. Confidence is Goel's choice, and modified entropy says nearly the same; a verdict on all four would need
wider intervals.

Exact retraining: one half on a random forget set, whatever the thresholds, because forgotten and test images are then
equally new to the model. On another forget set, the reference's value.

Known failure modes: thresholds are chosen to tell training from test images, which differ more than a half-forgotten
set and test images do, so they may lie where nothing is left to be told. Below one half the forget set looks less
familiar than new images, which is a leak too. Of a wholly forgotten class it asks only whether its training images are
known better than its test images: a model that still knows the class passes. A population attack: it cannot show that
every image is safe. The rate of one in twenty holds for forget sets that are drawn as the held-out images are, at
random or class by class. Of images chosen for how hard they are, named by a file or given wrong labels, every retrained
model has an AUC of its own, which is in no interval, and more of them are told apart.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlearn.metrics import Answer, Metric
from unlearn.settings import Count, Share
from unlearn.signals import Signals
from unlearn.statistics import auc, auc_difference, best_threshold
from unlearn.subject import Laboratory, Subject

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
SIGNALS = ("correctness", "confidence", "entropy", "modified_entropy")
SOURCE = "Song & Mittal, USENIX Security 2021, arXiv:2003.10595"


def _metric(signal: str, end: str, title: str) -> Metric:
    title = title.format(signal.replace("_", " "))
    return Metric(f"song_{signal}{end}", title, "number" if end else "fraction", "reference", SOURCE, interval=True)


METRICS = (
    *(_metric(signal, "", "Class thresholds on {}: balanced accuracy") for signal in SIGNALS),
    *(_metric(signal, "_difference", "On {}: less the retrained model's") for signal in SIGNALS),
    Metric("song_passed", "Class thresholds: not told from retrained", "verdict", "higher", "this project"),
)


class Halving(NamedTuple):
    """Places of the shadow data among the retained and the test images, and of the test images to judge."""

    members: Places
    others: Places
    judged: Places


def song(subject: Subject, lab: Laboratory, *, repetitions: Count, shadow_share: Share) -> Answer:
    """Balanced accuracy on each signal, and its difference to the retrained model on the same halves."""
    generator = np.random.default_rng(lab.streams.seed("song", "halves"))
    halvings = [its for _ in range(repetitions) if min(map(len, its := _halving(subject, shadow_share, generator))) > 0]
    if not halvings:
        reason = "needs retained images, and test images both to choose thresholds on and to judge, of the same classes"
        return {metric.name: reason for metric in METRICS}
    classes = subject.forget.logits.shape[1]
    answer: dict[str, float] = {}
    for signal in SIGNALS:
        ours, theirs = ([*_called(its, signal, halvings, classes)] for its in (subject, lab.reference()))
        name = f"song_{signal}"
        answer |= _averaged(auc(*called, name) for called in ours)
        pairs = zip(ours, theirs, strict=True)
        answer |= _averaged(auc_difference(*pair, f"{name}_difference") for pair in pairs)
    passed = answer["song_confidence_difference_low"] <= 0 <= answer["song_confidence_difference_high"]
    pooled = sum(_lacking(subject, halving, classes).astype(np.float32) for halving in halvings)
    return {**answer, "song_passed": float(passed), "song_pooled": np.asarray(pooled)}


def _halving(subject: Subject, share: float, generator: np.random.Generator) -> Halving:
    members, others = (generator.permutation(len(side)) for side in (subject.retain, subject.test))
    count = round(share * len(others))
    judged = others[count:]
    alike = np.isin(subject.test.labels[judged], subject.forget.labels)
    return Halving(members[: round(share * len(members))], others[:count], judged[alike])


def _lacking(subject: Subject, halving: Halving, classes: int) -> NDArray[np.bool_]:
    """The classes of which the shadow data lack members or others."""
    sides = (subject.retain.labels[halving.members], subject.test.labels[halving.others])
    return np.any([np.bincount(side, minlength=classes) == 0 for side in sides], axis=0)


def _called(
    subject: Subject, signal: str, halvings: Iterable[Halving], classes: int
) -> Iterator[tuple[Floats, Floats]]:
    """For each halving, 1 where an image of the forget set and where one to judge is called a member, else 0."""
    forget, retain, test = (_score(side, signal) for side in (subject.forget, subject.retain, subject.test))
    for halving in halvings:
        thresholds = np.ones(classes)
        if signal != "correctness":
            shadow = (retain[halving.members], test[halving.others])
            labels = (subject.retain.labels[halving.members], subject.test.labels[halving.others])
            thresholds[:] = best_threshold(*shadow)[0]
            for own in np.flatnonzero(~_lacking(subject, halving, classes)):
                sides = (scores[its == own] for scores, its in zip(shadow, labels, strict=True))
                thresholds[own] = best_threshold(*sides)[0]
        labels_of_judged = subject.test.labels[halving.judged]
        yield (
            (forget >= thresholds[subject.forget.labels]).astype(np.float64),
            (test[halving.judged] >= thresholds[labels_of_judged]).astype(np.float64),
        )


def _score(signals: Signals, signal: str) -> Floats:
    """High where an image looks like a member."""
    values = np.asarray(getattr(signals, "correct" if signal == "correctness" else signal), dtype=np.float64)
    return -values if signal.endswith("entropy") else values


def _averaged(measured: Iterable[Mapping[str, float]]) -> dict[str, float]:
    every = [*measured]
    return {name: float(np.mean([its[name] for its in every])) for name in every[0]}
