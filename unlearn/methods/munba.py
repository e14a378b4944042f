"""MUNBa: retaining and forgetting bargain over every step, and each step is their Nash solution.

    theta = theta - lr (a_r g_r + a_f g_f), where a solves (g' g) a = 1 / a, g being both gradients

Wu & Harandi (ICCV 2025, arXiv:2411.15537); code JingWu321/MUNBa. Two losses, cross-entropy on the retained images and
on the forget set under random labels, are differentiated apart and combined by `games/bargaining.py`. The Nash
direction bisects the two unit gradients, whatever their lengths, so a weight on either loss has no effect.

Deviations from the released code:
- The weights, unless `compat: released`, are the exact closed form with inner products in double precision. The
  released one adds 1e-8 to raw denominators in float32, so that for a model with small gradients many steps silently
  become `L_r + 0.1 L_f` or are ruled by one loss. Steps that fall back are counted in the curves (`fallback`, and the
  share of each reason), never hidden; a gradient that is not finite ends the run as diverged.
- Two backward passes a step instead of three, which gives the same gradients.
- A forget set longer than the retained one crashes the released loop; here the retained batches lead and forget batches
  beyond them are met in the next pass (`bargain: every_step`) or not at all (`first_batches`).
- With a mask the players bargain over the entries that move, as with a layer scope over the parameters that do; the
  released code, which has a place for a mask and no mask, would bargain over all and filter the clipped step
  (`compat: released`).
- Left out: the script's options `--with_l1` and SAM, and the noise that the paper's remark 2.7 adds where the gradients
  are opposed. Opposed ones fall back, and parallel ones have the closed form like all others.
- A mask is kept to, whatever `compat` says: weight decay and momentum do not move what it leaves out.

`bargain: first_batches` is the released schedule: the forget set is met once at the start of each epoch, and plain
fine-tuning on the rest of the retained images, without clipping, follows. How much of the outcome is owed to that
repair shows beside `every_step` (`sweep=munba_controls`, docs/games.md). The paper is reported to maximise
cross-entropy on the forget set (`ascent`); its code has random labels with the true one allowed (`random_label`), and
the ascent commented out.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearn.batches import Batch, Batches, anew, paired, shuffled, sizes
from unlearn.games import bargaining
from unlearn.games.bargaining import Outcome, Weights
from unlearn.loop import DivergedError, cross_entropy, descend, fit
from unlearn.masks import salient
from unlearn.methods.random_label import draw
from unlearn.request import Request
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Positive, Probability, SettingError
from unlearn.streams import Streams

NEEDS = frozenset({"retain", "forget"})
FALLS = (Outcome.OPPOSED, Outcome.VANISHED, Outcome.NOT_POSITIVE)


def check(lab: Any, *, aggregator: str, compat: str | None, **_: Any) -> None:
    """There is released code for one aggregator alone."""
    if compat and aggregator != "nash":
        raise SettingError(
            "method.compat", compat, f"must be null for aggregator={aggregator}: it is a formula of nash"
        )


def munba(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    clip: Positive | None,
    aggregator: Literal["nash", "sum", "fixed", "mgda", "pcgrad", "imtl_g"],
    retain_weight: NotNegative,
    forget_weight: NotNegative,
    forget_loss: Literal["random_label", "other_label", "ascent"],
    bargain: Literal["first_batches", "every_step"],
    mask_share: Probability | None,
    compat: Literal["released"] | None,
) -> nn.Module:
    """Descend along the combination of the two players' gradients that `aggregator` settles on.

    With a `mask_share` only that share of the model's entries moves, those most salient to the forget set (`masks.py`).
    """
    retain = shuffled(request.retain, batch_size, streams.child("retain"))
    forget = forget_batches(request, streams, batch_size, forget_loss)
    sign = -1.0 if forget_loss == "ascent" else 1.0

    def losses(model: nn.Module, batch: Any) -> Any:
        if isinstance(batch, Batch):
            return cross_entropy(model, batch)
        return cross_entropy(model, batch[0]), sign * cross_entropy(model, batch[1])

    rule = rules(retain_weight, forget_weight)["released" if compat else aggregator]
    mask = None if mask_share is None else salient(model, request.forget, mask_share)
    return fit(
        model,
        paired(retain, forget) if bargain == "every_step" else first_batches(retain, forget),
        losses,
        streams,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        backward=partial(settle, rule=rule, clip=clip, movable=None if compat or mask is None else [*mask.values()]),
        mask=mask,
    )


def rules(retain_weight: float, forget_weight: float) -> dict[str, Callable[[float, float, float], Weights]]:
    """Every way to weigh two gradients, by its name."""
    return {
        "nash": bargaining.nash_weights,
        "released": bargaining.released_weights,
        "sum": bargaining.fixed_weights,
        "fixed": partial(bargaining.fixed_weights, retain=retain_weight, forget=forget_weight),
        "mgda": bargaining.mgda_weights,
        "pcgrad": bargaining.pcgrad_weights,
        "imtl_g": bargaining.imtl_g_weights,
    }


def settle(
    losses: Any,
    parameters: list[nn.Parameter],
    *,
    rule: Callable[[float, float, float], Weights],
    clip: float | None,
    movable: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Mapping[str, float]]:
    """Set the gradients to what two losses settle on; a single loss is plain descent, without clipping.

    Of each parameter only the entries that are `movable`, all by default, have a say and a gradient.
    Raises `DivergedError` for a player whose gradient is not finite: no weights make a step of it.
    """
    if not isinstance(losses, tuple):
        return descend(losses, parameters)
    first, second = (list(torch.autograd.grad(loss, parameters, materialize_grads=True)) for loss in losses)
    if movable is not None:
        for gradient, kept in zip([*first, *second], [*movable, *movable], strict=True):
            gradient.mul_(kept)
    gram = bargaining.gram(first, second)
    weights = rule(*gram)
    if not math.isfinite(gram.cosine):
        raise DivergedError(f"{current().label}: a player's gradient is not finite (norms {gram.norm1}, {gram.norm2})")
    for parameter, gradient in zip(parameters, bargaining.combine(first, second, weights), strict=True):
        parameter.grad = gradient
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    numbers = {
        "cosine": gram.cosine,
        "retain_weight": weights.retain,
        "forget_weight": weights.forget,
        "imbalance": weights.retain * gram.norm1 - weights.forget * gram.norm2,  # of the players; 0 in the bargain
        "fallback": float(weights.outcome is not Outcome.SOLVED),
        **{fall.value: float(weights.outcome is fall) for fall in FALLS},
    }
    return losses[0].detach() + losses[1].detach(), numbers


def forget_batches(request: Request, streams: Streams, batch_size: int, forget_loss: str) -> Batches:
    """The forget set, under labels drawn anew for each epoch, or under its own for ascent."""
    below = streams.child("forget")
    if forget_loss == "ascent":
        return shuffled(request.forget, batch_size, below)

    def relabelled(epoch: int) -> Batches:
        with_true = forget_loss == "random_label"
        labels = draw(request.forget.labels, request.class_count, with_true, streams("labels", epoch))
        return shuffled(request.forget.relabelled(labels), batch_size, below)

    return anew(len(sizes(len(request.forget), batch_size)), relabelled)


def first_batches(retain: Batches, forget: Batches) -> Batches:
    """Each forget batch beside a retained one, at the start of an epoch; then the other retained batches alone."""

    def epoch(number: int) -> Iterator[Any]:
        leading = retain(number)
        together = min(retain.steps, forget.steps)
        yield from chain(zip(islice(leading, together), forget(number), strict=False), leading)

    return Batches(retain.steps, epoch)
