"""Attacks that compare a model with reference models: RMIA and LiRA, on planted signals and on digits."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from test_auditors import Bench, answers, audited, some

from unlearn.auditors import lira as lira_file
from unlearn.auditors import rmia as rmia_file
from unlearn.auditors.lira import balanced_accuracy, gaussians, lira
from unlearn.auditors.rmia import FLOOR, probabilities, rmia, scores, typical
from unlearn.lab import Lab
from unlearn.reference_signals import References, ReferenceSignals, clipped_margin, stacked
from unlearn.settings import SettingError, check
from unlearn.signals import Signals
from unlearn.statistics import auc, best_threshold
from unlearn.subject import NO_HELD_OUT, Shadow, Subject

Floats = NDArray[np.float64]
PARTS = ("forget", "retain", "validation", "test")
RMIA: dict[str, Any] = {
    "references": 16, "mode": "online", "signal": "softmax", "temperature": 2.0, "margin": 0.6, "order": 4,
    "gamma": 1.0, "a": 0.3, "population": "all",
}  # fmt: skip
LIRA: dict[str, Any] = {"references": 16, "mode": "online", "variance": "pooled", "compat": None}
CLASSES = 5


# Signals of reference models


def on_halves(count: int, images: int, seed: int = 0) -> NDArray[np.bool_]:
    """Who is a member of whose half, `count` x `images`: in consecutive pairs, complementary."""
    first = np.random.default_rng(seed).random((count // 2, images)) < 0.5
    return np.stack([first, ~first], axis=1).reshape(count, images)


def four_shadows() -> Iterator[Shadow]:
    halves = on_halves(4, 7)
    for number in range(4):
        parts = {part: answers(some(10 * number + seed, 7)) for seed, part in enumerate(PARTS)}
        members = {part: halves[number] & (part != "validation") for part in PARTS}
        yield Shadow(**parts, members=members)


def test_a_signal_of_all_models_is_one_row_a_model() -> None:
    known = stacked(four_shadows(), lambda signals: signals.loss, ("test", "validation"))
    assert list(known) == ["test", "validation"]
    for number, shadow in enumerate(four_shadows()):
        assert np.array_equal(known["test"].values[number], shadow.test.loss)
        assert np.array_equal(known["test"].members[number], shadow.members["test"])
    assert known["validation"].inside.shape == (7, 0)
    assert np.array_equal(known["validation"].outside, known["validation"].values.T)


def test_values_inside_and_outside_are_each_images_own() -> None:
    values, members = np.random.default_rng(0).normal(size=(6, 9)), on_halves(6, 9)
    known = ReferenceSignals(values, members)
    chosen = np.array([5, 2])
    for image in range(9):
        assert known.inside[image].tolist() == [values[k, image] for k in range(6) if members[k, image]]
        assert known.outside[image].tolist() == [values[k, image] for k in range(6) if not members[k, image]]
    assert np.array_equal(known[chosen].inside, known.inside[chosen])
    assert known[np.zeros(9, dtype=bool)].inside.size == 0


def test_members_of_unequally_many_models_have_no_table() -> None:
    members = np.array([[True, True], [True, False]])
    with pytest.raises(ValueError, match="members of 1 to 2 models"):
        _ = ReferenceSignals(np.zeros((2, 2)), members).inside


@pytest.mark.parametrize("count", [0, 3, -2])
def test_references_come_in_pairs(count: int) -> None:
    assert check(References, "auditor.rmia.references", 4) == 4
    with pytest.raises(SettingError, match=r"auditor.rmia.references"):
        check(References, "auditor.rmia.references", count)


def test_margins_are_clipped_where_a_gaussian_would_overflow() -> None:
    extreme = Signals(np.array([[1e30, 0.0], [-1e30, 0.0], [3.0, 1.0]], dtype=np.float32), np.zeros(3, dtype=np.int64))
    assert clipped_margin(extreme).tolist() == [100.0, -100.0, 2.0]


# A world whose images differ in difficulty, and whose models answer with normal margins, `shift` higher for members


def with_margins(margins: Floats, labels: NDArray[np.int64] | None = None) -> Signals:
    labels = np.arange(len(margins)) % CLASSES if labels is None else labels
    rows = np.zeros((len(margins), CLASSES))
    rows[np.arange(len(margins)), labels] = margins + math.log(CLASSES - 1)
    return Signals(rows.astype(np.float32), labels)


@dataclass
class World(Bench):
    """A bench with reference models. `sizes` are the images of each part; each model's noise is its own."""

    seed: int = 0
    shift: float = 1.0
    sizes: tuple[int, int, int, int] = (300, 600, 50, 400)
    labels: Mapping[str, NDArray[np.int64]] | None = None

    def __post_init__(self) -> None:
        draw = np.random.default_rng([self.seed, 0])
        self.difficulty = {part: draw.normal(0, 2, size) for part, size in zip(PARTS, self.sizes, strict=True)}
        self.retrained = self.subject("retrained", {"retain"}, noise=1)

    def answered(self, members: Mapping[str, NDArray[np.bool_]], noise: int) -> dict[str, Signals]:
        draw = np.random.default_rng([self.seed, noise])
        margins = {
            part: its + draw.normal(0, 1, len(its)) + self.shift * members[part]
            for part, its in self.difficulty.items()
        }
        return {part: with_margins(its, (self.labels or {}).get(part)) for part, its in margins.items()}

    def subject(self, role: str, trained: set[str], noise: int) -> Subject:
        members = {part: np.full(len(its), part in trained) for part, its in self.difficulty.items()}
        parts = self.answered(members, noise)
        gone = np.setdiff1d(parts["forget"].labels, parts["retain"].labels)
        return audited(role, **parts, forgotten_classes=gone)

    def original(self) -> Subject:
        return self.subject("original", {"forget", "retain"}, noise=2)

    def independent(self, noise: int = 3) -> Subject:
        return self.subject("unlearned", {"retain"}, noise)

    def references(self, count: int) -> Iterator[Shadow]:
        for number in range(count):
            draw = np.random.default_rng([self.seed, 1000 + number // 2])
            members = {
                part: (draw.random(len(its)) < 0.5) != bool(number % 2)
                if part != "validation"
                else np.zeros(len(its), bool)
                for part, its in self.difficulty.items()
            }
            yield Shadow(**self.answered(members, 2000 + number), members=members)


def by_rmia(subject: Subject, bench: Bench, **settings: Any) -> Mapping[str, Any]:
    return rmia(subject, bench, **(RMIA | settings))


def by_lira(subject: Subject, bench: Bench, **settings: Any) -> Mapping[str, Any]:
    return lira(subject, bench, **(LIRA | settings))


BOTH = pytest.mark.parametrize(("name", "audit"), [("rmia", by_rmia), ("lira", by_lira)])


@BOTH
@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("references", [4, 16])
def test_planted_members_are_found_and_strangers_are_not(
    name: str, audit: Callable[..., Any], mode: str, references: int
) -> None:
    world = World(sizes=(1000, 1000, 50, 1000))
    settings = {"mode": mode, "references": references}
    original, retrained = (audit(its, world, **settings) for its in (world.original(), world.retrained))
    assert original[f"{name}_auc_low"] > 0.6
    assert original[f"{name}_auc_difference_low"] > 0.1
    assert original[f"{name}_passed"] == 0.0
    assert retrained[f"{name}_auc_low"] < 0.5 < retrained[f"{name}_auc_high"]
    assert [retrained[f"{name}_auc_difference{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    assert retrained[f"{name}_passed"] == 1.0


@BOTH
def test_nineteen_of_twenty_independent_retrains_pass(name: str, audit: Callable[..., Any]) -> None:
    passed = []
    for seed in range(100):
        world = World(seed=seed, sizes=(60, 100, 0, 120))
        passed.append(audit(world.independent(), world, references=4)[f"{name}_passed"])
    assert 0.89 <= np.mean(passed) < 1.0  # of 100 with 95 % each, fewer than 89 or all happen once in 100


@BOTH
def test_forgetting_too_much_is_found_as_well(name: str, audit: Callable[..., Any]) -> None:
    world = World()
    overdone = replace(world.independent(), forget=with_margins(world.difficulty["forget"] - 3))
    answer = audit(overdone, world)
    assert answer[f"{name}_auc_high"] < 0.3
    assert answer[f"{name}_auc_difference_high"] < -0.2
    assert answer[f"{name}_passed"] == 0.0


@BOTH
def test_the_same_audit_twice_gives_the_same_and_changes_nothing(name: str, audit: Callable[..., Any]) -> None:
    world = World()
    subject = world.original()
    before = {part: getattr(subject, part).logits.copy() for part in PARTS}
    state = np.random.get_state()[1].copy()
    first, second = audit(subject, world), audit(subject, world)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert all(np.array_equal(getattr(subject, part).logits, its) for part, its in before.items())
    assert np.array_equal(np.random.get_state()[1], state)


@BOTH
def test_an_auditor_measures_exactly_what_it_declares(name: str, audit: Callable[..., Any]) -> None:
    file = {"rmia": rmia_file, "lira": lira_file}[name]
    world = World(sizes=(50, 60, 20, 10000))
    answer = audit(world.original(), world, references=4)
    numbers = {key for key, value in answer.items() if isinstance(value, float)}
    ends = ("", "_low", "_high")
    assert numbers == {f"{its.name}{end}" for its in file.METRICS for end in (ends if its.interval else ends[:1])}
    arrays = {key: value for key, value in answer.items() if isinstance(value, np.ndarray)}
    assert {key: len(value) for key, value in arrays.items()} == {
        f"{name}_scores_forget": 50, f"{name}_scores_retain": 60, f"{name}_scores_test": 10000
    }  # fmt: skip
    assert {value.dtype for value in arrays.values()} == {np.dtype(np.float32)}
    assert len(answer) == len(numbers) + len(arrays)
    for key in (its.name for its in file.METRICS if its.interval):
        assert answer[f"{key}_low"] <= answer[key] <= answer[f"{key}_high"]


@BOTH
def test_a_rate_that_the_held_out_images_are_too_few_for_is_refused_in_words(
    name: str, audit: Callable[..., Any]
) -> None:
    world = World(sizes=(50, 60, 20, 1000))
    answer = audit(world.original(), world, references=4)
    assert answer[f"{name}_tpr_at_fpr_0.01_low"] <= answer[f"{name}_tpr_at_fpr_0.01"]
    assert answer[f"{name}_tpr_at_fpr_0.001"] == "needs at least 10000 negative images, and there are 1000"
    assert f"{name}_tpr_at_fpr_0.001_low" not in answer


@BOTH
def test_forgotten_images_are_compared_with_test_images_of_their_classes(name: str, audit: Callable[..., Any]) -> None:
    labels = {
        "forget": np.full(40, 2), "retain": np.arange(80) % 2, "test": np.repeat([0, 2], [50, 60])
    }  # fmt: skip
    world = World(sizes=(40, 80, 0, 110), labels=labels)
    answer = audit(world.original(), world, references=4)
    of = {part: answer[f"{name}_scores_{part}"].astype(np.float64) for part in ("forget", "retain", "test")}
    assert answer[f"{name}_auc"] == pytest.approx(auc(of["forget"], of["test"][50:], "x")["x"], abs=1e-9)
    if name == "rmia":  # class 2 is forgotten as a whole
        assert answer["rmia_auc_forget_retain"] == pytest.approx(auc(of["retain"], of["forget"], "x")["x"], abs=1e-9)
        assert answer["rmia_auc_retain_test"] == pytest.approx(auc(of["retain"], of["test"][:50], "x")["x"], abs=1e-9)


@BOTH
def test_without_a_test_image_of_the_forgotten_class_there_is_nothing_to_compare(
    name: str, audit: Callable[..., Any]
) -> None:
    labels = {"forget": np.full(5, 3), "retain": np.arange(20) % 3, "test": np.arange(30) % 3}
    world = World(sizes=(5, 20, 0, 30), labels=labels)
    answer = audit(world.original(), world, references=4)
    others = {"rmia_auc_forget_retain", "rmia_auc_retain_test"} if name == "rmia" else set()
    given = {key.removesuffix("_low").removesuffix("_high") for key, its in answer.items() if not isinstance(its, str)}
    assert given == others | {f"{name}_scores_{part}" for part in ("forget", "retain", "test")}
    refused = {key: its for key, its in answer.items() if isinstance(its, str)}
    assert set(refused.values()) == {NO_HELD_OUT}
    assert {f"{name}_auc", f"{name}_passed", f"{name}_auc_difference"} <= refused.keys()


@BOTH
@pytest.mark.parametrize("forgotten", [1, 2, 3])
@pytest.mark.parametrize("margin", [-100.0, 0.0, 1000.0, None])
def test_the_smallest_forget_sets_and_equal_scores_are_audited_and_no_certainty_is_claimed(
    name: str, audit: Callable[..., Any], forgotten: int, margin: float | None
) -> None:
    world = World(sizes=(forgotten, 30, 0, 20))
    subject = world.original()
    if margin is not None:  # losses of 100, of log 2 and of 0
        subject = replace(
            subject, **{part: with_margins(np.full(len(getattr(subject, part)), margin)) for part in PARTS}
        )
    answer = audit(subject, world, references=4)
    numbers = {key: value for key, value in answer.items() if isinstance(value, float)}
    assert all(math.isfinite(value) for value in numbers.values())
    assert all(np.isfinite(value).all() for value in answer.values() if isinstance(value, np.ndarray))
    assert numbers[f"{name}_auc_high"] - numbers[f"{name}_auc_low"] > 0.1
    if forgotten == 1 and name == "lira":
        assert answer["lira_balanced_accuracy"].startswith("needs 2 forgotten")


def test_models_that_all_answer_alike_are_at_chance() -> None:
    world = World(sizes=(10, 20, 5, 15))
    world.answered = lambda members, noise: {
        part: with_margins(np.full(len(its), 50.0)) for part, its in members.items()
    }  # type: ignore[method-assign]
    world.retrained = world.subject("retrained", {"retain"}, noise=1)
    for name, audit in (("rmia", by_rmia), ("lira", by_lira)):
        for settings in ({}, {"mode": "offline"}):
            answer = audit(world.original(), world, references=4, **settings)
            assert answer[f"{name}_auc"] == 0.5
            assert answer[f"{name}_passed"] == 1.0
    assert by_lira(world.original(), world, variance="per_image")["lira_auc"] == 0.5


@BOTH
def test_no_more_references_are_asked_for_than_set(name: str, audit: Callable[..., Any]) -> None:
    world, asked = World(), []
    references = world.references
    world.references = lambda count: asked.append(count) or references(count)  # type: ignore[func-returns-value, method-assign]
    audit(world.original(), world, references=6)
    assert asked == [6]


# RMIA


def by_hand(ratios: Floats, population: Floats, gamma: float, included: bool) -> list[float]:
    shares = []
    for number, one in enumerate(ratios):
        others = [z for position, z in enumerate(population) if not (included and position == number)]
        shares.append(sum(one / z > gamma for z in others) / len(others))
    return shares


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("included", [True, False])
def test_sorted_search_equals_brute_force(gamma: float, included: bool) -> None:
    draw = np.random.default_rng(0)
    # Ratios that are powers of two with many ties, and others
    ratios = np.concatenate([2.0 ** draw.integers(-3, 4, 60), draw.lognormal(0, 1, 90)])
    population = ratios if included else draw.lognormal(0, 1, 70)
    found = scores(ratios, np.sort(population), gamma, included=included)
    assert found == pytest.approx(by_hand(ratios, population, gamma, included), abs=1e-12)


def test_a_more_probable_image_scores_higher_and_the_median_image_half() -> None:
    population = np.sort(np.random.default_rng(0).lognormal(0, 1, 1001))
    found = scores(population, population, 1.0, included=True)
    assert (np.diff(found) > 0).all()
    assert (found[0], found[500], found[-1]) == (0.0, 0.5, 1.0)
    assert (np.diff(scores(population, population, 2.0, included=True)) >= 0).all()


def test_what_is_typical_is_the_mean_of_both_kinds_or_made_from_one() -> None:
    values, members = np.random.default_rng(0).random((6, 9)), on_halves(6, 9)
    known = ReferenceSignals(values, members)
    inside, outside = known.inside.mean(axis=1), known.outside.mean(axis=1)
    assert typical(known, "online", 0.3) == pytest.approx((inside + outside) / 2)
    assert typical(known, "offline", 1.0) == pytest.approx(outside)
    assert typical(known, "offline", 0.0) == pytest.approx((outside + 1) / 2)
    assert typical(known, "offline", 0.3) == pytest.approx((1.3 * outside + 0.7) / 2)


def signal_by_hand(
    logits: list[float], label: int, signal: str, temperature: float, margin: float, order: int
) -> float:
    def weight(score: float) -> float:
        return sum(score**power / math.factorial(power) for power in range(order)) if order else math.exp(score)

    scaled = [score / temperature for score in logits]
    rest = sum(weight(score) for position, score in enumerate(scaled) if position != label)
    own = weight(scaled[label] - margin)
    return max(own / (own + rest), FLOOR)


@pytest.mark.parametrize(
    ("signal", "meant"),
    [
        ("softmax", {"temperature": 1.0, "margin": 0.0, "order": 0}),
        ("temperature", {"temperature": 3.0, "margin": 0.0, "order": 0}),
        ("sm_taylor", {"temperature": 3.0, "margin": 0.7, "order": 4}),
    ],
)
def test_signals_equal_their_formulas(signal: Any, meant: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    signals = Signals(draw.normal(0, 5, (200, 4)).astype(np.float32), draw.integers(0, 4, 200))
    found = probabilities(signals, signal, temperature=3.0, margin=0.7, order=4)
    expected = [
        signal_by_hand(row, label, signal, **meant)
        for row, label in zip(signals.logits.astype(np.float64).tolist(), signals.labels.tolist(), strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-9)
    assert (found.min() == FLOOR) == (signal == "sm_taylor")  # the cubic is negative below -1.6


def test_order_is_the_number_of_terms() -> None:
    signals = Signals(np.array([[2.0, -1.0]], dtype=np.float32), np.array([0]))
    # Two terms are 1 + a: (1 + 2 - 0.5) / (1 + 2 - 0.5 + 1 - 1)
    assert probabilities(signals, "sm_taylor", 1.0, 0.5, 2).tolist() == [1.0]
    assert probabilities(signals, "sm_taylor", 1.0, 0.5, 3) == pytest.approx([3.625 / 4.125])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gamma": 2.0, "signal": "sm_taylor"},
        {"gamma": 0.5, "population": "test"},
        {"mode": "offline", "signal": "temperature"},
        {"mode": "offline", "a": 0.6, "population": "validation"},
    ],
)
def test_rmia_equals_the_attack_written_out(settings: dict[str, Any]) -> None:
    world = World(sizes=(15, 30, 12, 25))
    subject = world.original()
    answer = by_rmia(subject, world, references=6, **settings)

    chosen = RMIA | settings
    names = {"softmax": (1.0, 0.0, 0), "temperature": (2.0, 0.0, 0), "sm_taylor": (2.0, 0.6, 4)}
    parts = {"all": ("forget", "retain", "test")}.get(chosen["population"], (chosen["population"],))
    asked = [(part, row) for part in PARTS for row in range(len(getattr(subject, part)))]

    def signal(model: Any, part: str, row: int) -> float:
        its = getattr(model, part)
        return signal_by_hand(
            its.logits[row].astype(np.float64).tolist(), its.labels[row], chosen["signal"], *names[chosen["signal"]]
        )

    models = list(world.references(6))
    ratios = {}
    for part, row in asked:
        inside = [signal(model, part, row) for model in models if model.members[part][row]]
        outside = [signal(model, part, row) for model in models if not model.members[part][row]]
        if chosen["mode"] == "online":
            expected = np.mean([*inside, *outside])
        else:
            expected = ((1 + chosen["a"]) * np.mean(outside) + 1 - chosen["a"]) / 2
        ratios[part, row] = signal(subject, part, row) / expected
    for part in ("forget", "retain", "test"):
        shares = []
        for row in range(len(getattr(subject, part))):
            others = [its for key, its in ratios.items() if key[0] in parts and key != (part, row)]
            shares.append(np.mean([ratios[part, row] / its > chosen["gamma"] for its in others]))
        assert answer[f"rmia_scores_{part}"] == pytest.approx(shares, abs=1e-6), part
    of = {part: answer[f"rmia_scores_{part}"].astype(np.float64) for part in ("forget", "retain", "test")}
    for name, positive, negative in (
        ("rmia_auc", "forget", "test"),
        ("rmia_auc_forget_retain", "retain", "forget"),
        ("rmia_auc_retain_test", "retain", "test"),
    ):
        member = [1] * len(of[positive]) + [0] * len(of[negative])
        expected_area = roc_auc_score(member, np.concatenate([of[positive], of[negative]]))
        assert answer[name] == pytest.approx(expected_area, abs=1e-9), name


@pytest.mark.parametrize(("references", "found"), [(1, 0.655), (4, 0.69), (32, 0.71)])
def test_rmia_without_a_signal_is_at_chance_and_a_shift_of_one_sigma_is_not(references: int, found: float) -> None:
    """Null-calibration table: 4,000 points, 1, 4 or 32 references that know none of them."""

    def area(seed: int, shift: float) -> float:
        draw = np.random.default_rng(seed)
        difficulty, member = draw.normal(1, 2, 4000), np.arange(4000) < 2000
        values = 1 / (1 + np.exp(-difficulty - draw.normal(0, 1, (references, 4000))))
        known = ReferenceSignals(values, np.zeros(values.shape, dtype=bool))
        ours = 1 / (1 + np.exp(-difficulty - draw.normal(0, 1, 4000) - shift * member))
        ratios = ours / typical(known, "offline", 1.0)
        its = scores(ratios, np.sort(ratios), 1.0, included=True)
        return auc(its[member], its[~member], "x")["x"]

    null, shifted = ([area(seed, shift) for seed in range(5)] for shift in (0.0, 1.0))
    assert all(0.48 < value < 0.52 for value in null)
    assert np.mean(shifted) == pytest.approx(found, abs=0.015)


@pytest.mark.parametrize(
    ("population", "mode", "count", "says"),
    [
        ("validation", "online", 5, "no reference model is trained on validation images"),
        ("validation", "offline", 0, "of the validation part there are 0 images"),
        ("test", "online", 1, "of the test part there are 1 images"),
    ],
)
def test_a_population_that_there_is_not_is_refused_before_anything_is_trained(
    population: str, mode: str, count: int, says: str
) -> None:
    def lab(count: int) -> Any:
        return SimpleNamespace(data=SimpleNamespace(validation=range(count), test=range(count)))

    with pytest.raises(SettingError, match=says) as refused:
        rmia_file.check(lab(count), **(RMIA | {"mode": mode, "population": population}))
    assert refused.value.key == "auditor.rmia.population"
    rmia_file.check(lab(count), **(RMIA | {"mode": mode, "population": "all"}))
    rmia_file.check(lab(2), **(RMIA | {"mode": "offline", "population": population}))


# LiRA


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["per_image", "pooled"])
@pytest.mark.parametrize("compat", [None, "released"])
def test_lira_equals_the_attack_written_out(mode: str, variance: str, compat: str | None) -> None:
    world = World(sizes=(9, 14, 5, 12))
    subject = world.original()
    answer = by_lira(subject, world, references=8, mode=mode, variance=variance, compat=compat)
    models = list(world.references(8))
    asked = [(part, row) for part in ("forget", "retain", "test") for row in range(len(getattr(subject, part)))]
    values: dict[bool, list[list[float]]] = {True: [], False: []}
    for part, row in asked:
        for inside in (True, False):
            values[inside].append(
                [float(getattr(model, part).margin[row]) for model in models if model.members[part][row] == inside]
            )
    spread = {}
    for inside, its in values.items():
        if variance == "per_image":
            spread[inside] = [np.sqrt(np.mean((np.array(row) - np.mean(row)) ** 2)) for row in its]
        elif compat == "released":
            spread[inside] = [np.std(np.concatenate(its))] * len(asked)
        else:
            spread[inside] = [math.sqrt(np.mean([np.var(row) * 4 / 3 for row in its]))] * len(asked)
    if (mode, variance, compat) == ("online", "pooled", "released"):
        spread[False] = spread[True]
    for position, (part, row) in enumerate(asked):
        margin = float(getattr(subject, part).margin[row])
        known = {inside: norm(np.median(values[inside][position]), spread[inside][position]) for inside in values}
        if mode == "online":
            expected = known[True].logpdf(margin) - known[False].logpdf(margin)
        else:
            expected = -known[False].logpdf(margin) if compat else -math.log(1 - known[False].cdf(margin))
        assert answer[f"lira_scores_{part}"][row] == pytest.approx(expected, rel=1e-4, abs=1e-5), (part, row)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("variance", "mode"), [("pooled", "online"), ("per_image", "online"), ("pooled", "offline")])
def test_lira_reaches_the_area_of_two_known_gaussians(shift: float, variance: str, mode: str) -> None:
    world = World(shift=shift, sizes=(1500, 200, 0, 1500))
    answer = by_lira(world.original(), world, references=128, variance=variance, mode=mode)
    assert answer["lira_auc_low"] - 0.005 < norm.cdf(shift / math.sqrt(2)) < answer["lira_auc_high"] + 0.005


def test_the_released_fixed_variance_holds_the_differences_between_images() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(0, 2.7, (2000, 1)) + draw.normal(0, 1, (2000, 8))
    (_, ours), (_, released) = (gaussians([values], "pooled", compat)[0] for compat in (None, "released"))
    assert ours[0] == pytest.approx(1.0, abs=0.03)
    assert released[0] == pytest.approx(math.hypot(1, 2.7), abs=0.1)


def test_offline_lira_calls_low_confidence_a_member_only_as_released() -> None:
    world = World()
    overdone = replace(world.independent(), forget=with_margins(world.difficulty["forget"] - 5))
    assert by_lira(overdone, world, mode="offline")["lira_auc"] < 0.1
    assert by_lira(overdone, world, mode="offline", variance="per_image", compat="released")["lira_auc"] > 0.9


def halves(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_balanced_accuracy_is_judged_on_images_that_chose_nothing() -> None:
    honest, optimistic = [], []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        positive, negative = draw.normal(size=30), draw.normal(size=40)
        answer = balanced_accuracy(positive, negative, halves(seed), "x")
        honest.append((answer["x"], answer["x_low"], answer["x_high"]))
        optimistic.append(best_threshold(positive, negative)[1])
    values, lows, highs = np.transpose(honest)
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert np.mean(optimistic) > 0.55
    assert np.mean((lows <= 0.5) & (highs >= 0.5)) > 0.9


def test_balanced_accuracy_of_separated_and_of_equal_scores() -> None:
    apart = balanced_accuracy(np.ones(20), np.zeros(30), halves(), "x")
    assert apart["x"] == apart["x_high"] == 1.0
    assert 0.85 < apart["x_low"] < 0.95
    assert balanced_accuracy(np.ones(20), np.ones(30), halves(), "x")["x"] == 0.5


def test_balanced_accuracy_is_the_mean_of_two_rates_whatever_the_sides_sizes() -> None:
    # Of 10 members one and of 40 others two are on the wrong side of every sensible threshold
    positive, negative = np.array([5.0] * 9 + [-9.0]), np.array([0.0] * 38 + [20.0] * 2)
    answer = balanced_accuracy(positive, negative, halves(), "x")
    assert answer["x"] == pytest.approx((0.9 + 0.95) / 2)
    assert answer["x_low"] == pytest.approx((0.9 + 0.95) / 2 - math.hypot(0.9 - 0.5958, 0.95 - 0.8350) / 2, abs=1e-3)
    assert answer["x_high"] == pytest.approx((0.9 + 0.95) / 2 + math.hypot(0.9821 - 0.9, 0.9862 - 0.95) / 2, abs=1e-3)


@pytest.mark.parametrize("references", [2, 4])
def test_lira_needs_a_spread_on_each_side(references: int) -> None:
    settings = LIRA | {"references": references}
    if references < 4:
        with pytest.raises(SettingError, match="at least 4"):
            lira_file.check(None, **settings)
    else:
        lira_file.check(None, **settings)


# On digits whose labels are wrong in three of ten cases, which only who was trained on them can know


@pytest.fixture(scope="module")
def digits(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    words = ["method=retrain", "auditor=[accuracy,rmia,lira]", "objective=rmia_auc", "train.epochs=25"]
    words += ["dataset.label_noise=0.3", "auditor.rmia.references=4", "auditor.lira.references=4"]
    return Lab(composing(tmp_path_factory.mktemp("store"), words).settings)


@pytest.mark.parametrize("name", ["rmia", "lira"])
def test_what_a_network_memorised_is_found_and_what_it_never_saw_is_not(name: str, digits: Lab) -> None:
    original, retrained, again = (
        digits.audit(name, digits.subject(role)) for role in ("original", "retrained", "unlearned")
    )
    assert original[f"{name}_auc_low"] > 0.65
    assert original[f"{name}_passed"] == 0.0
    assert retrained[f"{name}_auc_low"] < 0.5 < retrained[f"{name}_auc_high"]
    assert again[f"{name}_passed"] == 1.0
    assert again[f"{name}_auc"] != retrained[f"{name}_auc"], "not an independent retrain"
    assert set(digits.refused(name, digits.subject("original"))) == {
        f"{name}_tpr_at_fpr_{fpr}" for fpr in (0.01, 0.001)
    }


def test_what_is_retained_is_known_to_all_and_told_from_the_forgotten_by_who_forgot(digits: Lab) -> None:
    original, retrained = (digits.audit("rmia", digits.subject(role)) for role in ("original", "retrained"))
    assert original["rmia_auc_retain_test_low"] > 0.6
    assert retrained["rmia_auc_retain_test_low"] > 0.6
    assert original["rmia_auc_forget_retain_low"] < 0.5 < original["rmia_auc_forget_retain_high"]
    assert retrained["rmia_auc_forget_retain_low"] > 0.6
