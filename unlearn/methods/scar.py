"""SCAR: push forgotten images' features into the nearest other class's distribution; distil the rest from surrogates.

    minimise lambda_1 Mahalanobis^2(F, nearest other class) + lambda_2 KL(theta_o || theta) on surrogates

Bonato, Cotogni & Sabetta, "Is Retain Set All You Need in Machine Unlearning?" (ECCV 2024, arXiv:2404.12922, not
checked); code jbonato1/SCAR. Nothing is fitted to retained images: they lend the original's class statistics alone.
Features are raised to the power `tukey` (Tukey's ladder) and compared by their directions with a class's mean, in the
squared Mahalanobis distance of the class's correlations. Its covariance is shrunk twice before, by adding `gamma1`
times its mean variance on the diagonal and `gamma2` times its mean covariance beside it. The loss is `forget_weight`
times the mean distance from each image's target, plus `distil_weight` times KL(original || model) on surrogate images,
which have nothing to do with the task. Each batch of forgotten images is met by `surrogate_batches` of those.

If a class is forgotten as a whole, which the request tells, surrogates that the original takes for it are left out, and
for the others its score there is as low as the lowest of the batch. After an epoch in which the accuracy on the forget
set has become that of images never seen, `early_stop` ends it; for a whole class that is under 1 %.

Surrogates are read from the .npz file `surrogate`; the authors take 10,000 images of ImageNet. `null` is a substitute
of ours, for want of such images: a patchwork of 16 pieces, each of a forgotten image and a place drawn anew. It shows
the model pieces of what it is to forget, with the original's answers; no comparison should rest on it.

The paper was not read; this is the recipe of the released code. Deviations from it:
- A power of a negative number, which features of transformers and of `fastnet` may be, is that of its size, with its
  sign. At 0 its slope, infinite for `tukey` under 1, is 0.
- Covariances are decomposed in double precision, and directions in which there is none do not count (a pseudo-inverse).
- The mean covariance is that of all pairs of features. The released code leaves out zeros, and with features that are
  always zero the result may have negative directions, in which the distance falls for ever.
- A class with fewer than two retained images, or without any spread, has no statistics and is no target.
- Targets are settled before the first step. The released code settles them when a batch is first met, and looks them up
  by the number of the batch, so that from the second epoch on images are sent to the targets of others.
- `early_stop` looks after each epoch, the released code after each step. How well images never seen are classified is
  measured, on the original, on validation images; there on the test set, of late less 0.015.
- Any number of whole classes may be forgotten; there surrogates of the first alone are left out.
- There is no schedule, as in the released code, which never steps its own. SCAR-self is not here.
"""

from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from unlearn.batches import Batch, paired, shuffled
from unlearn.class_statistics import distances, statistics
from unlearn.displacement import check_others, nearest_other, repeated, until_forgotten, wholly_forgotten
from unlearn.head import check_head, features_of, head_of, observed
from unlearn.loop import fit
from unlearn.request import Request
from unlearn.settings import Count, NotNegative, Positive, Probability
from unlearn.streams import Streams
from unlearn.surrogates import readable, surrogates
from unlearn.teachers import answers, divergence, frozen

NEEDS = frozenset({"retain", "forget", "validation"})
NEEDED_IF = {"validation": "early_stop"}
FILES = ("surrogate",)


def check(lab: Any, *, surrogate: str | None, **_: Any) -> None:
    """The model ends in a linear layer that features enter, every image has a class to go to, and surrogates fit."""
    check_head("scar", lab)
    check_others("scar", lab)
    if surrogate is not None:
        surrogates(surrogate, 1, lab.data.train, Streams("check"))


def scar(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    surrogate_batches: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    forget_weight: NotNegative,
    distil_weight: Positive,
    temperature: Positive,
    tukey: Positive,
    gamma1: NotNegative,
    gamma2: NotNegative,
    surrogate: Annotated[str, AfterValidator(readable)] | None,
    surrogate_images: Count,
    early_stop: bool,
) -> nn.Module:
    """Descend on the forget images' distance from another class, and on the divergence from the original elsewhere."""
    others = surrogates(surrogate, surrogate_images, request.forget, streams)
    head = head_of("scar", model, request.forget, request.class_count)
    teacher, gone = frozen(model), wholly_forgotten(request)
    known = statistics(features_of(model, head, request.retain), request.retain.labels, tukey, gamma1, gamma2)
    features = features_of(model, head, request.forget)
    far = torch.full((len(features), request.class_count), torch.inf, device=features.device)
    for label, its in known.items():
        far[:, label] = distances(features, its, tukey)
    targets = nearest_other("scar", far, request.forget.labels.to(far.device))

    def loss(model: nn.Module, batch: tuple[Batch, Batch]) -> Tensor:
        (forget, goals), surrogate = batch
        features, _ = observed(model, head, forget)
        away = [distances(features[goals == label], known[label], tukey).sum() for label in goals.unique().tolist()]
        kept = distilled(model, teacher, surrogate.images, gone.to(goals.device), temperature)
        return forget_weight * torch.stack(away).sum() / len(goals) + distil_weight * kept

    forget = shuffled(request.forget.relabelled(targets), batch_size, streams.child("forget"))
    rest = shuffled(others, batch_size, streams.child("surrogate"))
    return fit(
        model,
        paired(repeated(forget, surrogate_batches), rest),
        loss,
        streams,
        epochs=epochs,
        optimiser="adam",
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        until=until_forgotten(model, request) if early_stop else None,
    )


def distilled(model: nn.Module, teacher: nn.Module, images: Tensor, gone: Tensor, temperature: float) -> Tensor:
    """The divergence from the teacher on what it does not take for one of the classes `gone`, which get no share."""
    its, ours = answers(teacher, images), model(images)
    stay = ~torch.isin(its.argmax(1), gone)
    if not stay.any():
        return ours.sum() * 0
    its = its[stay]
    return divergence(ours[stay], its.index_fill(1, gone, float(its.min())), temperature)
