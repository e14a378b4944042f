"""Intervals: against sums over pairs, formulas written out, scikit-learn, and simulations whose truth is known."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, permutation_test, spearmanr, t, ttest_1samp
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from unlearn.statistics import (
    auc,
    auc_components,
    auc_difference,
    best_threshold,
    bootstrapped,
    equivalence_pvalue,
    holm,
    mean,
    permutation_pvalue,
    proportion,
    proportion_exact,
    rank_correlation,
    tpr_at_fpr,
)

Floats = NDArray[np.float64]
REPETITIONS = 400
# 95 % +- 4 standard errors of a share over the repetitions
COVERAGE = (0.95 - 4 * math.sqrt(0.95 * 0.05 / REPETITIONS), 0.95 + 4 * math.sqrt(0.95 * 0.05 / REPETITIONS))


def normal(seed: int, m: int, n: int, shift: float) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    return draw.normal(shift, 1, m), draw.normal(0, 1, n)


def tied(seed: int, m: int = 60, n: int = 45) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    return draw.integers(2, 9, m).astype(float), draw.integers(0, 7, n).astype(float)


def placements(positive: Floats, negative: Floats) -> tuple[list[float], list[float]]:
    """DeLong's structural components, pair by pair."""

    def won(x: float, y: float) -> float:
        return 1.0 if x > y else 0.5 if x == y else 0.0

    of_positive = [sum(won(x, y) for y in negative) / len(negative) for x in positive]
    of_negative = [sum(won(x, y) for x in positive) / len(positive) for y in negative]
    return of_positive, of_negative


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


# The area


@pytest.mark.parametrize("scores", [normal(0, 50, 80, 0.7), tied(0), tied(1), normal(1, 1, 5, 0.0)])
def test_auc_equals_scikit_learn(scores: tuple[Floats, Floats]) -> None:
    positive, negative = scores
    truth = np.repeat([1, 0], [len(positive), len(negative)])
    expected = roc_auc_score(truth, np.concatenate(scores))
    assert auc(positive, negative, "x")["x"] == pytest.approx(expected, abs=1e-12)


def test_equal_scores_have_half_the_area() -> None:
    assert auc(np.full(30, 2.0), np.full(20, 2.0), "x")["x"] == 0.5


def test_sides_exchanged_mirror_the_area_and_its_interval() -> None:
    positive, negative = tied(3)
    there, back = auc(positive, negative, "x"), auc(negative, positive, "x")
    assert there["x"] == pytest.approx(1 - back["x"])
    assert there["x_low"] == pytest.approx(1 - back["x_high"])
    assert there["x_high"] == pytest.approx(1 - back["x_low"])


def test_any_increasing_transformation_leaves_everything_as_it_is() -> None:
    positive, negative = normal(2, 40, 30, 0.5)
    assert auc(positive, negative, "x") == auc(np.exp(3 * positive), np.exp(3 * negative), "x")


# Its variance


@pytest.mark.parametrize("scores", [normal(4, 25, 40, 0.9), tied(4)])
def test_components_equal_a_sum_over_pairs(scores: tuple[Floats, Floats]) -> None:
    area, of_positive, of_negative = auc_components(*scores)
    by_hand = placements(*scores)
    np.testing.assert_allclose(of_positive, by_hand[0], atol=1e-12)
    np.testing.assert_allclose(of_negative, by_hand[1], atol=1e-12)
    assert area == pytest.approx(sum(by_hand[0]) / len(by_hand[0]), abs=1e-12)


@pytest.mark.parametrize("scores", [normal(5, 25, 40, 0.9), tied(5)])
def test_interval_is_delongs_on_the_logit_scale(scores: tuple[Floats, Floats]) -> None:
    of_positive, of_negative = placements(*scores)
    area = sum(of_positive) / len(of_positive)
    spread = math.sqrt(variance(of_positive) / len(of_positive) + variance(of_negative) / len(of_negative))
    logit, half = math.log(area / (1 - area)), 1.959963984540054 * spread / (area * (1 - area))
    measured = auc(*scores, "x")
    assert measured["x_low"] == pytest.approx(1 / (1 + math.exp(-(logit - half))), abs=1e-9)
    assert measured["x_high"] == pytest.approx(1 / (1 + math.exp(-(logit + half))), abs=1e-9)
    assert measured["x_low"] < area < measured["x_high"]


def test_variance_is_about_that_of_a_bootstrap() -> None:
    positive, negative = normal(6, 80, 60, 0.8)
    _, a, b = auc_components(positive, negative)
    delong = a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)
    draw = np.random.default_rng(0)
    areas = [auc_components(draw.choice(positive, 80), draw.choice(negative, 60))[0] for _ in range(1500)]
    assert np.var(areas) == pytest.approx(delong, rel=0.25)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_95_percent_of_intervals_contain_the_true_area(shift: float) -> None:
    truth = norm.cdf(shift / math.sqrt(2))
    contained = 0
    for seed in range(REPETITIONS):
        measured = auc(*normal(seed, 60, 90, shift), "x")
        contained += measured["x_low"] <= truth <= measured["x_high"]
    assert COVERAGE[0] <= contained / REPETITIONS <= COVERAGE[1]


@pytest.mark.parametrize(("positive", "negative", "area"), [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0)])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_perfect_separation_is_not_certainty(positive: float, negative: float, area: float, count: int) -> None:
    measured = auc(np.full(count, positive), np.full(count + 3, negative), "x")
    assert measured["x"] == area
    # Clopper-Pearson for none or all of `count` trials, in closed form
    other = 0.025 ** (1 / count)
    expected = (other, 1.0) if area else (0.0, 1 - other)
    assert (measured["x_low"], measured["x_high"]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 9), (2, 2), (30, 20), (20, 30), (1000, 2000)])
def test_equal_scores_are_not_certainty(m: int, n: int) -> None:
    measured = auc(np.full(m, 3.0), np.full(n, 3.0), "x")
    # With k disjoint pairs all tied, at most this share of all pairs is not
    others = 1 - 0.025 ** (1 / min(m, n))
    assert measured["x"] == 0.5
    assert (measured["x_low"], measured["x_high"]) == pytest.approx((0.5 - others / 2, 0.5 + others / 2), abs=1e-12)


@pytest.mark.parametrize("rare", [0.001, 0.01, 0.03, 0.1])
def test_intervals_of_seldom_untied_scores_contain_the_true_area(rare: float) -> None:
    contained = 0
    for seed in range(REPETITIONS):
        positive = (np.random.default_rng(seed).random(60) < rare).astype(float)
        measured = auc(positive, np.zeros(90), "x")
        # Elsewhere the interval is DeLong's; a sample that holds no untied pair must not exclude the truth by itself
        contained += positive.any() or measured["x_low"] <= 0.5 + rare / 2 <= measured["x_high"]
    assert contained / REPETITIONS >= COVERAGE[0]


def test_a_single_untied_score_leaves_the_interval_to_delong() -> None:
    positive = np.full(30, 3.0)
    positive[4] = 4.0
    measured = auc(positive, np.full(20, 3.0), "x")
    spread = np.array([0.5] * 29 + [1.0]).std(ddof=1) / math.sqrt(30)
    area = 0.5 + 0.5 / 30
    half = 1.959963984540054 * spread / (area * (1 - area))
    centre = math.log(area / (1 - area))
    assert measured["x_low"] == pytest.approx(1 / (1 + math.exp(half - centre)))
    assert measured["x_high"] == pytest.approx(1 / (1 + math.exp(-half - centre)))


@pytest.mark.parametrize("score", [-1.0, 0.2, 0.5, 0.9, 2.0])
def test_one_image_on_a_side_says_next_to_nothing(score: float) -> None:
    others = np.linspace(0, 1, 40)
    measured = auc(np.array([score]), others, "x")
    assert measured["x_low"] <= measured["x"] <= measured["x_high"]
    assert measured["x_high"] - measured["x_low"] > 0.9


# The paired difference


def test_the_same_scores_differ_by_exactly_nothing() -> None:
    scores = normal(7, 50, 60, 0.5)
    assert auc_difference(scores, scores, "x") == {"x": 0.0, "x_low": 0.0, "x_high": 0.0}


PERFECT, REVERSED, EQUAL = (
    (np.full(30, positive), np.full(20, negative)) for positive, negative in ((1.0, 0.0), (0.0, 1.0), (2.0, 2.0))
)
DEGENERATE = {
    "both perfect": (PERFECT, (PERFECT[0] * 5, PERFECT[1])),
    "both reversed": (REVERSED, (REVERSED[0] - 1, REVERSED[1])),
    "both without a difference": (EQUAL, (EQUAL[0] + 1, EQUAL[1] + 1)),
    "perfect and reversed": (PERFECT, REVERSED),
    "perfect and equal": (PERFECT, EQUAL),
    "another scale": (normal(11, 30, 20, 0.5), tuple(np.exp(side) for side in normal(11, 30, 20, 0.5))),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_no_paired_variance_is_not_certainty(case: str) -> None:
    first, second = DEGENERATE[case]
    one, two = auc(*first, "x"), auc(*second, "x")
    measured = auc_difference(first, second, "x")
    difference = one["x"] - two["x"]
    assert measured["x"] == pytest.approx(difference)
    # Newcombe's method 10, for areas in the place of shares
    low = difference - math.sqrt((one["x"] - one["x_low"]) ** 2 + (two["x_high"] - two["x"]) ** 2)
    high = difference + math.sqrt((one["x_high"] - one["x"]) ** 2 + (two["x"] - two["x_low"]) ** 2)
    assert (measured["x_low"], measured["x_high"]) == pytest.approx((max(-1.0, low), min(1.0, high)))
    assert measured["x_high"] - measured["x_low"] > 0.08
    back = auc_difference(second, first, "x")
    assert (back["x_low"], back["x_high"]) == pytest.approx((-measured["x_high"], -measured["x_low"]))


@pytest.mark.parametrize("scores", [PERFECT, EQUAL])
def test_the_same_scores_differ_by_nothing_however_little_they_say(scores: tuple[Floats, Floats]) -> None:
    assert auc_difference(scores, (scores[0].copy(), scores[1].copy()), "x") == {"x": 0.0, "x_low": 0.0, "x_high": 0.0}


def test_difference_and_interval_equal_a_sum_over_pairs() -> None:
    first, second = normal(8, 30, 40, 1.0), tied(8, 30, 40)
    one, two = placements(*first), placements(*second)
    a = [x - y for x, y in zip(one[0], two[0], strict=True)]
    b = [x - y for x, y in zip(one[1], two[1], strict=True)]
    parts = variance(a) / 30, variance(b) / 40
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 29 + parts[1] ** 2 / 39)
    half = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    measured = auc_difference(first, second, "x")
    assert measured["x"] == pytest.approx(sum(a) / 30, abs=1e-12)
    assert measured["x_low"] == pytest.approx(sum(a) / 30 - half, abs=1e-9)
    assert measured["x_high"] == pytest.approx(sum(a) / 30 + half, abs=1e-9)


def test_the_models_exchanged_turn_the_sign() -> None:
    first, second = normal(9, 30, 40, 1.0), normal(10, 30, 40, 0.0)
    there, back = auc_difference(first, second, "x"), auc_difference(second, first, "x")
    assert there["x"] == -back["x"] != 0
    assert (there["x_low"], there["x_high"]) == (-back["x_high"], -back["x_low"])


def paired(seed: int, shift: float) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Two models' scores of the same images: half of each score is the image, half the model; the first is shifted."""
    draw = np.random.default_rng(seed)
    images = [draw.normal(0, 1, count) for count in (70, 50)]
    first = [image + draw.normal(0, 1, len(image)) for image in images]
    second = [image + draw.normal(0, 1, len(image)) for image in images]
    return (first[0] + shift, first[1]), (second[0], second[1])


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_95_percent_of_paired_intervals_contain_the_true_difference(shift: float) -> None:
    truth = norm.cdf(shift / 2) - 0.5  # the scores have variance 2
    contained = 0
    for seed in range(REPETITIONS):
        measured = auc_difference(*paired(seed, shift), "x")
        contained += measured["x_low"] <= truth <= measured["x_high"]
    assert COVERAGE[0] <= contained / REPETITIONS <= COVERAGE[1]


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_of_few_forgotten_images_an_exact_retrain_is_told_apart_as_seldom_as_of_many(count: int) -> None:
    draw, contained = np.random.default_rng(count), 0
    for _ in range(REPETITIONS):
        # An image that neither model has seen is as hard as its own nature and the model's whim make it
        images = [draw.normal(0, 1, its) for its in (count, 300)]
        first, second = ([image + draw.normal(0, 1, len(image)) for image in images] for _ in range(2))
        measured = auc_difference((first[0], first[1]), (second[0], second[1]), "x")
        contained += measured["x_low"] <= 0 <= measured["x_high"]
    assert contained / REPETITIONS >= COVERAGE[0]


def test_pairing_narrows_the_interval() -> None:
    def width(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> float:
        measured = auc_difference(first, second, "x")
        return measured["x_high"] - measured["x_low"]

    together = [width(*paired(seed, 0.0)) for seed in range(20)]
    apart = [width(paired(seed, 0.0)[0], paired(seed + 100, 0.0)[1]) for seed in range(20)]
    assert np.mean(together) < 0.85 * np.mean(apart)


def test_one_image_on_a_side_leaves_any_difference_open() -> None:
    first, second = (np.array([1.0]), np.arange(5.0)), (np.array([0.0]), np.arange(5.0))
    measured = auc_difference(first, second, "x")
    assert (measured["x_low"], measured["x_high"]) == (-1.0, 1.0)
    assert measured["x"] == pytest.approx(0.2)


# Shares


def hits(count: int, trials: int) -> NDArray[np.bool_]:
    return np.arange(trials) < count


def wilson(count: int, trials: int) -> tuple[float, float]:
    z, share = 1.959963984540054, count / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return (centre - half) / (1 + z * z / trials), (centre + half) / (1 + z * z / trials)


@pytest.mark.parametrize(("count", "trials"), [(45, 4500), (10, 10_000), (1, 1000), (0, 500), (500, 500), (1, 2)])
def test_share_has_wilsons_interval(count: int, trials: int) -> None:
    measured = proportion(hits(count, trials), "x")
    assert measured["x"] == count / trials
    assert (measured["x_low"], measured["x_high"]) == pytest.approx(wilson(count, trials), abs=1e-9)
    assert 0 <= measured["x_low"] <= measured["x"] <= measured["x_high"] <= 1


def test_share_of_81_in_263_has_the_published_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3: 0.2553 to 0.3662
    measured = proportion(hits(81, 263), "x")
    assert (round(measured["x_low"], 4), round(measured["x_high"], 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("count", "trials", "low", "high"), [(15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)])
def test_other_published_intervals(count: int, trials: int, low: float, high: float) -> None:
    # The same table
    measured = proportion(hits(count, trials), "x")
    assert (round(measured["x_low"], 4), round(measured["x_high"], 4)) == (low, high)


def test_no_trials_give_no_numbers() -> None:
    assert proportion(hits(0, 0), "x") == {}


# Shares and means of a few


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # auditing.md, section 0: Clopper & Pearson's reference values, in percent
    [(45, 4500, 0.73, 1.34), (10, 10_000, 0.05, 0.18), (1, 1_000, 0.003, 0.56), (0, 500, 0, 0.74)],
)
def test_an_exact_share_has_clopper_and_pearsons_interval(hits: int, trials: int, low: float, high: float) -> None:
    measured = proportion_exact([number < hits for number in range(trials)], "x")
    assert measured["x"] == hits / trials
    assert 100 * measured["x_low"] == pytest.approx(low, abs=0.005)
    assert 100 * measured["x_high"] == pytest.approx(high, abs=0.005)


def test_a_mean_has_the_t_interval_and_a_single_value_none() -> None:
    values = np.array([0.3, 0.5, 0.1, 0.9])
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean(values, "x") == {
        "x": values.mean(),
        "x_low": pytest.approx(expected.low),
        "x_high": pytest.approx(expected.high),
    }
    assert mean(values[:1], "x") == {"x": 0.3}


# Points of the ROC


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.3])
def test_tpr_at_fpr_is_the_highest_of_the_roc_curve(fpr: float) -> None:
    for positive, negative in (normal(0, 800, 1500, 1.0), tied(1, 900, 1400)):
        labels = np.repeat([1, 0], [len(positive), len(negative)])
        false, true, _ = roc_curve(labels, np.concatenate([positive, negative]), drop_intermediate=False)
        measured = tpr_at_fpr(positive, negative, fpr, "x")
        assert measured["x"] == pytest.approx(true[false <= fpr].max())
        assert measured == {
            **measured,
            **proportion_exact([i < round(measured["x"] * len(positive)) for i in range(len(positive))], "x"),
        }


def test_tpr_at_fpr_of_equal_scores_is_zero_and_of_too_few_is_refused() -> None:
    equal = np.zeros(1000)
    assert tpr_at_fpr(equal, equal, 0.01, "x")["x"] == 0
    positive, negative = normal(0, 1000, 999, 1.0)
    assert tpr_at_fpr(positive, negative, 0.01, "x") == {"x": "needs at least 1000 negative images, and there are 999"}
    assert isinstance(tpr_at_fpr(positive, np.append(negative, 0.0), 0.01, "x")["x"], float)


def test_the_best_threshold_has_the_highest_balanced_accuracy() -> None:
    for positive, negative in (normal(3, 40, 70, 1.0), tied(4)):
        scores, labels = np.concatenate([positive, negative]), np.repeat([1, 0], [len(positive), len(negative)])
        threshold, accuracy = best_threshold(positive, negative)
        assert balanced_accuracy_score(labels, scores >= threshold) == pytest.approx(accuracy)
        assert accuracy == pytest.approx(max(balanced_accuracy_score(labels, scores >= each) for each in scores))
    assert best_threshold(np.zeros(5), np.ones(5))[1] == 0.5


# Tests


def test_the_permutation_pvalue_is_scipys() -> None:
    first, second = normal(5, 30, 40, 0.5)

    def distance(one: Floats, two: Floats) -> float:
        return float(abs(one.mean() - two.mean()))

    ours = permutation_pvalue(distance, first, second, np.random.default_rng(0), 4999)
    theirs = permutation_test((first, second), distance, n_resamples=4999, alternative="greater", rng=1)
    assert ours == pytest.approx(theirs.pvalue, abs=4 * math.sqrt(theirs.pvalue / 4999) + 1e-3)
    assert permutation_pvalue(distance, first, first + 99, np.random.default_rng(0), 99) == 0.01


def test_the_permutation_pvalue_of_nothing_is_uniform() -> None:
    def distance(one: Floats, two: Floats) -> float:
        return float(abs(one.mean() - two.mean()))

    values = [
        permutation_pvalue(distance, *normal(seed, 20, 25, 0.0), np.random.default_rng(seed), 99) for seed in range(200)
    ]
    for level in (0.05, 0.25, 0.5):
        share = np.mean(np.array(values) <= level)
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 200)


def test_equivalence_is_two_one_sided_t_tests() -> None:
    values = np.random.default_rng(6).normal(0.01, 0.02, 12)
    error = values.std(ddof=1) / math.sqrt(12)
    sides = [ttest_1samp(values, 0.05, alternative="less"), ttest_1samp(values, -0.05, alternative="greater")]
    ours = equivalence_pvalue(values.mean(), error, 0.05, 11)
    assert ours == pytest.approx(max(side.pvalue for side in sides))
    assert equivalence_pvalue(0.05, error, 0.05, 11) == pytest.approx(0.5)
    assert (equivalence_pvalue(0.01, 0.0, 0.05), equivalence_pvalue(0.05, 0.0, 0.05)) == (0.0, 1.0)


def test_holms_adjusted_values_by_hand() -> None:
    assert holm({"a": 0.03, "b": 0.01, "c": 0.04, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "b": 0.03, "a": 0.06, "c": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


# Resampling


def test_the_bootstrap_interval_covers_the_mean_of_clusters() -> None:
    covered = []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        clusters = draw.normal(0, 1, 25)[:, None] + draw.normal(0, 0.1, (25, 10))  # images of one model hang together

        def statistic(chosen: NDArray[np.int64], clusters: Floats = clusters) -> float:
            return float(clusters[chosen].mean())

        measured = bootstrapped(statistic, 25, draw, "x", 199)
        covered.append(measured["x_low"] <= 0 <= measured["x_high"])
        assert measured["x"] == pytest.approx(clusters.mean())
    assert 0.85 < np.mean(covered) <= 1  # of single images it would be 0.5
    assert bootstrapped(lambda chosen: math.nan, 3, np.random.default_rng(0), "x", 9).keys() == {"x"}


def test_rank_correlation_is_spearmans_and_the_partial_one_removes_the_control() -> None:
    draw = np.random.default_rng(7)
    cause = draw.normal(0, 1, 300)
    first, second = cause + draw.normal(0, 0.5, 300), cause + draw.normal(0, 0.5, 300)
    plain = rank_correlation(first, second, np.random.default_rng(0), "x")
    assert plain["x"] == pytest.approx(spearmanr(first, second).statistic)
    assert plain["x_low"] > 0.5
    partial = rank_correlation(first, second, np.random.default_rng(0), "x", [cause])
    one, two, three = spearmanr(first, second)[0], spearmanr(first, cause)[0], spearmanr(second, cause)[0]
    assert partial["x"] == pytest.approx((one - two * three) / math.sqrt((1 - two**2) * (1 - three**2)))
    assert partial["x_low"] < 0.1
    assert math.isnan(rank_correlation(np.ones(9), first[:9], np.random.default_rng(0), "x")["x"])
