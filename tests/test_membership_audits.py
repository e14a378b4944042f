"""Attacks that compare a model with reference models: RMIA and LiRA, on planted signals and on digits."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from test_auditors import answers, some

from unlearn.reference_signals import References, ReferenceSignals, clipped_margin, stacked
from unlearn.settings import SettingError, check
from unlearn.signals import Signals
from unlearn.subject import Shadow

Floats = NDArray[np.float64]
PARTS = ("forget", "retain", "validation", "test")


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
