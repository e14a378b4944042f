"""Is the loss on the forget set that of images never seen? A two-sample attack, forget against held-out.

The unlearning challenge's attack (Triantafillou et al., arXiv:2406.09073), also used by Kurmanji et al. (NeurIPS 2023,
arXiv:2302.09880) and SG-Unlearn (Di et al., arXiv:2406.07687): logistic regression on the loss, cross-validated on
equally many images of each side. A logistic regression is blind to losses that differ only in their tail, so the
rank-based AUC stands beside it, with its interval and its difference to the retrained model. An AUC below the
reference's is a leak too: the forget set then looks less familiar than images never seen. `loss_attack_auc_two_sided`
is its distance from one half on either side.

Of the two distances between the sides' losses, Kolmogorov-Smirnov's is bounded; Wasserstein's is moved by a few large
losses, so it is also given of the confidences, which lie between 0 and 1, and with the share of random divisions of all
these losses that lie as far apart. Kolmogorov-Smirnov's p-value is known without permutations.

The verdict: a model passes when the 95 % interval of its AUC's difference to the retrained model's contains zero, so an
independent retrain passes in about nineteen cases of twenty, and the original fails wherever it memorised.

Held-out images are test images of the classes that occur in the forget set.

Exact retraining: on a random forget set an AUC of one half and the distances of two samples of the same losses, which
are not zero (Kolmogorov-Smirnov 0.02 on average between 2,500 and 2,500). A forget set that was not drawn at random can
be easier or harder than the test images, so the target is the reference's value.

Known failure modes: a population attack: it can show that something is left, and cannot show that nothing is. A method
that gives every image a loss drawn at random passes. Of a wholly forgotten class it asks only whether its training
images are known better than its test images: a model that still knows the class passes. The rate of one in twenty holds
for forget sets that are drawn as the held-out images are, at random or class by class. Of images chosen for how hard
they are, named by a file or given wrong labels, every retrained model has an AUC of its own, which is in no interval,
and more of them are told apart.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_validate

from unlearn.metrics import Answer, Measured, Metric
from unlearn.settings import Count, Positive, Share
from unlearn.statistics import auc, auc_difference, permutation_pvalue
from unlearn.subject import NO_HELD_OUT, Laboratory, Subject

CHALLENGE = "Triantafillou et al., arXiv:2406.09073"
STACKELBERG = "Di et al., arXiv:2406.07687"

METRICS = (
    Metric("loss_attack_accuracy", "Loss attack: accuracy", "fraction", "reference", CHALLENGE),
    Metric("loss_attack_f1", "Loss attack: F1", "fraction", "reference", STACKELBERG),
    Metric("loss_attack_auc", "Loss attack: AUC", "fraction", "reference", CHALLENGE, interval=True),
    Metric(
        "loss_attack_auc_difference",
        "Loss attack: AUC minus the retrained model's",
        "number",
        "reference",
        "DeLong et al., Biometrics 1988",
        interval=True,
    ),
    Metric(
        "loss_attack_auc_two_sided",
        "Loss attack: distance of the AUC from one half",
        "number",
        "reference",
        CHALLENGE,
        interval=True,
    ),
    Metric("loss_attack_passed", "Loss attack: not told from retrained", "verdict", "higher", "this project"),
    Metric("ks_statistic", "Kolmogorov-Smirnov distance of the losses", "number", "reference", STACKELBERG),
    Metric("ks_pvalue", "Its p-value", "fraction", "reference", STACKELBERG),
    Metric("wasserstein", "Wasserstein distance of the losses", "number", "reference", STACKELBERG),
    Metric("wasserstein_pvalue", "Its p-value, by permutation", "fraction", "reference", "this project"),
    Metric("wasserstein_confidence", "Wasserstein distance of the confidences", "number", "reference", "this project"),
)


def loss_attack(
    subject: Subject, lab: Laboratory, *, folds: Count, test_share: Share, clip: Positive, permutations: Count
) -> Answer:
    """Attack accuracy, F1 and AUC, and the distances; a lower loss counts as a sign of membership."""
    forget, held_out = _losses(subject, clip)
    if len(held_out) == 0:
        return {metric.name: NO_HELD_OUT for metric in METRICS}
    reference = _losses(lab.reference(), clip)
    generator = np.random.default_rng(lab.streams.seed("loss_attack", "balance"))
    count = min(len(forget), len(held_out))
    sides = [generator.choice(side, count, replace=False) for side in (forget, held_out)]
    folds_seed = lab.streams.seed("loss_attack", "folds") % 2**32
    shuffles = np.random.default_rng(lab.streams.seed("loss_attack", "permutations"))
    distance = ks_2samp(forget, held_out)
    area = auc(-forget, -held_out, "loss_attack_auc")
    difference = auc_difference((-forget, -held_out), (-reference[0], -reference[1]), "loss_attack_auc_difference")
    low, high = difference["loss_attack_auc_difference_low"], difference["loss_attack_auc_difference_high"]
    return {
        **_logistic(sides[0], sides[1], folds, test_share, folds_seed),
        **area,
        **_two_sided(area),
        **difference,
        "loss_attack_passed": float(low <= 0 <= high),
        "ks_statistic": float(distance.statistic),
        "ks_pvalue": float(distance.pvalue),
        "wasserstein": float(wasserstein_distance(forget, held_out)),
        "wasserstein_pvalue": _wasserstein_pvalue(forget, held_out, shuffles, permutations),
        "wasserstein_confidence": float(wasserstein_distance(subject.forget.confidence, subject.held_out.confidence)),
    }


def _losses(subject: Subject, clip: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return subject.forget.loss.clip(max=clip), subject.held_out.loss.clip(max=clip)


def _two_sided(area: Measured) -> Measured:
    ends = [area[f"loss_attack_auc{end}"] - 0.5 for end in ("_low", "_high")]
    nearest = 0.0 if ends[0] <= 0 <= ends[1] else min(map(abs, ends))
    distances = (abs(area["loss_attack_auc"] - 0.5), nearest, max(map(abs, ends)))
    return {f"loss_attack_auc_two_sided{end}": its for end, its in zip(("", "_low", "_high"), distances, strict=True)}


def _wasserstein_pvalue(
    forget: NDArray[np.float64], held_out: NDArray[np.float64], generator: np.random.Generator, permutations: int
) -> float:
    # Not the losses are divided anew but their places in the order of all, which so are sorted only once. Steps of the
    # difference of the distribution functions are whole numbers, lest divisions that are equal differ by rounding.
    values = np.concatenate([forget, held_out])
    order = values.argsort()
    places = np.empty(len(values))
    places[order] = np.arange(len(values))
    widths = np.diff(values[order])

    def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        steps = np.full(len(values), -len(first))
        steps[first.astype(np.int64)] = len(second)
        return float(np.abs(steps.cumsum()[:-1]) @ widths)

    return permutation_pvalue(distance, places[: len(forget)], places[len(forget) :], generator, permutations)


def _logistic(
    forget: NDArray[np.float64], held_out: NDArray[np.float64], folds: int, test_share: float, seed: int
) -> dict[str, float]:
    # A fold needs an image of each side for training and for testing; else the cross-validated attack does not exist.
    for_testing = math.ceil(2 * len(forget) * test_share)
    if min(for_testing, 2 * len(forget) - for_testing) < 2:
        return {}
    losses = np.concatenate([forget, held_out])[:, None]
    member = np.repeat([1, 0], len(forget))
    split = StratifiedShuffleSplit(n_splits=folds, test_size=test_share, random_state=seed)
    scores = cross_validate(LogisticRegression(), losses, member, cv=split, scoring=("accuracy", "f1"))
    return {
        "loss_attack_accuracy": float(scores["test_accuracy"].mean()),
        "loss_attack_f1": float(scores["test_f1"].mean()),
    }
