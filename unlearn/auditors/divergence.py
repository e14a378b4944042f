"""Do the model's predicted distributions differ from a retrained model's by more than two retrained models differ?

Kullback-Leibler KL(retrained || model), and Jensen-Shannon, half the divergences of both from their mean, in nats (at
most ln 2): per image, averaged over the forget set, the test set and the retained images; against the reference, with
intervals over images; and against `models` further retrains, with intervals over retrains. The floor is the mean over
all pairs of these retrains (of both directions, for KL), with the jackknife's interval, because a retrain is in many
pairs.

The verdict is on the forget set: a model passes unless its mean Jensen-Shannon divergence from the further retrains
lies above their floor by more than a further retrain's would, in nineteen cases of twenty. With d_i the mean divergence
of retrain i from the other K - 1, and s its standard deviation times (K - 1) / (K - 2), which undoes that the retrains
are each other's yardstick, the bound is t(0.95, K - 1) s sqrt(1 + 1 / K). An independent retrain passes in about
nineteen cases of twenty, and the original fails wherever it memorised enough to be further off than models of one
recipe are from each other. Being nearer than a retrain is no failure.

ZRF (Chundawat et al., AAAI 2023, arXiv:2205.08096) is 1 less the Jensen-Shannon divergence, to base 2, from a network
of the same architecture with random weights, averaged over the forget set. RF-JSD (Spartalis et al., LoTUS, CVPR 2025)
needs no retrain: for each class the mean prediction of the model for forgotten images against that of the original for
test images, and the Jensen-Shannon divergences of these means in nats, averaged over the classes.

Deviations under `compat: null`: the released ZRF averages over images and classes, so its value moves with the number
of classes, and measures each distribution from the mean in the other direction, in nats; all values are near 1. The
released RF-JSD has the same directions, makes one distribution of all classes' means, and divides by the number of
classes. `compat: released` computes both so.

Exact retraining: the divergences of the floor, which are not zero, and a ZRF and an RF-JSD of the retrained model's
own: neither is 1 or 0, because a retrained model generalises to most of the forget set, and is not the original.

Known failure modes: a model that is worse or better everywhere diverges everywhere; look at the test set beside the
forget set. KL is moved by a few images on which the model is sure and wrong. A mean over images hides the few that are
still known. Published ZRFs are incomparable (see `compat`), and higher is not better: it rewards guessing on the forget
set. RF-JSD takes the original's behaviour on test images for a retrain's on the forget set.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import t as student

from unlearn.metrics import Answer, Metric
from unlearn.settings import Index, SettingError
from unlearn.signals import Signals, logits
from unlearn.statistics import LEVEL, mean
from unlearn.subject import Laboratory, Subject

Floats = NDArray[np.float64]
Divergence = Callable[[Floats, Floats], Floats]
PARTS = ("forget", "test", "retain")
TITLES = {"kl": "KL divergence", "js": "Jensen-Shannon divergence"}
OWN = "this project"
METRICS = (
    *(
        Metric(f"divergence_{kind}_{part}{end}", f"{title}, {part}{said}", "number", "reference", OWN, interval=True)
        for part in PARTS
        for kind, title in TITLES.items()
        for end, said in (("", ""), ("_retrains", ": further retrains"), ("_floor", ": between retrains"))
    ),
    Metric("divergence_excess", "Jensen-Shannon, forget: above the floor", "number", "reference", OWN, interval=True),
    Metric("divergence_passed", "No further off than a retrain", "verdict", "higher", OWN),
    Metric("divergence_zrf", "ZRF", "fraction", "reference", "Chundawat et al., arXiv:2205.08096", interval=True),
    Metric("divergence_rf_jsd", "RF-JSD", "number", "reference", "Spartalis et al., CVPR 2025"),
)


def divergence(subject: Subject, lab: Laboratory, *, models: Index, compat: Literal["released"] | None) -> Answer:
    """Divergences from the reference and from further retrains; ZRF and RF-JSD where images and original are known."""
    oracles = [*lab.oracles(models)]
    answer: dict[str, float | str | NDArray[np.float32]] = {}
    for part in PARTS:
        own, reference, *others = (_predicted(its, part) for its in (subject, lab.reference(), *oracles))
        for kind, measure, either_way in (("kl", _kl, _jeffreys), ("js", _js, _js)):
            name = f"divergence_{kind}_{part}"
            images = measure(reference, own)
            answer |= {**mean(images, name), f"{name}_images": images.astype(np.float32)}
            distances = np.array([measure(other, own).mean() for other in others])
            between = _between(others, either_way)
            answer |= _from_retrains(distances, name) | _floor(between, name)
            if name == "divergence_js_forget":
                answer |= _excess(distances, between)
    return {**answer, **_zrf(subject, lab, compat), "divergence_rf_jsd": _rf_jsd(subject, lab, compat)}


def _predicted(subject: Subject, part: str) -> Floats:
    signals: Signals = getattr(subject, part)
    return signals.log_probabilities


def _kl(first: Floats, second: Floats) -> Floats:
    """Of each image, from log-probabilities."""
    divergences: Floats = (np.exp(first) * (first - second)).sum(axis=1)
    return divergences


def _jeffreys(first: Floats, second: Floats) -> Floats:
    return (_kl(first, second) + _kl(second, first)) / 2


def _js(first: Floats, second: Floats) -> Floats:
    middle = np.logaddexp(first, second) - np.log(2)
    return np.maximum(0.0, (_kl(first, middle) + _kl(second, middle)) / 2)


def _between(models: Sequence[Floats], measure: Divergence) -> Floats:
    """The mean divergence of each model from all others."""
    sums = np.zeros(len(models))
    for i, j in combinations(range(len(models)), 2):
        sums[[i, j]] += measure(models[i], models[j]).mean()
    return sums / max(1, len(models) - 1)


def _too_few(needed: int, there: int) -> str:
    return f"needs at least {needed} further retrained models, and auditor.divergence.models asks for {there}"


def _from_retrains(distances: Floats, name: str) -> dict[str, float | str]:
    name = f"{name}_retrains"
    return {**mean(distances, name)} if len(distances) else {name: _too_few(1, 0)}


def _spread(between: Floats) -> float:
    """Standard deviation among retrains of what one adds to its divergences."""
    count = len(between)
    return float(between.std(ddof=1)) * (count - 1) / (count - 2)


def _floor(between: Floats, name: str) -> dict[str, float | str]:
    """The mean over pairs; its variance by the jackknife, where there are more than two models."""
    name, count = f"{name}_floor", len(between)
    if count < 2:
        return {name: _too_few(2, count)}
    level = float(between.mean())
    if count == 2:
        return {name: level}
    half = float(student.ppf((1 + LEVEL) / 2, count - 1) * 2 * _spread(between) / np.sqrt(count))
    return {name: level, f"{name}_low": level - half, f"{name}_high": level + half}


def _excess(distances: Floats, between: Floats) -> dict[str, float | str]:
    """How far the model is above the floor, give or take what another retrain would be, and the verdict."""
    name, count = "divergence_excess", len(between)
    if count < 3:
        return dict.fromkeys((name, "divergence_passed"), _too_few(3, count))
    excess, error = float(distances.mean() - between.mean()), _spread(between) * np.sqrt(1 + 1 / count)
    half = float(student.ppf((1 + LEVEL) / 2, count - 1) * error)
    passed = float(excess <= student.ppf(LEVEL, count - 1) * error)
    return {name: excess, f"{name}_low": excess - half, f"{name}_high": excess + half, "divergence_passed": passed}


def _zrf(subject: Subject, lab: Laboratory, compat: str | None) -> dict[str, float] | dict[str, str]:
    try:
        images = subject.images("forget")
    except SettingError as error:
        return {"divergence_zrf": str(error)}
    network = lab.training.initialised(lab.streams.child("divergence", "random network"))
    random = Signals(logits(network, images), subject.forget.labels).log_probabilities
    own = subject.forget.log_probabilities
    values = 1 - (_released(own, random) / own.shape[1] if compat else _js(own, random) / np.log(2))
    return mean(values, "divergence_zrf")


def _rf_jsd(subject: Subject, lab: Laboratory, compat: str | None) -> float | str:
    try:
        test = lab.subject("original").test
    except SettingError as error:
        return str(error)
    classes = np.intersect1d(subject.forget.labels, test.labels)
    if len(classes) == 0:
        return "needs test images of the classes that are in the forget set"
    own, before = (
        np.array([logsumexp(its[labels == each], axis=0) - np.log((labels == each).sum()) for each in classes])
        for its, labels in ((side.log_probabilities, side.labels) for side in (subject.forget, test))
    )
    if compat:
        whole = [np.exp(side).clip(1e-8) for side in (own, before)]
        return float(_released(*(np.log(side / side.sum()) for side in whole)).sum() / len(classes))
    return float(_js(own, before).mean())


def _released(first: Floats, second: Floats) -> Floats:
    """Jensen-Shannon with the mean's divergences from both, as the released codes have it."""
    middle = np.logaddexp(first, second) - np.log(2)
    return (_kl(middle, first) + _kl(middle, second)) / 2
