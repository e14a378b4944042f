"""CFW, confuse and fine-tune weights: add noise to convolutions, fine-tune, and again a little before the last epoch.

    theta = theta + N(0, noise^2), then minimise CE(R)

The entry ranked third in Deep Unlearn's order (kgltop3) of the NeurIPS 2023 unlearning competition (Triantafillou et
al., 2024, arXiv:2406.09073). It comes from no paper of its own; this follows its port in xcadet/deepunlearn (Cadet et
al., 2024, arXiv:2410.01276), the entry itself was not read. Both noises are Gaussian and added to weights, of standard
deviations `noise` and `second_noise`. The retained images are learned with a cross-entropy weighted by class, at a rate
that falls by a cosine, epoch by epoch; one optimiser takes all steps and keeps its momentum over the second noise.

The port asks a network's direct children whether "conv" is in their names, and in a ResNet only the first convolution
answers: `weights: first`, the default, for 0.6 was chosen there, and on all convolutions is many times what they hold.
Here it is the first that learns. Networks without convolutions are refused unless `weights` is all, which is ours: all
convolutions and dense layers. Of a plain vision transformer, convolutions are the patch embedding alone.

Deviations from the released code:
- An image's loss is weighted by its own class, n / (classes * n of this class). There the mean loss of a batch is
  multiplied with the mean weight of its images, which weighs batches and not classes: `compat: released`. The entry's
  own weights, which the port has in a comment, were 1 for the first class and 0.05 for nine others.
- A class without a retained image has no weight; there the weights of classes behind it go to their neighbours.
- Batches are not augmented, as there.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearn.batches import Batch, shuffled
from unlearn.convolutions import learning_weights, weighted_layers
from unlearn.gradients import cross_entropies
from unlearn.loop import device_of, fit
from unlearn.request import Request
from unlearn.schedules import cosine_by_epoch
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Probability
from unlearn.streams import Streams

NEEDS = frozenset({"retain"})


def cfw(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    noise: NotNegative,
    second_noise: NotNegative,
    weights: Literal["first", "convolutions", "all"],
    compat: Literal["released"] | None,
) -> nn.Module:
    """Descend on retained images from noisy weights; without a learning rate there is no noise."""
    layers = learning_weights(model, weighted_layers(model, weights))
    noisy = list(layers.values())[: 1 if weights == "first" else None]
    by_class = balanced(request.retain.labels, request.class_count).to(device_of(model))
    batches = shuffled(request.retain, batch_size, streams, augmented=False)

    def weighted(model: nn.Module, batch: Batch) -> Tensor:
        losses, own = cross_entropies(model(batch.images), batch.labels), by_class[batch.labels]
        return losses.mean() * own.mean() if compat else (losses * own).mean()

    def confuse_again(number: int) -> None:
        # After a step and so inside its epoch, whose checkpoint has it
        if lr and number + 1 == (epochs - 1) * batches.steps:
            confuse(noisy, second_noise, streams.child("second"))

    if lr:
        confuse(noisy, noise, streams.child("first"))
    current().history.append({"noisy": sum(weight.numel() for weight in noisy) if lr else 0})
    return fit(
        model,
        batches,
        weighted,
        streams,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=cosine_by_epoch,
        after_step=confuse_again,
    )


def check(lab: Any, *, weights: str, **_: Any) -> None:
    """The model has layers of the kind that `weights` names."""
    weighted_layers(lab.training.initialised(Streams("check")), weights)


@torch.no_grad()
def confuse(weights: Iterable[nn.Parameter], deviation: float, streams: Streams) -> None:
    """Add Gaussian noise of a standard `deviation` to every entry."""
    for number, weight in enumerate(weights):
        weight.add_(deviation * torch.randn(weight.shape, generator=streams("noise", number)).to(weight.device))


def balanced(labels: Tensor, class_count: int) -> Tensor:
    """A weight for each class that makes all that occur count the same, in mean 1 over the images; else 0."""
    counts = torch.bincount(labels, minlength=class_count)
    occurring = counts > 0
    return torch.where(occurring, len(labels) / (occurring.sum() * counts.clamp(min=1)), 0.0)
