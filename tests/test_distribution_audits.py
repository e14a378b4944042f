"""Audits of distributions over models: forgetting quality and KLoM, on planted margins and on digits."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta, entropy
from test_auditors import Bench, audited

from unlearn.auditors import forgetting_quality as quality_file
from unlearn.auditors import klom as klom_file
from unlearn.auditors.forgetting_quality import epsilon_table, epsilons, forgetting_quality, points_of
from unlearn.auditors.klom import divergences, gaussian_divergences, klom
from unlearn.lab import Lab
from unlearn.many_models import exchange_verdict, models_by_images, over_images
from unlearn.settings import SettingError, check
from unlearn.signals import Signals
from unlearn.subject import Subject

Floats = NDArray[np.float64]
QUALITY: dict[str, Any] = {
    "models": 32, "same_original": True, "attacks": "both", "rates": "observed", "delta": 1e-5, "cap": 50.0,
    "exchanges": 19,
}  # fmt: skip
KLOM: dict[str, Any] = {"models": 50, "bins": 20, "clip": 100.0, "floor": 1e-5, "limit": 5000, "exchanges": 19}
ENDS = ("", "_low", "_high")


def with_margins(margins: Floats) -> Signals:
    """Two classes, the true one 0, so the first logit is the margin."""
    rows = np.stack([margins, np.zeros_like(margins)], axis=1)
    return Signals(rows.astype(np.float32), np.zeros(len(margins), dtype=np.int64))


@dataclass
class Many(Bench):
    """A bench with any number of models. An image's margins are normal around its difficulty, a share `common` of the
    variance being one draw for all images of a model; those of `shifts[role]` on the forget set, scaled by `spread`."""

    shifts: Mapping[str, float] = field(default_factory=lambda: {"original": 3.0})
    images: Mapping[str, int] = field(
        default_factory=lambda: {"forget": 40, "retain": 30, "validation": 20, "test": 10}
    )
    seed: int = 0
    common: float = 0.2
    spread: float = 1.0
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def _made(self, purpose: str, role: str, count: int) -> Iterator[Subject]:
        for number in range(count):
            draw = np.random.default_rng([self.seed, number, *map(ord, purpose)])
            together = draw.normal()
            parts = {}
            for part, size in self.images.items():
                difficulty = np.random.default_rng([self.seed, size]).normal(3, 2, size)
                noise = math.sqrt(self.common) * together + math.sqrt(1 - self.common) * draw.normal(size=size)
                shift = self.shifts.get(role, 0.0) if part == "forget" else 0.0
                parts[part] = with_margins(difficulty + self.spread * noise + shift)
            yield audited(role, **parts)

    def oracles(self, count: int) -> Iterator[Subject]:
        self.asked.append(("oracles", count))
        return self._made("oracle", "retrained", count)

    def repeats(self, role: str, count: int, *, same_original: bool) -> Iterator[Subject]:
        self.asked.append((role, count, same_original))
        return self._made("repeat" if role == "retrained" else role, role, count)


def quality_of(role: str, bench: Bench, **settings: Any) -> dict[str, Any]:
    return dict(forgetting_quality(audited(role), bench, **(QUALITY | settings)))


def klom_of(role: str, bench: Bench, **settings: Any) -> dict[str, Any]:
    return dict(klom(audited(role), bench, **(KLOM | settings)))


def gaussians(seed: int, models: int, images: int, spread: float = 1.0) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    one, two = (draw.normal(3, spread, (models, images)) for _ in range(2))
    return one, two


def measured(ours: Floats, oracles: Floats, attacks: Any = "both", rates: Any = "observed") -> Floats:
    table = epsilon_table(len(ours), 1e-5, 50.0, rates)
    return epsilons(ours, oracles, table=table, cap=50.0, attacks=attacks, rates=rates)


def of_images(*columns: list[float]) -> Floats:
    return np.array(columns, dtype=np.float64).T


# Sets of models


def test_margins_of_all_models_are_one_row_a_model() -> None:
    known = models_by_images(Many().oracles(3), lambda signals: signals.margin, ("retain", "forget"))
    assert {part: its.shape for part, its in known.items()} == {"retain": (3, 30), "forget": (3, 40)}
    for row, subject in zip(known["forget"], Many().oracles(3), strict=True):
        assert np.array_equal(row, subject.forget.margin)


def test_an_interval_is_over_images_and_one_image_has_none() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    answer = over_images(values, np.random.default_rng(1), "x")
    assert answer["x"] == values.mean()
    half = 1.96 * values.std() / 20
    assert [answer["x_low"], answer["x_high"]] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.06)
    assert over_images(values[:1], np.random.default_rng(1), "x") == {"x": values[0]}


def test_nineteen_of_twenty_sets_that_are_alike_pass_however_their_images_hang_together() -> None:
    def distance(first: Floats, second: Floats) -> float:
        return float(gaussian_divergences(first, second, 1e-5).mean())

    passed = []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        sets = [0.7 * draw.normal(size=(12, 1)) + 0.7 * draw.normal(size=(12, 15)) for _ in range(3)]
        answer = exchange_verdict(distance, *sets, np.random.default_rng([seed, 1]), 19, "x")  # type: ignore[arg-type]
        passed.append(answer["x_passed"])
    assert 0.91 <= np.mean(passed) <= 0.985


@pytest.mark.parametrize("audit", [quality_of, klom_of])
def test_a_second_retrain_passes_and_who_memorised_does_not(audit: Callable[..., dict[str, Any]]) -> None:
    name = "klom" if audit is klom_of else "forgetting_quality"
    outcomes = {role: audit(role, Many(), exchanges=39)[f"{name}_passed"] for role in ("unlearned", "original")}
    assert outcomes == {"unlearned": 1.0, "original": 0.0}
    # The retrained column is the null itself
    assert audit("retrained", Many())[f"{name}_passed"] == 1.0


@pytest.mark.parametrize("audit", [quality_of, klom_of])
def test_an_audit_asks_for_no_more_models_than_set(audit: Callable[..., dict[str, Any]]) -> None:
    bench = Many()
    audit("unlearned", bench, models=50)
    first = (quality_of, True), (klom_of, False)
    assert bench.asked == [("unlearned", 50, dict(first)[audit]), ("oracles", 50), ("retrained", 50, False)]


def test_one_original_or_one_for_each_is_a_choice() -> None:
    bench = Many()
    quality_of("unlearned", bench, same_original=False)
    assert bench.asked[0] == ("unlearned", 32, False)


@pytest.mark.parametrize("audit", [quality_of, klom_of])
def test_the_same_audit_twice_gives_the_same(audit: Callable[..., dict[str, Any]]) -> None:
    first, second = (audit("original", Many()) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("audit", "file"), [(quality_of, quality_file), (klom_of, klom_file)])
def test_an_auditor_measures_exactly_what_it_declares(audit: Callable[..., dict[str, Any]], file: Any) -> None:
    answer = audit("unlearned", Many())
    numbers = {key for key, value in answer.items() if isinstance(value, float)}
    assert numbers == {f"{its.name}{end}" for its in file.METRICS for end in (ENDS if its.interval else ENDS[:1])}
    arrays = {key: value for key, value in answer.items() if isinstance(value, np.ndarray)}
    assert len(answer) == len(numbers) + len(arrays)
    assert {value.dtype for value in arrays.values()} == {np.dtype(np.float32)}
    for metric in file.METRICS:
        if metric.interval:
            assert answer[f"{metric.name}_low"] <= answer[metric.name] <= answer[f"{metric.name}_high"]


@pytest.mark.parametrize("models", [0, 3])
def test_a_set_has_at_least_four_models(models: int) -> None:
    for file, function in ((quality_file, forgetting_quality), (klom_file, klom)):
        kind = function.__annotations__["models"]
        assert check(kind, "auditor.x.models", 4) == 4, file
        with pytest.raises(SettingError, match=r"auditor\.x\.models=\d: must be greater than or equal to 4"):
            check(kind, "auditor.x.models", models)


# Forgetting quality


def by_hand(one: list[float], two: list[float], rates: str) -> float:
    """One image's epsilon, every attack of both grids tried in turn."""
    models = len(one)

    def epsilon(missed: int, false: int) -> float:
        fnr, fpr = missed / models, false / models
        if rates == "upper_bounds":
            bound = [1.0 if k == models else float(beta.ppf(0.975, k + 1, models - k)) for k in (missed, false)]
            fnr, fpr = bound
        elif fnr == fpr == 0:
            return 50.0
        elif fnr * fpr == 0:
            return 0.0
        ways = [math.log((1 - 1e-5 - a) / b) for a, b in ((fpr, fnr), (fnr, fpr)) if 1 - 1e-5 - a > 0]
        return min(50.0, max(0.0, *ways, 0.0))

    low, high = (two, one) if np.median(one) >= np.median(two) else (one, two)
    narrow, wide = sorted((one, two), key=lambda side: max(side) - min(side))
    width = max(narrow) - min(narrow)
    span = max(one + two) - min(one + two)
    best = 0.0
    for t in np.linspace(min(one + two), max(one + two), math.ceil(span * 100)):
        best = max(best, epsilon(sum(v < t for v in high), sum(v >= t for v in low)))
    rights = np.linspace(min(narrow) + width - 2, max(narrow) + 2, 400)[:, None]
    lefts = np.stack([np.linspace(right - width - 2, right - width + 2, 400) for right in rights[:, 0]])
    inside = [sum(((lefts <= v) & (v <= rights)).astype(int) for v in side) for side in (narrow, wide)]
    pairs = {*zip(*(its.ravel().tolist() for its in inside), strict=True)}
    return max(best, *(epsilon(models - hits, false) for hits, false in pairs))


@pytest.mark.parametrize("rates", ["observed", "upper_bounds"])
def test_epsilon_equals_every_attack_tried_in_turn(rates: str) -> None:
    draw = np.random.default_rng(0)
    # Rounded, so that many answers are equal, and never on the grid
    ours, oracles = (np.round(draw.normal(m, s, (12, 3)), 1) + 0.00123 for m, s in ((0, 0.5), (1.7, 1.0)))
    expected = [by_hand(ours[:, i].tolist(), oracles[:, i].tolist(), rates) for i in range(3)]
    assert measured(ours, oracles, rates=rates) == pytest.approx(expected, abs=1e-9)
    assert len(set(expected)) == 3, "nothing to tell apart"


def test_sides_without_overlap_get_the_cap_and_no_points() -> None:
    apart = measured(
        of_images([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]), of_images([9.0, 8.0, 7.0, 6.0], [3.0005, 4, 5, 6])
    )
    assert apart.tolist() == [50.0, 50.0]
    assert points_of(apart, 4).tolist() == [0.0, 0.0]


def test_a_gap_in_which_a_whole_side_lies_is_found_by_intervals_alone() -> None:
    wide, narrow = [-9.0, -8.0, 8.0, 9.0], [-1.0, 0.0, 0.5, 1.0]
    assert measured(of_images(narrow), of_images(wide)).tolist() == [50.0]
    assert measured(of_images(narrow), of_images(wide), "threshold")[0] < 1.0


def test_the_same_answers_twice_get_every_point() -> None:
    ours, _ = gaussians(0, 64, 20)
    for attacks, rates in itertools.product(("both", "threshold"), ("observed", "upper_bounds")):
        found = measured(ours, ours.copy(), attacks, rates)
        assert found.tolist() == [0.0] * 20
        assert points_of(found, 64).tolist() == [1.0] * 20


@pytest.mark.filterwarnings("error")
def test_constant_answers_are_told_by_their_range_or_are_equal() -> None:
    spread = [0.0, 1.0, 2.0, 3.0]
    ours = of_images([1.5] * 4, [1.5] * 4, [2.0] * 4, [1.5, 1.5, 1.5, 1.51])
    oracles = of_images(spread, [1.5] * 4, [1.5] * 4, spread)
    assert measured(ours, oracles).tolist() == [50.0, 0.0, 50.0, 50.0]
    certified = measured(ours, oracles, rates="upper_bounds")
    assert certified[1] == 0.0
    assert (certified < 1).all()  # of four models nothing can be certain


@pytest.mark.parametrize(("models", "most"), [(32, 2.1), (64, 2.8), (128, 3.5), (256, 4.2), (512, 4.9)])
def test_perfect_separation_certifies_what_so_many_models_can(models: int, most: float) -> None:
    ours, oracles = gaussians(0, models, 3)
    assert measured(ours + 50, oracles, rates="upper_bounds") == pytest.approx([most] * 3, abs=0.05)


@pytest.mark.parametrize(("models", "bins"), [(512, 14), (64, 10), (4, 4)])
def test_points_halve_every_half_unit_up_to_what_the_models_can_show(models: int, bins: int) -> None:
    places = np.arange(20) / 2
    expected = [0.5**place if place < bins else 0.0 for place in range(20)]
    assert points_of(places, models).tolist() == expected
    assert points_of(places + 0.49, models).tolist() == expected


@pytest.mark.parametrize(("models", "images"), [(32, 150), (128, 80), (512, 40)])
@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_perfect_unlearning_scores_a_fifth(models: int, images: int, spread: float) -> None:
    found = measured(*gaussians(models, models, images, spread))
    assert found.mean() == pytest.approx(1.55, abs=0.15)
    assert points_of(found, models).mean() == pytest.approx(0.185, abs=0.045)
    alone = measured(*gaussians(models, models, images, spread), "threshold")
    assert points_of(alone, models).mean() == pytest.approx(0.345, abs=0.07)


def test_quality_is_given_beside_that_of_retrained_models() -> None:
    answer = quality_of("unlearned", Many())
    assert answer["forgetting_quality"] == points_of(answer["forgetting_quality_epsilons"].astype(float), 32).mean()
    null = points_of(answer["forgetting_quality_epsilons_null"].astype(float), 32).mean()
    assert answer["forgetting_quality_null"] == null
    assert answer["forgetting_quality_normalised"] == pytest.approx(answer["forgetting_quality"] / null)
    assert answer["forgetting_quality_normalised_low"] < 1 < answer["forgetting_quality_normalised_high"]
    assert answer["forgetting_quality_epsilon"] == pytest.approx(answer["forgetting_quality_epsilons"].mean(), abs=1e-6)
    assert quality_of("retrained", Many())["forgetting_quality_normalised"] == 1.0
    original = quality_of("original", Many())
    assert original["forgetting_quality_normalised_high"] < 0.5


def test_the_final_score_weighs_with_the_ratios_of_accuracy() -> None:
    class Worse(Many):
        def repeats(self, role: str, count: int, *, same_original: bool) -> Iterator[Subject]:
            # Right on 3 and 2 of 4 images, where the oracles are right on all
            sides = [with_margins(np.array(signs)) for signs in ([1.0, 1, 1, -1], [1.0, 1, -1, -1])]
            for subject in super().repeats(role, count, same_original=same_original):
                yield audited(role, forget=subject.forget, retain=sides[0], test=sides[1])

        def oracles(self, count: int) -> Iterator[Subject]:
            right = with_margins(np.ones(4))
            return (audited("retrained", forget=its.forget, retain=right, test=right) for its in super().oracles(count))

    answer = quality_of("unlearned", Worse())
    assert answer["forgetting_quality_score"] == pytest.approx(answer["forgetting_quality"] * 0.75 * 0.5)


def test_without_points_for_retrained_models_there_is_nothing_to_divide_by() -> None:
    class Strangers(Many):
        def oracles(self, count: int) -> Iterator[Subject]:
            return (audited("retrained", forget=with_margins(its.forget.margin + 50)) for its in super().oracles(count))

    answer = quality_of("unlearned", Strangers())
    assert answer["forgetting_quality_null"] == 0.0
    assert answer["forgetting_quality_normalised"].startswith("retrained models get no points")
    assert math.isnan(answer["forgetting_quality_score"])  # the test images are not there either


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("margin", [None, 50.0, 1e9])
@pytest.mark.parametrize("audit", [quality_of, klom_of])
def test_the_smallest_forget_sets_and_equal_answers_have_an_outcome(
    audit: Callable[..., dict[str, Any]], margin: float | None, images: int
) -> None:
    class Alike(Many):
        def _made(self, purpose: str, role: str, count: int) -> Iterator[Subject]:
            for its in super()._made(purpose, role, count):
                signals = its.forget if margin is None else with_margins(np.full(images, margin))
                yield audited(role, forget=signals, retain=its.retain, validation=its.validation, test=its.test)

    bench = Alike(images={"forget": images, "retain": 3, "validation": 0, "test": 4})
    models = 8 if audit is quality_of else 50
    answer = audit("unlearned", bench, models=models)
    assert all(np.isfinite(value).all() for value in answer.values() if not isinstance(value, str))
    assert not [name for name in answer if "validation" in name]
    if margin is not None and audit is quality_of:
        assert (answer["forgetting_quality"], answer["forgetting_quality_passed"]) == (1.0, 1.0)
    elif margin is not None:
        assert (answer["klom_forget"], answer["klom_forget_gaussian"], answer["klom_passed"]) == (0.0, 0.0, 1.0)


def test_four_models_are_enough_for_forgetting_quality() -> None:
    answer = quality_of("unlearned", Many(), models=4)
    assert 0 <= answer["forgetting_quality"] <= 1
    assert isinstance(answer["forgetting_quality_passed"], float)


# KLoM


def histograms_by_numpy(one: Floats, two: Floats, bins: int, floor: float) -> float:
    edges = np.histogram_bin_edges(np.concatenate([one, two]), bins)
    p, q = (np.histogram(side, edges)[0] / len(side) for side in (one, two))
    return float(sum(a * math.log(a / max(b, floor)) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("bins", [2, 20])
def test_divergences_are_those_of_numpys_histograms(bins: int) -> None:
    one, two = gaussians(0, 60, 30)
    found = divergences(one, two * 1.3, bins, 1e-5)
    expected = [histograms_by_numpy(one[:, i], 1.3 * two[:, i], bins, 1e-5) for i in range(30)]
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_largest_margin_is_counted() -> None:
    # Four bins of [0, 4]: 4 belongs to the last
    one, two = of_images([0.0, 4.0]), of_images([0.0, 0.5])
    assert divergences(one, two, 4, 1e-5) == pytest.approx([0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-5)])


def test_equal_answers_do_not_diverge_and_separate_ones_as_far_as_the_floor_lets_them() -> None:
    one, _ = gaussians(0, 100, 10)
    assert divergences(one, one.copy(), 20, 1e-5).tolist() == [0.0] * 10
    far = divergences(one, one + 1000, 20, 1e-5)
    assert far == pytest.approx([math.log(1e5)] * 10)  # all of each in one bin
    near = divergences(one, one + 10, 20, 1e-5)
    for image in range(10):
        edges = np.histogram_bin_edges(np.concatenate([one[:, image], one[:, image] + 10]), 20)
        spread = entropy(np.histogram(one[:, image], edges)[0] / 100)
        assert near[image] == pytest.approx(math.log(1e5) - spread)
    assert (near > 9).all()
    assert (near < 11).all()


@pytest.mark.parametrize(
    ("models", "mean", "quantile"),
    [(500, 0.05, None), (200, 0.15, None), (100, 0.35, 0.65), (50, 0.88, None), (20, 3.1, None)],
)
def test_the_null_depends_on_the_number_of_models(models: int, mean: float, quantile: float | None) -> None:
    found = divergences(*gaussians(models, models, 2000), 20, 1e-5)
    assert found.mean() == pytest.approx(mean, rel=0.12)
    if quantile:
        assert np.quantile(found, 0.95) == pytest.approx(quantile, rel=0.1)
        one, two = gaussians(models, models, 2000)
        assert divergences(one + 1, two, 20, 1e-5).mean() == pytest.approx(1.22, rel=0.1)


def test_the_closed_form_is_less_biased_and_right_where_it_is_known() -> None:
    one, two = gaussians(0, 100, 2000)
    assert gaussian_divergences(one, two, 1e-5).mean() < 0.025 < divergences(one, two, 20, 1e-5).mean() / 10
    one, two = gaussians(1, 5000, 20)
    shifted = gaussian_divergences(one, 2 * (two - 3) + 4, 1e-5)  # N(3, 1) from N(4, 2)
    assert shifted.mean() == pytest.approx(math.log(2) + (1 + 1) / 8 - 0.5, abs=0.02)
    assert gaussian_divergences(one, two * 0 + 3, 1e-5).tolist() == [-math.log(1e-5)] * 20


def test_klom_is_given_for_every_part_beside_its_null() -> None:
    answer = klom_of("original", Many(), models=100)
    assert answer["klom_forget_low"] > 2 * answer["klom_forget_null_high"]
    for part in ("retain", "validation"):
        assert answer[f"klom_{part}"] == pytest.approx(answer[f"klom_{part}_null"], abs=0.15)
    for name in ("klom_forget", "klom_forget_null"):
        values = answer[f"{name}_per_image"].astype(np.float64)
        assert answer[name] == pytest.approx(values.mean(), abs=1e-6)
        for q in (95, 99):
            assert answer[f"{name}_quantile_{q}"] == pytest.approx(np.quantile(values, q / 100), abs=1e-6)
    margins = [
        np.stack([its.forget.margin for its in made])
        for made in (Many().oracles(100), Many().repeats("original", 100, same_original=False))
    ]
    assert answer["klom_forget_reversed"] == pytest.approx(divergences(*margins, 20, 1e-5).mean(), abs=1e-9)
    assert answer["klom_forget_reversed"] != answer["klom_forget"]
    retrained = klom_of("retrained", Many())
    assert retrained["klom_forget"] == retrained["klom_forget_null"]


def test_no_more_images_of_a_part_than_the_limit_are_asked_about() -> None:
    answer = klom_of("unlearned", Many(), limit=25)
    sizes = {part: len(answer[f"klom_{part}_per_image"]) for part in ("forget", "retain", "validation")}
    assert sizes == {"forget": 25, "retain": 25, "validation": 20}


def test_margins_beyond_the_clip_count_as_it() -> None:
    bench = Many(shifts={"unlearned": 1000.0})
    answer = klom_of("unlearned", bench, clip=2.0)
    # Of an image with a margin above 2 in all oracles nothing can be told
    easy = np.stack([its.forget.margin for its in Many().oracles(50)]).min(axis=0) > 2
    assert easy.any()
    assert answer["klom_forget_per_image"][easy].tolist() == [0.0] * easy.sum()
    assert answer["klom_forget"] > 1


@pytest.mark.parametrize("models", [4, 9, 10, 49])
def test_of_too_few_models_a_histogram_is_refused_in_words(models: int) -> None:
    bench = Many()
    answer = klom_of("original", bench, models=models)
    refused = {key for key, value in answer.items() if isinstance(value, str)}
    closed_form = {its.name for its in klom_file.METRICS if "gaussian" in its.name}
    declared = {its.name for its in klom_file.METRICS}
    assert refused == (declared if models < 10 else declared - closed_form)
    fewest = 10 if models < 10 else 50
    assert answer["klom_passed"].startswith(f"needs at least {fewest} models")
    assert bool(bench.asked) == (models >= 10), "models that nobody looks at are not made"
    if models >= 10:
        assert answer["klom_forget_gaussian_low"] > answer["klom_forget_gaussian_null_high"]


# On digits with wrong labels, which only who was trained on them can know


@pytest.fixture(scope="module")
def digits(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    words = ["method=none", "auditor=[forgetting_quality,klom]", "objective=forgetting_quality", "train.epochs=16"]
    words += ["dataset.label_noise=0.3", "model.widths=[16,16]", "auditor.klom.models=10"]
    words += ["auditor.forgetting_quality.models=10", "auditor.forgetting_quality.same_original=false"]
    return Lab(composing(tmp_path_factory.mktemp("store"), words).settings)


def test_what_networks_memorised_is_told_from_retraining(digits: Lab) -> None:
    subject = digits.subject("original")
    quality, divergence = (digits.audit(name, subject) for name in ("forgetting_quality", "klom"))
    assert quality["forgetting_quality_passed"] == 0.0
    assert quality["forgetting_quality_normalised_high"] < 1
    assert divergence["klom_forget_gaussian_low"] > divergence["klom_forget_gaussian_null_high"]
    assert divergence["klom_validation_gaussian_low"] < divergence["klom_validation_gaussian_null_high"]
    assert digits.refused("klom", subject).keys() >= {"klom_forget", "klom_passed"}
    kept = np.load(digits._audited("klom", subject).folder / "arrays.npz")
    assert kept["klom_forget_gaussian_per_image"].shape == (len(digits.forget),)
