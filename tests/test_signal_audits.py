"""Audits that read signals alone, on planted answers: against loops, scikit-learn, scipy and what was hidden."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_auditors import CLASSES, Bench, answers, audited, random_answers, some

from unlearn.auditors import song as song_file
from unlearn.auditors import yeom as yeom_file
from unlearn.auditors.loss_attack import loss_attack
from unlearn.auditors.song import SIGNALS, song
from unlearn.auditors.yeom import yeom
from unlearn.signals import Signals
from unlearn.streams import Streams
from unlearn.subject import Subject

Floats = NDArray[np.float64]
HALVES = {"repetitions": 20, "shadow_share": 0.5}
ELSEWHERE = np.full(30, 4)
"""Labels of a class that occurs nowhere else."""


def assert_intervals_hold(answer: Mapping[str, Any]) -> None:
    ends = [name for name in answer if name.endswith("_low")]
    assert ends
    for low in ends:
        name = low.removesuffix("_low")
        assert answer[low] <= answer[name] <= answer[f"{name}_high"], name


def declared(file: Any) -> set[str]:
    return {f"{its.name}{end}" for its in file.METRICS for end in (("", "_low", "_high") if its.interval else ("",))}


def numbers(answer: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in answer.items() if not isinstance(value, np.ndarray)}


def signed(draw: np.random.Generator, count: int, hardness: Floats, sharpness: float = 2.0) -> Signals:
    """One model's answers to images whose hardness all models share."""
    labels = np.arange(count) % CLASSES
    logits = draw.normal(0, 1, (count, CLASSES))
    logits[np.arange(count), labels] += sharpness - hardness
    return Signals(logits.astype(np.float32), labels)


def retrains(seed: int, count: int = 150) -> tuple[Subject, Subject]:
    """Two models that have never seen the forget set, and agree on what is hard."""
    draw = np.random.default_rng(seed)
    hardness = {"forget": draw.normal(0, 2, count), "test": draw.normal(0, 2, count), "retain": np.full(count, -3.0)}
    one, two = (
        audited(role, **{part: signed(draw, count, its) for part, its in hardness.items()})
        for role in ("unlearned", "retrained")
    )
    return one, two


def overfit(seed: int, count: int = 150) -> tuple[Subject, Subject]:
    """A model that has memorised the forget set, and one that has not."""
    draw = np.random.default_rng(seed)
    hardness = {"test": draw.normal(0, 2, count), "retain": np.full(count, -3.0)}
    parts = [{part: signed(draw, count, its) for part, its in hardness.items()} for _ in range(2)]
    parts[0]["forget"] = signed(draw, count, np.full(count, -3.0))
    parts[1]["forget"] = signed(draw, count, draw.normal(0, 2, count))
    return audited("original", **parts[0]), audited("retrained", **parts[1])


# Null levels


def test_the_null_level_of_the_kolmogorov_smirnov_distance() -> None:
    settings = {"folds": 1, "test_share": 0.1, "clip": 100.0, "permutations": 1}
    measured = []
    for seed in range(60):
        losses = 2 * np.random.default_rng(seed).lognormal(0, 1, (2, 2500))
        subject = audited(forget=answers(losses[0]), test=answers(losses[1]))
        measured.append(loss_attack(subject, Bench(subject), **settings)["ks_statistic"])
    # Simulated once with many more: mean 0.023, 95 % quantile 0.035
    assert np.mean(measured) == pytest.approx(0.023, abs=0.004)
    assert np.quantile(measured, 0.95) == pytest.approx(0.035, abs=0.006)


# The mean training loss as a threshold


def test_rates_and_advantage_are_counts() -> None:
    forget, test = answers(some(0, 40, 0.4)), answers(some(1, 60))
    retain = answers(some(2, 80, 0.5))
    subject = audited(forget=forget, retain=retain, test=test)
    measured = yeom(subject, Bench(subject))
    threshold = math.fsum(retain.loss) / 80
    rates = [sum(loss <= threshold for loss in side.loss) / len(side) for side in (forget, test)]
    assert 0 < rates[1] < rates[0] < 1
    assert measured["yeom_threshold"] == pytest.approx(threshold, rel=1e-12)
    assert measured["yeom_true_positive_rate"] == rates[0]
    assert measured["yeom_false_positive_rate"] == rates[1]
    assert measured["yeom_advantage"] == pytest.approx(rates[0] - rates[1], abs=1e-12)


def test_the_advantages_interval_is_that_of_two_shares() -> None:
    one, two = retrains(0, 4000)
    measured = yeom(one, Bench(two))
    rates = [measured[f"yeom_{side}_positive_rate"] for side in ("true", "false")]
    half = 1.96 * math.sqrt(sum(rate * (1 - rate) for rate in rates) / 4000)
    for end, side in (("_low", -1), ("_high", 1)):
        assert measured[f"yeom_advantage{end}"] == pytest.approx(rates[0] - rates[1] + side * half, abs=0.02 * half)


def test_a_loss_at_the_threshold_is_a_members() -> None:
    same = np.zeros(4, dtype=np.int64)
    subject = audited(forget=answers(np.ones(4), same), retain=answers(np.ones(4), same), test=answers(some(0, 9)))
    assert yeom(subject, Bench(subject))["yeom_true_positive_rate"] == 1.0


def test_other_classes_are_not_compared_but_set_the_threshold() -> None:
    own, others = answers(some(1, 50), np.full(50, 2)), answers(some(2, 30, 0.01), ELSEWHERE)
    test = Signals(np.concatenate([own.logits, others.logits]), np.concatenate([own.labels, others.labels]))
    forget, retain = answers(some(0, 40, 0.4), np.full(40, 2)), answers(some(3, 90, 0.5), np.arange(90) % 2)
    alone = audited(forget=forget, retain=retain, test=own)
    assert yeom(audited(forget=forget, retain=retain, test=test), Bench(alone)) == yeom(alone, Bench(alone))


@pytest.mark.parametrize(
    ("audit", "settings", "pairs"), [(yeom, {}, 200), (song, {"repetitions": 2, "shadow_share": 0.5}, 80)]
)
def test_a_retrain_passes_nineteen_times_in_twenty_and_a_memorised_set_never(
    audit: Any, settings: dict[str, Any], pairs: int
) -> None:
    def passed(pair: tuple[Subject, Subject]) -> float:
        return audit(pair[0], Bench(pair[1]), **settings)[f"{audit.__name__}_passed"]

    share = np.mean([passed(retrains(seed)) for seed in range(pairs)])
    assert share >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / pairs)
    assert not any(passed(overfit(seed)) for seed in range(5))


@pytest.mark.parametrize("audit", ["yeom", "song"])
def test_the_reference_is_told_from_itself_by_nothing(audit: str) -> None:
    subject = retrains(1)[0]
    bench = Bench(subject)
    measured: Any = yeom(subject, bench) if audit == "yeom" else song(subject, bench, **HALVES)
    name = "yeom_advantage_difference" if audit == "yeom" else "song_confidence_difference"
    assert [measured[f"{name}{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert measured[f"{audit}_passed"] == 1.0


def test_too_much_forgotten_has_a_negative_advantage() -> None:
    one, two = retrains(3)
    overdone = audited(forget=answers(some(0, 150, 50.0)), retain=one.retain, test=one.test)
    measured = yeom(overdone, Bench(two))
    assert measured["yeom_advantage_high"] < 0
    assert measured["yeom_passed"] == 0.0


# Thresholds of each class


def best_by_trying(members: list[float], others: list[float]) -> float:
    def balanced(threshold: float) -> float:
        return sum(its >= threshold for its in members) / len(members) + sum(its < threshold for its in others) / len(
            others
        )

    candidates = sorted({*members, *others})
    return max(candidates, key=lambda its: (round(balanced(its), 12), -its))


def scores_by_hand(signals: Signals, signal: str) -> list[float]:
    rows = []
    for logits, label in zip(signals.logits.astype(np.float64).tolist(), signals.labels.tolist(), strict=True):
        powers = [math.exp(z - max(logits)) for z in logits]
        p = [power / sum(powers) for power in powers]
        others = sum(q * math.log(1 - q) for c, q in enumerate(p) if c != label)
        rows.append({
            "correctness": float(p.index(max(p)) == label),
            "confidence": p[label],
            "entropy": sum(q * math.log(q) for q in p),
            "modified_entropy": (1 - p[label]) * math.log(p[label]) + others,
        }[signal])  # fmt: skip
    return rows


def test_every_signal_equals_the_attack_written_out() -> None:
    forget, retain, test = random_answers(3, 60, 2.0), random_answers(4, 150, 3.0), random_answers(5, 90, 1.0)
    subject = audited(forget=forget, retain=retain, test=test)
    measured = song(subject, Bench(subject), repetitions=3, shadow_share=0.4)
    draw = np.random.default_rng(Bench().streams.seed("song", "halves"))
    orders = [(draw.permutation(150), draw.permutation(90)) for _ in range(3)]
    for signal in SIGNALS:
        scores = [scores_by_hand(side, signal) for side in (forget, retain, test)]
        accuracies = []
        for members, others in orders:
            threshold = {
                c: best_by_trying(
                    [scores[1][i] for i in members[:60] if retain.labels[i] == c],
                    [scores[2][i] for i in others[:36] if test.labels[i] == c],
                )
                for c in range(CLASSES)
            }
            if signal == "correctness":
                threshold = dict.fromkeys(range(CLASSES), 1.0)
            found = [its >= threshold[label] for its, label in zip(scores[0], forget.labels, strict=True)]
            fooled = [scores[2][i] >= threshold[test.labels[i]] for i in others[36:]]
            accuracies.append((sum(found) / 60 + 1 - sum(fooled) / 54) / 2)
        assert measured[f"song_{signal}"] == pytest.approx(np.mean(accuracies), abs=1e-12), signal
    assert len({measured[f"song_{signal}"] for signal in SIGNALS}) == len(SIGNALS)


def scaled(seed: int, count: int, low: float, high: float) -> Signals:
    """Losses about `low` in class 0 and about `high` in class 1."""
    labels = np.arange(count) % 2
    near = np.random.default_rng(seed).uniform(0.9, 1.1, count)
    return answers(np.where(labels == 0, low, high) * near, labels)


def test_each_class_has_its_own_threshold() -> None:
    # The strangers of class 0 look more familiar than the members of class 1
    subject = audited(forget=scaled(0, 40, 0.1, 2.0), retain=scaled(1, 80, 0.1, 2.0), test=scaled(2, 80, 0.5, 4.0))
    measured = song(subject, Bench(subject), **HALVES)
    assert measured["song_confidence"] > 0.9  # a member may be a little beyond the last one that was seen
    assert measured["song_modified_entropy"] > 0.9
    assert measured["song_pooled"].tolist() == [0, 0, 20, 20, 20]  # nobody has images of the last three


def test_a_class_without_members_takes_the_pooled_threshold() -> None:
    retain = answers(some(1, 80, 0.1), np.arange(80) % 2)
    forget, test = answers(np.repeat([0.01, 9.0], [30, 10]), np.full(40, 2)), answers(some(3, 90), np.arange(90) % 3)
    subject = audited(forget=forget, retain=retain, test=test, forgotten_classes=np.array([2]))
    measured = song(subject, Bench(subject), **HALVES)
    assert measured["song_pooled"].tolist() == [0, 0, 20, 20, 20]  # nobody has images of the last two
    # Only images of class 2 are judged, by the threshold between all members and all others
    draw = np.random.default_rng(Bench().streams.seed("song", "halves"))
    expected = []
    for _ in range(20):
        members, others = draw.permutation(80)[:40], draw.permutation(90)
        threshold = best_by_trying(retain.confidence[members].tolist(), test.confidence[others[:45]].tolist())
        judged = test.confidence[[i for i in others[45:] if test.labels[i] == 2]]
        expected.append(((forget.confidence >= threshold).mean() + (judged < threshold).mean()) / 2)
    assert measured["song_confidence"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_halves_are_drawn_anew_and_named() -> None:
    subject = retrains(5)[0]
    first, second = (song(subject, Bench(subject), **HALVES) for _ in range(2))
    assert numbers(first) == numbers(second)
    elsewhere = Bench(subject, streams=Streams("lab", 1, 0))
    other = song(subject, elsewhere, **HALVES)
    assert other["song_confidence"] != first["song_confidence"]
    assert song(subject, Bench(subject), repetitions=1, shadow_share=0.5)["song_confidence"] != first["song_confidence"]


# What is degenerate, and what is declared


@pytest.mark.parametrize(("file", "audit", "settings"), [(yeom_file, yeom, {}), (song_file, song, HALVES)])
@pytest.mark.parametrize("forgotten", [np.ones(1), np.full(3, 1.0), np.array([100.0, 100.0]), np.array([1e-9, 3.0])])
def test_the_smallest_forget_sets_have_an_answer_and_no_certainty(
    file: Any, audit: Any, settings: dict[str, Any], forgotten: Floats
) -> None:
    forget = answers(forgotten, np.arange(len(forgotten)) % 2)
    same = {"retain": answers(some(1, 30)), "test": answers(some(2, 40))}
    reference = audited("retrained", forget=answers(some(5, len(forgotten)), forget.labels), **same)
    measured = audit(audited(forget=forget, **same), Bench(reference), **settings)
    assert set(numbers(measured)) == declared(file)
    assert all(math.isfinite(value) for value in numbers(measured).values())
    assert_intervals_hold(measured)
    name = "yeom_advantage" if audit is yeom else "song_confidence"
    assert measured[f"{name}_high"] - measured[f"{name}_low"] > 0.1


@pytest.mark.parametrize(("file", "audit", "settings"), [(yeom_file, yeom, {}), (song_file, song, HALVES)])
def test_what_cannot_be_compared_is_refused_in_words(file: Any, audit: Any, settings: dict[str, Any]) -> None:
    forget, retain = answers(some(0, 5), np.full(5, 2)), answers(some(1, 9))
    without_class = audited(forget=forget, retain=retain, test=answers(some(2, 30), ELSEWHERE))
    without_retain = audited(forget=forget, test=answers(some(2, 30)))
    for subject in (without_class, without_retain):
        answer = audit(subject, Bench(subject), **settings)
        assert set(answer) == {metric.name for metric in file.METRICS}
        assert all(isinstance(reason, str) for reason in answer.values())


@pytest.mark.parametrize(("audit", "settings"), [(yeom, {}), (song, HALVES)])
def test_equal_scores_tell_nothing(audit: Any, settings: dict[str, Any]) -> None:
    same = {part: answers(np.full(40, 1.0), np.zeros(40, dtype=np.int64)) for part in ("forget", "retain", "test")}
    measured = audit(audited(**same), Bench(audited(**same)), **settings)
    for name, chance in (("yeom_advantage", 0.0), *((f"song_{signal}", 0.5) for signal in SIGNALS)):
        if name in measured:
            assert measured[name] == chance
            assert measured[f"{name}_low"] < chance < measured[f"{name}_high"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_two_classes_are_enough(count: int) -> None:
    def binary(seed: int, of: int) -> Signals:
        draw = np.random.default_rng(seed)
        return Signals(draw.normal(0, 2, (of, 2)).astype(np.float32), np.arange(of) % 2)

    subject = audited(forget=binary(0, count), retain=binary(1, 40), test=binary(2, 40))
    for answer in (yeom(subject, Bench(subject)), song(subject, Bench(subject), **HALVES)):
        assert_intervals_hold(answer)
