"""Reference models and their relatives: who was trained on what, who shares what, and what an auditor may answer."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import ROOT
from torch import nn

from unlearn import lab as labs
from unlearn.auditors import accuracy as accuracy_file
from unlearn.data import disk
from unlearn.data.images import Images
from unlearn.lab import ROLES, Lab
from unlearn.lease import Lease
from unlearn.report.terminal import show
from unlearn.request import Recipe
from unlearn.row import row
from unlearn.settings import SettingError
from unlearn.store import BusyError, key_of, without_waiting
from unlearn.subject import Shadow

Labs = Callable[..., Lab]
SHORT = ("train.epochs=1", "method.epochs=1", "auditor=[accuracy]", "objective=test_accuracy")
PARTS = ("forget", "retain", "test")


def made(lab: Lab, kind: str) -> set[str]:
    """Complete things of a kind in the lab's store."""
    return {file.parent.name for file in (lab.store.root / kind).glob("*/done.json")}


def trained_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> list[Images]:
    """The images that each training from now on is given."""
    seen: list[Images] = []
    trained = Recipe.trained

    def watched(self: Recipe, images: Images, streams: Any) -> nn.Module:
        seen.append(images)
        return trained(self, images, streams)

    monkeypatch.setattr(Recipe, "trained", watched)
    return seen


def pictures(images: Images) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images.pixels)


def members_of(lab: Lab, shadow: Shadow) -> list[bytes]:
    """The pictures that a shadow says it was trained on."""
    rest = torch.ones(len(lab.data.train), dtype=torch.bool)
    rest[lab.forget] = False
    parts = {
        "forget": lab.data.train[lab.forget],
        "retain": lab.data.train[rest.nonzero().flatten()],
        "test": lab.data.test,
    }
    chosen = (parts[part][torch.from_numpy(shadow.members[part]).nonzero().flatten()] for part in PARTS)
    return sorted(picture for images in chosen for picture in pictures(images))


def test_references_are_trained_on_complementary_halves_of_training_and_test_images(
    lab: Labs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = lab(*SHORT)
    seen = trained_on(made_by, monkeypatch)
    references = list(made_by.references(4))
    assert len(seen) == 4
    for images, reference in zip(seen, references, strict=True):
        assert pictures(images) == members_of(made_by, reference)
        assert images.augment == made_by.data.train.augment
        assert not reference.members["validation"].any()
        for part in (*PARTS, "validation"):
            assert len(reference.members[part]) == len(getattr(reference, part))
    numbers = torch.cat([made_by.data.train_index, torch.arange(len(made_by.data.test)) + made_by.data.official_count])
    pool = made_by.data.train.joined(made_by.data.test)
    for number, images in enumerate(seen):  # the numbers that the store keeps beside each model are its images'
        kept = np.load(made_by._shadow(number).original().folder / "half.npy")
        assert pictures(pool[torch.isin(numbers, torch.from_numpy(kept)).nonzero().flatten()]) == pictures(images)
    for one, other in ((0, 1), (2, 3)):
        for part in PARTS:
            assert (references[one].members[part] ^ references[other].members[part]).all()
    assert (references[0].members["retain"] != references[2].members["retain"]).any()
    everything = pictures(made_by.data.train) + pictures(made_by.data.test)
    assert sorted(pictures(seen[0]) + pictures(seen[1])) == sorted(everything)


def test_a_share_of_a_data_set_keeps_the_numbers_of_the_whole(lab: Labs, tmp_path: Path) -> None:
    draw, labels = np.random.default_rng(0), np.arange(180) % 3
    images = {f"{part}_images": draw.integers(0, 256, (180, 8, 8, 3), dtype=np.uint8) for part in ("train", "test")}
    disk.write(tmp_path / "cifar10", images | {"train_labels": labels, "test_labels": labels})
    unchecked = (f"dataset.sha256.{kind}=null" for kind in disk.NAMES)
    words = (f"dataset.root={tmp_path}", "dataset.share=0.5", *unchecked)
    its = lab(*SHORT, "dataset=cifar10_small", *words)
    assert its.data.official_count == 180 > len(its.data.train) + len(its.data.validation)
    first, second = its.references(2)
    for part in PARTS:
        assert (first.members[part] ^ second.members[part]).all()
    halves = [np.load(its._shadow(number).original().folder / "half.npy") for number in range(2)]
    assert np.concatenate(halves).size == np.unique(np.concatenate(halves)).size
    np.save(tmp_path / "named.npy", its.data.train_index[-7:].numpy())
    named = lab(*SHORT, "dataset=cifar10_small", *words, "scenario=indices", f"scenario.file={tmp_path / 'named.npy'}")
    assert torch.equal(named.data.train_index[named.forget], its.data.train_index[-7:])
    out = sorted(set(range(180)) - set(its.data.train_index.tolist()))
    np.save(tmp_path / "named.npy", out)
    with pytest.raises(SettingError, match=r"of the validation part or of what dataset\.share leaves out"):
        lab(*SHORT, "dataset=cifar10_small", *words, "scenario=indices", f"scenario.file={tmp_path / 'named.npy'}")


def test_references_are_shared_by_seeds_splits_scenarios_and_methods_and_can_be_extended(lab: Labs) -> None:
    first = lab(*SHORT)
    list(first.references(2))
    before = made(first, "originals")
    assert len(before) == 2
    for words in (["seed=1"], ["split=1"], ["scenario=class_wise"], ["method=random_label"]):
        list(lab(*SHORT, *words).references(2))
    assert made(first, "originals") == before
    list(first.references(4))
    assert made(first, "originals") > before
    assert len(made(first, "originals")) == 4
    list(lab(*SHORT, "train.lr=0.05").references(2))
    assert len(made(first, "originals")) == 6


def test_an_independent_retrain_is_made_again_as_the_contestant_that_it_is(lab: Labs) -> None:
    its, retraining = lab(*SHORT), lab("train.epochs=1", "auditor=[accuracy]", "method=retrain")

    def made_again(here: Lab, role: str) -> list[bytes]:
        return [subject.test.logits.tobytes() for subject in here.repeats(role, 2, same_original=False)]

    independent = made_again(its, "independent")
    assert independent == made_again(retraining, "unlearned")
    # What it is held against are other models, or an audit that compares the two sets could not fail
    assert not set(independent) & set(made_again(its, "retrained"))


def test_an_audit_is_made_again_when_what_it_builds_on_builds_on_something_else(lab: Labs) -> None:
    words = ("auditor=[accuracy,loss_attack,mia_svc,composite,gap]", "train.epochs=1", "method.epochs=1")
    words += ("auditor.gap.metrics=[composite_nomus]", "objective=average_gap")
    first, second = lab(*words), lab(*words, "auditor.loss_attack.folds=3")
    keys = [its._audited("gap", its.subject("unlearned")).key for its in (first, second)]
    assert "loss_attack" in str(first.auditors["composite"].keywords["metrics"])
    assert keys[0] != keys[1]


def test_a_reference_is_no_original_of_any_seed(lab: Labs) -> None:
    its = lab("train.lr=0", *SHORT)  # what is not trained is its initialisation
    assert its.train.keywords["lr"] == 0
    weights = {
        its.load(stored).state_dict()["1.0.weight"].numpy().tobytes()
        for stored in (its.original(0), its.original(1), *(its._shadow(k).original() for k in range(2)))
    }
    assert len(weights) == 4


def test_shadows_forget_what_they_know_of_the_forget_set(lab: Labs, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    its = lab(*SHORT)
    forgotten = pictures(its.data.train[its.forget])
    method = its.method

    def watched(model: nn.Module, request: Any, streams: Any) -> nn.Module:
        given.append(request)
        return method(model, request, streams)

    watching = partial(watched)
    monkeypatch.setattr(its, "method", watching)
    monkeypatch.setattr(labs, "needed", lambda method: frozenset({"forget", "retain", "validation"}))
    shadows = list(its.shadows("unlearned", 2))
    assert sorted(pictures(given[0].forget) + pictures(given[1].forget)) == forgotten
    for request, shadow in zip(given, shadows, strict=True):
        assert sorted(pictures(request.forget) + pictures(request.retain)) == members_of(its, shadow)
        assert len(request.forget) == shadow.members["forget"].sum() > 0
        numbers = its.data.train_index[its.forget][torch.from_numpy(shadow.members["forget"])]
        assert sorted(request.forget_numbers.tolist()) == sorted(numbers.tolist())
        assert pictures(request.validation) == pictures(its.data.validation)


def test_shadows_are_retrained_on_what_remains_or_are_the_references(
    lab: Labs, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = lab(*SHORT)
    references = list(its.references(2))
    seen = trained_on(its, monkeypatch)
    retrained = list(its.shadows("retrained", 2))
    gone = set(pictures(its.data.train[its.forget]))
    for images, reference in zip(seen, references, strict=True):
        assert pictures(images) == sorted(set(members_of(its, reference)) - gone)
    for shadow, reference in zip(its.shadows("original", 2), references, strict=True):
        np.testing.assert_array_equal(shadow.test.logits, reference.test.logits)
    differ = [(one.test.logits != two.test.logits).any() for one, two in zip(retrained, references, strict=True)]
    assert all(differ)
    again = list(its.shadows("independent", 2))
    assert all((one.test.logits != two.test.logits).any() for one, two in zip(retrained, again, strict=True))


def test_every_relative_is_a_model_of_its_own(lab: Labs) -> None:
    its = lab(*SHORT)
    groups = {
        "reference": [its.reference()],
        "independent": [its.subject("independent")],
        "oracles": list(its.oracles(2)),
        "other retrains": list(its.repeats("retrained", 2, same_original=False)),
        "originals": [its.subject("original"), *its.repeats("original", 2, same_original=False)],
        "unlearned of others": list(its.repeats("unlearned", 2, same_original=False)),
        "unlearned of one": list(its.repeats("unlearned", 2, same_original=True)),
    }
    answers = [subject.test.logits.tobytes() for group in groups.values() for subject in group]
    assert len(set(answers)) == len(answers)
    once = its.subject("unlearned").test.logits
    np.testing.assert_array_equal(groups["unlearned of one"][0].test.logits, once)  # the row's own is the first
    same = list(its.repeats("original", 2, same_original=True))
    assert {subject.test.logits.tobytes() for subject in same} == {its.subject("original").test.logits.tobytes()}
    other = lab(*SHORT, "seed=1")
    theirs = [
        subject.test.logits.tobytes()
        for subject in (*other.oracles(2), *other.repeats("retrained", 2, same_original=False))
    ]
    assert not set(theirs) & set(answers)


def test_the_independent_retrain_is_the_contestant_of_method_retrain(lab: Labs) -> None:
    words = [word for word in SHORT if not word.startswith("method")]
    stored = lab(*words).stored("independent")
    assert [its.key for its in stored] == [its.key for its in lab(*words, "method=retrain").stored("unlearned")]
    assert lab(*words, "layers=head").stored("independent")[0].key == stored[0].key


# Several jobs at once


def test_what_another_process_is_making_is_left_for_the_end(lab: Labs, monkeypatch: pytest.MonkeyPatch) -> None:
    its = lab(*SHORT)
    lease = Lease(its.store.root / "locks", f"originals-{key_of('originals', its._shadow(0).recipe())}", print)
    seen = trained_on(its, monkeypatch)
    lease.__enter__()
    with pytest.raises(BusyError), without_waiting():
        its._shadow(0).original()
    order: list[int] = []
    original = Lab.original

    def watched(self: Lab, seed: Any = None) -> Any:
        try:
            return original(self, seed)
        finally:
            order.append(int(self.half or 0))
            if len(order) == 4:  # all have been tried; the other process is done
                lease.__exit__(None, None, None)

    monkeypatch.setattr(Lab, "original", watched)
    assert len(list(its.references(4))) == 4
    assert order[:4] == [0, 1, 2, 3]
    assert len(seen) == 4
    assert not list(its.store.root.rglob("*.partial"))


# Answers


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """`answering(f)`: the auditor `accuracy` answers with f(its true answer)."""
    true = accuracy_file.accuracy

    def replaced(change: Callable[..., Any]) -> None:
        def accuracy(subject: Any, lab: Any) -> Any:
            return change(dict(true(subject, lab)))

        accuracy.__module__ = accuracy_file.__name__
        monkeypatch.setattr(accuracy_file, "accuracy", accuracy)

    return replaced


def test_refusals_and_arrays_are_kept_beside_the_metrics(lab: Labs, answering: Any, compose: Any) -> None:
    scores = np.arange(5, dtype=np.float32)
    answering(
        lambda true: true | {"retain_accuracy": "there is no reason", "scores": scores, "forget_accuracy": np.nan}
    )
    settings, choices = compose(list(SHORT))
    document, _ = row(Lab(settings), choices, [])
    for role in ROLES:
        assert "retain_accuracy" not in document["metrics"][role]
        assert "scores" not in document["metrics"][role]
        assert document["metrics"][role]["forget_accuracy"] is None
        reasons = {"retain_accuracy": "there is no reason", "forget_accuracy": "comes out as nan"}
        assert document["refused"][role] == reasons
    kept = list((Path(settings["store"]) / "audits").glob("*/arrays.npz"))
    assert len(kept) == 3
    np.testing.assert_array_equal(np.load(kept[0])["scores"], scores)
    json.dumps(document, allow_nan=False)


def test_an_auditors_own_conditions_are_checked_before_anything_is_trained(
    lab: Labs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(lab: Lab) -> None:
        raise SettingError("auditor.accuracy", len(lab.forget), "must be fewer, say")

    monkeypatch.setattr(accuracy_file, "check", check, raising=False)
    with pytest.raises(SettingError, match=r"auditor.accuracy=130: must be fewer, say"):
        lab(*SHORT)


def test_self_check_gives_the_row_an_independent_retrain_and_counts_verdicts(
    lab: Labs, compose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train.epochs=30", "method.epochs=1", "auditor=[accuracy,loss_attack,equivalence,self_check]"]
    words += ["objective=test_accuracy", "auditor.equivalence.margin=0.2"]
    settings, choices = compose(words)
    its = Lab(settings)
    document, _ = row(its, choices, words)
    assert set(document["metrics"]) == {*ROLES, "independent"} == set(document["models"])
    for role in document["metrics"]:
        independent, original = (document["metrics"][who] for who in ("independent", "original"))
        verdicts = ("loss_attack_passed", "equivalence_passed")
        measured = document["metrics"][role]
        assert measured["self_check_retrained_passed"] == np.mean([independent[name] for name in verdicts])
        assert measured["self_check_original_failed"] == np.mean([1 - original[name] for name in verdicts])
    show(document, its.metrics)
    head = next(line for line in capsys.readouterr().out.splitlines() if "metric" in line)
    assert head.index("original") < head.index("independent") < head.index("retrained") < head.index("unlearned")
    alone = compose(["train.epochs=1", "auditor=[accuracy,self_check]", "objective=test_accuracy"])
    refused = row(Lab(alone.settings), alone.choices, [])[0]["refused"]["unlearned"]
    assert refused["self_check_original_failed"] == "no auditor that was chosen gives a verdict"


# scripts/train_references.py


def references(store: Path, *words: str) -> subprocess.CompletedProcess[str]:
    given = ["wandb.mode=disabled", f"store={store}", f"dataset.root={store.parent}", "train.epochs=2", *words]
    command = [sys.executable, str(ROOT / "scripts" / "train_references.py"), *given]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_several_processes_train_each_reference_once(tmp_path: Path) -> None:
    done = references(tmp_path / "store", "--count", "4", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    trained = {line.split(":")[0] for line in done.stderr.splitlines() if "epoch 2/2" in line}
    assert trained == {f"original, seed half/{number}" for number in range(4)}
    assert done.stderr.count("epoch 2/2") == 4
    assert len(list((tmp_path / "store" / "originals").glob("*/done.json"))) == 4
    again = references(tmp_path / "store", "--count", "4")
    assert "epoch" not in again.stderr
    assert again.stdout.startswith("4 reference models in")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "3"], "--count=3: must be even"),
        (["--jobs", "0"], "--jobs=0: must be greater than 0"),
        (["model=none"], "words=.*could not find 'model/none'"),
        (["train.lr=-1"], "train.lr=-1: must be greater than or equal to 0"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = references(tmp_path / "store", *words)
    assert done.returncode == 1
    assert re.match(f"error: {said}", done.stderr, re.IGNORECASE), done.stderr
    assert len(done.stderr.splitlines()) == 1
