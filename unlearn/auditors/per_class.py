"""Which classes pay? The worst class, the spread between classes, and the largest change from the retrained model.

Accuracy of each class on the test set and on the forget set. An average can stay while one class is lost, such as a
neighbour of what was forgotten. The worst class and the spread (best less worst) are among the classes of which
training images remain; the largest change, |accuracy less the retrained model's|, is among all. The accuracies of all
classes, their changes and the class that changed most are kept as arrays.

Intervals: whoever picks the worst of many classes picks chance's victims too. Therefore each class has an interval that
is wider by the number of classes (Bonferroni; Wilson's for accuracies, Newcombe's for differences of paired shares,
Statistics in Medicine 1998, 2635, method 10), so that all hold at once in nineteen cases of twenty, and each summary
has the bounds that follow from all of them.

Exact retraining: a largest change above zero, because a retrained model differs from another by chance, and the largest
of many differences is large. On the test set of a wholly forgotten class it is right on nothing. There is no verdict:
intervals over images say nothing of how much models differ; compare with `method=retrain`.

Known failure modes: with few images of a class (ten, in a small random forget set) its accuracy is nearly noise, and
the worst class is then that with the fewest. Two errors that trade places within a class are no change.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from unlearn.metrics import Answer, Metric
from unlearn.statistics import LEVEL
from unlearn.subject import Laboratory, Subject

Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]
SOURCE = "this project"
METRICS = tuple(
    Metric(f"per_class_{name}_{part}", f"{title}, {part}", unit, better, SOURCE, interval=True)  # type: ignore[arg-type]
    for part in ("test", "forget")
    for name, title, unit, better in (
        ("worst", "Accuracy of the worst class", "fraction", "higher" if part == "test" else "reference"),
        ("spread", "Best class less worst", "number", "reference"),
        ("largest_change", "Largest change of a class from retrained", "number", "lower"),
    )
)


def per_class(subject: Subject, lab: Laboratory) -> Answer:
    """The three summaries on both sets; what needs more classes than there are is refused in words."""
    answer: dict[str, float | str | NDArray[np.float32]] = {}
    for part in ("test", "forget"):
        ours, theirs = (getattr(its, part) for its in (subject, lab.reference()))
        classes = np.unique(ours.labels)
        level = 1 - (1 - LEVEL) / len(classes)
        hits = [(ours.correct[own], theirs.correct[own]) for own in (ours.labels == each for each in classes)]
        accuracies = np.array([_share(own, level) for own, _ in hits])
        changes = np.array([_change(own, other, level) for own, other in hits])
        compared = ~np.isin(classes, subject.forgotten_classes) | (part == "forget")
        answer |= _summaries(accuracies[compared], part) | _largest(changes, f"per_class_largest_change_{part}")
        for name, values in (("accuracies", accuracies), ("changes", changes)):
            every = np.full(ours.logits.shape[1], np.nan, dtype=np.float32)
            every[classes] = values[:, 0]
            answer[f"per_class_{name}_{part}"] = every
        answer[f"per_class_changed_most_{part}"] = classes[[np.abs(changes[:, 0]).argmax()]].astype(np.float32)
    return answer


def _share(hits: Hits, level: float) -> tuple[float, float, float]:
    """A share and its Wilson interval."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(level, method="wilson")
    return float(hits.mean()), float(interval.low), float(interval.high)


def _change(ours: Hits, theirs: Hits, level: float) -> tuple[float, float, float]:
    """The difference of two shares of the same images, and Newcombe's interval from their Wilson intervals."""
    (one, low1, high1), (two, low2, high2) = _share(ours, level), _share(theirs, level)
    table = [int((first & second).sum()) for first in (ours, ~ours) for second in (theirs, ~theirs)]
    agreement = float(table[0] * table[3] - table[1] * table[2])
    if agreement > 0:  # corrected for continuity
        agreement = max(0.0, agreement - len(ours) / 2)
    sums = np.prod([float(its.sum()) for its in (ours, ~ours, theirs, ~theirs)])
    correlation = agreement / np.sqrt(sums) if sums > 0 else 0.0

    def side(first: float, second: float) -> float:
        return float(np.sqrt(first**2 - 2 * correlation * first * second + second**2))

    return one - two, one - two - side(one - low1, high2 - two), one - two + side(high1 - one, two - low2)


def _summaries(accuracies: Floats, part: str) -> dict[str, float | str]:
    worst, spread = f"per_class_worst_{part}", f"per_class_spread_{part}"
    if len(accuracies) == 0:
        return dict.fromkeys((worst, spread), f"needs {part} images of a class that remains")
    value, low, high = accuracies.min(axis=0).tolist()
    answer: dict[str, float | str] = {worst: value, f"{worst}_low": low, f"{worst}_high": high}
    if len(accuracies) == 1:
        return answer | {spread: f"needs {part} images of two classes"}
    best, best_low, best_high = accuracies.max(axis=0).tolist()
    return answer | {
        spread: best - value,
        f"{spread}_low": max(0.0, best_low - high),
        f"{spread}_high": best_high - low,
    }


def _largest(changes: Floats, name: str) -> dict[str, float | str]:
    _, low, high = changes.T
    return {
        name: float(np.abs(changes[:, 0]).max()),
        f"{name}_low": float(max(0.0, low.max(), -high.min())),
        f"{name}_high": float(max(-low.min(), high.max())),
    }
