"""The bargain and its rivals: against the paper's equations, brute force, convex solvers, and the released formula."""

import math
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from unlearn.games import bargaining
from unlearn.games.bargaining import (
    FALLBACK,
    Outcome,
    Weights,
    combine,
    fixed_weights,
    gram,
    gram_matrix,
    imtl_g_weights,
    mgda_weights,
    nash_equilibrium,
    nash_weights,
    pcgrad_weights,
    released_weights,
)

Floats = NDArray[np.float64]
Rule = Callable[[float, float, float], Weights]

RULES: list[Rule] = [
    nash_weights,
    released_weights,
    fixed_weights,
    mgda_weights,
    pcgrad_weights,
    imtl_g_weights,
]
VECTORS = [  # munba.md 1.2: |g_r|, |g_f|, cosine -> a_r, a_f
    (1.0, 1.0, 0.0, 1.0, 1.0),
    (2.0, 0.5, -0.5, 0.707107, 2.828427),
    (1.0, 1.0, -0.9, 3.162278, 3.162278),
    (0.3, 4.0, 0.2, 3.042903, 0.228218),
    (1.0, 1.0, 1.0, 0.707107, 0.707107),
    (5.0, 0.1, -0.99, 2.0, 100.0),
]
norms = st.floats(1e-6, 1e6)
cosines = st.floats(-0.999, 1.0)
anything = st.floats(allow_nan=True, allow_infinity=True)


def plane(norm_r: float, norm_f: float, cosine: float) -> tuple[Floats, Floats]:
    """Two vectors with these norms and this cosine."""
    sine = math.sqrt(max(0.0, 1 - cosine * cosine))
    return np.array([norm_r, 0.0]), norm_f * np.array([cosine, sine])


def direction(rule: Rule, norm_r: float, norm_f: float, cosine: float) -> Floats:
    weights, (g_r, g_f) = rule(norm_r, norm_f, cosine), plane(norm_r, norm_f, cosine)
    return weights.retain * g_r + weights.forget * g_f


def drawn(seed: int, count: int, dimension: int) -> Floats:
    """`count` random vectors, of which some step is good for all."""
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((count, dimension)) * 10.0 ** draw.uniform(-3, 3, (count, 1))
    shared = draw.standard_normal(dimension)
    return vectors * np.sign(vectors @ shared)[:, None]


# The closed form


@pytest.mark.parametrize(("norm_r", "norm_f", "cosine", "retain", "forget"), VECTORS)
def test_weights_are_the_written_ones(
    norm_r: float, norm_f: float, cosine: float, retain: float, forget: float
) -> None:
    weights = nash_weights(norm_r, norm_f, cosine)
    assert weights[:2] == pytest.approx((retain, forget), rel=2e-6)
    assert weights.outcome is Outcome.SOLVED


@given(norms, norms, cosines)
@settings(deadline=None, max_examples=200)
def test_weights_solve_the_bargaining_equations(norm_r: float, norm_f: float, cosine: float) -> None:
    a_r, a_f, outcome = nash_weights(norm_r, norm_f, cosine)
    assert outcome is Outcome.SOLVED
    across = norm_r * norm_f * cosine
    gains = np.array([a_r * norm_r**2 + a_f * across, a_f * norm_f**2 + a_r * across])  # K a = <g_i, d>
    np.testing.assert_allclose(gains * [a_r, a_f], 1.0, rtol=1e-9)  # K a = 1 / a
    assert (gains > 0).all()
    assert a_r * norm_r == pytest.approx(a_f * norm_f, rel=1e-12)
    assert gains @ [a_r, a_f] == pytest.approx(2, rel=1e-9)  # a'Ka = |d|^2


@given(norms, norms, cosines, st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=200)
def test_a_players_scale_divides_its_weight_and_leaves_the_step(
    norm_r: float, norm_f: float, cosine: float, scale: float
) -> None:
    plain, scaled = nash_weights(norm_r, norm_f, cosine), nash_weights(norm_r, norm_f * scale, cosine)
    assert scaled.retain == plain.retain
    assert scaled.forget == pytest.approx(plain.forget / scale, rel=1e-12)
    before, after = (direction(nash_weights, norm_r, norm_f * by, cosine) for by in (1.0, scale))
    np.testing.assert_allclose(before, after, atol=1e-9)
    assert np.linalg.norm(before) == pytest.approx(math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("vector", [*(v[:3] for v in VECTORS), (0.01, 7.0, 0.6), (3.0, 1e-3, -0.97)])
def test_no_step_in_the_disc_has_a_greater_nash_product(vector: tuple[float, float, float]) -> None:
    g_r, g_f = plane(*vector)
    angles = np.linspace(0, 2 * np.pi, 20_001)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    steps = np.concatenate([radius * circle for radius in math.sqrt(2) * np.linspace(0.05, 1, 20)])
    gains = np.stack([steps @ g_r, steps @ g_f])
    products = np.where((gains > 0).all(axis=0), gains.prod(axis=0), -np.inf)
    best, ours = steps[products.argmax()], direction(nash_weights, *vector)
    assert (ours @ g_r) * (ours @ g_f) >= products.max() * (1 - 1e-12)
    np.testing.assert_allclose(ours, best, atol=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_step_is_the_convex_solvers(seed: int) -> None:
    g_r, g_f = drawn(seed, 2, 6)
    units = np.stack([g_r / np.linalg.norm(g_r), g_f / np.linalg.norm(g_f)])
    step = cp.Variable(6)
    product = cp.sum(cp.log(units @ step))  # the norms only add a constant
    cp.Problem(cp.Maximize(product), [cp.norm(step) <= math.sqrt(2)]).solve(solver=cp.CLARABEL)
    weights = nash_weights(*gram([torch.from_numpy(g_r)], [torch.from_numpy(g_f)]))
    np.testing.assert_allclose(weights.retain * g_r + weights.forget * g_f, step.value, atol=1e-4)


# What has no bargain


@pytest.mark.parametrize(
    ("norm_r", "norm_f", "cosine", "outcome"),
    [
        (0.0, 1.0, 0.0, Outcome.VANISHED),
        (1.0, 9e-13, 0.5, Outcome.VANISHED),
        (0.0, 0.0, 0.0, Outcome.VANISHED),
        (1.0, 1.0, -1.0, Outcome.OPPOSED),
        (3.0, 0.2, -1 + 9e-7, Outcome.OPPOSED),
        (math.inf, 1.0, math.nan, Outcome.NOT_FINITE),
        (1.0, math.nan, math.nan, Outcome.NOT_FINITE),
        (1.0, 1.0, math.nan, Outcome.NOT_FINITE),
    ],
)
def test_what_has_no_bargain_falls_back_and_says_why(
    norm_r: float, norm_f: float, cosine: float, outcome: Outcome
) -> None:
    assert nash_weights(norm_r, norm_f, cosine) == (*FALLBACK, outcome)


def test_bargain_reaches_as_far_as_its_bounds() -> None:
    assert nash_weights(1.1e-12, 1.0, -1 + 1.1e-6).outcome is Outcome.SOLVED
    weights = nash_weights(1.0, 1.0, -1 + 1.1e-6)
    assert weights.retain == weights.forget == pytest.approx(1 / math.sqrt(1.1e-6), rel=1e-6)


@given(anything, anything, anything)
@settings(deadline=None, max_examples=300)
def test_every_rule_answers_everything_with_two_finite_numbers(norm_r: float, norm_f: float, cosine: float) -> None:
    norm_r, norm_f = min(abs(norm_r), 1e150), min(abs(norm_f), 1e150)  # min keeps a nan on its left
    cosine = min(1.0, max(-1.0, cosine)) if math.isfinite(cosine) else cosine
    for rule in RULES:
        weights = rule(norm_r, norm_f, cosine)
        assert all(isinstance(value, float) and math.isfinite(value) for value in weights[:2]), rule
        assert isinstance(weights.outcome, Outcome)


# The Gram matrix


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(16, 3, 3, 3), (16,), (10, 16), (), (8, 16, 3, 3)]
    parts = [torch.randn(shape, generator=generator) for shape in shapes]
    parts[-1] = parts[-1].to(memory_format=torch.channels_last)
    return parts


def flat(parts: list[Tensor]) -> Floats:
    return np.concatenate([part.double().numpy().ravel() for part in parts])


def test_gram_equals_float64_on_the_flattened_model() -> None:
    first, second = tensors(0), tensors(1)
    second[-1] = second[-1].contiguous()  # another layout of the same numbers
    a, b = flat(first), flat(second)
    norm1, norm2, cosine = gram(first, second)
    assert (norm1, norm2) == pytest.approx((np.linalg.norm(a), np.linalg.norm(b)), rel=1e-14)
    assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
    np.testing.assert_allclose(gram_matrix([first, second]), np.array([a, b]) @ np.array([a, b]).T, rtol=1e-12)


@pytest.mark.parametrize("sizes", [[5], [70_000], [70_000, 3], [3, 70_000, 2], [40_000, 40_000, 2, 65_530, 5, 1]])
def test_gram_of_large_and_small_tensors_misses_none(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(size, generator=generator) for size in sizes] for _ in range(2))
    assert gram_matrix([first, second])[0, 1] == pytest.approx(float(flat(first) @ flat(second)), rel=1e-11)


def test_gram_keeps_the_digits_that_float32_loses() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(500_000, generator=generator)
    second = torch.randn(500_000, generator=generator)
    second -= first * (first.double() @ second.double() / (first.double() @ first.double())).float()
    exact = float(first.double() @ second.double() / first.double().norm() / second.double().norm())
    assert abs(exact) < 1e-7
    assert gram([first], [second]).cosine == pytest.approx(exact, rel=1e-6, abs=1e-16)


def test_gram_of_a_gradient_that_is_zero_or_not_finite() -> None:
    zero, one = [torch.zeros(3)], [torch.ones(3)]
    assert gram(zero, one) == (0.0, math.sqrt(3), 0.0)
    assert gram(zero, zero) == (0.0, 0.0, 0.0)
    for bad in (math.nan, math.inf):
        spoilt = gram([torch.tensor([1.0, bad])], [torch.ones(2)])
        assert math.isnan(spoilt.cosine)
        assert nash_weights(*spoilt).outcome is Outcome.NOT_FINITE


def test_gram_of_the_same_and_the_opposite_is_within_one() -> None:
    for seed in range(20):
        parts = tensors(seed)
        assert gram(parts, [3 * part for part in parts]).cosine == pytest.approx(1, abs=1e-12)
        assert gram(parts, parts).cosine <= 1
        opposite = gram(parts, [-part for part in parts])
        assert opposite.cosine >= -1
        assert nash_weights(*opposite).outcome is Outcome.OPPOSED


def test_gram_takes_models_of_the_same_tensors_only() -> None:
    with pytest.raises(ValueError, match="shorter"):
        gram(tensors(0), tensors(1)[:-1])
    with pytest.raises(ValueError, match="longer"):
        gram(tensors(0)[:-1], tensors(1))


def test_gram_and_combination_are_made_where_the_gradients_are() -> None:
    first, second = tensors(0), tensors(1)
    expected = gram(first, second)
    weights = nash_weights(*expected)
    together = [weights.retain * one + weights.forget * other for one, other in zip(first, second, strict=True)]
    with torch.device("meta"):  # where a tensor without a device of its own would be
        assert gram(first, second) == expected
        torch.testing.assert_close(list(combine(first, second, weights)), together)


def test_combine_adds_in_place_and_leaves_the_second_alone() -> None:
    first, second = tensors(0), tensors(1)
    expected = [0.3 * one + 2.5 * two for one, two in zip(first, second, strict=True)]
    addresses, untouched = [part.data_ptr() for part in first], [part.clone() for part in second]
    combined = combine(first, second, Weights(0.3, 2.5))
    assert [part.data_ptr() for part in combined] == addresses
    for part, by_hand in zip(combined, expected, strict=True):
        torch.testing.assert_close(part, by_hand)
    assert all(torch.equal(*pair) for pair in zip(second, untouched, strict=True))


def test_combined_gradient_is_the_bisector() -> None:
    first, second = tensors(0), tensors(1)
    bisector = flat(first) / np.linalg.norm(flat(first)) + flat(second) / np.linalg.norm(flat(second))
    combined = flat(combine(first, second, nash_weights(*gram(first, second))))
    np.testing.assert_allclose(combined, bisector / np.linalg.norm(bisector) * math.sqrt(2), atol=1e-6)


# The released formula


def transcribed(first: Tensor, second: Tensor) -> tuple[float, float]:
    """MUNBa's closed form, on float32 tensors as in its code."""
    g1, g2, g3 = torch.dot(first, first), torch.dot(first, second), torch.dot(second, second)
    a_r = torch.sqrt((g1 * g3 - g2 * torch.sqrt(g1 * g3)) / (g1 * g1 * g3 - g1 * g2 * g2 + 1e-8))
    a_f = (1 - g1 * a_r * a_r) / (g2 * a_r + 1e-8)
    return a_r.item(), a_f.item()


def pair(norm_r: float, norm_f: float, cosine: float) -> tuple[Tensor, Tensor]:
    first, second = plane(norm_r, norm_f, cosine)
    return torch.from_numpy(first).float(), torch.from_numpy(second).float()


@pytest.mark.parametrize("norm_r", [1.0, 2.0, 0.1, 0.01, 1e-3])
@pytest.mark.parametrize("cosine", [-0.9, -0.3, -1e-3, 1e-4, 0.05, 0.5, 0.99])
def test_released_weights_equal_a_transcription(norm_r: float, cosine: float) -> None:
    first, second = pair(norm_r, 2.0, cosine)
    expected = transcribed(first, second)
    weights = released_weights(*gram([first], [second]))
    if min(expected) > 0:
        # The last digit of a Gram entry decides much of 1 - g1 a^2 when the cosine is small
        assert weights[:2] == pytest.approx(expected, rel=1e-5 / min(1.0, abs(cosine)))
        assert weights.outcome is Outcome.SOLVED
    else:
        assert weights == (*FALLBACK, Outcome.NOT_POSITIVE)


@pytest.mark.parametrize(
    ("norm_r", "cosine", "released"),
    [(0.1, 1e-4, (None, 0.626)), (0.01, -0.9, (207.8, 0.887)), (0.01, 1e-4, (None, 1118.0))],
)
def test_released_weights_are_as_wrong_as_measured(
    norm_r: float, cosine: float, released: tuple[float | None, float]
) -> None:
    # munba.md 2.1 a), for |g_f| = 2
    weights, exact = released_weights(norm_r, 2.0, cosine), nash_weights(norm_r, 2.0, cosine)
    for ours, written in zip(weights[:2], released, strict=True):
        assert written is None or ours == pytest.approx(written, rel=0.02)
    assert weights.forget != pytest.approx(exact.forget, rel=0.1)


def test_released_weights_fall_back_on_small_opposed_gradients_and_say_so() -> None:
    assert transcribed(*pair(0.01, 2.0, -1e-3))[1] == pytest.approx(-111, rel=0.02)
    assert released_weights(0.01, 2.0, -1e-3) == (*FALLBACK, Outcome.NOT_POSITIVE)
    assert nash_weights(0.01, 2.0, -1e-3).outcome is Outcome.SOLVED


@pytest.mark.parametrize(
    "degenerate", [(0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.01, 0.01, -1.0), (math.inf, 1.0, math.nan)]
)
def test_released_weights_fall_back_where_they_are_not_positive(degenerate: tuple[float, float, float]) -> None:
    assert released_weights(*degenerate) == (*FALLBACK, Outcome.NOT_POSITIVE)


def test_released_weights_do_not_see_that_gradients_are_opposed() -> None:
    weights = released_weights(1.0, 1.0, -1.0)
    assert weights[:2] == pytest.approx((1e4 * 2**0.5,) * 2, rel=1e-5)
    assert weights.outcome is Outcome.SOLVED
    assert nash_weights(1.0, 1.0, -1.0).outcome is Outcome.OPPOSED


@given(st.floats(1.0, 30.0), st.floats(1.0, 30.0), st.floats(-0.9, 0.9).filter(lambda c: abs(c) > 0.05))
@settings(deadline=None, max_examples=200)
def test_released_weights_are_right_for_gradients_of_some_length(norm_r: float, norm_f: float, cosine: float) -> None:
    released, exact = released_weights(norm_r, norm_f, cosine), nash_weights(norm_r, norm_f, cosine)
    assert released[:2] == pytest.approx(exact[:2], rel=1e-3)


# Other rules


def test_fixed_weights_are_fixed() -> None:
    assert fixed_weights(3.0, 0.0, -1.0) == (1.0, 1.0, Outcome.SOLVED)
    assert fixed_weights(3.0, 0.0, -1.0, retain=0.95, forget=-0.05)[:2] == (0.95, -0.05)


@given(norms, norms, st.floats(-1.0, 1.0))
@settings(deadline=None, max_examples=200)
def test_mgda_finds_the_shortest_of_all_mixtures(norm_r: float, norm_f: float, cosine: float) -> None:
    weights, (g_r, g_f) = mgda_weights(norm_r, norm_f, cosine), plane(norm_r, norm_f, cosine)
    assert weights.retain + weights.forget == pytest.approx(1)
    assert min(weights[:2]) >= 0
    shares = np.linspace(0, 1, 501)[:, None]
    lengths = np.linalg.norm(shares * g_r + (1 - shares) * g_f, axis=1)
    ours = direction(mgda_weights, norm_r, norm_f, cosine)
    scale = max(norm_r, norm_f)
    assert np.linalg.norm(ours) <= lengths.min() + 1e-7 * scale
    for gradient in (g_r, g_f):  # nobody loses, and each gains at least |d|^2
        assert ours @ gradient >= ours @ ours - 1e-7 * scale * np.linalg.norm(gradient)


def test_mgda_at_its_corners() -> None:
    assert mgda_weights(1.0, 1.0, 1.0)[:2] == (0.5, 0.5)
    assert mgda_weights(0.0, 0.0, 0.0)[:2] == (0.5, 0.5)
    assert mgda_weights(0.0, 2.0, 0.0)[:2] == (1.0, 0.0)  # nothing left to gain
    assert mgda_weights(1.0, 5.0, 0.9)[:2] == (1.0, 0.0)  # the short one lies within reach of the long one
    assert mgda_weights(1e-200, 1e-200, -1.0)[:2] == (0.5, 0.5)
    assert mgda_weights(1.0, math.nan, math.nan) == (*FALLBACK, Outcome.NOT_FINITE)


@pytest.mark.parametrize("seed", range(10))
def test_pcgrad_projects_each_gradient_on_the_others_normal_plane(seed: int) -> None:
    draw = np.random.default_rng(seed)
    g_r, g_f = draw.standard_normal((2, 5)) * [[0.3], [4.0]]
    dot = g_r @ g_f
    expected = g_r + g_f
    if dot < 0:
        expected = (g_r - dot / (g_f @ g_f) * g_f) + (g_f - dot / (g_r @ g_r) * g_r)
    weights = pcgrad_weights(*gram([torch.from_numpy(g_r)], [torch.from_numpy(g_f)]))
    np.testing.assert_allclose(weights.retain * g_r + weights.forget * g_f, expected, rtol=1e-9)
    if dot >= 0:
        assert weights[:2] == (1.0, 1.0)


def test_pcgrad_at_its_corners() -> None:
    np.testing.assert_allclose(direction(pcgrad_weights, 2.0, 3.0, -1.0), 0, atol=1e-12)
    assert pcgrad_weights(0.0, 3.0, 0.0)[:2] == (1.0, 1.0)
    assert pcgrad_weights(1.0, math.inf, math.nan) == (*FALLBACK, Outcome.NOT_FINITE)


@given(norms, norms, st.floats(-0.99, 1.0))
@settings(deadline=None, max_examples=200)
def test_imtl_g_projects_equally_and_goes_where_the_bargain_goes(norm_r: float, norm_f: float, cosine: float) -> None:
    weights, (g_r, g_f) = imtl_g_weights(norm_r, norm_f, cosine), plane(norm_r, norm_f, cosine)
    assert weights.retain + weights.forget == pytest.approx(1)
    ours, nash = (direction(rule, norm_r, norm_f, cosine) for rule in (imtl_g_weights, nash_weights))
    length = np.linalg.norm(ours)
    assert (ours @ g_r / norm_r - ours @ g_f / norm_f) / length == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(ours / length, nash / np.linalg.norm(nash), atol=1e-6)


def test_imtl_g_needs_two_directions() -> None:
    assert imtl_g_weights(0.0, 1.0, 0.0) == (*FALLBACK, Outcome.VANISHED)
    assert imtl_g_weights(math.inf, 1.0, math.nan) == (*FALLBACK, Outcome.NOT_FINITE)
    np.testing.assert_allclose(direction(imtl_g_weights, 2.0, 3.0, -1.0), 0, atol=1e-12)


# Many players


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_equilibrium_solves_the_fixed_point(count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bargaining, "ITERATIONS", 40)
    vectors = drawn(seed, count, 12)
    matrix = vectors @ vectors.T
    weights, outcome = nash_equilibrium(matrix)
    assert outcome is Outcome.SOLVED
    assert (weights > 0).all()
    np.testing.assert_allclose(weights * (matrix @ weights), 1.0, rtol=1e-9)
    order = np.random.default_rng(seed).permutation(count)
    np.testing.assert_allclose(nash_equilibrium(matrix[np.ix_(order, order)]).weights, weights[order], rtol=1e-9)


@given(norms, norms, cosines)
@settings(deadline=None, max_examples=200)
def test_equilibrium_of_two_is_the_closed_form(norm_r: float, norm_f: float, cosine: float) -> None:
    across = norm_r * norm_f * cosine
    weights, outcome = nash_equilibrium(np.array([[norm_r**2, across], [across, norm_f**2]]))
    assert outcome is Outcome.SOLVED
    np.testing.assert_allclose(weights, nash_weights(norm_r, norm_f, cosine)[:2], rtol=1e-7)


@pytest.mark.parametrize("count", [3, 5])
def test_equilibrium_is_the_convex_solvers(count: int) -> None:
    vectors = drawn(count, count, 8)
    lengths = np.linalg.norm(vectors, axis=1)
    step = cp.Variable(8)
    product = cp.sum(cp.log((vectors / lengths[:, None]) @ step))
    cp.Problem(cp.Maximize(product), [cp.norm(step) <= math.sqrt(count)]).solve(solver=cp.CLARABEL)
    weights, _ = nash_equilibrium(vectors @ vectors.T)
    np.testing.assert_allclose(weights @ vectors, step.value, atol=1e-4)


def test_equilibrium_of_players_without_a_common_good_is_refused() -> None:
    around = np.array([[np.cos(angle), np.sin(angle)] for angle in np.arange(3) * 2 * np.pi / 3])
    for vectors in (around, np.array([[1.0, 0.0], [-2.0, 0.0]]), np.array([[1.0, 0], [-1.0, 1e-4], [0, 1.0]])):
        weights, outcome = nash_equilibrium(vectors @ vectors.T)
        assert outcome is Outcome.OPPOSED
        assert np.isnan(weights).all()
    spoilt = np.eye(3)
    spoilt[1, 1] = 0.0
    assert nash_equilibrium(spoilt).outcome is Outcome.VANISHED
    spoilt[1, 1] = np.inf
    assert nash_equilibrium(spoilt).outcome is Outcome.NOT_FINITE


def test_equilibrium_and_closed_form_give_up_at_the_same_cosine() -> None:
    for gap, outcome in ((1.01e-6, Outcome.SOLVED), (0.99e-6, Outcome.OPPOSED)):
        assert nash_weights(2.0, 3.0, gap - 1).outcome is outcome
        assert nash_equilibrium(np.array([[4.0, 6 * (gap - 1)], [6 * (gap - 1), 9.0]])).outcome is outcome


def test_equal_orthogonal_players_share_equally() -> None:
    lengths = np.array([0.1, 1.0, 30.0])
    np.testing.assert_allclose(nash_equilibrium(np.diag(lengths**2)).weights, 1 / lengths)
