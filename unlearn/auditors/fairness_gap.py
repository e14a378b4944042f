"""How unevenly does a model spread the classes? The fairness gap of its normalisation layers.

    gap of layer l = max over classes c of sigma_c - min over c of sigma_c

Tran & Woo (WWW Companion 2025, arXiv:2504.13610) conjecture that a larger gap goes with a more fragile model. It is no
gap between accuracies and knows no sensitive attribute. Layers are every BatchNorm2d, LayerNorm and GroupNorm in the
order of their use; the curve over layers and every sigma are kept as arrays. Where whole classes are forgotten, each
number is given a second time without them.

Deviations: how the paper measures a class's spread sigma_c is not public, and there is no code; `statistic` says what
it is here. By default it is the standard deviation of each feature over all images of the class and all their
positions, at the layer's output after scale and shift, averaged over the features. (A deviation over features would be
1 for every class of a layer norm, by construction.) Evaluation mode, float64 sums, one pass.

The interval is that of the jackknife which leaves out one fold of images at a time (Efron & Tibshirani 1993, chapter
11), the images being dealt into folds class by class. It covers the draw of images and nothing else, neither the luck
of a training nor the bias below, and is rough where classes tie for the ends of the range, which is not smooth there.

Exact retraining: whatever gap the retrained model has on the same images, not zero. There is no verdict, because a gap
is no sign of what is remembered, and two models that were made alike can differ by more than their intervals say.

Known failure modes: the range of noisy spreads is never zero. A ResNet-20 on digits, with 36 test images a class, has a
mean gap of 0.20, and one of 0.04 to 0.06 if its labels are dealt at random, from intervals that exclude zero: compare
models on the same images, and no gap with zero. The gap follows the scale parameters and the depth of a layer: compare
methods at one architecture, and read the relative gap between two. A ruined model can have a small one. What timm fuses
with a norm, an activation say, is part of that layer's output.
"""

from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from scipy.stats import t as student

from unlearn.checks import name_of
from unlearn.metrics import Answer, Metric
from unlearn.norm_layers import Where, moments, norm_layers
from unlearn.settings import SettingError
from unlearn.statistics import LEVEL
from unlearn.streams import Streams
from unlearn.subject import Laboratory, Subject

Floats = NDArray[np.float64]

SUMMARIES = {
    "mean": "Fairness gap: mean over norm layers",
    "max": "Fairness gap: the largest of a norm layer",
    "last": "Fairness gap: last norm layer",
    "relative": "Fairness gap: share of the classes' mean spread, mean over norm layers",
}
ENDINGS = {"": "", "_remaining_classes": ", without forgotten classes"}
SOURCE = "Tran & Woo, WWW Companion 2025, arXiv:2504.13610"
METRICS = tuple(
    Metric(f"fairness_gap_{summary}{ending}", title + addition, "number", "reference", SOURCE, interval=True)
    for ending, addition in ENDINGS.items()
    for summary, title in SUMMARIES.items()
)


def check(lab: Any, **settings: Any) -> None:
    """A model without a normalisation layer has no gap."""
    with Streams("check").seeded("model"):
        layers = norm_layers(lab.build_model())
    if not layers:
        allowed = f"must be left out, because model {name_of(lab, 'model')} has no batch, layer or group norm"
        raise SettingError("auditor", "fairness_gap", allowed)


def fairness_gap(
    subject: Subject,
    lab: Laboratory,
    *,
    part: Literal["test", "retain"],
    statistic: Where,
    folds: Annotated[int, Ge(2)],
) -> Answer:
    """Summaries of the layers' gaps on a part of the images; arrays: the curve, its layers, every class's spreads."""
    images = subject.images(part)
    classes, number = np.unique(images.labels.cpu().numpy(), return_inverse=True)
    counts = np.bincount(number)
    if len(classes) < 2 or counts.min() < 2:
        return {f"fairness_gap_{summary}": _reason(classes, counts, part) for summary in SUMMARIES}
    dealt = min(folds, int(counts.min()))
    cells = number * dealt + _turns(number) % dealt
    sums = moments(subject.model(), images, cells, len(classes) * dealt, statistic)
    layers = [its.reshape(len(classes), dealt, 3, -1) for its in sums.values()]
    sigmas = _sigmas(layers, statistic)
    without = [_sigmas([np.delete(its, fold, axis=1) for its in layers], statistic) for fold in range(dealt)]
    answer: dict[str, Any] = {}
    remaining = ~np.isin(classes, subject.forgotten_classes)
    for ending in ENDINGS if not remaining.all() else [""]:
        chosen = remaining if ending else np.full(len(classes), True)
        for summary in SUMMARIES:
            name = f"fairness_gap_{summary}{ending}"
            if chosen.sum() < 2:
                answer[name] = _reason(classes[chosen], counts[chosen], part)
                continue
            value, *replicates = (summarised(its[:, chosen])[summary] for its in (sigmas, *without))
            answer |= jackknifed(value, np.array(replicates), name)
    return answer | {
        "fairness_gap_layers": np.array(list(sums)),
        "fairness_gap_curve": np.ptp(sigmas, axis=1).astype(np.float32),
        "fairness_gap_sigmas": sigmas.astype(np.float32),
        "fairness_gap_classes": classes,
    }


def summarised(sigmas: Floats) -> dict[str, float]:
    """The gaps of all layers, from layers x classes, in four numbers; where nothing is spread there is no gap."""
    gaps, means = np.ptp(sigmas, axis=1), sigmas.mean(axis=1)
    relative = np.divide(gaps, means, out=np.zeros_like(gaps), where=means > 0)
    return {
        "mean": float(gaps.mean()),
        "max": float(gaps.max()),
        "last": float(gaps[-1]),
        "relative": float(relative.mean()),
    }


def jackknifed(value: float, replicates: Floats, name: str) -> dict[str, float]:
    """A number that cannot be negative with its 95 % interval, from the values that it has without each fold."""
    folds = len(replicates)
    error = np.sqrt((folds - 1) / folds * ((replicates - replicates.mean()) ** 2).sum())
    half = float(student.ppf((1 + LEVEL) / 2, folds - 1) * error)
    return {name: value, f"{name}_low": max(0.0, value - half), f"{name}_high": value + half}


def _sigmas(layers: list[Floats], statistic: Where) -> Floats:
    """Layers x classes, from each layer's classes x folds x 3 x features."""
    rows = []
    for its in layers:
        number, total, squares = np.moveaxis(its.sum(axis=1), 1, 0)
        variance = np.maximum(squares / number - (total / number) ** 2, 0.0)
        # A scatter is the length of a vector of deviations, the others are the mean of the features' deviations
        rows.append(np.sqrt(variance.mean(axis=1)) if statistic == "scatter" else np.sqrt(variance).mean(axis=1))
    return np.stack(rows)


def _turns(number: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each image how many images of its class come before it."""
    turns = np.empty_like(number)
    for its in range(number.max() + 1):
        turns[number == its] = np.arange((number == its).sum())
    return turns


def _reason(classes: NDArray[np.int64], counts: NDArray[np.int64], part: str) -> str:
    if len(classes) < 2:
        return f"needs {part} images of two classes, and there are those of {len(classes)}"
    return f"needs two {part} images of each class, and class {classes[counts.argmin()]} has one"
