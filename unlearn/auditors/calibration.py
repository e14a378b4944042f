"""Are the model's probabilities as often right as they say, on the test set and on what it forgot?

Expected calibration error (Guo et al., ICML 2017, arXiv:1706.04599): images are put into bins by the probability of the
class that the model names, and the error is the mean, over images, of the distance between a bin's accuracy and its
mean probability; with bins of equal width, and with bins of equal numbers of images (Nixon et al., CVPR workshops 2019,
arXiv:1904.01685, here of the named class alone), which do not leave most images in the last one. Besides, the Brier
score (Monthly Weather Review 1950), the squared distance to the label's one-hot vector, from 0 to 2, and the negative
log-likelihood, which is the mean loss. Each is given on the test set and on the forget set, and as a difference to the
retrained model on the same images.

Intervals: of the two means, t-intervals over images. A calibration error is a sum of absolute values, which chance
makes larger and resampling larger still, so its percentile interval may miss it. Here the error is given plus and minus
the 97.5 % quantile, over resamples of the images, of the summed distances by which the bins' gaps move: no true error
can differ by more than the gaps do, so the interval is safe, also when the true error is zero, and wide when it is
large. That of a difference is the percentile interval, moved to have the difference in its middle.

Exact retraining: on a random forget set the same on both sets, because both are new to the model; how much is a matter
of the recipe (modern networks are overconfident). On a wholly forgotten class a retrained model is sure and wrong, and
its error is near its mean probability. Two retrained models differ by chance, by more than the intervals over images
say, which is why there is no verdict here.

Known failure modes: a small error is no sign of a good model, since constant guessing of the classes' shares has none.
It depends on the number of bins, and grows as images get fewer, so errors of sets of different sizes cannot be
compared. The two scores mix calibration with accuracy.
"""

import numpy as np
from numpy.typing import NDArray

from unlearn.metrics import Answer, Metric
from unlearn.settings import Count
from unlearn.signals import Signals
from unlearn.statistics import bootstrapped, mean
from unlearn.subject import Laboratory, Subject

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Binned = tuple[Places, Floats]
SCORES = {
    "ece": ("Calibration error", "Guo et al., ICML 2017, arXiv:1706.04599"),
    "ece_equal_mass": ("Calibration error, equal bins", "Nixon et al., CVPR workshops 2019, arXiv:1904.01685"),
    "brier": ("Brier score", "Brier, Monthly Weather Review 1950"),
    "nll": ("Negative log-likelihood", "Guo et al., ICML 2017, arXiv:1706.04599"),
}
METRICS = tuple(
    Metric(f"calibration_{score}_{part}{end}", f"{title}, {part}{said}", "number", "reference", source, interval=True)
    for part in ("test", "forget")
    for score, (title, source) in SCORES.items()
    for end, said in (("", ""), ("_difference", ": less the retrained model's"))
)


def calibration(subject: Subject, lab: Laboratory, *, bins: Count, resamples: Count) -> Answer:
    """Every score on both sets; the bins' images, probability and accuracy are kept as `calibration_<part>_bins`."""
    answer: dict[str, float | NDArray[np.float32]] = {}
    for part in ("test", "forget"):
        ours, theirs = (getattr(its, part) for its in (subject, lab.reference()))
        for score, scored in (("brier", _brier), ("nll", _loss)):
            own, other = scored(ours), scored(theirs)
            answer |= mean(own, f"calibration_{score}_{part}")
            answer |= mean(own - other, f"calibration_{score}_{part}_difference")
        for score in ("ece", "ece_equal_mass"):
            name = f"calibration_{score}_{part}"
            generator = np.random.default_rng(lab.streams.seed("calibration", name))
            answer |= _errors(_binned(ours, bins, score), _binned(theirs, bins, score), generator, resamples, name)
        answer[f"calibration_{part}_bins"] = _table(ours, bins)
    return answer


def _brier(signals: Signals) -> Floats:
    true = np.eye(signals.logits.shape[1])[signals.labels]
    scores: Floats = ((signals.probabilities - true) ** 2).sum(axis=1)
    return scores


def _loss(signals: Signals) -> Floats:
    return signals.loss


def _binned(signals: Signals, bins: int, score: str) -> Binned:
    """The bin of each image, and by how much being right is more than its probability."""
    probability = signals.probabilities.max(axis=1)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    if score == "ece_equal_mass":
        edges = np.quantile(probability, edges, method="inverted_cdf")  # images themselves, in the bin below
    return np.searchsorted(edges, probability), signals.correct - probability


def _gaps(binned: Binned, chosen: Places) -> Floats:
    """Of each bin, accuracy less mean probability, times its share of the images; empty bins have none."""
    bins, gaps = binned
    return np.bincount(bins[chosen], gaps[chosen], minlength=bins.max() + 1) / len(chosen)


def _errors(
    ours: Binned, theirs: Binned, generator: np.random.Generator, resamples: int, name: str
) -> dict[str, float]:
    every = np.arange(len(ours[0]))
    errors = [float(np.abs(_gaps(its, every)).sum()) for its in (ours, theirs)]
    answer = {name: errors[0], f"{name}_difference": errors[0] - errors[1]}
    if len(every) < 2:
        return answer

    def moved(chosen: Places) -> float:
        return float(np.abs(_gaps(ours, chosen) - _gaps(ours, every)).sum())

    def difference(chosen: Places) -> float:
        return float(np.abs(_gaps(ours, chosen)).sum() - np.abs(_gaps(theirs, chosen)).sum())

    far = bootstrapped(moved, len(every), generator, "far", resamples)["far_high"]
    ends = bootstrapped(difference, len(every), generator, "ends", resamples)
    half = (ends["ends_high"] - ends["ends_low"]) / 2
    return answer | {
        f"{name}_low": max(0.0, errors[0] - far),
        f"{name}_high": errors[0] + far,
        f"{name}_difference_low": answer[f"{name}_difference"] - half,
        f"{name}_difference_high": answer[f"{name}_difference"] + half,
    }


def _table(signals: Signals, bins: int) -> NDArray[np.float32]:
    """For each bin of equal width, how many images, their mean probability, their accuracy; for none, nan."""
    of, _ = _binned(signals, bins, "ece")
    columns = (np.ones(len(of)), signals.probabilities.max(axis=1), signals.correct)
    count, *sums = (np.bincount(of, column, minlength=bins) for column in columns)
    means = [np.divide(each, count, out=np.full(bins, np.nan), where=count > 0) for each in sums]
    return np.stack([count, *means], axis=1).astype(np.float32)
