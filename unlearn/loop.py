"""The one loop: training, retraining and unlearning are the same `fit` with other batches and another loss."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearn.batches import Batches, moved, samples, shuffled
from unlearn.data.images import Images
from unlearn.files import load_state, save_state
from unlearn.schedules import Schedule, constant
from unlearn.session import Session, current, session
from unlearn.streams import Streams

Loss = Callable[[nn.Module, Any], Any]
"""(model, batch) -> the loss, or what `backward` takes: the losses of two players, say."""
Backward = Callable[[Any, list[nn.Parameter]], tuple[Tensor, Mapping[str, float]]]
"""(loss, parameters) -> (the loss to show, numbers to average over the epoch), having set the parameters' gradients."""


Optimiser = Literal["sgd", "adam", "adamw"]


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of the model on a batch."""
    return nn.functional.cross_entropy(model(batch.images), batch.labels)


def descend(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, Mapping[str, float]]:
    """The gradient of one loss: plain descent."""
    loss.backward()
    return loss, {}


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def autocast(model: nn.Module) -> torch.autocast:
    """The precision of the session in force, for a forward pass that is part of training."""
    return torch.autocast(device_of(model).type, torch.bfloat16, enabled=current().precision == "bf16")


def train_mode(model: nn.Module) -> None:
    """Put a model in training mode, but for the layers that a scope freezes."""
    model.train()
    for module in current().frozen:
        module.eval()


def freeze_norm_statistics(model: nn.Module) -> None:
    """Put the batch-norm layers of a model in training mode into eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    streams: Streams,
    *,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
    optimiser: Optimiser = "sgd",
    schedule: Schedule = constant,
    clip: float | None = None,
    norm_statistics: Literal["moving", "frozen"] = "moving",
    until: Callable[[nn.Module], bool] | None = None,
    backward: Backward = descend,
    mask: Mapping[str, Tensor] | None = None,
    second: Callable[[Any], bool] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> nn.Module:
    """Minimise `loss(model, batch)` by gradient steps for `epochs` epochs and return the same model, in eval mode.

    The optimiser is fresh, the last epoch's weights are used, and only parameters that require a gradient move. Of
    `optimiser` adam and adamw, `momentum` is the first beta; the second is 0.999, epsilon 1e-8. `clip`
    bounds the gradient's global norm; frozen `norm_statistics` keep batch norm's running values and use them; `until`
    ends the training after an epoch for which it holds; `backward` turns losses into gradients; `mask` names, for some
    parameters, the entries that may move, and their others stay bit-identical; batches for which `second` holds are
    stepped by an optimiser with a momentum of its own; `after_step` is given the number of every step, from 0, when
    that step is done, and may change parameters, but must remember nothing from one call to the next. Runs under the
    session's precision and continues from its checkpoint, bit for bit. Raises `DivergedError` when an epoch's mean loss
    is not finite.
    """
    now = current()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    new = partial(
        _optimiser, optimiser, trained, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov
    )
    optimisers = [new() for _ in range(2 if second else 1)]
    model.to(memory_format=torch.channels_last)

    masked = _Masked(model, mask or {})

    def step(batch: Any, number: int) -> tuple[Tensor, Mapping[str, float]]:
        chosen = optimisers[bool(second and second(batch))]
        chosen.param_groups[0]["lr"] = lr * schedule(number, batches.steps, epochs)
        with autocast(model):
            value = loss(model, moved(batch, device_of(model)))
        chosen.zero_grad(set_to_none=True)
        shown, numbers = backward(value, trained)
        masked.gradients()
        if clip is not None:
            nn.utils.clip_grad_norm_(trained, clip)
        chosen.step()
        masked.restore()
        if after_step:
            after_step(number)
        if now.stepped:
            now.stepped()
        return shown.detach().float(), numbers

    now.fits += 1
    file = now.checkpoint / f"fit{now.fits}.pt" if now.checkpoint else None
    first, saved = _resume(file, model, optimisers, now), time.perf_counter()
    for epoch in range(first, epochs):
        train_mode(model)
        if norm_statistics == "frozen":
            freeze_norm_statistics(model)
        with streams.seeded("layers", epoch):
            record = _epoch(batches, epoch, step, now)
        now.record(record | {"fit": now.fits, "lr": optimisers[0].param_groups[0]["lr"]}, epochs)
        if not math.isfinite(record["loss"]):
            raise DivergedError(f"{now.label}: the loss is {record['loss']} in epoch {epoch + 1} (learning rate {lr})")
        finished = epoch + 1 == epochs or bool(until and until(model.eval()))
        if file and (finished or time.perf_counter() - saved >= now.checkpoint_seconds):
            _save(file, model, optimisers, now, epochs if finished else epoch + 1)
            saved = time.perf_counter()
        if finished:
            break
    return model.eval()


def _optimiser(
    kind: Optimiser, trained: list[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return adam(trained, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)


def _epoch(
    batches: Batches,
    epoch: int,
    step: Callable[[Any, int], tuple[Tensor, Mapping[str, float]]],
    now: Session,
) -> dict[str, Any]:
    began, count, total = time.perf_counter(), 0, torch.zeros(())
    sums: dict[str, list[float]] = defaultdict(list)
    for number, batch in enumerate(_timed(batches(epoch), now)):
        value, numbers = step(batch, epoch * batches.steps + number)
        size = samples(batch)
        count, total = count + size, total.to(value.device) + value * size
        for name, amount in numbers.items():
            sums[name].append(amount)
    now.sample_gradients += count
    means = {name: math.fsum(amounts) / len(amounts) for name, amounts in sums.items()}
    return {"epoch": epoch + 1, "loss": (total / count).item(), "seconds": time.perf_counter() - began, **means}


class _Masked:
    """Keeps the entries outside a mask where they started, whatever weight decay and momentum make of them."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        self.entries = [
            (parameters[name], keep.bool(), parameters[name].detach().clone()) for name, keep in mask.items()
        ]

    def gradients(self) -> None:
        for parameter, keep, _ in self.entries:
            if parameter.grad is not None:
                parameter.grad.mul_(keep)

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, keep, start in self.entries:
            parameter.copy_(torch.where(keep, parameter, start))


def _timed(batches: Iterator[Any], session: Session) -> Iterator[Any]:
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        session.loading_seconds += time.perf_counter() - began
        if batch is None:
            return
        yield batch


def _save(file: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], session: Session, epoch: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "epoch": epoch,
        **session.counts(device_of(model)),
    }
    save_state(file, state)


def _resume(file: Path | None, model: nn.Module, optimisers: list[torch.optim.Optimizer], session: Session) -> int:
    if file is None or not file.exists():
        return 0
    state = load_state(file, device_of(model))
    model.load_state_dict(state["model"])
    for optimiser, its in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(its)
    session.resume(state)
    return int(state["epoch"])


def warm_up(model: nn.Module, images: Images, precision: str) -> None:
    """One step on a model that is thrown away, so that what a first step costs is not counted as anybody's work."""
    few = images[torch.arange(min(len(images), 128))]
    batches = shuffled(few, len(few), Streams("warm-up"))
    with session(precision=precision):
        fit(model, batches, cross_entropy, Streams("warm-up"), epochs=1, lr=0.0, momentum=0.0, weight_decay=0.0)
