"""Equivalence to the retrained model, on answers whose differences are planted."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from test_auditors import Bench, Floats, answers, audited, some

from unlearn.auditors.equivalence import METRICS, equivalence
from unlearn.statistics import holm
from unlearn.subject import Subject

NAMES = [metric.name for metric in METRICS[:-1]]


def outcome(right: Floats, seed: int = 0) -> Floats:
    """Losses of images of which those where `right` holds are classified correctly."""
    spread = np.random.default_rng(seed).uniform(0, 0.3, len(right))
    return np.where(right, 0.1 + spread, 3.0 + spread)


def model(wrong: int, count: int = 4000, seed: int = 0, **losses: Any) -> Subject:
    """A model that is wrong on the first `wrong` images of every part."""
    right = np.arange(count) >= wrong
    return audited(**({part: answers(outcome(right, seed)) for part in ("forget", "retain", "test")} | losses))


def test_equal_and_nearly_equal_models_are_equivalent_and_others_are_not() -> None:
    bench = Bench(model(400))
    for wrong, passed in ((400, 1.0), (420, 1.0), (470, 0.0), (330, 0.0)):
        measured = equivalence(model(wrong), bench, margin=0.02)
        assert measured["equivalence_passed"] == passed
        assert set(measured) == {*NAMES, "equivalence_passed"}


def test_one_part_that_is_not_equivalent_is_enough() -> None:
    bench, whole = Bench(model(400)), model(400)
    for part in ("forget", "retain", "test"):
        other = replace(whole, **{part: getattr(model(600), part)})
        measured = equivalence(other, bench, margin=0.02)
        assert measured["equivalence_passed"] == 0
        assert float(measured[f"equivalence_{part}_accuracy_pvalue"]) > 0.9


def test_a_different_loss_is_found_at_equal_accuracies() -> None:
    known = answers(np.full(4000, 1e-3) + np.linspace(0, 1e-3, 4000))
    measured = equivalence(model(0, forget=known), Bench(model(0)), margin=0.02)
    assert measured["equivalence_forget_accuracy_pvalue"] == pytest.approx(0, abs=1e-9)
    assert float(measured["equivalence_loss_auc_pvalue"]) > 0.99
    assert measured["equivalence_passed"] == 0


def test_p_values_are_those_of_agresti_and_min_adjusted() -> None:
    ours, theirs = model(410, seed=1), model(400, seed=1)
    measured = equivalence(ours, Bench(theirs), margin=0.01)
    difference, error = -10 / 4002, math.sqrt(10 + 1 - 100 / 4002) / 4002
    single = float(norm.sf((0.01 - abs(difference)) / error))
    adjusted = sorted(float(measured[name]) for name in NAMES)
    parts = dict.fromkeys(NAMES[:3], single)
    lowest = holm(parts | {NAMES[3]: float(measured[NAMES[3]])})
    assert adjusted[-1] == pytest.approx(max(lowest.values()), rel=1e-6)
    assert float(measured[NAMES[0]]) == pytest.approx(lowest[NAMES[0]], rel=1e-6)


def test_few_images_prove_nothing_even_where_all_agree() -> None:
    measured = equivalence(model(4, 40), Bench(model(4, 40)), margin=0.02)
    assert all(isinstance(reason, str) for reason in measured.values())
    assert "equivalence_passed" in measured
    assert equivalence(model(4, 40), Bench(model(4, 40)), margin=0.5)["equivalence_passed"] == 1


def test_without_test_images_of_the_forgotten_class_there_is_no_area() -> None:
    labels = np.full(500, 3)
    forget, others = answers(some(0, 500), labels), answers(some(1, 3000), np.full(3000, 2))
    subject = audited(forget=forget, retain=others, test=others, forgotten_classes=np.array([3]))
    measured = equivalence(subject, Bench(subject), margin=0.05)
    assert "equivalence_loss_auc_pvalue" not in measured
    assert measured["equivalence_passed"] == 1


def test_models_that_differ_by_chance_alone_are_called_equivalent_as_often_as_the_power_says() -> None:
    passed = []
    for seed in range(100):
        draw = np.random.default_rng(seed)
        truth = draw.random(3000) < 0.9

        def answering(draw: np.random.Generator = draw, truth: Any = truth) -> Subject:
            """A model that agrees with another on most images and flips a coin on the rest."""
            right = np.where(draw.random(3000) < 0.05, draw.random(3000) < 0.5, truth)
            parts = {part: answers(outcome(right, 0)) for part in ("forget", "retain", "test")}
            return audited(**parts)

        measured = equivalence(answering(), Bench(answering()), margin=0.02)
        passed.append(measured["equivalence_passed"])
    assert np.mean(passed) > 0.9
