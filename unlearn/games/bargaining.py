"""Two gradients and one step: how retaining and forgetting settle on a common direction.

Every rule sees the two gradients' norms and the cosine between them, and answers with two weights; the step goes along
`weights.retain * g_r + weights.forget * g_f`. Nash bargaining (Navon et al., ICML 2022, arXiv:2202.01017; for
unlearning MUNBa, Wu & Harandi, ICCV 2025, arXiv:2411.15537, code JingWu321/MUNBa) maximises log <g_r, d> + log <g_f, d>
over a ball. Its optimum has a_r = 1 / <g_r, d> and a_f = 1 / <g_f, d>; multiplied by a_r and a_f these two equations
give a_r |g_r| = a_f |g_f| = 1 / sqrt(1 + cosine). So d bisects the angle and has length sqrt 2, whatever the two norms.
"""

from collections.abc import Sequence
from enum import StrEnum
from itertools import combinations_with_replacement, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Gradient = Sequence[Tensor]
Floats = NDArray[np.float64]

SHORTEST = 1e-12  # a shorter gradient has no direction
OPPOSITION = 1e-6  # below this 1 + cosine each weighs a thousand unit gradients or more, which then cancel
FALLBACK = (1.0, 0.1)  # L_r + 0.1 L_f, as in MUNBa's code
PART = 2**16  # entries: small tensors are multiplied together, and a large model is never doubled as a whole
ITERATIONS = 500  # far more than Newton's method needs; fewer than 50 have been seen


class Outcome(StrEnum):
    """How a rule came by its weights; all but `SOLVED` mean that the weights are not the rule's own."""

    SOLVED = "solved"
    OPPOSED = "opposed"
    """No direction helps everybody."""
    VANISHED = "vanished"
    """A gradient is zero."""
    NOT_FINITE = "not_finite"
    """A gradient has an infinity or a nan in it."""
    NOT_POSITIVE = "not_positive"
    """The released formula gave a weight that is negative, zero or nan."""


class Gram(NamedTuple):
    """Two gradients as every rule sees them. The cosine is 0 if a gradient is zero, and nan if one is not finite."""

    norm1: float
    norm2: float
    cosine: float


class Weights(NamedTuple):
    """What each gradient is multiplied with."""

    retain: float
    forget: float
    outcome: Outcome = Outcome.SOLVED


class Equilibrium(NamedTuple):
    """One weight a player, or nan for all of them if the outcome is not `SOLVED`."""

    weights: Floats
    outcome: Outcome


def _parts(tensors: Gradient) -> list[slice]:
    """Tensors in turn, as many in a part as have `PART` entries together, or one that is larger."""
    starts, size = [0], 0
    for number, tensor in enumerate(tensors):
        if number and size + tensor.numel() > PART:
            starts.append(number)
            size = 0
        size += tensor.numel()
    return [slice(*ends) for ends in pairwise([*starts, len(tensors)])]


def gram_matrix(gradients: Sequence[Gradient]) -> Floats:
    """All inner products between n gradients, n x n, in double precision, a part of the model at a time."""
    count = len(gradients)
    pairs = list(combinations_with_replacement(range(count), 2))
    products, tensors = [], list(zip(*gradients, strict=True))
    for part in _parts(gradients[0]):
        players = zip(*tensors[part], strict=True)
        rows = [torch.cat([tensor.detach().flatten() for tensor in its]).double() for its in players]
        products += [rows[i] @ rows[j] for i, j in pairs]
    sums = torch.stack(products).view(-1, len(pairs)).sum(0)  # to the host once, not once a tensor
    matrix = np.empty((count, count))
    for (i, j), value in zip(pairs, sums.tolist(), strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def gram(first: Gradient, second: Gradient) -> Gram:
    """The norms of two gradients and the cosine between them."""
    (one, both), (_, two) = gram_matrix([first, second]).tolist()
    norm1, norm2 = one**0.5, two**0.5
    if not np.isfinite([one, both, two]).all():
        return Gram(norm1, norm2, float("nan"))
    return Gram(norm1, norm2, min(1.0, max(-1.0, both / (norm1 * norm2))) if norm1 * norm2 else 0.0)


def combine(first: list[Tensor], second: list[Tensor], weights: Weights) -> list[Tensor]:
    """Turn `first` into the weighted sum of both, in place."""
    torch._foreach_mul_(first, weights.retain)
    torch._foreach_add_(first, second, alpha=weights.forget)
    return first


def _flaw(norm_r: float, norm_f: float, cosine: float) -> Outcome | None:
    """Why there are no two directions to speak of, if there are not."""
    if not np.isfinite([norm_r, norm_f, cosine]).all():
        return Outcome.NOT_FINITE
    return Outcome.VANISHED if min(norm_r, norm_f) < SHORTEST else None


def nash_weights(norm_r: float, norm_f: float, cosine: float) -> Weights:
    """The bargain in closed form, for any pair of gradients: one division, no iteration, no tuned constant.

    Orthogonal gradients weigh 1 / norm, parallel ones 1 / (sqrt 2 norm). As the cosine goes to -1 the weights grow
    without bound; from 1 + cosine < `OPPOSITION` on they are `FALLBACK` and the outcome is `OPPOSED`, as they are for
    gradients that have `VANISHED` or are `NOT_FINITE`.
    """
    flaw = _flaw(norm_r, norm_f, cosine) or (Outcome.OPPOSED if 1 + cosine < OPPOSITION else None)
    if flaw:
        return Weights(*FALLBACK, flaw)
    length = (1 + cosine) ** -0.5
    return Weights(length / norm_r, length / norm_f)


def released_weights(norm_r: float, norm_f: float, cosine: float) -> Weights:
    """The bargain as MUNBa's code computes it: the quartic's root in float32, 1e-8 added to both denominators.

    The same as `nash_weights` for gradients of norm 1 and above. Small or nearly orthogonal ones drown in the 1e-8: the
    weights are then wrong by orders of magnitude, or not positive, where the code falls back without saying so. That is
    its only fallback: opposed unit gradients get weights of 14142 each, which cancel, and count as `SOLVED`. Here the
    Gram matrix is computed in double precision and rounded once.
    """
    one, tiny = np.float32(1), np.float32(1e-8)
    with np.errstate(all="ignore"):
        g1, g2, g3 = (np.float32(value) for value in (norm_r * norm_r, norm_r * norm_f * cosine, norm_f * norm_f))
        retain = np.sqrt((g1 * g3 - g2 * np.sqrt(g1 * g3)) / (g1 * g1 * g3 - g1 * g2 * g2 + tiny))
        forget = (one - g1 * retain * retain) / (g2 * retain + tiny)
    if not (retain > 0 and forget > 0):  # nor with a nan
        return Weights(*FALLBACK, Outcome.NOT_POSITIVE)
    return Weights(float(retain), float(forget))


def fixed_weights(norm_r: float, norm_f: float, cosine: float, *, retain: float = 1.0, forget: float = 1.0) -> Weights:
    """The same weights at every step; by default the plain sum."""
    return Weights(retain, forget)


def mgda_weights(norm_r: float, norm_f: float, cosine: float) -> Weights:
    """The shortest vector between the two gradients (Désidéri 2012; Sener & Koltun, NeurIPS 2018, arXiv:1810.04650)."""
    if not np.isfinite([norm_r, norm_f, cosine]).all():
        return Weights(*FALLBACK, Outcome.NOT_FINITE)
    scale = max(norm_r, norm_f) or 1.0  # so that no square underflows
    r, f = norm_r / scale, norm_f / scale
    apart = r * r + f * f - 2 * r * f * cosine
    share = min(1.0, max(0.0, f * (f - r * cosine) / apart)) if apart else 0.5
    return Weights(share, 1 - share)


def pcgrad_weights(norm_r: float, norm_f: float, cosine: float) -> Weights:
    """Each gradient without its part against the other, added up (Yu et al., NeurIPS 2020, arXiv:2001.06782).

    Both are projected on the other as it was, so that for two gradients the paper's random order has no effect.
    """
    if not np.isfinite([norm_r, norm_f, cosine]).all():
        return Weights(*FALLBACK, Outcome.NOT_FINITE)
    conflict = min(cosine, 0.0) if min(norm_r, norm_f) >= SHORTEST else 0.0
    if not conflict:
        return Weights(1.0, 1.0)
    return Weights(1 - conflict * norm_f / norm_r, 1 - conflict * norm_r / norm_f)


def imtl_g_weights(norm_r: float, norm_f: float, cosine: float) -> Weights:
    """Weights that add to 1, and equal projections on both unit gradients (Liu et al., IMTL, ICLR 2021).

    For two gradients this is the direction of the Nash bargain, at a length that shrinks with the shorter gradient.
    """
    flaw = _flaw(norm_r, norm_f, cosine)
    if flaw:
        return Weights(*FALLBACK, flaw)
    return Weights(norm_f / (norm_r + norm_f), norm_r / (norm_r + norm_f))


def nash_equilibrium(matrix: Floats) -> Equilibrium:
    """The bargain of n players with this Gram matrix K: the positive solution of K a = 1 / a.

    It minimises a'Ka / 2 - sum log a, a self-concordant function, so that damped Newton steps converge from anywhere
    and never leave the positive weights. There is no solution when no direction helps everybody; as for two players, a
    unit gradient that would have to weigh 1 / sqrt(`OPPOSITION`) or more counts as that.
    """
    count, none = len(matrix), np.full(len(matrix), np.nan)
    if not np.isfinite(matrix).all():
        return Equilibrium(none, Outcome.NOT_FINITE)
    norms = np.sqrt(np.diag(matrix))
    if norms.min() < SHORTEST:
        return Equilibrium(none, Outcome.VANISHED)
    cosines, scaled = matrix / np.outer(norms, norms), np.ones(count)
    for _ in range(ITERATIONS):
        slope = cosines @ scaled - 1 / scaled
        step = np.linalg.solve(cosines + np.diag(scaled**-2), slope)
        decrement = max(0.0, slope @ step) ** 0.5
        scaled = scaled - step / (1 + decrement)
        if decrement < 1e-8 or scaled.max() > 10 * OPPOSITION**-0.5:  # the next would be 1e-16: it squares
            break
    solved = decrement < 1e-8 and scaled.max() <= OPPOSITION**-0.5
    return Equilibrium(scaled / norms, Outcome.SOLVED) if solved else Equilibrium(none, Outcome.OPPOSED)
