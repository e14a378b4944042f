"""The interclass confusion test: whose labels are swapped, who is trained with them, and what the auditor counts."""

from collections.abc import Callable
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import yaml_of
from sklearn.metrics import confusion_matrix
from test_auditors import Bench, audited

from unlearn.auditors.interclass_confusion import METRICS, difference, interclass_confusion, mcnemar
from unlearn.lab import Lab
from unlearn.row import identity
from unlearn.scenarios.confusion import confusion, relabelled
from unlearn.settings import SettingError, build
from unlearn.signals import Signals
from unlearn.store import key_of
from unlearn.streams import Streams
from unlearn.subject import Subject

SMALL = ("train.epochs=1", "auditor=[accuracy]", "objective=test_accuracy", "method=none")
CHOICES = dict.fromkeys(("dataset", "model", "train", "scenario", "method"), "")
A, B = 3, 5


# The forget set


def forget(lab: Lab, split: int = 0, **settings: Any) -> torch.Tensor:
    scenario = build(yaml_of("scenario", "confusion") | settings, "scenario")
    positions: torch.Tensor = scenario(lab.data, Streams("scenario", split))
    return positions


def test_half_of_the_images_are_of_either_class(lab: Callable[..., Lab]) -> None:
    here = lab()
    for classes, count in (([3, 5], 40), ([5, 3], 40), ([0, 9], 2)):
        chosen = forget(here, classes=classes, count=count)
        labels, counts = np.unique(here.data.train.labels[chosen], return_counts=True)
        assert (labels.tolist(), counts.tolist()) == (sorted(classes), [count // 2] * 2)
    assert torch.equal(forget(here, classes=[5, 3]), forget(here, classes=[3, 5]))
    few, many = (set(forget(here, count=count).tolist()) for count in (20, 40))
    assert few < many  # to sweep the number adds images and changes none
    drawn = torch.cat([forget(here, split) for split in range(40)]).unique()
    assert len(drawn) > 0.99 * int(((here.data.train.labels == 3) | (here.data.train.labels == 5)).sum())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": [3]}, r"scenario\.classes=\[3\]: name two different classes"),
        ({"classes": [3, 3]}, r"scenario\.classes=\[3, 3\]: name two different classes"),
        ({"classes": [3, 5, 5]}, r"scenario\.classes=\[3, 5, 5\]: name two different classes"),
        ({"classes": [3, 10]}, r"scenario\.classes=10: not a class of dataset digits, which has 0 to 9"),
        ({"count": 0}, r"scenario\.count=0: must be greater than 0"),
        ({"count": 7}, r"scenario\.count=7: must be even"),
        ({"count": 2000}, r"scenario\.count=2000: must leave some of the \d+ training images of class 3"),
    ],
)
def test_what_is_no_confusion_is_refused(settings: dict[str, Any], message: str, lab: Callable[..., Lab]) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        forget(lab(), **settings)


# Who is trained with which labels


def test_labels_are_swapped_for_the_forget_set_and_for_nobody_else(lab: Callable[..., Lab]) -> None:
    clean, here = lab(), lab("scenario=confusion")
    was, now = clean.data.train.labels, here.data.train.labels
    assert (was != now).nonzero().flatten().tolist() == here.forget.tolist()
    assert {(int(a), int(b)) for a, b in zip(was[here.forget], now[here.forget], strict=True)} == {(3, 5), (5, 3)}
    assert torch.equal(here.data.train.pixels, clean.data.train.pixels)
    for part in ("validation", "test"):
        assert torch.equal(getattr(here.data, part).labels, getattr(clean.data, part).labels)
    assert torch.equal(relabelled(relabelled(was[here.forget], classes=[3, 5], count=2), classes=[3, 5], count=2),
                       was[here.forget])  # fmt: skip


def test_methods_are_given_the_swapped_labels_in_each_of_several_requests(lab: Callable[..., Lab]) -> None:
    clean, here = lab().data.train.labels, lab("scenario=confusion", "requests=2")
    assert len(here.requests) == 2
    for number, positions in enumerate(here.requests):
        request = here.request(number)
        assert torch.equal(request.forget.labels, 8 - clean[positions])
        swapped = int((request.retain.labels != clean[here._rest(torch.cat(here.requests[: number + 1]))]).sum())
        assert swapped == len(torch.cat(here.requests[number + 1 :] or [positions[:0]]))


def test_recipes_of_other_scenarios_are_what_they_were(lab: Callable[..., Lab]) -> None:
    for words in ([], ["scenario=class_wise"]):
        assert lab(*words).recipe().keys() == {"dataset", "model", "train", "precision", "seed"}


def test_originals_of_different_swaps_never_share_a_key(lab: Callable[..., Lab]) -> None:
    variants = (
        [], ["scenario=confusion"], ["scenario=confusion", "split=1"], ["scenario=confusion", "scenario.count=20"],
        ["scenario=confusion", "scenario.classes=[3,8]"],
    )  # fmt: skip
    labs = [lab(*SMALL, *words) for words in variants]
    assert len({key_of("originals", its.recipe()) for its in labs}) == len(labs)
    assert len({str(identity(its, CHOICES)) for its in labs}) == len(labs)
    turned = lab(*SMALL, "scenario=confusion", "scenario.classes=[5,3]")
    assert turned.recipe() == labs[1].recipe()  # the same labels


def test_the_reference_never_saw_a_swap_and_is_that_of_any_scenario_with_this_forget_set(
    lab: Callable[..., Lab], tmp_path: Path
) -> None:
    here = lab(*SMALL, "scenario=confusion")
    np.save(tmp_path / "same.npy", here.data.train_index[here.forget].numpy())
    other = lab(*SMALL, "scenario=indices", f"scenario.file={tmp_path / 'same.npy'}")
    assert torch.equal(here.forget, other.forget)
    assert here.retrained() == other.retrained()
    assert here.original() != other.original()
    # but not its audits, for the labels of what it is asked about are others
    ours, theirs = (its.audit("accuracy", its.reference()) for its in (here, other))
    assert ours["test_accuracy"] == theirs["test_accuracy"]
    answers = here.reference().forget
    assert ours["forget_accuracy"] == np.mean(answers.logits.argmax(1) == answers.labels)
    assert theirs["forget_accuracy"] == np.mean(answers.logits.argmax(1) == 8 - answers.labels)
    assert ours["forget_accuracy"] != theirs["forget_accuracy"]


def test_reference_models_of_attacks_are_trained_with_the_swapped_labels_and_are_a_pool_of_their_own(
    lab: Callable[..., Lab],
) -> None:
    clean, here = lab(*SMALL), lab(*SMALL, "scenario=confusion")
    for number in (0, 1):
        ours, theirs = here._shadow(number), clean._shadow(number)
        differing = (ours.data.train.labels != theirs.data.train.labels).nonzero().flatten()
        assert torch.equal(differing, ours.forget)
        assert len(differing) > 5
        assert key_of("originals", ours.recipe()) != key_of("originals", theirs.recipe())
        assert "labels" not in theirs.recipe()
    shadow = next(here.references(2))
    np.testing.assert_array_equal(shadow.forget.labels, here.data.train.labels[here.forget])
    assert 5 < shadow.members["forget"].sum() < len(here.forget) - 5


# The auditor on planted answers


def answered(given: list[int], labels: list[int]) -> Signals:
    """Images of these labels that a model takes for the classes `given`."""
    logits = np.zeros((len(given), 10), dtype=np.float32)
    logits[np.arange(len(given)), given] = 5.0
    return Signals(logits, np.array(labels, dtype=np.int64))


def planted(seed: int, size: int = 60, wrong: float = 0.3, other: float = 0.6, **parts: Signals) -> Subject:
    """A model that is wrong on a share of all images, and then takes 3 and 5 for each other in a share of cases."""
    draw = np.random.default_rng(seed)

    def part(swapped: bool, count: int, classes: list[int]) -> Signals:
        true = np.random.default_rng(count).permutation(np.resize(classes, count))
        confused = np.where(np.isin(true, [A, B]) & (draw.random(count) < other), A + B - true, (true + 1) % 10)
        given = np.where(draw.random(count) < wrong, confused, true)
        return answered(given.tolist(), (A + B - true if swapped else true).tolist())

    made = {
        "forget": part(True, size, [A, B]),
        "test": part(False, 5 * size + 10, [A, B, 0, 1, 7]),
        "retain": part(False, 6 * size, [A, B, 2]),
    }
    return audited(**(made | parts))


def test_errors_and_counts_are_those_of_scikit_learns_confusion_matrix() -> None:
    subject, reference = planted(0), planted(1, wrong=0.2)
    measured = interclass_confusion(subject, Bench(reference))
    for part in ("forget", "test", "retain"):
        tables = []
        for its in (subject, reference):
            signals = getattr(its, part)
            true = 8 - signals.labels if part == "forget" else signals.labels
            tables.append(confusion_matrix(true, signals.logits.argmax(1), labels=range(10)))
        ours, theirs = tables
        total = ours[[A, B]].sum()
        errors = [total - table[A, A] - table[B, B] for table in tables]
        name = f"interclass_confusion_{part}"
        assert measured[f"{name}_count"] == pytest.approx(ours[A, B] + ours[B, A])
        assert measured[f"{name}_error"] == pytest.approx(errors[0] / total)
        assert measured[f"{name}_error_difference"] == pytest.approx((errors[0] - errors[1]) / total)
        wanted = ours[A, B] + ours[B, A] - theirs[A, B] - theirs[B, A]
        assert measured[f"{name}_count_difference"] == pytest.approx(wanted)


def test_intervals_are_wilsons_and_agresti_and_mins() -> None:
    subject = planted(0, forget=answered([A] * 12 + [B] * 28, [A] * 12 + [A] * 20 + [B] * 8))
    measured = interclass_confusion(subject, Bench(subject))
    # 20 of 40 right; of 12 + 8 wrong ones all are taken for the other class. Wilson by its closed form
    z, n, k = 1.959964, 40, 20
    centre, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * (k * (n - k) / n + z**2 / 4) ** 0.5
    for name, scale in (("error", 1), ("count", 40)):
        assert measured[f"interclass_confusion_forget_{name}_low"] == pytest.approx(scale * (centre - half), abs=1e-4)
        assert measured[f"interclass_confusion_forget_{name}_high"] == pytest.approx(scale * (centre + half), abs=1e-4)
    # Of 50, 12 against 3: half an image added to each of the four combinations
    ours, theirs = np.arange(50) < 20, (np.arange(50) >= 12) & (np.arange(50) < 23)
    found = difference(ours, theirs, "x")
    more, less, count = 12.5, 3.5, 52
    spread = z * (more + less - (more - less) ** 2 / count) ** 0.5 / count
    assert found["x"] == pytest.approx(9 / 50)
    assert found["x_low"] == pytest.approx((more - less) / count - spread, abs=1e-6)
    assert found["x_high"] == pytest.approx((more - less) / count + spread, abs=1e-6)


@pytest.mark.parametrize(("more", "less"), [(0, 0), (1, 0), (6, 0), (9, 2), (5, 5), (1, 12)])
def test_mcnemars_p_value_is_a_sum_of_binomials(more: int, less: int) -> None:
    ours = np.array([True] * more + [False] * less + [True] * 7 + [False] * 9)
    theirs = np.array([False] * more + [True] * less + [True] * 7 + [False] * 9)
    n = more + less
    tail = sum(comb(n, k) for k in range(max(more, less), n + 1)) / 2**n
    assert mcnemar(ours, theirs) == pytest.approx(min(1.0, 2 * tail))


def test_an_independent_retrain_passes_in_nineteen_cases_of_twenty() -> None:
    passed = [
        interclass_confusion(planted(2 * seed, size=200), Bench(planted(2 * seed + 1, size=200)))
        for seed in range(400)
    ]  # fmt: skip
    assert 0.95 <= np.mean([its["interclass_confusion_passed"] for its in passed]) <= 0.99


def test_what_memorised_or_generalised_the_swap_fails() -> None:
    retrained = planted(0, wrong=0.1)
    memorised = replace(
        planted(1, wrong=0.1), forget=answered(retrained.forget.labels.tolist(), retrained.forget.labels.tolist())
    )
    generalised = replace(planted(1, wrong=0.1), test=planted(2, wrong=0.5, other=1.0).test)
    overdone = replace(
        retrained, forget=answered([B if i % 2 else A for i in range(60)], [A if i % 2 else B for i in range(60)])
    )
    much = planted(3, wrong=0.5, other=1.0)
    for subject, reference in ((memorised, retrained), (generalised, retrained), (overdone, much)):
        measured = interclass_confusion(subject, Bench(reference))
        assert measured["interclass_confusion_passed"] == 0
    assert interclass_confusion(memorised, Bench(retrained))["interclass_confusion_forget_count"] == 60
    assert interclass_confusion(retrained, Bench(retrained))["interclass_confusion_passed"] == 1


def test_two_images_and_parts_without_the_classes() -> None:
    nothing = answered([0, 1, 2], [0, 1, 2])
    subject = planted(0, forget=answered([A, B], [A, B]), test=nothing, retain=nothing)
    right = replace(subject, forget=answered([B, A], [A, B]))
    measured = interclass_confusion(subject, Bench(right))
    assert measured["interclass_confusion_forget_count"] == 2
    assert measured["interclass_confusion_forget_error_difference"] == 1
    assert measured["interclass_confusion_passed"] == 1  # two images prove nothing
    assert not [name for name in measured if "_test_" in name or "_retain_" in name]
    for name, value in measured.items():
        if f"{name}_low" in measured:
            assert measured[f"{name}_low"] <= value <= measured[f"{name}_high"]


def test_it_measures_what_it_declares() -> None:
    declared = {
        f"{metric.name}{end}" for metric in METRICS for end in (("", "_low", "_high") if metric.interval else ("",))
    }
    assert interclass_confusion(planted(0), Bench(planted(1))).keys() == declared


# In the lab


def test_other_scenarios_are_refused_at_once(lab: Callable[..., Lab], tmp_path: Path) -> None:
    words = ["auditor=[interclass_confusion]", "objective=interclass_confusion_passed"]
    for scenario in ("random", "class_wise"):
        with pytest.raises(SettingError, match=r"^auditor=interclass_confusion: needs scenario=confusion"):
            lab(f"scenario={scenario}", *words)
    assert not (tmp_path / "store" / "originals").exists()
    lab("scenario=confusion", *words)
    assert build(yaml_of("scenario", "confusion"), "scenario").func is confusion


def test_the_original_of_a_real_training_confuses_the_two_and_a_retrained_model_does_not(
    lab: Callable[..., Lab],
) -> None:
    words = ["auditor=[interclass_confusion]", "objective=interclass_confusion_passed", "method=retrain"]
    here = lab("scenario=confusion", "train.epochs=15", *words)
    found = {role: here.audit("interclass_confusion", here.subject(role)) for role in ("original", "unlearned")}
    original, retrained = found["original"], found["unlearned"]
    assert original["interclass_confusion_passed"] == 0
    assert retrained["interclass_confusion_passed"] == 1
    assert original["interclass_confusion_forget_count"] > 20
    assert retrained["interclass_confusion_forget_count"] < 8
    assert original["interclass_confusion_forget_count_difference_low"] > 10
