"""Is the model's confidence in a forgotten image rather that of models trained on it, or of models that were not?

    online   log N(m; mu_in, sigma_in) - log N(m; mu_out, sigma_out)
    offline  -log P(N(mu_out, sigma_out) > m)

LiRA, the likelihood ratio attack (Carlini et al., S&P 2022, arXiv:2112.03570), on m, the logit-scaled confidence. Each
image has Gaussians of its own, from the reference models that were trained on it and from those that were not: their
location is the median of the values, as in the released code. `variance: per_image` takes each image's standard
deviation, `pooled` the root of the mean variance within an image over all training and test images, a side each; the
paper fixes the variance so where there are fewer than 64 references. Forgotten images are compared with test images of
the same classes.

The balanced accuracy is honest: the threshold is chosen on a random half of the images and judged on the other, and the
other way round. The verdict: a model passes when the 95 % interval of its AUC's difference to the retrained model's
contains zero.

Exact retraining: a forgotten image is one that the model was not trained on, as a held-out one is, so the AUC and the
balanced accuracy are at 0.5 within their intervals. An independent retrain passes in about nineteen cases of twenty;
the original, trained on the forget set, fails wherever it memorised.

Deviations from the released code: its fixed variance is that of all values of all images, which the differences between
images dominate, and that of the trained-on side serves both; offline it scores by the OUT density, which calls an image
of surprisingly low confidence a member as well. Both stand under `compat: released`. An image is asked about once, not
in augmented copies too.

Known failure modes: a Gaussian is wrong for confidences with two modes. With few references a variance of each image's
own is noise. The references saw half of the data and the model more, so its confidences are higher for all images. The
false-positive rate is one of all images together and not of each, and asking about the very images that the references
were made from biases the attack upwards (arXiv:2605.25819). It finds membership, not the traces of unlearning itself:
for these, U-LiRA. Of a wholly forgotten class it asks only whether its training images are known better than its test
images: a model that still knows the class passes. The rate of one in twenty holds for forget sets that are drawn as the
held-out images are, at random or class by class. Of images chosen for how hard they are, named by a file or given wrong
labels, every retrained model has an AUC of its own, which is in no interval, and more of them are told apart.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from unlearn.attack_metrics import attack_metrics, measured
from unlearn.metrics import Answer, Metric
from unlearn.reference_signals import References, clipped_margin, stacked
from unlearn.settings import SettingError
from unlearn.statistics import best_threshold, proportion
from unlearn.subject import NO_HELD_OUT, Laboratory, Subject

Floats = NDArray[np.float64]
Mode = Literal["online", "offline"]
Variance = Literal["per_image", "pooled"]
Compat = Literal["released"] | None
Gaussians = tuple[Floats, Floats]
"""Location and spread of each image."""

PARTS = ("forget", "retain", "test")
SOURCE = "Carlini et al., S&P 2022, arXiv:2112.03570"
METRICS = (
    *attack_metrics("lira", "LiRA", SOURCE),
    Metric("lira_balanced_accuracy", "LiRA: balanced accuracy", "fraction", "reference", SOURCE, True),
)


def check(lab: Any, *, references: References, **others: Any) -> None:
    """Each image has a spread on both sides."""
    if references < 4:
        allowed = "must be at least 4, because an image's spread takes two models on each side"
        raise SettingError("auditor.lira.references", references, allowed)


def lira(
    subject: Subject, lab: Laboratory, *, references: References, mode: Mode, variance: Variance, compat: Compat
) -> Answer:
    """AUC, balanced accuracy, the true-positive rates, and the scores of all images."""
    known = stacked(lab.references(references), clipped_margin, PARTS)
    inside = gaussians([known[part].inside for part in PARTS], variance, compat)
    outside = gaussians([known[part].outside for part in PARTS], variance, compat)
    if compat == "released" and variance == "pooled" and mode == "online":  # one spread serves both sides
        outside = [(centre, spread) for (centre, _), (_, spread) in zip(outside, inside, strict=True)]

    def scored(model: Subject) -> dict[str, Floats]:
        margins = [clipped_margin(getattr(model, part)) for part in PARTS]
        return dict(zip(PARTS, map(partial(scores, mode=mode, compat=compat), margins, inside, outside), strict=True))

    ours, theirs = scored(subject), scored(lab.reference())
    held_out = np.isin(subject.test.labels, subject.forget.labels)
    # Of a spread of 0 come scores that fp32 does not hold
    answer: dict[str, Any] = {
        f"lira_scores_{part}": its.clip(-1e30, 1e30).astype(np.float32) for part, its in ours.items()
    }
    if held_out.any():
        pairs = [(its["forget"], its["test"][held_out]) for its in (ours, theirs)]
        generator = np.random.default_rng(lab.streams.seed("lira", "halves"))
        answer |= measured("lira", *pairs)
        answer |= balanced_accuracy(*pairs[0], generator, "lira_balanced_accuracy")
    else:
        answer |= {metric.name: NO_HELD_OUT for metric in METRICS}
    return answer


def gaussians(values: Sequence[Floats], variance: Variance, compat: Compat) -> list[Gaussians]:
    """The Gaussians of each part's images, given each part's values, images x models."""
    if variance == "per_image":
        spreads = [its.std(axis=1) for its in values]
    else:
        whole = np.concatenate(values)
        spread = whole.std() if compat == "released" else np.sqrt(whole.var(axis=1, ddof=1).mean())
        spreads = [np.full(len(its), spread) for its in values]
    # Released code: the median, and a spread that is never 0
    return [(np.median(its, axis=1), spread + 1e-30) for its, spread in zip(values, spreads, strict=True)]


def scores(margins: Floats, inside: Gaussians, outside: Gaussians, mode: Mode, compat: Compat) -> Floats:
    """Higher for members."""
    if mode == "online":
        return norm.logpdf(margins, *inside) - norm.logpdf(margins, *outside)
    return -norm.logpdf(margins, *outside) if compat == "released" else -norm.logsf(margins, *outside)


def balanced_accuracy(
    positive: Floats, negative: Floats, generator: np.random.Generator, name: str
) -> dict[str, float | str]:
    """Mean of the true-positive and true-negative rates, each half of the images judged by the other's best threshold.

    The interval puts those of the two rates together (Newcombe, Statistics in Medicine 1998, method 10).
    """
    if min(len(positive), len(negative)) < 2:
        return {name: "needs 2 forgotten and 2 held-out images, to judge each half by the other's threshold"}
    first, second = (generator.permutation(len(side)) % 2 == 0 for side in (positive, negative))
    found, cleared = np.zeros(len(positive), dtype=bool), np.zeros(len(negative), dtype=bool)
    for judged in (False, True):
        threshold, _ = best_threshold(positive[first != judged], negative[second != judged])
        found[first == judged] = positive[first == judged] >= threshold
        cleared[second == judged] = negative[second == judged] < threshold
    one, two = proportion(found, "x"), proportion(cleared, "x")
    value = (one["x"] + two["x"]) / 2
    return {
        name: value,
        f"{name}_low": value - float(np.hypot(one["x"] - one["x_low"], two["x"] - two["x_low"])) / 2,
        f"{name}_high": value + float(np.hypot(one["x_high"] - one["x"], two["x_high"] - two["x"])) / 2,
    }
