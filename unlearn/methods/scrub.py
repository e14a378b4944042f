"""SCRUB: a student that leaves its teacher, the original, on the forget set and stays with it on what is retained.

    by turns maximise KL_T(theta_o || theta) on F, and minimise gamma CE(R) + alpha KL_T(theta_o || theta) on R

Kurmanji, Triantafillou, Hayes & Triantafillou, "Towards unbounded machine unlearning" (NeurIPS 2023,
arXiv:2302.09880); code meghdadk/SCRUB. Each of the first `max_epochs` epochs begins with a pass over the forget set
that raises the divergence from the teacher; every epoch ends with a pass over the retained images that lowers
cross-entropy and that divergence. One optimiser takes all steps. While the student is its teacher the divergence is 0
and so is its gradient: without moving norm statistics the first pass changes next to nothing.

`rewind` is SCRUB+R: of the models after each epoch, the one whose error on the forget set is closest to the last
model's error on validation images of the same classes. That is how often a model errs on images that it never saw.

Deviations from the released code:
- The candidates of `rewind` are the models after epochs 1, 2, ... The released list begins with the original, for which
  it has no checkpoint, and it fails when that is chosen.
- Validation images count by how frequent their class is in the forget set; the released code takes those of all classes
  that occur in it as they are, which is the same for a single class.
- Images are augmented as their data set asks, alike for student and teacher; the released code augments nothing.
- The released models have no batch norm in training mode, which `norm_statistics: frozen` comes closest to; here it
  moves by default, as in other people's use of SCRUB. `frozen_in_max` keeps the statistics of the forget set out.
- RUM's port counts its epochs from 0 and so makes one pass more over the forget set: `max_epochs: 3`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from unlearn.batches import Batch, Batches, shuffled
from unlearn.files import load_state, save_state
from unlearn.loop import Optimiser, device_of, fit, freeze_norm_statistics, train_mode
from unlearn.request import Request
from unlearn.schedules import multistep
from unlearn.session import current
from unlearn.settings import Count, Index, NotNegative, Positive, Probability, SettingError
from unlearn.signals import Floats, Signals, accuracy, logits
from unlearn.streams import Streams
from unlearn.teachers import answers, divergence, frozen

NEEDS = frozenset({"retain", "forget", "validation"})
NEEDED_IF = {"validation": "rewind"}


def check(lab: Any, *, rewind: bool, **_: Any) -> None:
    """To rewind by, there are validation images of the classes to forget."""
    for forget in lab.requests if rewind else ():
        as_frequent(lab.data.validation.labels, lab.data.train.labels[forget])


def scrub(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    max_epochs: Index,
    batch_size: Count,
    forget_batch_size: Count,
    optimiser: Optimiser,
    lr: NotNegative,
    milestones: list[Index],
    lr_decay: Positive,
    momentum: Probability,
    weight_decay: NotNegative,
    cross_entropy_weight: NotNegative,
    divergence_weight: NotNegative,
    temperature: Positive,
    norm_statistics: Literal["moving", "frozen_in_max", "frozen"],
    rewind: bool,
) -> nn.Module:
    """Ascend on the divergence from the original on the forget set, and descend on it, and on the loss, elsewhere."""
    teacher = frozen(model)

    def losses(model: nn.Module, batch: Any) -> Tensor:
        retained = isinstance(batch, Batch)
        if norm_statistics == "frozen_in_max":
            (train_mode if retained else freeze_norm_statistics)(model)
        images, labels = batch if retained else batch[0]
        scores = model(images)
        distance = temperature**2 * divergence(scores, answers(teacher, images), temperature)
        if not retained:
            return -distance
        return cross_entropy_weight * nn.functional.cross_entropy(scores, labels) + divergence_weight * distance

    forget = shuffled(request.forget, forget_batch_size, streams.child("forget"))
    retain = shuffled(request.retain, batch_size, streams.child("retain"))
    batches = max_and_min(forget, retain, max_epochs)
    run = partial(
        fit,
        model,
        batches,
        losses,
        streams,
        epochs=epochs,
        optimiser=optimiser,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=partial(multistep, milestones=milestones, gamma=lr_decay),
        norm_statistics="frozen" if norm_statistics == "frozen" else "moving",
    )
    if not rewind:
        return run()

    weights = as_frequent(request.validation.labels, request.forget.labels)
    with TemporaryDirectory() as elsewhere:
        # With the unfinished work, so that a run that continues still has the models of the epochs before
        folder = (current().checkpoint or Path(elsewhere)) / "rewind"
        files = [folder / f"{epoch}.pt" for epoch in range(1, epochs + 1)]

        def keep(number: int) -> None:
            epoch, step = divmod(number, batches.steps)
            if step + 1 == retain.steps + forget.steps * (epoch < max_epochs):
                save_state(files[epoch], model.state_dict())

        run(after_step=keep)
        return rewound(model, request, files, weights)


def max_and_min(forget: Batches, retain: Batches, max_epochs: int) -> Batches:
    """A pass over `forget`, in the first `max_epochs` epochs, then one over `retain`; each forget batch in a tuple."""

    def epoch(number: int) -> Iterator[Any]:
        if number < max_epochs:
            for batch in forget(number):
                yield (batch,)
        yield from retain(number)

    return Batches(forget.steps + retain.steps, epoch)


def rewound(model: nn.Module, request: Request, files: Sequence[Path], weights: Floats) -> nn.Module:
    """The model as it was when its error on the forget set was closest to what is now its error on validation images.

    `files` are its states after each epoch, in order; `weights` those of the validation images.
    """

    def put_back(file: Path) -> nn.Module:
        model.load_state_dict(load_state(file, device_of(model)))
        return model

    outputs = Signals(logits(model, request.validation), request.validation.labels.cpu().numpy())
    target = float(weights @ ~outputs.correct)
    errors = [1 - accuracy(put_back(file), request.forget) for file in files]
    chosen = closest(errors, target)
    current().history.append({"rewound_to": chosen + 1, "rewind_target": target, "rewind_error": errors[chosen]})
    return put_back(files[chosen]).eval()


def closest(errors: Sequence[float], target: float) -> int:
    """The position of the error that differs least from `target`."""
    return min(range(len(errors)), key=lambda position: abs(errors[position] - target))


def as_frequent(labels: Tensor, wanted: Tensor) -> Floats:
    """A weight for each of `labels`, in sum 1, that makes every class as frequent as among the labels `wanted`.

    Classes that are only in `wanted` are left out; a `SettingError` if none is left.
    """
    ours, its = (part.cpu().numpy() for part in (labels, wanted))
    count = 1 + max(ours.max(), its.max())
    weights = (np.bincount(its, minlength=count) / np.bincount(ours, minlength=count).clip(min=1))[ours]
    if not weights.any():
        raise SettingError("method.rewind", True, "needs a validation image of a class that is in the forget set")
    result: Floats = weights / weights.sum()
    return result
