"""COLA: contract the features of each retained class until nothing else is left in them, then fit the labels again.

    minimise SupCon(h(R)) over the encoder, then CE(R) over all

Jeon, Jeung, Kim, No and others, "An Information Theoretic Evaluation Metric for Strong Unlearning" (arXiv:2405.17878,
not checked): "collapse and align", against methods that change the classifier and leave what the features know. The
forget set is never shown. First, for `collapse_epochs`, the encoder alone descends on a supervised contrastive loss of
retained images' features; then, for `align_epochs`, encoder and classifier descend on their cross-entropy.

Neither the paper's body nor its code could be read: what is known is the idea of the two phases. The rest is inferred:
- The loss is that of Khosla et al., "Supervised contrastive learning" (NeurIPS 2020, arXiv:2004.11362), with the mean
  outside the logarithm, on one view of each image and on the normalised input of the classifier, without a projection.
- Both phases have the same batch size and optimiser settings, each a fresh optimiser.
A layer scope that leaves nothing of the encoder to train leaves nothing to collapse, and that phase out.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.batches import Batch, shuffled
from unlearn.head import check_head, head_of, observed
from unlearn.loop import cross_entropy, fit
from unlearn.request import Request
from unlearn.settings import Count, Index, NotNegative, Positive, Probability
from unlearn.streams import Streams

NEEDS = frozenset({"retain"})


def check(lab: Any, **_: Any) -> None:
    """The model ends in a linear layer, and features enter it."""
    check_head("cola", lab)


def cola(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    collapse_epochs: Index,
    align_epochs: Index,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    temperature: Positive,
) -> nn.Module:
    """Descend on the contrastive loss of the retained images' features, then on their cross-entropy."""
    head = head_of("cola", model, request.retain, request.class_count)
    own = {id(parameter) for parameter in model.get_submodule(head).parameters()}
    encoder = [p for p in model.parameters() if p.requires_grad and id(p) not in own]

    def contrast(model: nn.Module, batch: Batch) -> Tensor:
        features, _ = observed(model, head, batch.images)
        return supervised_contrast(features, batch.labels, temperature)

    descended = partial(fit, model, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if encoder:
        first = streams.child("collapse")
        descended(shuffled(request.retain, batch_size, first), contrast, first, epochs=collapse_epochs)
    second = streams.child("align")
    return descended(shuffled(request.retain, batch_size, second), cross_entropy, second, epochs=align_epochs)


def supervised_contrast(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """How far B x D features are from those of their class, against all others of the batch, in nats.

    For an image, the mean over the others of its class of -log of the softmax, over all others, of the cosines divided
    by `temperature`; then the mean over the images that have such others, and 0 if none has.
    """
    with torch.autocast(features.device.type, enabled=False):
        directions = nn.functional.normalize(features.float())
        cosines = directions @ directions.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    alike = (labels[:, None] == labels) & ~itself
    logs = cosines - cosines.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    counts = alike.sum(1)
    if not counts.any():
        return features.sum() * 0
    means = torch.where(alike, logs, 0).sum(1) / counts.clamp(min=1)
    return -means[counts > 0].mean()
