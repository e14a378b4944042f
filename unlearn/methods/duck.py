"""DUCK: pull the features of each forgotten image to the centre of the nearest other class, and fit what stays.

    minimise lambda_1 (1 - cos(h(x), centre of the nearest other class)) on F + lambda_2 CE(R)

Cotogni, Bonato, Sabetta, Pelosin & Nicolosi, "DUCK: Distance-based Unlearning via Centroid Kinematics" (preprint, 2023,
arXiv:2312.02052); code OcraM17/DUCK. Centres are the original's mean features of the retained images of each class. The
loss is `forget_weight` times the mean cosine distance of a batch of forgotten images to their centres, plus
`retain_weight` times the cross-entropy of a batch of retained images, whose scores are divided by `temperature`. Each
batch of forgotten images is met by `retain_batches` batches of retained ones, one after the other. After an epoch in
which the accuracy on the forget set has become that of images never seen, `early_stop` ends it; for a class that is
forgotten as a whole that is under 1 %.

The paper was not read; this is the recipe of the released code. Deviations from it:
- Centres are means over all retained images, without augmentation; the released code takes 10 batches of them.
- An image's target is settled before the first step. The released code settles it when a batch is first met, on a
  model that has moved, and notes it once a step but looks it up by the number of the batch, so that from the second
  epoch on images are sent to the targets of others.
- A forgotten class has no centre, and all that are left are allowed. The released code counts centres without it but
  compares them with labels that count it, so that it may take the second nearest centre instead of the nearest.
- How well images never seen are classified is measured, on the original, on validation images; there on the test set.
- Other versions of the released code follow this by two epochs on retained images with a tenth of the forget set's
  weight, which are left out.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.batches import Batch, paired, shuffled
from unlearn.displacement import check_others, nearest_other, repeated, until_forgotten
from unlearn.head import check_head, features_of, head_of, observed
from unlearn.loop import fit
from unlearn.request import Request
from unlearn.schedules import multistep
from unlearn.settings import Count, Index, NotNegative, Positive, Probability
from unlearn.streams import Streams

NEEDS = frozenset({"retain", "forget", "validation"})


def check(lab: Any, **_: Any) -> None:
    """The model ends in a linear layer that features enter, and every image has a class to go to."""
    check_head("duck", lab)
    check_others("duck", lab)


NEEDED_IF = {"validation": "early_stop"}


def duck(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    retain_batches: Count,
    lr: NotNegative,
    milestones: list[Index],
    lr_decay: Positive,
    momentum: Probability,
    weight_decay: NotNegative,
    forget_weight: NotNegative,
    retain_weight: Positive,
    temperature: Positive,
    label_smoothing: Probability,
    early_stop: bool,
) -> nn.Module:
    """Descend on the forget images' distance from another class's centre, and on the retained ones' cross-entropy."""
    head = head_of("duck", model, request.forget, request.class_count)
    centres, known = class_means(features_of(model, head, request.retain), request.retain.labels, request.class_count)
    far = cosine_distances(features_of(model, head, request.forget), centres).masked_fill(~known, torch.inf)
    targets = nearest_other("duck", far, request.forget.labels.to(far.device))

    def loss(model: nn.Module, batch: tuple[Batch, Batch]) -> Tensor:
        (forget, goals), retain = batch
        features, _ = observed(model, head, forget)
        distance = 1 - nn.functional.cosine_similarity(features, centres[goals])
        scores = model(retain.images) / temperature
        fitted = nn.functional.cross_entropy(scores, retain.labels, label_smoothing=label_smoothing)
        return forget_weight * distance.mean() + retain_weight * fitted

    forget = shuffled(request.forget.relabelled(targets), batch_size, streams.child("forget"))
    retain = shuffled(request.retain, batch_size, streams.child("retain"))
    return fit(
        model,
        paired(repeated(forget, retain_batches), retain),
        loss,
        streams,
        epochs=epochs,
        optimiser="adam",
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=partial(multistep, milestones=milestones, gamma=lr_decay),
        until=until_forgotten(model, request) if early_stop else None,
    )


def class_means(features: Tensor, labels: Tensor, class_count: int) -> tuple[Tensor, Tensor]:
    """The mean of each class's features, C x D, and which classes have any, C; the mean of none is 0."""
    means = torch.zeros(class_count, features.shape[1])
    present = labels.unique().tolist()
    for label in present:
        means[label] = features[labels.to(features.device) == label].cpu().double().mean(0)
    known = torch.isin(torch.arange(class_count), torch.tensor(present))
    return means.to(features.device), known.to(features.device)


def cosine_distances(features: Tensor, centres: Tensor) -> Tensor:
    """1 less the cosine between each of B x D features and each of C x D centres: B x C."""
    return 1 - nn.functional.normalize(features) @ nn.functional.normalize(centres).T
