"""U-LiRA: an attacker for each image, on shadows whose answers are planted, and on digits."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score
from test_auditors import Bench, audited

from unlearn.auditors import ulira as ulira_file
from unlearn.auditors.ulira import check, left_out_scores, pooled_auc, two_way_share, two_way_spread, ulira, vulnerable
from unlearn.lab import Lab
from unlearn.settings import SettingError
from unlearn.signals import Signals
from unlearn.statistics import auc_components, tpr_at_fpr
from unlearn.subject import Shadow

Floats = NDArray[np.float64]
SETTINGS: dict[str, Any] = {"references": 16, "game": "unlearning", "nu": 10.0, "limit": 5000, "exchanges": 39}
ENDS = ("", "_low", "_high")


def with_margins(margins: Floats) -> Signals:
    """Two classes, the true one 0, so the first logit is the margin."""
    return Signals(
        np.stack([margins, np.zeros_like(margins)], axis=1).astype(np.float32), np.zeros(len(margins), dtype=np.int64)
    )


@dataclass
class Halves(Bench):
    """A bench with shadows. Their margins are an image's difficulty, a noise that a share `common` of goes together in
    a model, and for members among the forget set `shifts[role]`, among the retained images `kept`."""

    shifts: Mapping[str, float] = field(default_factory=lambda: {"original": 2.0})
    kept: float = 2.0
    images: int = 100
    seed: int = 0
    common: float = 0.2
    exposed: int | None = None  # so many of the forgotten images shift, and the others do not
    asked: list[tuple[str, int]] = field(default_factory=list)

    def shadows(self, role: str, count: int) -> Iterator[Shadow]:
        self.asked.append((role, count))
        sizes = {"forget": self.images, "retain": 120}
        difficulty = {part: np.random.default_rng([self.seed, n]).normal(3, 3, n) for part, n in sizes.items()}
        shift = np.full(self.images, self.shifts.get(role, 0.0))
        shift[self.exposed if self.exposed is not None else self.images :] = 0
        for number in range(count):
            coins = np.random.default_rng([self.seed, 1, number // 2])
            members = {part: (coins.random(n) < 0.5) != bool(number % 2) for part, n in sizes.items()}
            own = [ord(letter) for letter in role]
            draw = np.random.default_rng([self.seed, 2, number, *own])
            together = math.sqrt(self.common) * draw.normal()
            noise = {part: together + math.sqrt(1 - self.common) * draw.normal(size=n) for part, n in sizes.items()}
            moved = {"forget": shift * members["forget"], "retain": self.kept * members["retain"]}
            parts = {part: with_margins(difficulty[part] + noise[part] + moved[part]) for part in sizes}
            yield Shadow(**parts, validation=parts["retain"], test=parts["retain"], members=members)


def measured(role: str, bench: Halves, **settings: Any) -> dict[str, Any]:
    return dict(ulira(audited(role), bench, **(SETTINGS | settings)))


def null(seed: int, pairs: int, images: int) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    difficulty = draw.normal(3, 3, images)
    return difficulty + draw.normal(size=(pairs, images)), difficulty + draw.normal(size=(pairs, images))


# The scores


@pytest.mark.parametrize("nu", [0.0, 10.0])
def test_scores_are_likelihood_ratios_under_fits_without_the_target_pair(nu: float) -> None:
    a, b = null(0, 5, 7)
    b = b * 1.5 - 1
    found, cleared = left_out_scores((a, b), nu)
    for target in range(5):
        fits = []
        for side in (a, b):
            rest = [[side[pair, image] for pair in range(5) if pair != target] for image in range(7)]
            own = [np.var(its, ddof=1) for its in rest]
            fits.append([
                (np.mean(its), (3 * variance + nu * np.mean(own)) / (3 + nu))
                for its, variance in zip(rest, own, strict=True)
            ])  # fmt: skip
        for image in range(7):
            (mean_a, var_a), (mean_b, var_b) = fits[0][image], fits[1][image]
            for values, scores in ((a, found), (b, cleared)):
                value = values[target, image]
                ratio = norm.logpdf(value, mean_a, var_a**0.5) - norm.logpdf(value, mean_b, var_b**0.5)
                assert scores[target, image] == pytest.approx(ratio, rel=1e-9, abs=1e-9)


def test_what_a_pair_answers_does_not_enter_the_fit_it_is_judged_by() -> None:
    a, b = null(1, 6, 10)
    before = left_out_scores((a, b), 10.0)
    b[3] += 50.0
    after = left_out_scores((a, b), 10.0)
    assert np.array_equal(before[0][3].round(9), after[0][3].round(9))
    assert not np.allclose(before[0][2], after[0][2])


def self_included(sides: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    a, b = ((side.mean(axis=0), side.std(axis=0, ddof=1)) for side in sides)
    found, cleared = (norm.logpdf(side, *a) - norm.logpdf(side, *b) for side in sides)
    return found, cleared


@pytest.mark.parametrize(("models", "area", "rate"), [(8, 0.69, 0.12), (16, 0.62, 0.057), (32, 0.58, 0.034)])
def test_with_the_target_in_its_own_fit_an_exact_retrain_looks_guilty(models: int, area: float, rate: float) -> None:
    sides = null(models, models, 1500)
    found, cleared = (its.ravel() for its in self_included(sides))
    assert auc_components(found, cleared)[0] == pytest.approx(area, abs=0.02)
    assert tpr_at_fpr(found, cleared, 0.01, "x")["x"] == pytest.approx(rate, rel=0.25)
    for nu in (0.0, 10.0):
        found, cleared = (its.ravel() for its in left_out_scores(sides, nu))
        assert auc_components(found, cleared)[0] == pytest.approx(0.5, abs=0.01)
        assert tpr_at_fpr(found, cleared, 0.01, "x")["x"] == pytest.approx(0.01, abs=0.004)


@pytest.mark.parametrize("nu", [0.0, 10.0])
@pytest.mark.parametrize(("pairs", "area"), [(8, 0.43), (32, 0.45)])
def test_an_images_own_auc_is_fair_only_within_the_target_pair(pairs: int, area: float, nu: float) -> None:
    found, cleared = left_out_scores(null(pairs, pairs, 1500), nu)
    assert (found > cleared).mean() == pytest.approx(0.5, abs=0.015)
    across = np.mean([(found[:, None, image] > cleared[None, :, image]).mean() for image in range(1500)])
    assert across == pytest.approx(area, abs=0.02)


@pytest.mark.parametrize("pairs", [3, 8, 32])
def test_leave_out_scores_of_models_that_never_differed_are_at_chance(pairs: int) -> None:
    areas = [auc_components(*(its.ravel() for its in left_out_scores(null(seed, pairs, 100), 10.0)))[0]
             for seed in range(10)]  # fmt: skip
    assert np.mean(areas) == pytest.approx(0.5, abs=0.02)


def test_with_many_models_the_auc_is_that_of_two_known_gaussians() -> None:
    a, b = null(0, 200, 50)
    scores = left_out_scores((a + 1.2, b), 10.0)
    assert pooled_auc(scores, "x")["x"] == pytest.approx(norm.cdf(1.2 / math.sqrt(2)), abs=0.01)


# Intervals


def test_the_pooled_auc_is_scikit_learns() -> None:
    scores = left_out_scores(null(3, 8, 30), 10.0)
    truth = np.repeat([1, 0], 240)
    assert pooled_auc(scores, "x")["x"] == pytest.approx(roc_auc_score(truth, np.concatenate(scores).ravel()))


def test_the_spread_of_a_table_adds_what_its_rows_and_its_columns_say() -> None:
    table = np.random.default_rng(0).random((6, 9))
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    assert two_way_spread(table) == pytest.approx(math.sqrt(rows.var(ddof=1) / 6 + columns.var(ddof=1) / 9))
    assert two_way_spread(table[:, :1]) == pytest.approx(math.sqrt(table[:, 0].var(ddof=1) / 6))


def test_intervals_hold_what_models_and_images_to_come_would_give() -> None:
    # Shifted by 1, the mean of many runs stands for the truth; unshifted, it is 0.5
    for shift in (0.0, 1.0):
        runs = []
        for seed in range(40):
            a, b = null(seed, 6, 40)
            runs.append(pooled_auc(left_out_scores((a + shift, b), 10.0), "x"))
        truth = np.mean([its["x"] for its in runs]) if shift else 0.5
        assert np.mean([its["x_low"] <= truth <= its["x_high"] for its in runs]) >= 0.9
        assert np.mean([its["x_high"] - its["x_low"] for its in runs]) < 0.25


def test_certainty_is_claimed_of_nothing() -> None:
    apart = np.ones((8, 30)), np.zeros((8, 30))
    for scores, bounds in ((apart, (0.025 ** (1 / 8), 1.0)), (apart[::-1], (0.0, 1 - 0.025 ** (1 / 8)))):
        answer = pooled_auc(scores, "x")
        assert [answer["x_low"], answer["x_high"]] == pytest.approx(bounds)
    level = pooled_auc((np.zeros((8, 30)), np.zeros((8, 30))), "x")
    assert level["x_low"] < 0.4 < level["x"] == 0.5 < 0.6 < level["x_high"]
    assert two_way_share(np.ones((8, 30)), "x")["x_low"] == pytest.approx(0.025 ** (1 / 8))
    assert two_way_share(np.zeros((8, 30)), "x")["x_high"] == pytest.approx(1 - 0.025 ** (1 / 8))


def test_an_image_is_vulnerable_when_its_accuracy_is_surely_above_chance() -> None:
    # Of 16 decisions 13 right are more than chance, 12 are not
    right = np.full((8, 3), 2.0)
    right[:3, 1] = 1.0
    right[:4, 2] = 1.0
    assert [binomtest(k, 16).proportion_ci(0.95, "exact").low > 0.5 for k in (13, 12)] == [True, False]
    assert vulnerable(right).tolist() == [True, True, False]


# The audit


def test_who_memorised_is_found_and_who_never_saw_is_not() -> None:
    original, retrained = (measured(role, Halves()) for role in ("original", "retrained"))
    assert original["ulira_auc_low"] > 0.7
    assert original["ulira_accuracy_low"] > 0.6
    assert original["ulira_vulnerable_share"] > 0.3
    assert (original["ulira_pvalue"], original["ulira_passed"]) == (1 / 40, 0.0)
    assert retrained["ulira_auc_low"] < 0.5 < retrained["ulira_auc_high"]
    assert retrained["ulira_accuracy_low"] < 0.5 < retrained["ulira_accuracy_high"]
    assert retrained["ulira_vulnerable_share"] < 0.1
    assert retrained["ulira_passed"] == 1.0


def test_retained_images_are_asked_about_too() -> None:
    exposed, hidden = measured("retrained", Halves()), measured("retrained", Halves(kept=0.0))
    assert exposed["ulira_retain_auc_low"] > 0.7
    assert hidden["ulira_retain_auc_low"] < 0.5 < hidden["ulira_retain_auc_high"]


def test_forgetting_too_much_is_found_as_well() -> None:
    answer = measured("unlearned", Halves(shifts={"unlearned": -2.0}))
    assert answer["ulira_auc_low"] > 0.7
    assert answer["ulira_passed"] == 0.0


@pytest.mark.parametrize("game", ["unlearning", "efficacy"])
def test_nineteen_of_twenty_exact_retrains_pass(game: str) -> None:
    # Answers that hang together a good deal, and the fewest shadows with a fit
    passed = [
        measured("retrained", Halves(seed=seed, images=25, common=0.5), references=6, game=game, exchanges=19)
        for seed in range(100)
    ]
    assert 0.89 <= np.mean([its["ulira_passed"] for its in passed]) <= 0.99


def test_unlearned_is_told_from_retrained_where_it_is_not_told_from_never_seen() -> None:
    # Retraining here leaves a trace of its own: a member's margin rises by 2 with whatever else the shadow has learned
    bench = Halves(shifts={"unlearned": 0.0, "retrained": 2.0})
    assert measured("unlearned", bench)["ulira_passed"] == 1.0
    answer = measured("unlearned", bench, game="efficacy")
    assert answer["ulira_passed"] == 0.0
    assert answer["ulira_auc_low"] > 0.7
    alike = Halves(shifts={"unlearned": 2.0, "retrained": 2.0})
    assert measured("unlearned", alike)["ulira_passed"] == 0.0
    assert measured("unlearned", alike, game="efficacy")["ulira_passed"] == 1.0


def test_each_game_asks_for_the_shadows_it_needs() -> None:
    asked = {
        ("unlearned", "unlearning"): ["unlearned"],
        ("unlearned", "efficacy"): ["unlearned", "retrained"],
        ("retrained", "efficacy"): ["retrained", "independent"],
    }
    for (role, game), roles in asked.items():
        bench = Halves()
        measured(role, bench, game=game, references=6)
        assert bench.asked == [(its, 6) for its in roles]


def test_the_images_that_are_told_apart_are_named() -> None:
    answer = measured("original", Halves(exposed=25, shifts={"original": 4.0}))
    assert answer["ulira_vulnerable_share"] == pytest.approx(0.25, abs=0.06)
    assert answer["ulira_accuracy_forget"][:25].min() > answer["ulira_accuracy_forget"][25:].mean() + 0.2
    assert answer["ulira_auc_forget"][:25].mean() > 0.95
    assert answer["ulira_auc_forget"][25:].mean() == pytest.approx(0.5, abs=0.06)


def test_arrays_are_kept_for_every_image() -> None:
    answer = measured("original", Halves(images=30), references=8, limit=50)
    shapes = {key: value.shape for key, value in answer.items() if isinstance(value, np.ndarray)}
    assert shapes == {
        f"ulira_{name}_{part}{side}": (4, size) if side else (size,)
        for part, size in (("forget", 30), ("retain", 50))
        for name, sides in (("scores", ("_members", "_others")), ("accuracy", ("",)), ("auc", ("",)))
        for side in sides
    }
    scores = [answer[f"ulira_scores_forget_{side}"].astype(np.float64) for side in ("members", "others")]
    assert answer["ulira_auc"] == pytest.approx(auc_components(*(its.ravel() for its in scores))[0], abs=1e-6)
    right = [(scores[0] > 0).mean(axis=0), (scores[1] <= 0).mean(axis=0)]
    assert answer["ulira_accuracy_forget"] == pytest.approx(np.mean(right, axis=0))
    assert answer["ulira_accuracy"] == pytest.approx(answer["ulira_accuracy_forget"].mean(), abs=1e-6)


def test_an_auditor_measures_exactly_what_it_declares() -> None:
    answer = measured("original", Halves(images=1300), exchanges=9)
    numbers = {key for key, value in answer.items() if isinstance(value, float)}
    declared = {
        f"{its.name}{end}" for its in ulira_file.METRICS for end in (ENDS if its.interval else ENDS[:1])
    }  # fmt: skip
    assert numbers == declared
    assert all(isinstance(value, float | np.ndarray) for value in answer.values())
    assert {its.dtype for its in answer.values() if isinstance(its, np.ndarray)} == {np.dtype(np.float32)}
    for metric in ulira_file.METRICS:
        if metric.interval:
            assert answer[f"{metric.name}_low"] <= answer[metric.name] <= answer[f"{metric.name}_high"]
    # 10 400 scores a side: the true-positive rate at that threshold, of all scores together
    scores = [answer[f"ulira_scores_forget_{side}"].ravel() for side in ("members", "others")]
    assert answer["ulira_tpr_at_fpr_0.001"] == pytest.approx(tpr_at_fpr(*scores, 0.001, "x")["x"], abs=1e-3)
    assert measured("original", Halves(images=60))["ulira_tpr_at_fpr_0.001"].startswith("needs at least 10000")


def test_the_same_audit_twice_gives_the_same() -> None:
    first, second = (measured("original", Halves(images=30), exchanges=19) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_of_too_few_shadows_every_metric_is_refused_and_none_is_trained() -> None:
    bench = Halves()
    answer = measured("original", bench, references=4)
    assert answer.keys() == {its.name for its in ulira_file.METRICS}
    assert set(answer.values()) == {
        "needs at least 6 references, two pairs for the fit and the one attacked, and there are 4"
    }
    assert bench.asked == []


@pytest.mark.parametrize(
    ("references", "forgotten", "message"),
    [(2, 100, "references=2: must be at least 4"), (16, 19, "the forget set has 19")],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(references: int, forgotten: int, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check(SimpleNamespace(forget=np.zeros(forgotten)), **(SETTINGS | {"references": references}))
    check(SimpleNamespace(forget=np.zeros(20)), **(SETTINGS | {"references": 4}))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("nu", [0.0, 10.0])
def test_the_smallest_forget_sets_and_equal_answers_have_an_outcome(images: int, nu: float) -> None:
    class Alike(Halves):
        def shadows(self, role: str, count: int) -> Iterator[Shadow]:
            for shadow in super().shadows(role, count):
                forget = with_margins(np.full(images, 1e9))
                yield Shadow(forget, shadow.retain, shadow.validation, shadow.test, shadow.members)

    for bench in (Halves(images=images), Alike(images=images)):
        answer = measured("original", bench, nu=nu, references=6, exchanges=19)
        assert all(np.isfinite(value).all() for value in answer.values() if not isinstance(value, str))
        assert answer["ulira_auc_high"] - answer["ulira_auc_low"] > 0.1
    assert (answer["ulira_auc"], answer["ulira_accuracy"], answer["ulira_passed"]) == (0.5, 0.5, 1.0)


# On digits with wrong labels, which only who was trained on them can know


@pytest.fixture(scope="module")
def digits(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    words = ["method=random_label", "method.epochs=1", "auditor=[ulira]", "objective=ulira_auc", "train.epochs=20"]
    words += ["dataset.label_noise=0.3", "auditor.ulira.references=6"]
    return Lab(composing(tmp_path_factory.mktemp("store"), words).settings)


def test_what_networks_memorised_is_found_and_what_they_never_saw_is_not(digits: Lab) -> None:
    original, retrained, unlearned = (
        digits.audit("ulira", digits.subject(role)) for role in ("original", "retrained", "unlearned")
    )
    assert original["ulira_auc_low"] > 0.6
    assert original["ulira_passed"] == 0.0
    assert retrained["ulira_auc_low"] < 0.5 < retrained["ulira_auc_high"]
    assert retrained["ulira_passed"] == 1.0
    assert {original["ulira_auc"], retrained["ulira_auc"]}.isdisjoint({unlearned["ulira_auc"]})
    assert min(its["ulira_retain_auc_low"] for its in (original, retrained)) > 0.55
