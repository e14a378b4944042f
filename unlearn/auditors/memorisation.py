"""How much of the forget set had been memorised, and is the part that was memorised most forgotten as well?

Feldman's score (STOC 2020, arXiv:1906.05271; Feldman & Zhang, NeurIPS 2020, arXiv:2008.03703) of an image is the
probability that a model trained on it gets it right, minus that of a model that was not. It is estimated from reference
models, which are trained on random halves of all training and test images, so that test images have one too, and half
of the models have seen an image. It does not depend on the model under audit. Beside it stands the same difference of
the probability of the true class, which is finer where models are few.

What is memorised little is nearly forgotten by doing nothing (Zhao et al., NeurIPS 2024, arXiv:2406.01257), so averages
over a forget set say little of a method. Here the forget set is parted into thirds of low, middle and high scores, with
equal scores by the finer difference. Each third has its accuracy, and the AUC of the loss attack against held-out
images: test images of classes in the forget set whose scores lie within the same bounds. Two proxies of memorisation
that read the model's own answers (Zhao & Triantafillou, FITML workshop 2024, arXiv:2410.16516, not checked, have more)
are correlated with the scores by ranks: doubt of the true class, as which loss and margin rank too, and entropy.

Intervals: the mean score's is a t-interval over pairs of reference models with complementary halves, for this forget
set; the correlations' a bootstrap over images; of shares Wilson's, and of areas DeLong's.

Deviations: Feldman & Zhang train 2,000 models on 70 % of the training set, where we have a few on halves of training
and test images. With 2 n of them a score is a multiple of 1/n, its standard error up to 0.7/sqrt(n) or so.

The verdict: a model passes when the 95 % interval of the difference of its AUC to the retrained model's, in the third
that was memorised most, contains zero.

Exact retraining: its accuracy falls from third to third, for these images are the harder the more they have to be
memorised, and its AUC is 0.5 in each if the forget set was drawn at random, because held-out images of the same scores
are then as hard. An independent retrain passes in about nineteen cases of twenty. The original knows the high third as
well as the low one, and fails there wherever it memorised.

Known failure modes: with few reference models, thirds are parted by noise. For forget sets that were not drawn at
random, held-out images of the same scores may still be unlike, and only the difference to the retrained model counts.
Of easily learned data so little is memorised that the thirds are alike. The rate of one in twenty holds for forget sets
that are drawn as the held-out images are, at random or class by class. Of images chosen for how hard they are, named by
a file or given wrong labels, every retrained model has an AUC of its own, which is in no interval, and more of them are
told apart. Of a wholly forgotten class it asks only whether its training images are known better than its test images:
a model that still knows the class passes.
"""

import numpy as np
from numpy.typing import NDArray

from unlearn.memorisation import PROXIES, contrasts, correctness
from unlearn.metrics import Answer, Metric
from unlearn.reference_signals import References
from unlearn.signals import Floats
from unlearn.statistics import auc, auc_difference, mean, proportion, rank_correlation
from unlearn.subject import Laboratory, Subject

FELDMAN = "Feldman, STOC 2020, arXiv:1906.05271"
RUM = "Zhao et al., NeurIPS 2024, arXiv:2406.01257"
PROXY = "Zhao & Triantafillou, FITML 2024, arXiv:2410.16516"
STRATA = ("low", "middle", "high")

METRICS = (
    Metric("memorisation_mean", "Memorisation: mean score of the forget set", "number", "reference", FELDMAN, True),
    Metric(
        "memorisation_mean_confidence",
        "Memorisation: mean score of the forget set, in the probability of the true class",
        "number",
        "reference",
        FELDMAN,
        True,
    ),
    *(
        Metric(
            f"memorisation_correlation_{proxy}",
            f"Memorisation: rank correlation of the score with the model's {title}",
            "number",
            "reference",
            PROXY,
            True,
        )
        for proxy, title in zip(PROXIES, ("doubt of the true class", "entropy"), strict=True)
    ),
    *(
        metric
        for stratum in STRATA
        for metric in (
            Metric(
                f"memorisation_{stratum}_forget_accuracy",
                f"Memorisation: accuracy on the {stratum} third of the forget set",
                "fraction",
                "reference",
                RUM,
                True,
            ),
            Metric(
                f"memorisation_{stratum}_loss_auc",
                f"Memorisation: AUC of the loss attack on the {stratum} third",
                "fraction",
                "reference",
                RUM,
                True,
            ),
        )
    ),
    Metric(
        "memorisation_high_loss_auc_difference",
        "Memorisation: AUC on the high third minus the retrained model's",
        "number",
        "reference",
        "DeLong et al., Biometrics 1988",
        True,
    ),
    Metric(
        "memorisation_passed", "Memorisation: high third not told from retrained", "verdict", "higher", "this project"
    ),
)


def memorisation(subject: Subject, lab: Laboratory, *, references: References) -> Answer:
    """The forget set's mean score, its correlation with the proxies, and accuracy and AUC of its thirds.

    Kept for each image of the forget set: `scores`, `confidence_scores` and `strata`, 0 to 2.
    """
    right, confident = (
        contrasts(lab.references(references), signal, ("forget", "test"))
        for signal in (correctness, lambda signals: signals.confidence)
    )
    scores, fine = right["forget"].mean(axis=0), confident["forget"].mean(axis=0)
    rival = np.isin(subject.test.labels, np.unique(subject.forget.labels))  # whether a test image is held out
    own, others = strata((scores, fine), (right["test"].mean(axis=0)[rival], confident["test"].mean(axis=0)[rival]))
    answer: dict[str, float | str | NDArray[np.generic]] = {
        **average(right["forget"], "memorisation_mean"),
        **average(confident["forget"], "memorisation_mean_confidence"),
        "scores": scores.astype(np.float32),
        "confidence_scores": fine.astype(np.float32),
        "strata": own.astype(np.int8),
    }
    for name, proxy in PROXIES.items():
        generator = np.random.default_rng(lab.streams.seed("memorisation", name))
        answer |= correlation(proxy(subject.forget), scores, generator, f"memorisation_correlation_{name}")
    for number, stratum in enumerate(STRATA):
        forget, name = subject.forget[own == number], f"memorisation_{stratum}"
        nothing = {f"{name}_forget_accuracy": nobody(own == number, "images to forget")}
        answer |= proportion(forget.correct, f"{name}_forget_accuracy") or nothing
    if rival.any():  # else the test set has no image of the forgotten classes
        answer |= attacks(subject, lab.reference(), own, others)
    return answer


def average(contrasts: Floats, name: str) -> dict[str, float | str]:
    """The mean over pairs of models, given as pairs x images, of what they say on average of the images."""
    if len(contrasts) == 1:
        return {name: "needs at least 4 reference models for its interval"}
    return {**mean(contrasts.mean(axis=1), name)}


def strata(own: tuple[Floats, Floats], others: tuple[Floats, Floats]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The third, 0 to 2, of each image to forget by its two scores, and of each held-out image by the same bounds.

    Images with the same two scores are in the same third, which is the last that one of them would be in.
    """
    both = np.stack([np.concatenate(pair) for pair in zip(own, others, strict=True)], axis=1)
    ranks = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    count = len(own[0])
    bounds = np.sort(ranks[:count])[[count // 3, 2 * count // 3]]
    thirds = np.searchsorted(bounds, ranks, side="right")
    return thirds[:count], thirds[count:]


def correlation(proxy: Floats, scores: Floats, generator: np.random.Generator, name: str) -> dict[str, float | str]:
    """The rank correlation with its interval, or in words why there is none."""
    if len(np.unique(proxy)) < 2 or len(np.unique(scores)) < 2:
        return {name: f"of {len(scores)} images all scores are equal, or all answers are"}
    return {**rank_correlation(proxy, scores, generator, name)}


def attacks(
    subject: Subject, reference: Subject, own: NDArray[np.int64], others: NDArray[np.int64]
) -> dict[str, float | str]:
    """The AUC in each third, its difference to the retrained model in the last, and the verdict."""
    found: dict[str, float | str] = {}
    for number, stratum in enumerate(STRATA):
        name, forget, held_out = f"memorisation_{stratum}_loss_auc", own == number, others == number
        if forget.any() and held_out.any():
            found |= auc(*losses(subject, forget, held_out), name)
        else:
            found[name] = nobody(held_out, "held-out images") if forget.any() else nobody(forget, "images to forget")
    if isinstance(found[name], str):
        return found | dict.fromkeys((f"{name}_difference", "memorisation_passed"), found[name])
    ours, theirs = (losses(its, forget, held_out) for its in (subject, reference))
    difference = auc_difference(ours, theirs, f"{name}_difference")
    passed = difference[f"{name}_difference_low"] <= 0 <= difference[f"{name}_difference_high"]
    return found | difference | {"memorisation_passed": float(passed)}


def losses(subject: Subject, forget: NDArray[np.bool_], held_out: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Of some images to forget and some held-out ones, the larger the more familiar."""
    return -subject.forget[forget].loss, -subject.held_out[held_out].loss


def nobody(there: NDArray[np.bool_], which: str) -> str:
    """Why a third has no number."""
    return f"none of the {len(there)} {which} is in this third"
