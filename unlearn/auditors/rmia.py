"""Does the model find a forgotten image more probable, beside other images, than models that may not know it do?

    LR(x, z) = (p(x | model) / p(x)) / (p(z | model) / p(z)),   score(x) = share of the z with LR(x, z) > gamma

RMIA, the robust membership inference attack (Zarifzadeh, Liu & Shokri, ICML 2024, arXiv:2312.03262). p(. | model) is
the probability of the true class, and p(.) what to expect of a model that may or may not have been trained on the
image: online the mean over all references, half of which were; offline the mean over those that were not, brought
half-way towards what memorising gives, ((1 + a) mean + 1 - a) / 2. AMUN (Ebrahimpour-Boroojeny et al., ICML 2025,
arXiv:2503.00917) brought it to unlearning: the scores of forgotten, retained and test images under the unlearned model
are compared pairwise, here forgotten with the test images of the same classes, and retained with those of the classes
that remain. AMUN's setting is `references=128 signal=sm_taylor gamma=2`. What counts is how near each AUC is to the
retrained model's.

The verdict: a model passes when the 95 % interval of its AUC's difference to the retrained model's, forgotten against
held-out, contains zero.

Exact retraining: to a retrained model a forgotten image is what a test image is, so forgotten against held-out is at
0.5 within its interval; of a random forget set, retained against forgotten is where retained against test is. An
independent retrain passes in about nineteen cases of twenty; the original, trained on the forget set, fails wherever it
memorised.

Deviations: the released codes compare each x with each z; here the population's ratios are sorted once and each x finds
its place among them, which is the same rule, and x is left out of its own population. The Taylor softmax is negative
where a score is below about -1.6, and ratios would change their sign: p is at least 1e-12. On halves no image but the
validation images is unknown to all references: offline each x and each z has the mean of those not trained on it, and
`population: validation` asks for z that no reference knows. (ml_privacy_meter averages the largest half of a population
image's references, a bug.) The trimmed mean and the 18 augmented queries of the 2024 code are left out, as in the
current one. AMUN draws equally many images of each part, three times; the AUC of all images has the same expectation
and less noise.

Known failure modes: the references know or do not know an image, and none has unlearned it, so this finds what is left
of membership and not the traces of unlearning itself (for those, U-LiRA). Few references blur it. The false-positive
rate is one of all images together and not of each (arXiv:2605.25819). Where the original memorised nothing, everything
passes. Of a wholly forgotten class it asks only whether its training images are known better than its test images: a
model that still knows the class passes. The rate of one in twenty holds for forget sets that are drawn as the held-out
images are, at random or class by class. Of images chosen for how hard they are, named by a file or given wrong labels,
every retrained model has an AUC of its own, which is in no interval, and more of them are told apart.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.polynomial.polynomial import polyval
from numpy.typing import NDArray
from scipy.special import factorial, log_softmax

from unlearn.attack_metrics import attack_metrics, measured
from unlearn.metrics import Answer, Metric
from unlearn.reference_signals import References, ReferenceSignals, stacked
from unlearn.settings import NotNegative, Positive, Probability, SettingError
from unlearn.signals import Signals
from unlearn.statistics import auc
from unlearn.subject import NO_HELD_OUT, Laboratory, Subject

Floats = NDArray[np.float64]
Mode = Literal["online", "offline"]
Signal = Literal["softmax", "temperature", "sm_taylor"]
Population = Literal["all", "test", "validation"]

FLOOR = 1e-12
ASKED = ("forget", "retain", "test")
POPULATIONS: Mapping[str, tuple[str, ...]] = {"all": ASKED, "test": ("test",), "validation": ("validation",)}

SOURCE = "Zarifzadeh et al., ICML 2024, arXiv:2312.03262"
AMUN = "Ebrahimpour-Boroojeny et al., ICML 2025, arXiv:2503.00917"
METRICS = (
    *attack_metrics("rmia", "RMIA", SOURCE),
    Metric("rmia_auc_forget_retain", "RMIA: AUC, retained against forgotten", "fraction", "reference", AMUN, True),
    Metric("rmia_auc_retain_test", "RMIA: AUC, retained against test", "fraction", "reference", AMUN, True),
)


def check(lab: Any, *, mode: Mode, population: Population, **others: Any) -> None:
    """A population has images, and online a p(z) to which models that were trained on z have contributed."""
    if population == "all":
        return
    if population == "validation" and mode == "online":
        allowed = "must be all or test with mode=online, because no reference model is trained on validation images"
        raise SettingError("auditor.rmia.population", population, allowed)
    count = len(getattr(lab.data, population))
    if count < 2:
        allowed = f"must be another one, because of the {population} part there are {count} images"
        raise SettingError("auditor.rmia.population", population, allowed)


def rmia(
    subject: Subject,
    lab: Laboratory,
    *,
    references: References,
    mode: Mode,
    signal: Signal,
    temperature: Positive,
    margin: NotNegative,
    order: Annotated[int, Ge(2)],
    gamma: Positive,
    a: Probability,
    population: Population,
) -> Answer:
    """The three AUCs, the true-positive rates, and the scores of all images."""
    probability = partial(probabilities, signal=signal, temperature=temperature, margin=margin, order=order)
    parts = sorted({*ASKED, *POPULATIONS[population]})
    known = stacked(lab.references(references), probability, parts)
    expected = {part: typical(its, mode, a) for part, its in known.items()}

    def scored(model: Subject) -> dict[str, Floats]:
        ratios = {part: probability(getattr(model, part)) / expected[part] for part in parts}
        among = np.sort(np.concatenate([ratios[part] for part in POPULATIONS[population]]))
        return {part: scores(ratios[part], among, gamma, included=part in POPULATIONS[population]) for part in ASKED}

    ours, theirs = scored(subject), scored(lab.reference())
    held_out = np.isin(subject.test.labels, subject.forget.labels)
    remaining = ~np.isin(subject.test.labels, subject.forgotten_classes)
    answer: dict[str, Any] = {f"rmia_scores_{part}": its.astype(np.float32) for part, its in ours.items()}
    if held_out.any():
        pairs = [(its["forget"], its["test"][held_out]) for its in (ours, theirs)]
        answer |= measured("rmia", *pairs)
    else:
        answer |= {metric.name: NO_HELD_OUT for metric in METRICS[:-2]}
    if len(ours["retain"]):
        answer |= auc(ours["retain"], ours["forget"], "rmia_auc_forget_retain")
    if len(ours["retain"]) and remaining.any():
        answer |= auc(ours["retain"], ours["test"][remaining], "rmia_auc_retain_test")
    return answer


def probabilities(signals: Signals, signal: Signal, temperature: float, margin: float, order: int) -> Floats:
    """Something like the probability of each image's true class, at least `FLOOR`.

    `sm_taylor` replaces the exponential of the softmax by its Taylor polynomial of `order` terms and takes `margin`
    from the true class's score first.
    """
    logits, rows = signals.logits.astype(np.float64), np.arange(len(signals))
    if signal == "softmax":
        return signals.confidence.clip(min=FLOOR)
    if signal == "temperature":
        return np.exp(log_softmax(logits / temperature, axis=1)[rows, signals.labels]).clip(min=FLOOR)
    scaled = logits / temperature
    scaled[rows, signals.labels] -= margin
    terms = polyval(scaled, 1 / factorial(np.arange(order)))
    return (terms[rows, signals.labels] / terms.sum(axis=1)).clip(min=FLOOR)


def typical(known: ReferenceSignals, mode: Mode, a: float) -> Floats:
    """p(x) of each image: what to expect where nobody says whether a model was trained on it."""
    if mode == "online":  # each image is a member of half of the references
        return known.values.mean(axis=0)
    return ((1 + a) * known.outside.mean(axis=1) + 1 - a) / 2


def scores(ratios: Floats, population: Floats, gamma: float, *, included: bool) -> Floats:
    """Of each image, the share of the sorted `population` whose ratio, times `gamma`, is below its own.

    `included` says that the images are of the population themselves; then each is compared with all others.
    """
    below = population.searchsorted(ratios / gamma)
    itself = included and gamma < 1  # an image's ratio is above `gamma` times itself
    return (below - itself) / (len(population) - included)
