"""Audits of predicted distributions, calibration, classes and composites, against loops, torch, scipy, scikit-learn."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from laws import changed, state_of
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss
from test_auditors import CLASSES, Bench, answers, audited, random_answers, right_and_wrong, some
from test_signal_audits import assert_intervals_hold, declared, numbers
from torch import nn
from torch.nn import functional

from unlearn.auditors import calibration as calibration_file
from unlearn.auditors import composite as composite_file
from unlearn.auditors import divergence as divergence_file
from unlearn.auditors import per_class as per_class_file
from unlearn.auditors.calibration import calibration
from unlearn.auditors.composite import composite
from unlearn.auditors.divergence import divergence
from unlearn.auditors.per_class import per_class
from unlearn.data.images import Images
from unlearn.lab import Lab
from unlearn.request import Recipe
from unlearn.settings import SettingError
from unlearn.signals import Signals, logits
from unlearn.subject import Subject

Floats = NDArray[np.float64]
PLAIN = {"models": 4, "compat": None}
BINNED = {"bins": 15, "resamples": 99}
COMPOSED: dict[str, Any] = {"metrics": ["loss_attack_accuracy"], "weight": 0.5}


def unknown(*part: str) -> Any:
    raise SettingError("auditor", "x", "known by signals alone")


@dataclass
class House(Bench):
    """A bench that can be asked for further retrains and for the original."""

    further: list[Subject] = field(default_factory=list)
    original: Callable[[], Subject] = unknown
    training: Any = None
    attack: Callable[[], float] = lambda: 0.6

    def oracles(self, count: int) -> Iterator[Subject]:
        return iter(self.further[:count])

    def subject(self, role: str) -> Subject:
        assert role == "original"
        return self.original()

    def measure(self, metric: str, subject: Subject) -> float:
        assert metric == "loss_attack_accuracy"
        return self.attack()


def drawn(seed: int, count: int = 40, noise: float = 1.0, shift: float = 0.0, hidden: Any = unknown) -> Subject:
    """A model of one recipe: what all agree on, and noise of its own; `shift` sharpens those for the forget set."""
    parts = {}
    for number, part in enumerate(("forget", "retain", "test")):
        common = random_answers(number, count, 2.0)
        own = np.random.default_rng([seed, number]).normal(0, noise, common.logits.shape)
        sharp = shift * np.eye(CLASSES)[common.labels] if part == "forget" else 0.0
        parts[part] = Signals((common.logits + own + sharp).astype(np.float32), common.labels)
    return replace(audited(f"model {seed}", **parts), images=hidden)


# Divergences


def rows(signals: Signals) -> Floats:
    logits = signals.logits.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def kl_by_hand(first: Signals, second: Signals) -> list[float]:
    return [
        sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        for p, q in zip(rows(first), rows(second), strict=True)
    ]


def js_by_hand(first: Signals, second: Signals) -> list[float]:
    return [float(jensenshannon(p, q) ** 2) for p, q in zip(rows(first), rows(second), strict=True)]


def test_divergences_are_those_written_out() -> None:
    subject, reference, further = drawn(0), drawn(1), [drawn(seed) for seed in (2, 3, 4, 5)]
    measured = divergence(subject, House(reference, further=further), **PLAIN)
    for part, (kind, by_hand) in itertools.product(
        ("forget", "test", "retain"), (("kl", kl_by_hand), ("js", js_by_hand))
    ):
        own, known, *others = (getattr(its, part) for its in (subject, reference, *further))
        name = f"divergence_{kind}_{part}"
        images = np.array(by_hand(known, own))
        half = student.ppf(0.975, 39) * images.std(ddof=1) / math.sqrt(40)
        assert measured[name] == pytest.approx(images.mean(), rel=1e-9)
        assert measured[f"{name}_high"] - measured[name] == pytest.approx(half, rel=1e-9)
        assert measured[f"{name}_images"] == pytest.approx(images, rel=1e-4, abs=1e-7)
        assert measured[f"{name}_retrains"] == pytest.approx(np.mean([by_hand(its, own) for its in others]), rel=1e-9)
        pairs = [np.mean(by_hand(a, b)) for a, b in itertools.permutations(others, 2)]
        assert measured[f"{name}_floor"] == pytest.approx(np.mean(pairs), rel=1e-9)
    assert rel_entr(rows(reference.forget), rows(subject.forget)).sum(axis=1).mean() == pytest.approx(
        measured["divergence_kl_forget"], rel=1e-9
    )


def test_the_floors_interval_is_the_jackknife_over_models() -> None:
    further = [drawn(seed) for seed in range(5)]
    measured = divergence(drawn(9), House(drawn(8), further=further), models=5, compat=None)

    def level(models: list[Subject]) -> float:
        return float(np.mean([js_by_hand(a.test, b.test) for a, b in itertools.combinations(models, 2)]))

    left_out = np.array([level(further[:i] + further[i + 1 :]) for i in range(5)])
    half = student.ppf(0.975, 4) * math.sqrt(4 / 5 * ((left_out - left_out.mean()) ** 2).sum())
    assert measured["divergence_js_test_floor_high"] - measured["divergence_js_test_floor"] == pytest.approx(
        half, rel=1e-9
    )


def only(labels: list[int], size: float = 1000.0) -> Signals:
    """Answers that are sure of these classes."""
    return Signals((size * np.eye(CLASSES)[labels]).astype(np.float32), np.zeros(len(labels), dtype=np.int64))


def test_jensen_shannon_is_symmetric_and_at_most_ln_2() -> None:
    one, two = ({part: only(labels) for part in ("forget", "retain", "test")} for labels in ([0, 1, 2], [3, 4, 3]))
    opposite = divergence(replace(audited(**one), images=unknown), House(audited(**two)), models=0, compat=None)
    assert opposite["divergence_js_forget"] == pytest.approx(math.log(2), rel=1e-12)
    assert opposite["divergence_kl_forget"] == pytest.approx(1000, rel=1e-6)
    first, second = drawn(0), drawn(1)
    there, back = (divergence(a, House(b), models=0, compat=None) for a, b in ((first, second), (second, first)))
    assert there["divergence_js_forget"] == pytest.approx(back["divergence_js_forget"], rel=1e-12)
    assert there["divergence_kl_forget"] != pytest.approx(back["divergence_kl_forget"], rel=1e-3)
    same = divergence(first, House(first), models=0, compat=None)
    assert same["divergence_kl_forget"] == 0.0 <= same["divergence_js_forget"] < 1e-15


def test_a_further_retrain_passes_nineteen_times_in_twenty_and_a_sharper_model_never() -> None:
    trials = 80
    passed, gone = [], []
    for trial in range(trials):
        models = [drawn(100 * trial + i, 20) for i in range(5)]
        house = House(models[0], further=models[1:])
        passed.append(divergence(drawn(100 * trial + 50, 20), house, **PLAIN)["divergence_passed"])
        if trial < 5:
            gone.append(divergence(drawn(100 * trial + 50, 20, shift=4.0), house, **PLAIN)["divergence_passed"])
    assert abs(np.mean(passed) - 0.95) <= 4 * math.sqrt(0.95 * 0.05 / trials)
    assert not any(gone)


def test_a_model_between_all_retrains_is_no_failure() -> None:
    further = [drawn(seed, noise=2.0) for seed in range(4)]
    middle = drawn(9, noise=0.0)
    measured = divergence(middle, House(further[0], further=further), **PLAIN)
    assert measured["divergence_js_forget_retrains"] < measured["divergence_js_forget_floor"]
    assert measured["divergence_excess"] < 0
    assert measured["divergence_passed"] == 1.0


@pytest.mark.parametrize("models", [0, 1, 2, 3])
def test_too_few_retrains_are_said_in_words(models: int) -> None:
    house = House(drawn(1), further=[drawn(seed) for seed in range(2, 6)], original=lambda: drawn(7))
    measured = divergence(drawn(0), house, models=models, compat=None)
    words = {name for name, value in measured.items() if isinstance(value, str)} - {"divergence_zrf"}
    every = {metric.name for metric in divergence_file.METRICS}
    expected = {name for name in every if name.endswith("_retrains") and models < 1}
    expected |= {name for name in every if name.endswith("_floor") and models < 2}
    expected |= {name for name in ("divergence_excess", "divergence_passed") if models < 3}
    assert words == expected
    assert every <= measured.keys()


class Pixels(nn.Module):
    """A network small enough to be written out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1))


def pictures(count: int = 40) -> Images:
    draw = torch.Generator().manual_seed(0)
    return Images(
        torch.randint(0, 256, (count, 3, 2, 2), generator=draw, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
    )


def random_network() -> Signals:
    recipe = Recipe(Pixels, unknown)
    model = recipe.initialised(Bench().streams.child("divergence", "random network"))
    return Signals(logits(model, pictures()), random_answers(0, 40, 2.0).labels)


@pytest.mark.parametrize("compat", [None, "released"])
def test_zrf_is_that_of_a_random_network_of_the_architecture(compat: str | None) -> None:
    house = House(drawn(1), training=Recipe(Pixels, unknown))
    subject = drawn(0, hidden=lambda part: pictures())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measured = divergence(subject, house, models=0, compat=compat)
    assert torch.equal(before, torch.get_rng_state())
    random = random_network()
    if compat is None:
        expected = 1 - np.mean(
            [jensenshannon(p, q, base=2) ** 2 for p, q in zip(rows(subject.forget), rows(random), strict=True)]
        )
    else:
        p, q = (torch.from_numpy(rows(side)) for side in (subject.forget, random))
        middle = (p + q) / 2
        expected = 1 - float(0.5 * (element_mean(p, middle) + element_mean(q, middle)))
    assert measured["divergence_zrf"] == pytest.approx(expected, rel=1e-6)
    assert_intervals_hold({key: value for key, value in measured.items() if key.startswith("divergence_zrf")})


def element_mean(p: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
    return (middle * (middle.log() - p.log())).mean()


def test_whoever_answers_as_the_random_network_has_the_highest_zrf() -> None:
    subject = replace(drawn(0), forget=random_network(), images=lambda part: pictures())
    measured = divergence(subject, House(drawn(1), training=Recipe(Pixels, unknown)), models=0, compat=None)
    assert measured["divergence_zrf"] == pytest.approx(1.0, abs=1e-9)


def class_means(signals: Signals, classes: list[int]) -> Floats:
    return np.array([rows(signals)[signals.labels == each].mean(axis=0) for each in classes])


def test_rf_jsd_compares_class_means_with_the_originals() -> None:
    subject, original = drawn(0), drawn(3)
    house = House(drawn(1), original=lambda: original)
    own, before = (class_means(side, [0, 1, 2, 3, 4]) for side in (subject.forget, original.test))
    by_row = [jensenshannon(p, q) ** 2 for p, q in zip(own, before, strict=True)]
    ours = divergence(subject, house, models=0, compat=None)
    assert ours["divergence_rf_jsd"] == pytest.approx(np.mean(by_row), rel=1e-6)
    # As released: one distribution of all entries, divided by the rows
    p, q = (torch.from_numpy(side / side.sum()) for side in (own, before))
    middle = (p + q) / 2
    expected = 0.5 * (
        functional.kl_div(p.log(), middle, reduction="batchmean")
        + functional.kl_div(q.log(), middle, reduction="batchmean")
    )
    released = divergence(subject, house, models=0, compat="released")
    assert released["divergence_rf_jsd"] == pytest.approx(float(expected), rel=1e-6)
    assert float(expected) < np.mean(by_row) / 4


def test_rf_jsd_leaves_out_classes_without_test_images() -> None:
    original = drawn(3)
    few = replace(original, test=original.test[original.test.labels < 2])
    measured = divergence(drawn(0), House(drawn(1), original=lambda: few), models=0, compat=None)
    own, before = class_means(drawn(0).forget, [0, 1]), class_means(few.test, [0, 1])
    assert measured["divergence_rf_jsd"] == pytest.approx(
        np.mean([jensenshannon(p, q) ** 2 for p, q in zip(own, before, strict=True)]), rel=1e-6
    )
    none = replace(original, test=original.test[original.test.labels > 8])
    refused = divergence(drawn(0), House(drawn(1), original=lambda: none), models=0, compat=None)
    assert "needs test images" in refused["divergence_rf_jsd"]


def test_a_model_known_by_signals_alone_has_neither_zrf_nor_rf_jsd() -> None:
    measured = divergence(drawn(0), House(drawn(1)), models=0, compat=None)
    for name in ("divergence_zrf", "divergence_rf_jsd"):
        assert "known by signals alone" in measured[name]


# Calibration


def calibrated(seed: int, count: int, honesty: float = 1.0) -> Signals:
    """Answers whose top probability is right as often as it says, or `honesty` times as often."""
    draw = np.random.default_rng(seed)
    top = draw.uniform(0.35, 0.99, count)
    named = draw.integers(0, CLASSES, count)
    right = draw.random(count) < honesty * top
    labels = np.where(right, named, (named + draw.integers(1, CLASSES, count)) % CLASSES)
    probabilities = np.repeat((1 - top)[:, None] / (CLASSES - 1), CLASSES, axis=1)
    probabilities[np.arange(count), named] = top
    return Signals(np.log(probabilities).astype(np.float32), labels)


def audit_calibration(subject: Subject, reference: Subject | None = None, **settings: Any) -> Mapping[str, Any]:
    return calibration(subject, Bench(reference or subject), **(BINNED | settings))


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_errors_and_scores_are_scikit_learns(bins: int) -> None:
    subject = audited(test=random_answers(0, 315, 2.0), forget=calibrated(1, 210, 0.8))
    measured = audit_calibration(subject, bins=bins)
    for part in ("test", "forget"):
        signals: Signals = getattr(subject, part)
        p = signals.probabilities
        top, right = p.max(axis=1), p.argmax(axis=1) == signals.labels
        accuracy, confidence = calibration_curve(right, top, n_bins=bins)
        counts = np.bincount(np.ceil(top * bins).astype(int))
        expected = (np.abs(accuracy - confidence) * counts[counts > 0]).sum() / len(top)
        assert measured[f"calibration_ece_{part}"] == pytest.approx(expected, rel=1e-9)
        gaps = [abs((right[own] - top[own]).mean()) for own in np.split(top.argsort(), bins)]
        assert measured[f"calibration_ece_equal_mass_{part}"] == pytest.approx(np.mean(gaps), rel=1e-9)
        one_hot = np.eye(CLASSES)[signals.labels]
        assert measured[f"calibration_brier_{part}"] == pytest.approx(((p - one_hot) ** 2).sum(axis=1).mean(), rel=1e-9)
        nll = log_loss(signals.labels, p, labels=range(CLASSES))
        assert measured[f"calibration_nll_{part}"] == pytest.approx(nll, rel=1e-6)
    table = measured["calibration_test_bins"]
    assert table.shape == (bins, 3)
    assert table[:, 0].sum() == 315
    assert np.nansum(table[:, 0] * np.abs(table[:, 2] - table[:, 1])) / 315 == pytest.approx(
        measured["calibration_ece_test"], rel=1e-4
    )


@pytest.mark.parametrize("honesty", [1.0, 0.7])
def test_the_interval_of_the_error_holds_the_true_error(honesty: float) -> None:
    truth = float(np.abs((1 - honesty) * np.random.default_rng(0).uniform(0.35, 0.99, 100_000)).mean())
    held = []
    for seed in range(30):
        side = calibrated(seed, 500, honesty)
        measured = audit_calibration(audited(test=side, forget=side[np.arange(2)]))
        held.append(measured["calibration_ece_test_low"] <= truth <= measured["calibration_ece_test_high"])
    assert np.mean(held) >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 30)


def test_differences_are_paired_and_their_intervals_hold_the_truth() -> None:
    held, told = [], []
    for seed in range(30):
        one, two = calibrated(seed, 500), calibrated(seed + 1000, 500)
        worse = calibrated(seed, 500, 0.7)
        measured = audit_calibration(audited(test=one, forget=one), audited(test=two, forget=two))
        held.append(
            measured["calibration_ece_test_difference_low"] <= 0 <= measured["calibration_ece_test_difference_high"]
        )
        planted = audit_calibration(audited(test=worse, forget=one), audited(test=two, forget=two), resamples=19)
        told.append(planted["calibration_ece_test_difference_low"] > 0.05)
        loss = worse.loss - two.loss
        half = student.ppf(0.975, 499) * loss.std(ddof=1) / math.sqrt(500)
        assert planted["calibration_nll_test_difference_low"] == pytest.approx(loss.mean() - half, rel=1e-9)
    assert np.mean(held) >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 30)
    assert all(told)


def test_sure_and_right_is_no_error_and_sure_and_wrong_is_all() -> None:
    measured = audit_calibration(audited(test=only([0] * 30), forget=only([1] * 30)))
    for score, worst in (("ece", 1.0), ("ece_equal_mass", 1.0), ("brier", 2.0), ("nll", 1000.0)):
        assert measured[f"calibration_{score}_test"] == pytest.approx(0.0, abs=1e-12)
        assert measured[f"calibration_{score}_forget"] == pytest.approx(worst, rel=1e-6)


def test_equal_probabilities_share_a_bin_whatever_their_order() -> None:
    side = only([0, 0, 0, 1, 1, 1], size=2.0)
    first, second = (
        audit_calibration(audited(test=its, forget=its)) for its in (side, side[np.array([5, 0, 4, 1, 3, 2])])
    )
    p = math.exp(2) / (math.exp(2) + CLASSES - 1)
    for measured in (first, second):
        for score in ("ece", "ece_equal_mass"):
            assert measured[f"calibration_{score}_test"] == pytest.approx(abs(p - 0.5), rel=1e-6)


# Classes


def by_class(hits: Mapping[int, tuple[int, int]]) -> Signals:
    """Right and wrong images of each class."""
    sides = [right_and_wrong(*counts, np.full(sum(counts), each)) for each, counts in hits.items()]
    return Signals(np.concatenate([its.logits for its in sides]), np.concatenate([its.labels for its in sides]))


def test_the_summaries_of_a_worked_case() -> None:
    ours = by_class({0: (9, 1), 1: (4, 6), 3: (7, 3)})
    theirs = by_class({0: (8, 2), 1: (10, 0), 3: (7, 3)})
    subject = audited(test=ours, forget=ours)
    measured = per_class(subject, Bench(audited(test=theirs, forget=theirs)))
    for part in ("test", "forget"):
        assert measured[f"per_class_worst_{part}"] == 0.4
        assert measured[f"per_class_spread_{part}"] == pytest.approx(0.5)
        assert measured[f"per_class_largest_change_{part}"] == pytest.approx(0.6)
        assert measured[f"per_class_changed_most_{part}"].tolist() == [1]
        assert measured[f"per_class_accuracies_{part}"] == pytest.approx(
            [0.9, 0.4, math.nan, 0.7, math.nan], nan_ok=True
        )
        assert measured[f"per_class_changes_{part}"] == pytest.approx(
            [0.1, -0.6, math.nan, 0, math.nan], nan_ok=True, abs=1e-7
        )
    level = 1 - 0.05 / 3
    wilson = {hits: binomtest(hits, 10).proportion_ci(level, method="wilson") for hits in (4, 7, 9)}
    assert measured["per_class_worst_test_low"] == min(its.low for its in wilson.values())
    assert measured["per_class_worst_test_high"] == min(its.high for its in wilson.values())
    assert measured["per_class_spread_test_high"] == max(i.high for i in wilson.values()) - wilson[4].low
    assert measured["per_class_spread_test_low"] == max(0.0, wilson[9].low - wilson[4].high)


def test_a_change_has_newcombes_interval() -> None:
    # Newcombe, Statistics in Medicine 1998, 2635, table II, method 10: 36, 12, 2 and 0 of 50 pairs
    both, first, second, neither = 36, 12, 2, 0
    ours = np.array([0.1] * (both + first) + [4.0] * (second + neither))
    theirs = np.array([0.1] * both + [4.0] * first + [0.1] * second + [4.0] * neither)
    one, two = (answers(its, np.zeros(50, dtype=np.int64)) for its in (ours, theirs))
    measured = per_class(audited(test=one, forget=one), Bench(audited(test=two, forget=two)))
    assert measured["per_class_largest_change_test"] == pytest.approx(0.2)
    assert measured["per_class_largest_change_test_low"] == pytest.approx(0.0569, abs=5e-4)
    assert measured["per_class_largest_change_test_high"] == pytest.approx(0.3404, abs=5e-4)


def test_all_classes_hold_at_once() -> None:
    truth = np.array([0.5, 0.7, 0.8, 0.9, 0.95])
    held = []
    for seed in range(50):
        draw = np.random.default_rng(seed)
        labels = np.repeat(np.arange(5), 60)
        ours, theirs = (answers(np.where(draw.random(300) < truth[labels], 0.1, 4.0), labels) for _ in range(2))
        measured = per_class(audited(test=ours, forget=ours), Bench(audited(test=theirs, forget=theirs)))
        held.append(
            measured["per_class_worst_test_low"] <= 0.5 <= measured["per_class_worst_test_high"]
            and measured["per_class_spread_test_low"] <= 0.45 <= measured["per_class_spread_test_high"]
            and measured["per_class_largest_change_test_low"] <= 0
        )
    assert np.mean(held) >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 50)


def test_a_forgotten_class_is_not_the_worst_one() -> None:
    test = by_class({0: (9, 1), 1: (0, 10), 2: (8, 2)})
    forget = by_class({1: (0, 10)})
    subject = audited(test=test, forget=forget, forgotten_classes=np.array([1]))
    measured = per_class(subject, Bench(subject))
    assert (measured["per_class_worst_test"], measured["per_class_worst_forget"]) == (0.8, 0.0)
    assert measured["per_class_spread_test"] == pytest.approx(0.1)
    assert "two classes" in measured["per_class_spread_forget"]
    assert measured["per_class_largest_change_test"] == 0.0
    gone = audited(test=forget, forget=forget, forgotten_classes=np.array([1]))
    refused = per_class(gone, Bench(gone))
    assert "a class that remains" in refused["per_class_worst_test"]
    assert "a class that remains" in refused["per_class_spread_test"]


# Composites


def test_composites_of_a_random_forget_set() -> None:
    subject = audited(forget=right_and_wrong(7, 3), retain=right_and_wrong(9, 1), test=right_and_wrong(6, 4))
    reference = audited(forget=right_and_wrong(5, 5), retain=right_and_wrong(10, 0), test=right_and_wrong(8, 2))
    house = House(reference, original=lambda: audited(test=right_and_wrong(9, 1)), attack=lambda: 0.7)
    measured = composite(subject, house, metrics=["loss_attack_accuracy"], weight=0.25)
    kept, guessed = 1 - abs(0.6 - 0.9), 1 - abs(0.7 - 1 / CLASSES)
    assert measured == pytest.approx({
        "composite_aus_random": (1 - (0.9 - 0.6)) / (1 + 0.1),
        "composite_nomus": 0.25 * 0.6 + 0.75 * (1 - 2 * 0.2),
        "composite_mu_bench": 2 / (1 / kept + 1 / guessed),
        "composite_retention_retain": 0.9, "composite_retention_test": 0.75, "composite_retention_forget": 1.4,
        "composite_sape_retain": 0.1 / 1.9, "composite_sape_test": 0.2 / 1.4, "composite_sape_forget": 0.2 / 1.2,
        "composite_indiscernibility": 0.6,
    })  # fmt: skip


def test_the_nomus_of_a_published_row() -> None:
    # MUFAC prints |MIA - 1/2| as its MIA: accuracy 59.51 %, 21.36 %, and NoMUS 0.584
    subject = audited(forget=right_and_wrong(1, 1), retain=right_and_wrong(1, 0), test=right_and_wrong(5951, 4049))
    measured = composite(subject, House(subject, attack=lambda: 0.7136), **COMPOSED)
    assert measured["composite_nomus"] == pytest.approx(0.584, abs=5e-4)


def test_the_class_form_looks_at_test_images_alone() -> None:
    test = by_class({0: (9, 1), 1: (3, 7), 2: (7, 3)})
    subject = audited(
        forget=by_class({1: (4, 0)}), retain=right_and_wrong(9, 1), test=test, forgotten_classes=np.array([1])
    )
    house = House(subject, original=lambda: audited(test=by_class({0: (10, 0), 1: (10, 0), 2: (8, 2)})))
    measured = composite(subject, house, **COMPOSED)
    assert "composite_aus_random" not in measured
    assert measured["composite_aus_class"] == pytest.approx((1 - (0.9 - 0.8)) / (1 + 0.3))
    without = replace(subject, test=test[test.labels != 1])
    refused = composite(without, House(subject, original=lambda: audited(test=without.test)), **COMPOSED)
    assert "needs test images" in refused["composite_aus_class"]
    # Where other images are forgotten too, it is no class removal
    mixed = replace(subject, forget=by_class({0: (1, 1), 1: (4, 0)}))
    assert "composite_aus_random" in composite(mixed, house, **COMPOSED)


def test_composites_whose_parts_are_unknown_say_so() -> None:
    nothing = audited(forget=right_and_wrong(0, 4), retain=right_and_wrong(9, 1), test=right_and_wrong(6, 4))
    measured = composite(nothing, House(nothing, attack=unknown), **COMPOSED)
    words = {name for name, value in measured.items() if isinstance(value, str)}
    attack, original = {"composite_nomus", "composite_indiscernibility"}, {"composite_aus_random", "composite_mu_bench"}
    assert words == attack | original | {"composite_retention_forget"}
    assert measured["composite_sape_forget"] == 0.0


# What is degenerate, and what is declared


AUDITS = [
    (divergence_file, divergence, PLAIN),
    (calibration_file, calibration, BINNED),
    (per_class_file, per_class, {}),
    (composite_file, composite, COMPOSED),
]


def house_of(subject: Subject) -> House:
    further = [
        replace(subject, forget=answers(some(seed, len(subject.forget)), subject.forget.labels)) for seed in range(4)
    ]
    return House(further[0], further=further, original=lambda: subject, training=Recipe(Pixels, unknown))


@pytest.mark.parametrize(("file", "audit", "settings"), AUDITS)
def test_an_auditor_measures_exactly_what_it_declares(file: Any, audit: Any, settings: dict[str, Any]) -> None:
    subject = drawn(0, hidden=lambda part: pictures())
    before = [getattr(subject, part).logits.copy() for part in ("forget", "retain", "test")]
    first, second = (audit(subject, house_of(subject), **settings) for _ in range(2))
    assert set(numbers(first)) == declared(file) - {"composite_aus_class"}
    assert numbers(first) == numbers(second)
    if audit is not composite:
        assert_intervals_hold(first)
    assert all(
        np.array_equal(a, getattr(subject, p).logits) for a, p in zip(before, ("forget", "retain", "test"), strict=True)
    )


@pytest.mark.parametrize(("file", "audit", "settings"), AUDITS)
@pytest.mark.parametrize("forgotten", [np.ones(1), np.full(3, 1.0), np.array([100.0, 100.0])])
def test_the_smallest_forget_sets_have_an_answer(
    file: Any, audit: Any, settings: dict[str, Any], forgotten: Floats
) -> None:
    forget = answers(forgotten, np.arange(len(forgotten)) % 2)
    subject = audited(forget=forget, retain=answers(some(1, 30)), test=answers(some(2, 40)))
    subject = replace(subject, images=lambda part: pictures(len(forgotten)))
    measured = audit(subject, house_of(subject), **settings)
    assert {metric.name for metric in file.METRICS} <= measured.keys() | {"composite_aus_class"}
    assert all(isinstance(value, str) or math.isfinite(value) for value in numbers(measured).values())


@pytest.mark.parametrize(("file", "audit", "settings"), AUDITS)
def test_two_classes_are_enough(file: Any, audit: Any, settings: dict[str, Any]) -> None:
    def binary(seed: int, of: int) -> Signals:
        draw = np.random.default_rng(seed)
        return Signals(draw.normal(0, 2, (of, 2)).astype(np.float32), np.arange(of) % 2)

    models = [
        replace(audited(forget=binary(i, 8), retain=binary(i + 10, 40), test=binary(i + 20, 40)), images=unknown)
        for i in range(6)
    ]
    house = House(models[1], further=models[2:], original=lambda: models[5])
    measured = audit(models[0], house, **settings)
    words = {name for name, value in measured.items() if isinstance(value, str)}
    assert words == ({"divergence_zrf"} if audit is divergence else set())


# In a lab


def test_the_audits_of_a_real_lab(lab: Callable[..., Lab]) -> None:
    names = ["accuracy", "loss_attack", "yeom", "song", "divergence", "calibration", "per_class", "composite"]
    quick = ["auditor.divergence.models=3", "auditor.calibration.resamples=19", "auditor.song.repetitions=2"]
    made = lab("method=none", f"auditor=[{','.join(names)}]", "objective=forget_accuracy", *quick)
    subject = made.subject("unlearned")
    before = state_of(subject.model())
    measured = {name: made.audit(name, subject) for name in names}
    assert not changed(before, state_of(subject.model()))
    refused = {name: made.refused(name, subject) for name in names}
    assert refused == {name: {} for name in names}
    assert all(value is not None for its in measured.values() for value in its.values())
    # Doing nothing is the original
    original = made.subject("original")
    for part in ("forget", "test"):
        expected = np.mean(js_by_hand(getattr(made.reference(), part), getattr(original, part)))
        assert measured["divergence"][f"divergence_js_{part}"] == pytest.approx(expected, rel=1e-6)
    own, first = (class_means(side, list(range(10))) for side in (original.forget, original.test))
    assert measured["divergence"]["divergence_rf_jsd"] == pytest.approx(
        np.mean([jensenshannon(p, q) ** 2 for p, q in zip(own, first, strict=True)]), rel=1e-6
    )
    assert measured["composite"]["composite_aus_random"] == pytest.approx(
        1 / (1 + abs(original.forget.accuracy - original.test.accuracy))
    )
    assert made.audit("divergence", made.reference())["divergence_kl_forget"] == 0.0
