"""The auditors on models whose answers are planted: what they find is compared with what was hidden."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp, wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.svm import SVC

from unlearn.auditors import accuracy as accuracy_file
from unlearn.auditors import cost as cost_file
from unlearn.auditors import gap as gap_file
from unlearn.auditors import loss_attack as loss_attack_file
from unlearn.auditors import mia_svc as mia_svc_file
from unlearn.auditors.accuracy import accuracy
from unlearn.auditors.cost import cost
from unlearn.auditors.gap import gap
from unlearn.auditors.loss_attack import loss_attack
from unlearn.auditors.mia_svc import FEATURES, mia_svc
from unlearn.signals import Signals
from unlearn.streams import Streams
from unlearn.subject import NO_HELD_OUT, NO_OTHERS, Subject

Floats = NDArray[np.float64]
CLASSES = 5
ATTACK = {"folds": 10, "test_share": 0.1, "clip": 100.0, "permutations": 99}
SVC_ATTACK: dict[str, Any] = {"C": 3.0, "limit": 10000, "compat": None}


def answers(losses: Floats, labels: NDArray[np.int64] | None = None) -> Signals:
    """Images on which a model has these losses, its doubt spread evenly; labels 0, 1, ... in turn by default.

    An image is classified correctly exactly if its loss is below log(CLASSES).
    """
    labels = np.arange(len(losses)) % CLASSES if labels is None else labels
    p = np.exp(-np.asarray(losses, dtype=np.float64))
    rows = np.repeat(np.log((1 - p) / (CLASSES - 1))[:, None], CLASSES, axis=1)
    rows[np.arange(len(losses)), labels] = np.log(p)
    return Signals(rows.astype(np.float32), labels)


def some(seed: int, count: int, median: float = 1.0) -> Floats:
    """Log-normal losses, heavy-tailed as real ones are."""
    return median * np.exp(np.random.default_rng(seed).normal(0, 1, count))


def nobody(*part: str) -> Any:
    raise AssertionError("an auditor of signals has no business with the model")


def audited(role: str = "unlearned", **parts: Any) -> Subject:
    empty = answers(np.zeros(0))
    given = {"forget": empty, "retain": empty, "validation": empty, "test": empty}
    rest = {"forgotten_classes": np.zeros(0, dtype=np.int64), "cost": {}, "model": nobody, "images": nobody}
    return Subject(role=role, **(given | rest | parts))


@dataclass
class Bench:
    """A laboratory without a store: it audits again whenever it is asked."""

    retrained: Subject = field(default_factory=audited)
    auditors: Mapping[str, Callable[[Subject, Any], Mapping[str, float]]] = field(default_factory=dict)
    streams: Streams = field(default_factory=lambda: Streams("lab", 0, 0))

    def reference(self) -> Subject:
        return self.retrained

    def audit(self, name: str, subject: Subject) -> Mapping[str, float]:
        return self.auditors[name](subject, self)

    def measure(self, metric: str, subject: Subject) -> float:
        measured: dict[str, float] = {}
        for name in self.auditors:
            measured |= self.audit(name, subject)
        return measured[metric]


# Accuracy


def right_and_wrong(right: int, wrong: int, labels: NDArray[np.int64] | None = None) -> Signals:
    return answers(np.array([0.1] * right + [4.0] * wrong), labels)


def test_accuracy_of_every_part_is_a_count() -> None:
    subject = audited(
        forget=right_and_wrong(3, 1), retain=right_and_wrong(9, 1), validation=right_and_wrong(0, 2),
        test=right_and_wrong(6, 2),
    )  # fmt: skip
    measured = accuracy(subject, Bench())
    values = {name: value for name, value in measured.items() if not name.endswith(("_low", "_high"))}
    assert values == {
        "forget_accuracy": 0.75, "retain_accuracy": 0.9, "validation_accuracy": 0.0, "test_accuracy": 0.75
    }  # fmt: skip
    assert all(measured[f"{name}_low"] <= value <= measured[f"{name}_high"] for name, value in values.items())


def test_accuracy_tells_forgotten_classes_from_remaining_ones() -> None:
    # Test images: of class 1 one of three right, of class 4 none of two, of the others all four
    labels = np.array([1, 0, 2, 3, 0, 1, 1, 4, 4])
    subject = audited(
        forget=right_and_wrong(1, 3, np.array([1, 1, 4, 4])), retain=right_and_wrong(2, 0, np.array([0, 2])),
        test=right_and_wrong(5, 4, labels), forgotten_classes=np.array([1, 4]),
    )  # fmt: skip
    measured = accuracy(subject, Bench())
    assert measured["test_accuracy_forgotten_classes"] == 1 / 5
    assert measured["test_accuracy_remaining_classes"] == 1.0
    assert measured["test_accuracy"] == 5 / 9


def test_a_part_without_images_has_no_accuracy() -> None:
    measured = accuracy(audited(forget=right_and_wrong(1, 0), test=right_and_wrong(1, 1)), Bench())
    assert set(measured) == {f"{part}_accuracy{end}" for part in ("forget", "test") for end in ("", "_low", "_high")}


# The attack on the loss


def against_itself(subject: Subject, **settings: Any) -> Mapping[str, float]:
    return loss_attack(subject, Bench(retrained=subject), **(ATTACK | settings))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_forget_set_like_the_test_set_gives_an_attack_nothing(seed: int) -> None:
    measured = against_itself(audited(forget=answers(some(seed, 400)), test=answers(some(seed + 50, 400))))
    assert measured["loss_attack_auc_low"] < 0.5 < measured["loss_attack_auc_high"]
    assert 0.4 < measured["loss_attack_accuracy"] < 0.6
    assert measured["ks_pvalue"] > 0.01


def test_planted_members_are_found() -> None:
    retrained = audited("retrained", forget=answers(some(0, 300)), test=answers(some(1, 400)))
    original = audited("original", forget=answers(some(2, 300, median=0.1)), test=answers(some(3, 400)))
    measured = loss_attack(original, Bench(retrained), **ATTACK)
    # The logarithms of the losses are normal, log(10) apart
    assert measured["loss_attack_auc"] == pytest.approx(0.948, abs=0.03)
    assert measured["loss_attack_auc_low"] > 0.9
    assert measured["loss_attack_auc_difference_low"] > 0.3
    assert measured["loss_attack_accuracy"] > 0.7
    assert measured["ks_pvalue"] < 1e-6
    assert measured["loss_attack_passed"] == 0.0


def test_a_second_retrain_passes() -> None:
    first, second = (
        audited(role, forget=answers(some(seed, 300)), test=answers(some(seed + 1, 400)))
        for role, seed in (("retrained", 10), ("unlearned", 20))
    )
    measured = loss_attack(second, Bench(first), **ATTACK)
    assert measured["loss_attack_auc_difference_low"] < 0 < measured["loss_attack_auc_difference_high"]
    assert measured["loss_attack_passed"] == 1.0


def test_forgetting_too_much_is_found_as_well() -> None:
    retrained = audited("retrained", forget=answers(some(0, 300)), test=answers(some(1, 400)))
    overdone = audited(forget=answers(some(2, 300, median=8.0)), test=answers(some(3, 400)))
    measured = loss_attack(overdone, Bench(retrained), **ATTACK)
    assert measured["loss_attack_auc_high"] < 0.2
    assert measured["loss_attack_auc_difference_high"] < -0.3
    assert measured["loss_attack_passed"] == 0.0


def test_the_reference_differs_from_itself_by_nothing() -> None:
    measured = against_itself(audited(forget=answers(some(0, 50)), test=answers(some(1, 60))))
    assert [measured[f"loss_attack_auc_difference{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    assert measured["loss_attack_passed"] == 1.0


def test_a_distance_from_one_half_has_no_side() -> None:
    subject = audited(forget=answers(some(0, 300, median=0.3)), test=answers(some(1, 400)))
    mirrored = audited(forget=subject.test, test=subject.forget[np.arange(300)])
    name = "loss_attack_auc"
    for measured in (against_itself(subject), against_itself(mirrored)):
        sides = [measured[f"{name}{end}"] - 0.5 for end in ("", "_low", "_high")]
        assert measured[f"{name}_two_sided"] == abs(sides[0]) > 0.2
        assert sorted(abs(side) for side in sides[1:]) == [measured[f"{name}_two_sided{e}"] for e in ("_low", "_high")]
    near = against_itself(audited(forget=answers(some(0, 300)), test=answers(some(1, 400))))
    assert near[f"{name}_low"] < 0.5 < near[f"{name}_high"]
    assert near[f"{name}_two_sided_low"] == 0 < near[f"{name}_two_sided"] < near[f"{name}_two_sided_high"]
    assert near[f"{name}_two_sided_high"] == max(0.5 - near[f"{name}_low"], near[f"{name}_high"] - 0.5)


def area_between(first: Floats, second: Floats) -> float:
    """Integral of the difference of two distribution functions."""
    edges = np.sort(np.concatenate([first, second]))
    below = [[(side <= edge).mean() for edge in edges[:-1]] for side in (first, second)]
    return float((np.abs(np.subtract(*below)) * np.diff(edges)).sum())


def test_distances_are_scipys_and_an_integral() -> None:
    forget, held_out = some(0, 60), some(1, 90, median=1.5)
    measured = against_itself(audited(forget=answers(forget), test=answers(held_out)))
    expected = ks_2samp(forget, held_out)
    assert measured["ks_statistic"] == pytest.approx(expected.statistic, abs=1e-12)
    assert measured["ks_pvalue"] == pytest.approx(expected.pvalue, rel=1e-9)
    assert measured["wasserstein"] == pytest.approx(area_between(forget, held_out), rel=1e-5)
    confidences = area_between(np.exp(-forget), np.exp(-held_out))
    assert measured["wasserstein_confidence"] == pytest.approx(confidences, rel=1e-4)


def test_the_pvalue_of_a_distance_is_that_of_all_divisions() -> None:
    # 6 of 9 losses, some of them equal: all 84 divisions can be counted
    forget, held_out = np.array([0.5, 0.5, 1.0, 2.0, 2.0, 8.0]), np.array([2.0, 4.0, 8.0])
    together = np.concatenate([forget, held_out])
    chosen = [np.isin(np.arange(9), its) for its in itertools.combinations(range(9), 6)]
    distances = np.array([wasserstein_distance(together[its], together[~its]) for its in chosen])
    exact = (distances >= wasserstein_distance(forget, held_out) - 1e-12).mean()
    subject = audited(forget=answers(forget), test=answers(held_out, np.array([0, 1, 2])))
    measured = against_itself(subject, permutations=9999)
    assert 0.05 < exact < 0.5
    assert measured["wasserstein_pvalue"] == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9999))


@pytest.mark.parametrize(("median", "far"), [(1.0, False), (0.5, True)])
def test_the_pvalue_of_the_distance_tells_other_losses_from_the_same(median: float, far: bool) -> None:
    measured = against_itself(audited(forget=answers(some(0, 300, median)), test=answers(some(1, 400))))
    assert (measured["wasserstein_pvalue"] == 0.01) == far


def test_losses_that_are_all_equal_lie_nowhere_apart() -> None:
    measured = against_itself(audited(forget=answers(np.full(20, 1.0)), test=answers(np.full(30, 1.0))))
    assert (measured["wasserstein"], measured["wasserstein_confidence"], measured["wasserstein_pvalue"]) == (0, 0, 1)


def test_losses_above_the_clip_count_as_it() -> None:
    subject = audited(forget=answers(np.array([1.0, 50.0, 90.0])), test=answers(np.array([2.0, 3.0, 40.0, 5.0, 6.0])))
    measured = against_itself(subject, clip=10.0)
    expected = area_between(np.array([1.0, 10.0, 10.0]), np.array([2.0, 3.0, 10.0]))
    assert measured["wasserstein"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("forget_count", "held_out_count"), [(40, 75), (90, 50)])
def test_accuracy_and_f1_equal_the_attack_written_out(forget_count: int, held_out_count: int) -> None:
    forget, held_out = answers(some(0, forget_count, median=0.3)), answers(some(1, held_out_count))
    settings = {"folds": 7, "test_share": 0.2}
    measured = against_itself(audited(forget=forget, test=held_out), **settings)

    streams = Bench().streams
    draw = np.random.default_rng(streams.seed("loss_attack", "balance"))
    count = min(forget_count, held_out_count)
    sides = [draw.choice(side.loss, count, replace=False) for side in (forget, held_out)]
    losses, member = np.concatenate(sides)[:, None], np.array([1] * count + [0] * count)
    folds = StratifiedShuffleSplit(7, test_size=0.2, random_state=streams.seed("loss_attack", "folds") % 2**32)
    accuracies, scores = [], []
    for train, test in folds.split(losses, member):
        called = LogisticRegression().fit(losses[train], member[train]).predict(losses[test])
        found = int((called * member[test]).sum())
        accuracies.append(float((called == member[test]).mean()))
        scores.append(2 * found / int(called.sum() + member[test].sum()))
    assert measured["loss_attack_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert measured["loss_attack_f1"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert measured["loss_attack_accuracy"] != measured["loss_attack_f1"]


def test_only_test_images_of_classes_in_the_forget_set_are_compared() -> None:
    forget = answers(some(0, 40), np.full(40, 2))
    own, others = answers(some(1, 50), np.full(50, 2)), answers(some(2, 200, median=9.0), np.full(200, 3))
    mixed = Signals(np.concatenate([others.logits, own.logits]), np.concatenate([others.labels, own.labels]))
    whole, alone = audited(forget=forget, test=mixed), audited(forget=forget, test=own)
    assert len(whole.held_out) == 50
    assert against_itself(whole) == against_itself(alone)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("test_share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("median", [0.01, 1.0])
def test_the_smallest_forget_sets_are_audited_and_no_certainty_is_claimed(
    count: int, test_share: float, median: float
) -> None:
    subject = audited(forget=answers(some(0, count, median)), test=answers(some(1, 50)))
    retrained = audited("retrained", forget=answers(some(2, count)), test=answers(some(3, 50)))
    measured = loss_attack(subject, Bench(retrained), **(ATTACK | {"test_share": test_share}))
    assert all(math.isfinite(value) for value in measured.values())
    assert measured["loss_attack_auc_low"] <= measured["loss_attack_auc"] <= measured["loss_attack_auc_high"]
    assert measured["loss_attack_auc_high"] - measured["loss_attack_auc_low"] > 0.1


@pytest.mark.parametrize(("count", "test_share", "possible"), [(5, 0.1, False), (6, 0.1, True), (9, 0.9, False)])
def test_the_attack_is_left_out_unless_both_sides_are_trained_and_tested_on(
    count: int, test_share: float, possible: bool
) -> None:
    # Of 10, 12 and 18 images 1, 2 and 17 are for testing
    subject = audited(forget=answers(some(0, count)), test=answers(some(1, 50)))
    measured = against_itself(subject, test_share=test_share)
    assert ("loss_attack_accuracy" in measured, "loss_attack_f1" in measured) == (possible, possible)
    assert "loss_attack_auc" in measured


def test_without_a_test_image_of_the_forgotten_class_there_is_nothing_to_compare() -> None:
    subject = audited(forget=answers(some(0, 5), np.full(5, 2)), test=answers(some(1, 20), np.full(20, 3)))
    assert set(against_itself(subject).values()) == {NO_HELD_OUT}


# The attack by a support-vector classifier


def attacked(subject: Subject, **settings: Any) -> Mapping[str, float]:
    return mia_svc(subject, Bench(), **(SVC_ATTACK | settings))


def random_answers(seed: int, count: int, sharpness: float) -> Signals:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    logits = draw.normal(0, 1, (count, CLASSES))
    logits[np.arange(count), labels] += sharpness
    return Signals(logits.astype(np.float32), labels)


def test_correctness_variant_is_one_minus_forget_accuracy() -> None:
    # Retain accuracy is above test accuracy, so whoever is right is called a member
    subject = audited(forget=right_and_wrong(17, 6), retain=right_and_wrong(95, 5), test=right_and_wrong(70, 30))
    assert attacked(subject)["mia_svc_correctness"] == pytest.approx(6 / 23, abs=1e-12)


@pytest.mark.parametrize(("median", "expected"), [(0.01, 0.0), (3.0, 1.0)])
@pytest.mark.parametrize("feature", FEATURES)
def test_separated_answers_are_called_all_or_none(feature: str, median: float, expected: float) -> None:
    def near(seed: int, count: int, median: float) -> Signals:
        return answers(median * np.random.default_rng(seed).uniform(0.8, 1.2, count))

    subject = audited(forget=near(0, 30, median), retain=near(1, 80, 0.01), test=near(2, 80, 3.0))
    assert attacked(subject)[f"mia_svc_{feature}"] == expected


def test_order_of_the_forget_set_does_not_matter() -> None:
    subject = audited(
        forget=random_answers(0, 50, 2.0), retain=random_answers(1, 90, 3.0), test=random_answers(2, 80, 1)
    )
    order = np.random.default_rng(3).permutation(50)
    assert attacked(replace(subject, forget=subject.forget[order])) == attacked(subject)


def features_by_hand(signals: Signals, feature: str, released: bool) -> list[list[float]]:
    rows = []
    for logits, label in zip(signals.logits.astype(np.float64).tolist(), signals.labels.tolist(), strict=True):
        powers = [math.exp(z - max(logits)) for z in logits]
        p = [power / sum(powers) for power in powers]
        if feature == "correctness":
            values = [float(p.index(max(p)) == label)]
        elif feature == "confidence":
            values = [p[label]]
        elif feature == "entropy":
            values = [-sum(q * math.log(q) for q in p)]
        elif feature == "probabilities":
            values = p
        elif released:
            values = [-sum((1 - q) * math.log(q) for q in p)]
        else:
            others = sum(q * math.log(1 - q) for c, q in enumerate(p) if c != label)
            values = [-(1 - p[label]) * math.log(p[label]) - others]
        rows.append(values)
    return rows


@pytest.mark.parametrize("compat", [None, "released"])
def test_every_variant_equals_the_attack_written_out(compat: str | None) -> None:
    forget, retain, test = random_answers(3, 60, 2.0), random_answers(4, 150, 3.0), random_answers(5, 100, 1.0)
    measured = attacked(audited(forget=forget, retain=retain, test=test), compat=compat)
    assert len({measured[f"mia_svc_{feature}"] for feature in FEATURES}) == len(FEATURES)
    for feature in FEATURES:
        # As many members as there are test images, the first in the data set's order
        known, strange, asked = (
            features_by_hand(side, feature, compat == "released") for side in (retain[np.arange(100)], test, forget)
        )
        attack = SVC(C=3, gamma="auto", kernel="rbf").fit(known + strange, [1] * 100 + [0] * 100)
        called = attack.predict(asked)
        assert measured[f"mia_svc_{feature}"] == pytest.approx(sum(called == 0) / 60, abs=1e-12), feature


def test_the_released_entropy_concerns_the_modified_variant_alone() -> None:
    subject = audited(
        forget=random_answers(0, 60, 2.0), retain=random_answers(1, 100, 3.0), test=random_answers(2, 100, 1.0)
    )
    ours, released = attacked(subject), attacked(subject, compat="released")
    changed = {name for name in ours if ours[name] != released[name]}
    assert changed == {f"mia_svc_modified_entropy{end}" for end in ("", "_low", "_high")}


def test_members_are_the_first_retained_images_as_many_as_test_images() -> None:
    # The first 40 retained images have the forget set's losses; of the other 60 test images are nearer to it
    retain = answers(np.concatenate([np.full(40, 0.01), np.full(60, 3.0)]))
    subject = audited(forget=answers(np.full(10, 0.01)), retain=retain, test=answers(np.full(40, 0.7)))
    assert attacked(subject)["mia_svc_confidence"] == 0.0
    backwards = replace(subject, retain=retain[np.arange(100)[::-1]])
    assert attacked(backwards)["mia_svc_confidence"] == 1.0


def test_the_limit_thins_both_sides_evenly() -> None:
    # Of 100 images a side every eleventh is typical, the others pretend to be of the other side
    typical = np.isin(np.arange(100), np.arange(0, 100, 11))
    subject = audited(
        forget=answers(np.full(10, 0.01)),
        retain=answers(np.where(typical, 0.01, 3.0)),
        test=answers(np.where(typical, 3.0, 0.01)),
    )
    assert attacked(subject, limit=10)["mia_svc_confidence"] == 0.0
    assert attacked(subject)["mia_svc_confidence"] == 1.0


def test_test_images_of_a_forgotten_class_are_no_examples_of_non_members() -> None:
    # Class 2 is forgotten, and its many test images look like members
    test = answers(np.repeat([0.01, 3.0], [40, 20]), np.repeat([2, 3], [40, 20]))
    subject = audited(
        forget=answers(np.full(8, 0.01), np.full(8, 2)),
        retain=answers(np.full(30, 0.01), np.full(30, 3)),
        test=test,
        forgotten_classes=np.array([2]),
    )
    assert attacked(subject)["mia_svc_confidence"] == 0.0
    random = replace(subject, forgotten_classes=np.zeros(0, dtype=np.int64))
    assert attacked(random)["mia_svc_confidence"] == 1.0


def test_without_a_test_image_of_a_remaining_class_there_is_nobody_to_learn_from() -> None:
    subject = audited(
        forget=answers(some(0, 5), np.full(5, 2)), retain=answers(some(1, 9), np.full(9, 3)),
        test=answers(some(2, 4), np.full(4, 2)), forgotten_classes=np.array([2]),
    )  # fmt: skip
    assert set(attacked(subject).values()) == {NO_OTHERS}


# Gaps


def with_accuracies(forget: int, retain: int, test: int, role: str = "unlearned") -> Subject:
    """Right images out of 100, 200 and 50."""
    parts = {"forget": (forget, 100), "retain": (retain, 200), "test": (test, 50)}
    return audited(role, **{name: right_and_wrong(right, of - right) for name, (right, of) in parts.items()})


NAMES = ["forget_accuracy", "retain_accuracy", "test_accuracy"]


def test_the_retrained_model_has_no_gap_to_itself() -> None:
    retrained = with_accuracies(91, 198, 45, "retrained")
    measured = gap(retrained, Bench(retrained, {"accuracy": accuracy}), metrics=NAMES)
    assert measured == {"average_gap": 0.0, "tug_of_war": 1.0}


def test_gaps_of_a_worked_case() -> None:
    # Gaps of 0.09 (above), 0.02 (below) and 0.04 (below)
    bench = Bench(with_accuracies(90, 200, 45, "retrained"), {"accuracy": accuracy})
    measured = gap(with_accuracies(99, 196, 43), bench, metrics=NAMES)
    assert measured["average_gap"] == pytest.approx((0.09 + 0.02 + 0.04) / 3, abs=1e-12)
    assert measured["tug_of_war"] == pytest.approx(0.91 * 0.98 * 0.96, abs=1e-12)


def test_without_the_three_accuracies_there_is_no_tug_of_war() -> None:
    bench = Bench(with_accuracies(90, 200, 45, "retrained"), {"accuracy": accuracy})
    assert gap(with_accuracies(99, 196, 43), bench, metrics=NAMES[1:]) == pytest.approx(
        {"average_gap": 0.03}, abs=1e-12
    )


def test_a_fourth_metric_counts_in_the_average_and_not_in_tug_of_war() -> None:
    def attack(subject: Subject, lab: Any) -> Mapping[str, float]:
        return {"mia": 0.5 if subject.role == "retrained" else 0.75}

    bench = Bench(with_accuracies(90, 200, 45, "retrained"), {"accuracy": accuracy, "attack": attack})
    measured = gap(with_accuracies(99, 196, 43), bench, metrics=[*NAMES, "mia"])
    assert measured["average_gap"] == pytest.approx((0.09 + 0.02 + 0.04 + 0.25) / 4, abs=1e-12)
    assert measured["tug_of_war"] == pytest.approx(0.91 * 0.98 * 0.96, abs=1e-12)


def test_the_second_tug_of_war_has_the_confidence_attack_for_the_forget_accuracy() -> None:
    def attack(subject: Subject, lab: Any) -> Mapping[str, float]:
        return {"mia_svc_confidence": 0.5 if subject.role == "retrained" else 0.75}

    retrained = with_accuracies(90, 200, 45, "retrained")
    bench = Bench(retrained, {"accuracy": accuracy, "attack": attack})
    names = ["mia_svc_confidence", "retain_accuracy", "test_accuracy"]
    measured = gap(with_accuracies(99, 196, 43), bench, metrics=names)
    assert measured.keys() == {"average_gap", "tug_of_war_mia"}
    assert measured["tug_of_war_mia"] == pytest.approx(0.75 * 0.98 * 0.96, abs=1e-12)
    both = gap(with_accuracies(99, 196, 43), bench, metrics=[*names, "forget_accuracy"])
    assert both["tug_of_war"] == pytest.approx(0.91 * 0.98 * 0.96, abs=1e-12)
    assert gap(retrained, bench, metrics=names) == {"average_gap": 0.0, "tug_of_war_mia": 1.0}


def test_gaps_do_not_cancel() -> None:
    bench = Bench(with_accuracies(50, 100, 25, "retrained"), {"accuracy": accuracy})
    measured = gap(with_accuracies(60, 80, 25), bench, metrics=["forget_accuracy", "retain_accuracy"])
    assert measured["average_gap"] == pytest.approx(0.1, abs=1e-12)


# Cost


def test_cost_is_what_was_written_down_and_a_share_of_retraining() -> None:
    retrained = audited("retrained", cost={"seconds": 80.0, "sample_gradients": 1000, "peak_memory_bytes": 7})
    subject = audited(cost={"seconds": 20.0, "sample_gradients": 300, "peak_memory_bytes": 9})
    expected = {"seconds": 20.0, "sample_gradients": 300, "peak_memory_bytes": 9, "time_ratio": 0.25}
    assert cost(subject, Bench(retrained)) == expected
    assert cost(retrained, Bench(retrained))["time_ratio"] == 1.0


def test_memory_that_could_not_be_measured_is_left_out() -> None:
    subject = audited(cost={"seconds": 20.0, "sample_gradients": 300, "peak_memory_bytes": None})
    assert set(cost(subject, Bench(subject))) == {"seconds", "sample_gradients", "time_ratio"}


# Declarations


def everything() -> tuple[Subject, Bench]:
    spent = {"seconds": 2.0, "sample_gradients": 3, "peak_memory_bytes": 4}
    subject = audited(
        forget=random_answers(0, 60, 2.0), retain=random_answers(1, 90, 3.0), validation=random_answers(4, 20, 1.0),
        test=random_answers(2, 80, 1.0), forgotten_classes=np.array([1]), cost=spent,
    )  # fmt: skip
    return subject, Bench(subject, {"accuracy": accuracy, "mia_svc": partial(mia_svc, **SVC_ATTACK)})


@pytest.mark.parametrize(
    ("file", "audit", "settings"),
    [
        (accuracy_file, accuracy, {}),
        (loss_attack_file, loss_attack, ATTACK),
        (mia_svc_file, mia_svc, SVC_ATTACK),
        (gap_file, gap, {"metrics": [*NAMES, "mia_svc_confidence"]}),
        (cost_file, cost, {}),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else "",
)
def test_an_auditor_measures_exactly_what_it_declares(file: Any, audit: Any, settings: dict[str, Any]) -> None:
    declared = [
        f"{metric.name}{end}"
        for metric in file.METRICS
        for end in (("", "_low", "_high") if metric.interval else ("",))
    ]
    subject, bench = everything()
    before = {part: getattr(subject, part).logits.copy() for part in ("forget", "retain", "validation", "test")}
    assert sorted(audit(subject, bench, **settings)) == sorted(declared)
    assert all(np.array_equal(getattr(subject, part).logits, logits) for part, logits in before.items())


def test_the_same_audit_twice_gives_the_same_numbers() -> None:
    subject, bench = everything()
    first, second = (loss_attack(subject, bench, **ATTACK) for _ in range(2))
    assert first == second
    elsewhere = replace(bench, streams=Streams("lab", 1, 0))
    assert loss_attack(subject, elsewhere, **ATTACK)["loss_attack_accuracy"] != first["loss_attack_accuracy"]
