"""How small a change of an image misleads the model, and is it smaller than for the retrained one?

Tran & Woo (WWW Companion 2025, arXiv:2504.13610) find that unlearned models lose more accuracy under attack than the
retrained one. Their settings are not public; the attacks here are those usual elsewhere, made against the evaluated
model, in pixels in [0, 1] with the normalisation inside it, in eval mode, on the true labels:

    fgsm_linf        x + eps sign grad CE                        Goodfellow et al., ICLR 2015, arXiv:1412.6572
    pgd_10_linf, pgd_20_linf, pgd_20_l2   10 or 20 steps of eps / 4, random start, last iterate
                                                                 Madry et al., ICLR 2018, arXiv:1706.06083
    autoattack_linf  standard, one after another on survivors    Croce & Hein, ICML 2020, arXiv:2003.01690

They are torchattacks', with the deviations that `white_box.py` lists. Robust accuracy is the share of attacked images
still classified correctly, with its Wilson interval; the drop is what is missing to the accuracy on the same images
left alone. Its difference to the retrained model's (positive: more robust; the negative of the papers' Delta Rob) is
paired, image by image and from the same random starts. Without any attack: the mean length of the gradient of
cross-entropy by the pixels on test images, and the distance in the l2 norm at which the nearest image that the model
takes for another class is found (`attacks.py`; 0 for an image that is wrong already), on forgotten images and on test
images of their classes. Its AUC between the two, a larger distance counted as membership, is the boundary attack of
Choquette-Choo et al. (ICML 2021, arXiv:2007.14321).

`robust_gradients_sound` says whether the numbers can be believed: it fails if PGD leaves significantly more images
right than FGSM of the same size, or images made for the retrained model mislead this one significantly more often than
those made for it (Athalye et al., ICML 2018, arXiv:1802.00420), by the paired 95 % interval. An accuracy under attack
is then no lower bound of how fragile the model is.

Exact retraining: no accuracy is right or wrong by itself, and models trained alike differ by more than the intervals,
which know of images only: look at a second retrained model (`method=retrain`) beside the method. Its forgotten images
lie as far from the boundary as test images, so that the AUC is 0.5 up to its interval on a random forget set.

Known failure modes: models that no attack was shown in training have almost no accuracy under PGD at 8/255, where all
differences vanish; small sizes tell them apart. A damaged model that is wrong already has little to lose: read the
drop beside the accuracy. PGD is no proof of robustness, only AutoAttack comes near one. Distances are upper bounds,
to about a tenth of the search's radius, and say nothing of the few images for which none is found, which count as
infinitely far. Robustness is no unlearning: a model can be as robust as the retrained one and have forgotten nothing.
"""

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator
from torch import nn

from unlearn.attacks import nearest
from unlearn.batches import Batch
from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of
from unlearn.metrics import Answer, Metric
from unlearn.paired import quantile, share_difference
from unlearn.settings import Count, Positive, SettingError
from unlearn.statistics import auc, auc_difference, mean, proportion
from unlearn.streams import Streams
from unlearn.subject import Laboratory, Subject
from unlearn.teachers import frozen
from unlearn.thinning import evenly
from unlearn.white_box import Attack, attacked, check_installed

PAPER = "Tran & Woo, WWW Companion 2025, arXiv:2504.13610"
BOUNDARY = "Choquette-Choo et al., ICML 2021, arXiv:2007.14321"
Part = Literal["test", "forget", "retain"]
PARTS: Mapping[Part, str] = {"test": "test images", "forget": "forgotten images", "retain": "retained images"}
TITLES: Mapping[Attack, str] = {
    "fgsm_linf": "FGSM",
    "pgd_10_linf": "PGD-10",
    "pgd_20_linf": "PGD-20",
    "pgd_20_l2": "PGD-20 in l2",
    "autoattack_linf": "AutoAttack",
}
SHARES = (0.1, 0.5, 0.9)
LinfWord = Literal["0.5", "1", "2", "4", "8"]
L2Word = Literal["0.1", "0.25", "0.5", "1"]


def _metrics() -> tuple[Metric, ...]:
    metrics = []
    for part, attack in product(PARTS, TITLES):
        for eps in get_args(L2Word if attack.endswith("l2") else LinfWord):
            under = f"under {TITLES[attack]}, {eps}{'' if attack.endswith('l2') else '/255'}, {PARTS[part]}"
            end = f"{part}_{attack}_{eps}"
            better: Any = "reference" if part == "forget" else "higher"
            metrics += [
                Metric(f"robust_accuracy_{end}", f"Accuracy {under}", "fraction", better, PAPER, True),
                Metric(f"robust_drop_{end}", f"Accuracy lost {under}", "number", "lower", PAPER, True),
                Metric(
                    f"robust_difference_{end}",
                    f"Accuracy minus the retrained model's {under}",
                    "number",
                    "reference",
                    PAPER,
                    True,
                ),
            ]
    for side, share in product(("forget", "held_out"), SHARES):
        title = f"Distance to the boundary, quantile {share}, {side.replace('_', '-')} images"
        metrics.append(Metric(f"robust_norm_{side}_quantile_{share}", title, "number", "reference", BOUNDARY, True))
    title = "Distance to the boundary, forgotten against held-out: AUC"
    return (
        *metrics,
        Metric("robust_sensitivity", "Length of the loss's gradient, test images", "number", "lower", PAPER, True),
        Metric("robust_norm_auc", title, "fraction", "reference", BOUNDARY, True),
        Metric("robust_norm_auc_difference", f"{title} minus the retrained", "number", "reference", BOUNDARY, True),
        Metric(
            "robust_gradients_sound",
            "Attacks not misled by gradients",
            "verdict",
            "higher",
            "arXiv:1802.00420",
            of_forgetting=False,
        ),
    )


METRICS = _metrics()


def _as_written(value: object) -> object:
    """2, 2.0 and "2" are the same word of a grid."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value


Linf = Annotated[LinfWord, BeforeValidator(_as_written)]
L2 = Annotated[L2Word, BeforeValidator(_as_written)]


def check(lab: Any, *, attacks: list[Attack], **others: Any) -> None:
    """The attacks are installed, and the difference-of-logits-ratio loss of AutoAttack has its four classes."""
    check_installed("auditor.robustness.attacks", attacks)
    classes = lab.data.class_count
    if "autoattack_linf" in attacks and classes < 4:
        allowed = f"must leave autoattack_linf out, because its loss compares four classes, and there are {classes}"
        raise SettingError("auditor.robustness.attacks", attacks, allowed)


def robustness(
    subject: Subject,
    lab: Laboratory,
    *,
    attacks: list[Attack],
    linf: list[Linf],
    l2: list[L2],
    parts: list[Part],
    limit: Count,
    eps_init: Positive,
    steps: Count,
    batch_size: Count,
) -> Answer:
    """Accuracies under each attack of each size, sensitivity and distances; at most `limit` images of each part."""
    reference = lab.reference()
    streams, classes = lab.streams.child("robustness"), subject.test.logits.shape[1]
    ours = frozen(subject.model())
    its = ours if subject is reference else frozen(reference.model())
    answer: dict[str, Any] = {}
    sound: list[bool] = []
    for part in parts:
        images, right = _chosen(subject, part, limit)
        hits: dict[tuple[str, str], NDArray[np.bool_]] = {}
        for attack in attacks:
            for eps in l2 if attack.endswith("l2") else linf:
                size = float(eps) if attack.endswith("l2") else float(eps) / 255
                named = streams.child(part, attack, eps)
                own, theirs, crossed = _hits(ours, its, images, attack, size, classes, named, batch_size)
                end = f"{part}_{attack}_{eps}"
                answer |= proportion(own, f"robust_accuracy_{end}")
                answer |= share_difference(right, own, f"robust_drop_{end}")
                answer |= share_difference(own, theirs, f"robust_difference_{end}")
                answer[f"right_{end}"] = hits[attack, eps] = own
                sound.append(not _above(own, crossed))
        sound += [
            not _above(hits[attack, eps], hits["fgsm_linf", eps])
            for attack, eps in hits
            if attack.startswith("pgd") and ("fgsm_linf", eps) in hits
        ]
    if sound:
        answer["robust_gradients_sound"] = float(all(sound))
    tested, _ = _chosen(subject, "test", limit)
    return (
        answer
        | mean(_slopes(ours, tested, batch_size), "robust_sensitivity")
        | _distances(subject, ours, its, limit, eps_init, steps, batch_size)
    )


def _chosen(subject: Subject, part: Part, limit: int) -> tuple[Images, NDArray[np.bool_]]:
    """The images of a part that are attacked, and which of them the model has right as they are."""
    signals = getattr(subject, part)
    positions = evenly(len(signals), limit)
    return subject.images(part)[torch.from_numpy(positions)], signals.correct[positions]


def _hits(
    ours: nn.Module,
    its: nn.Module,
    images: Images,
    attack: Attack,
    size: float,
    class_count: int,
    streams: Streams,
    batch_size: int,
) -> tuple[NDArray[np.bool_], ...]:
    """Which images stay right: of our model and of the reference, attacked each, and of ours on those made for it."""
    own, theirs, crossed = [], [], []
    made = (attacked(model, images, attack, size, class_count, streams, batch_size) for model in (ours, its))
    if its is ours:
        own = [_right(ours, batch) for batch in next(made)]
        theirs = crossed = own
    else:
        for batch, other in zip(*made, strict=True):
            own.append(_right(ours, batch))
            theirs.append(_right(its, other))
            crossed.append(_right(ours, other))
    return tuple(np.concatenate([np.zeros(0, dtype=bool), *each]) for each in (own, theirs, crossed))


@torch.no_grad()
def _right(model: nn.Module, batch: Batch) -> NDArray[np.bool_]:
    hits: NDArray[np.bool_] = (model(batch.images).argmax(1) == batch.labels).cpu().numpy()
    return hits


def _above(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> bool:
    return share_difference(first, second, "excess").get("excess_low", 0.0) > 0


def _slopes(model: nn.Module, images: Images, batch_size: int) -> NDArray[np.float64]:
    """The length of the gradient of each image's cross-entropy, in float64 from the scores on."""
    device, lengths = device_of(model), []
    for pixels, labels in zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True):
        here = as_model_input(pixels, device).requires_grad_()
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(here).double(), labels.to(device), reduction="sum")
            (slope,) = torch.autograd.grad(loss, here)
        lengths.append(torch.linalg.vector_norm(slope.double(), dim=(1, 2, 3)).cpu().numpy())
    return np.concatenate(lengths)


def _distances(
    subject: Subject, ours: nn.Module, its: nn.Module, limit: int, eps_init: float, steps: int, batch_size: int
) -> dict[str, Any]:
    """Quantiles, AUC, and its difference to the reference's; nothing without held-out images to compare with."""
    others = np.flatnonzero(np.isin(subject.test.labels, np.unique(subject.forget.labels)))
    sides = (
        ("forget", subject.images("forget")[torch.from_numpy(evenly(len(subject.forget), limit))]),
        ("held_out", subject.images("test")[torch.from_numpy(others[evenly(len(others), limit)])]),
    )
    if len(others) == 0:
        return {}

    def norms(model: nn.Module, images: Images) -> NDArray[np.float64]:
        found = nearest(model, images, norm="l2", eps_init=eps_init, steps=steps, batch_size=batch_size)
        far = torch.full_like(found.norms, torch.inf)
        return torch.where(found.found, found.norms, far).double().cpu().numpy()

    own = {side: norms(ours, images) for side, images in sides}
    other = own if its is ours else {side: norms(its, images) for side, images in sides}
    answer: dict[str, Any] = {f"norm_{side}": values.astype(np.float32) for side, values in own.items()}
    for (side, values), share in product(own.items(), SHARES):
        answer |= quantile(values, share, f"robust_norm_{side}_quantile_{share}")
    answer |= auc(own["forget"], own["held_out"], "robust_norm_auc")
    first, second = ((each["forget"], each["held_out"]) for each in (own, other))
    return answer | auc_difference(first, second, "robust_norm_auc_difference")
