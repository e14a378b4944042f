"""How originals and references are trained: one supervised recipe, whose settings are the `train` group's YAMLs."""

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from unlearn.batches import shuffled
from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of, fit
from unlearn.schedules import named
from unlearn.settings import Count, Index, NotNegative, Positive, Probability, SettingError
from unlearn.streams import Streams

PREPARED = 5000


def smoothed_cross_entropy(model: nn.Module, batch: Any, smoothing: float) -> Tensor:
    """Cross-entropy against labels that keep 1 - `smoothing` and spread the rest over all classes."""
    return nn.functional.cross_entropy(model(batch.images), batch.labels, label_smoothing=smoothing)


def check_nesterov(nesterov: bool, momentum: float) -> None:
    """Raise a `SettingError` for the one pair of settings that no optimiser takes."""
    if nesterov and not momentum:
        raise SettingError("train.nesterov", nesterov, "needs a train.momentum above 0")


def prepare(model: nn.Module, images: Images) -> None:
    """Show a net that has a `prepare` the normalised images that it will be trained on, `PREPARED` at most."""
    normalise, net = list(model.children())
    shown = getattr(net, "prepare", None)
    if shown is not None:
        shown(normalise(as_model_input(images.pixels[:PREPARED], device_of(model))))


def supervised(
    model: nn.Module,
    images: Images,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    nesterov: bool,
    weight_decay: NotNegative,
    schedule: Literal["constant", "multistep", "cosine", "one_cycle"],
    milestones: list[Index],
    gamma: Positive,
    warmup: Probability,
    label_smoothing: Probability,
    clip: Positive | None,
) -> nn.Module:
    """Train `model` on `images` by SGD on cross-entropy and return it in eval mode.

    A net that has a `prepare` is shown its images first. Nesterov without momentum is a `SettingError`.
    """
    check_nesterov(nesterov, momentum)
    prepare(model, images)
    return fit(
        model,
        shuffled(images, batch_size, streams),
        partial(smoothed_cross_entropy, smoothing=label_smoothing),
        streams,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        schedule=named(schedule, milestones=milestones, gamma=gamma, warmup=warmup),
        clip=clip,
    )
