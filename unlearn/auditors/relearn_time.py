"""How many steps of training bring back what was forgotten, and does it take the retrained model as many?

A copy of the model descends on the forget set until its loss there, in eval mode, is at most the original's. The
relearn time is the number of mini-batches that takes (Golatkar et al., CVPR 2020, arXiv:1911.04933), and the anamnesis
index its ratio to the retrained model's (Chundawat et al., IEEE TIFS 2023, arXiv:2201.05629): 1 is ideal; far below 1
much was left inside; far above 1 the model resists, which gives the forgetting away (the Streisand effect). Plain SGD
without momentum, batch norm's statistics frozen, no augmentation; the mean over several orders of the data, the same
for both models, with its t-interval, and for the ratio that of a ratio of paired means (Cochran, Sampling Techniques
1977, section 6.4).

Deviations: Golatkar et al. allow 100 steps with the training's learning rate. Chundawat et al. count until an accuracy
is within a few percent of the original's, and code that follows them counts epochs, which a random forget set is
relearned in at once, and trains the very model that later metrics then see. Here both count steps to a loss, whose
tolerance is a setting.

On a random forget set the loss of the retrained model is that of images never seen, and what takes the time are the few
that only memory can get right: hard and mislabelled ones. The ratio then says how much of that memory is left, and
nothing of the many images that every model has right. On a class it is the time to bring back the class.

Exact retraining: 1 on average. Intervals know of the orders only, so that a second retrained model lies outside more
often than once in twenty; look at one (`method=retrain`). The original takes 0 steps.

Known failure modes: the number depends on the optimiser and the learning rate, and a model with small gradients, as one
whose scores were blown up, looks as if it had forgotten. A time that reaches `cap` is cut there, which `relearn_capped`
tells the share of: the mean is then a lower bound. Where the retrained model does so there is no ratio.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import nn

from unlearn.batches import Batch, Batches, sizes
from unlearn.data.images import Images, as_model_input
from unlearn.loop import DivergedError, cross_entropy, fit
from unlearn.metrics import Answer, Metric
from unlearn.settings import Count, NotNegative, Positive
from unlearn.signals import Signals, logits
from unlearn.statistics import LEVEL, mean
from unlearn.streams import Streams
from unlearn.subject import Laboratory, Subject

Floats = NDArray[np.float64]
TIME = "Golatkar et al., CVPR 2020, arXiv:1911.04933"
INDEX = "Chundawat et al., IEEE TIFS 2023, arXiv:2201.05629"

METRICS = (
    Metric("relearn_time", "Relearn time in mini-batches", "number", "reference", TIME, interval=True),
    Metric(
        "relearn_time_ratio", "Anamnesis index: time as a multiple of retrained", "number", "reference", INDEX, True
    ),
    Metric("relearn_capped", "Share of orders that were not relearned in time", "fraction", "reference", TIME),
)


def relearn_time(
    subject: Subject,
    lab: Laboratory,
    *,
    lr: Positive,
    batch_size: Count,
    cap: Count,
    tolerance: NotNegative,
    orders: Annotated[int, Ge(2)],
) -> Answer:
    """Steps until the forget loss is at most `tolerance` above the original's, for each of `orders` of the data."""
    reference, images = lab.reference(), subject.images("forget")
    target = float(lab.subject("original").forget.loss.mean()) + tolerance
    streams = [lab.streams.child("relearn_time", number) for number in range(orders)]

    def times(of: Subject) -> Floats:
        return np.array([steps_until(of, images, target, lr, batch_size, cap, each) for each in streams], dtype=float)

    ours = times(subject)
    its = ours if subject is reference else times(reference)
    within = np.minimum(ours, cap)
    answer: dict[str, Any] = {"relearn_capped": float((ours > cap).mean()), "steps": ours.astype(np.float32)}
    return answer | mean(within, "relearn_time") | _ratio(within, its, cap, "relearn_time_ratio")


def steps_until(
    subject: Subject, images: Images, target: float, lr: float, batch_size: int, cap: int, streams: Streams
) -> int:
    """Steps of a fresh copy until its loss on `images` is at most `target`; `cap` + 1 if `cap` are not enough."""
    if subject.forget.loss.mean() <= target:
        return 0
    losses: list[float] = []

    def relearned(model: nn.Module) -> bool:
        losses.append(float(Signals(logits(model, images), images.labels.cpu().numpy()).loss.mean()))
        return losses[-1] <= target

    settings: dict[str, Any] = {"epochs": cap + 1, "momentum": 0.0, "weight_decay": 0.0, "norm_statistics": "frozen"}
    try:
        # An epoch of one step, so that `until` is asked after each; the last epoch is not asked and not counted
        model, batches = deepcopy(subject.model()).requires_grad_(True), _single(images, batch_size, streams)
        fit(model, batches, cross_entropy, streams, lr=lr, until=relearned, **settings)
    except DivergedError:
        return cap + 1
    return len(losses) if losses[-1] <= target else cap + 1


def _single(images: Images, batch_size: int, streams: Streams) -> Batches:
    """The mini-batches of pass after pass, each of them an epoch."""
    device, passes = images.pixels.device, sizes(len(images), batch_size)

    def epoch(step: int) -> Iterator[Batch]:
        turn, position = divmod(step, len(passes))
        chosen = torch.randperm(len(images), generator=streams("order", turn)).split(passes)[position].to(device)
        yield Batch(as_model_input(images.pixels[chosen], device), images.labels[chosen])

    return Batches(1, epoch)


def _ratio(ours: Floats, its: Floats, cap: int, name: str) -> dict[str, Any]:
    """The ratio of two paired means with its 95 % t-interval by linearisation."""
    if its.max() > cap:
        return {name: f"the retrained model does not relearn within {cap} steps"}
    if its.mean() == 0:
        return {name: "the retrained model's loss is no higher than the original's to begin with"}
    ratio = float(ours.mean() / its.mean())
    spread = (ours - ratio * its).std(ddof=1) / np.sqrt(len(ours)) / its.mean()
    half = float(student.ppf((1 + LEVEL) / 2, len(ours) - 1) * spread)
    return {name: ratio, f"{name}_low": ratio - half, f"{name}_high": ratio + half}
