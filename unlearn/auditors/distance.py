"""How far are the model's weights, its answers and its features from the retrained model's?

Three diagnostics, each blind in its own way:

- Weights: ||theta - theta_r|| / ||theta_r|| over all parameters, and the same to the original (Golatkar et al., CVPR
  2020, arXiv:1911.04933). Their code divides by the model's own norm; here a model that shrinks does not look farther.
- Answers: mean over images of ||p(x) - p_r(x)||, in l1 as Golatkar et al. (ECCV 2020, arXiv:2003.02960) and in l2 as
  Chundawat et al. (AAAI 2023, arXiv:2205.08096), on each part; a t-interval over images.
- Features: what a linear probe reads from the frozen features that enter the classifier. A logistic regression on
  standardised features tells images of the wholly forgotten classes from others; it learns on training images and is
  asked about test images. Another tells forgotten images from held-out ones of the same classes, each scored by the
  fold that did not see it. AUC by DeLong, and its paired difference to the same probe on the retrained model. Changing
  the last layer alone hides a class from every number that is made of outputs, and not from this one.

Left out on purpose: CKA, which a few images or one direction of the features can move at will (Davari et al., ICLR
2023, arXiv:2210.16156); and the Information Difference Index of Jeon et al. (AAAI 2026, arXiv:2405.17878), the mutual
information of each layer with the forgotten label relative to the original's and the retrained model's, because its
value depends on the critic that estimates it and on how that is trained, which no source we could check states.

Exact retraining: its probes have a difference of 0 up to the interval, and the member probe an AUC of 0.5 on a random
forget set. A class never seen can be read from its features all the same: the probe of classes has no absolute target.
Distances of weights and answers are not 0 for a second retrained model but have a floor, which `method=retrain` shows.

Known failure modes: weights that start from another initialisation are about sqrt(2) apart however alike the models
are, and the retrained model here does; reordered units and rescaled layers, too, move weights and no answer. A
distance of answers counts honest disagreement of two trainings. DeLong's interval takes the probe as given. Of an
ensemble (`train=sisa`) the last member's features are probed.
"""

from collections.abc import Iterable
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from unlearn.data.images import Images
from unlearn.head import features_of, head_of
from unlearn.metrics import Answer, Metric
from unlearn.settings import Count, Positive, SettingError
from unlearn.statistics import auc, auc_difference, mean
from unlearn.subject import Laboratory, Subject
from unlearn.thinning import evenly

Floats = NDArray[np.float64]
WEIGHTS = "Golatkar et al., CVPR 2020, arXiv:1911.04933"
ANSWERS = {"l1": "Golatkar et al., ECCV 2020, arXiv:2003.02960", "l2": "Chundawat et al., AAAI 2023, arXiv:2205.08096"}
PROBE = "Alain & Bengio, 2016, arXiv:1610.01644"
PARTS = ("forget", "retain", "test")
PROBES = {"class": "wholly forgotten classes", "member": "forgotten against held-out images"}

METRICS = (
    Metric("distance_weights_retrained", "Weights: relative distance to retrained", "number", "reference", WEIGHTS),
    Metric("distance_weights_original", "Weights: relative distance to the original", "number", "reference", WEIGHTS),
    *(
        Metric(
            f"distance_answers_{order}_{part}", f"Answers: {order} to retrained, {part}", "number", "lower", of, True
        )
        for (order, of), part in product(ANSWERS.items(), PARTS)
    ),
    *(
        Metric(f"distance_probe_{name}_auc", f"Probe of features, {title}: AUC", "fraction", "reference", PROBE, True)
        for name, title in PROBES.items()
    ),
    *(
        Metric(
            f"distance_probe_{name}_auc_difference",
            f"Probe of features, {title}: AUC minus the retrained model's",
            "number",
            "reference",
            PROBE,
            True,
        )
        for name, title in PROBES.items()
    ),
)

Sides = tuple[Floats, Floats]


def distance(subject: Subject, lab: Laboratory, *, C: Positive, folds: Annotated[int, Ge(2)], limit: Count) -> Answer:
    """Relative distances of weights, mean distances of answers, and the probes' AUCs; at most `limit` images a side."""
    reference = lab.reference()
    ours, its = subject.model(), reference.model()
    answer: dict[str, Any] = {
        "distance_weights_retrained": _apart(ours, its),
        "distance_weights_original": _apart(ours, lab.subject("original").model()),
    }
    for part in PARTS:
        change = getattr(subject, part).probabilities - getattr(reference, part).probabilities
        for order in (1, 2):
            name = f"distance_answers_l{order}_{part}"
            few = {name: f"needs at least 2 images, and there are {len(change)}"}
            answer |= mean(np.linalg.norm(change, order, axis=1), name) if len(change) > 1 else few
    class_count = subject.test.logits.shape[1]
    try:
        heads = [head_of("distance", model, subject.images("forget"), class_count) for model in (ours, its)]
    except SettingError as error:
        return answer | dict.fromkeys(_names(PROBES), error.allowed)
    looks = list(zip((ours, its), heads, strict=True))
    seed = lab.streams.seed("distance", "folds") % 2**32
    return answer | _class_probe(subject, looks, C, limit) | _member_probe(subject, looks, C, folds, limit, seed)


def _names(probes: Iterable[str]) -> list[str]:
    return [f"distance_probe_{name}_auc{end}" for name in probes for end in ("", "_difference")]


def _apart(first: nn.Module, second: nn.Module) -> float | str:
    """||first - second|| / ||second||, or why there is no such number."""
    one, two = ({name: value.detach() for name, value in each.named_parameters()} for each in (first, second))
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in two.items()}:
        return "the two models have other parameters"
    pairs = [(one[name].double().cpu(), two[name].double().cpu()) for name in one]
    return _length(a - b for a, b in pairs) / _length(b for _, b in pairs)


def _length(tensors: Iterable[Tensor]) -> float:
    return float(sum(float(its.square().sum()) for its in tensors) ** 0.5)


def _class_probe(subject: Subject, looks: list[tuple[nn.Module, str]], C: float, limit: int) -> dict[str, Any]:
    """Learn on training images which ones are of a wholly forgotten class, and tell the test images apart."""
    if len(subject.forgotten_classes) == 0:
        return {}
    gone = np.isin(subject.test.labels, subject.forgotten_classes)
    known = np.isin(subject.forget.labels, subject.forgotten_classes)
    if gone.all() or not gone.any():
        return dict.fromkeys(_names(["class"]), "needs test images of forgotten and of other classes")
    images, tested = {part: subject.images(part) for part in ("forget", "retain")}, subject.images("test")
    sides = (images["forget"], np.flatnonzero(known)), (images["retain"], np.arange(len(subject.retain)))

    def scores(look: tuple[nn.Module, str]) -> Sides:
        learned = [_features(look, its, of, limit) for its, of in sides]
        probe = _probe(C).fit(np.concatenate(learned), np.repeat([1, 0], [len(its) for its in learned]))
        yes, no = (probe.decision_function(_features(look, tested, np.flatnonzero(of), limit)) for of in (gone, ~gone))
        return yes, no

    return _compared([scores(look) for look in looks], "class")


def _member_probe(
    subject: Subject, looks: list[tuple[nn.Module, str]], C: float, folds: int, limit: int, seed: int
) -> dict[str, Any]:
    """Cross-validated scores of forgotten and of held-out images."""
    others = np.flatnonzero(np.isin(subject.test.labels, np.unique(subject.forget.labels)))
    if min(len(subject.forget), len(others)) < folds:
        return dict.fromkeys(_names(["member"]), f"needs at least {folds} forgotten and {folds} held-out images")
    sides = (subject.images("forget"), np.arange(len(subject.forget))), (subject.images("test"), others)

    def scores(look: tuple[nn.Module, str]) -> Sides:
        learned = [_features(look, its, of, limit) for its, of in sides]
        features, member = np.concatenate(learned), np.repeat([1, 0], [len(its) for its in learned])
        judged = np.empty(len(member))
        for seen, unseen in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, member):
            judged[unseen] = _probe(C).fit(features[seen], member[seen]).decision_function(features[unseen])
        return judged[member == 1], judged[member == 0]

    return _compared([scores(look) for look in looks], "member")


def _features(look: tuple[nn.Module, str], images: Images, of: NDArray[np.int64], limit: int) -> Floats:
    chosen = of[evenly(len(of), limit)]
    features: Floats = features_of(*look, images[torch.from_numpy(chosen)]).double().cpu().numpy()
    return features


def _probe(C: float) -> Any:
    # Balanced, or the rarer side's scores would differ from fold to fold by its share
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, class_weight="balanced", max_iter=1000))


def _compared(scores: list[Sides], name: str) -> dict[str, Any]:
    ours, its = scores
    return auc(*ours, f"distance_probe_{name}_auc") | auc_difference(ours, its, f"distance_probe_{name}_auc_difference")
