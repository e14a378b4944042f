"""Answers of models that were trained elsewhere are audited as those of our own, and what is missing is said."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import ROOT

from unlearn.foreign import Foreign
from unlearn.lab import Lab
from unlearn.settings import SettingError, build
from unlearn.subject import Shadow, Subject

PARTS = ("forget", "retain", "validation", "test")
SIGNAL_AUDITS = ("accuracy", "mia_svc", "gap", "equivalence")  # that draw nothing at random


def written(folder: Path, name: str, model: Subject | Shadow, **changes: Any) -> Path:
    """A model's answers in a file, as somebody else might have written it."""
    arrays: dict[str, Any] = {}
    for part in PARTS:
        signals = getattr(model, part)
        arrays |= {f"{part}_logits": signals.logits, f"{part}_labels": signals.labels}
        if isinstance(model, Shadow):
            arrays[f"{part}_members"] = model.members[part]
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


@pytest.fixture(scope="module")
def trained(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    words = ["train.epochs=20", "method.epochs=1", f"auditor=[{','.join(SIGNAL_AUDITS)},loss_attack]"]
    return Lab(composing(tmp_path_factory.mktemp("foreign"), words).settings)


@pytest.fixture
def files(trained: Lab, tmp_path: Path) -> dict[str, list[Path]]:
    found = {role: [written(tmp_path, role, trained.subject(role))] for role in ("original", "retrained", "unlearned")}
    references = enumerate(trained.references(2))
    return found | {"references": [written(tmp_path, f"reference{i}", model) for i, model in references]}


def audited(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    given = [text for name, values in options.items() for text in (f"--{name}", *map(str, values))]
    command = [sys.executable, str(ROOT / "scripts" / "audit.py"), *words, *given]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_foreign_answers_have_the_metrics_of_our_own(trained: Lab, files: dict[str, list[Path]]) -> None:
    lab = Foreign(files, trained.auditors)
    for role in ("original", "retrained", "unlearned"):
        for name in SIGNAL_AUDITS:
            assert lab.audit(name, lab.subject(role)) == trained.audit(name, trained.subject(role))
        ours, theirs = (its.audit("loss_attack", its.subject(role)) for its in (lab, trained))
        for metric in ("loss_attack_auc", "loss_attack_auc_difference_low", "ks_statistic", "loss_attack_passed"):
            assert ours[metric] == theirs[metric]
    for ours, theirs in zip(lab.references(2), trained.references(2), strict=True):
        for part in PARTS:
            np.testing.assert_array_equal(getattr(ours, part).logits, getattr(theirs, part).logits)
            np.testing.assert_array_equal(ours.members[part], theirs.members[part])


def test_the_script_prints_the_table_and_writes_the_numbers(
    trained: Lab, files: dict[str, list[Path]], tmp_path: Path
) -> None:
    done = audited(
        ["auditor=[accuracy,mia_svc,gap]", "auditor.mia_svc.limit=100"],
        logits=files["unlearned"], retrained=files["retrained"], out=[tmp_path / "numbers.json"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())["metrics"]
    expected = trained.audit("accuracy", trained.subject("unlearned"))
    assert {name: numbers["unlearned"][name] for name in expected} == expected
    assert numbers.keys() == {"retrained", "unlearned"}
    assert f"{expected['forget_accuracy']:.3f}" in done.stdout
    assert "gap to retrained" in done.stdout


def test_without_validation_images_the_others_are_audited(trained: Lab, tmp_path: Path) -> None:
    file = written(tmp_path, "some", trained.subject("unlearned"), validation_logits=None, validation_labels=None)
    lab = Foreign({"unlearned": [file]}, trained.auditors)
    measured = lab.audit("accuracy", lab.subject("unlearned"))
    assert "validation_accuracy" not in measured
    assert measured["test_accuracy"] == trained.audit("accuracy", trained.subject("unlearned"))["test_accuracy"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_logits": None}, r"test_logits=.*is not in this file, which has forget_logits"),
        (
            {"test_labels": np.zeros(3, np.int64)},
            r"test=.*must have finite logits, images by classes, and a label each",
        ),
        ({"forget_labels": np.full(130, 10)}, r"forget_labels=.*must be classes from 0 to 9"),
        ({"forget_logits": np.full((130, 10), np.nan)}, r"forget=.*must have finite logits"),
        ({"forget_labels": np.zeros(130, np.int64)}, r"forget_labels=.*must be those of .*the same images"),
        ({"test_logits": np.array([None, 1], dtype=object)}, r"test_logits=.*cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(changes: dict[str, Any], said: str, trained: Lab, tmp_path: Path) -> None:
    good = written(tmp_path, "good", trained.subject("retrained"))
    bad = written(tmp_path, "bad", trained.subject("unlearned"), **changes)
    lab = Foreign({"unlearned": [bad], "retrained": [good]}, trained.auditors)
    lab.reference()
    with pytest.raises(SettingError, match=said):
        lab.subject("unlearned")


def test_what_is_not_a_file_of_arrays_is_said(trained: Lab, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name, said in (("text.npz", "must be a NumPy .npz file"), ("one.npy", "single array"), ("none.npz", "No such")):
        with pytest.raises(SettingError, match=said):
            Foreign({"unlearned": [tmp_path / name]}, trained.auditors).subject("unlearned")


def test_models_that_were_not_given_are_named(trained: Lab, files: dict[str, list[Path]]) -> None:
    lab = Foreign({"unlearned": files["unlearned"], "references": files["references"]}, trained.auditors)
    with pytest.raises(SettingError, match=r"--retrained=0: must give 1 model, which the chosen auditors ask for"):
        lab.audit("loss_attack", lab.subject("unlearned"))
    with pytest.raises(SettingError, match=r"--references=2: must give 4 models"):
        lab.references(4)
    with pytest.raises(SettingError, match="only answers are known"):
        lab.subject("unlearned").model()
    with pytest.raises(SettingError, match="only answers are known"):
        lab.subject("unlearned").images("forget")
    with pytest.raises(SettingError, match="only answers are known"):
        lab.training  # noqa: B018
    done = audited([], logits=files["unlearned"])
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: --retrained=0: must give 1 model, which the chosen auditors ask for"]
    done = audited(["method=none"], logits=files["unlearned"])
    assert done.stderr.startswith("error: words=method=none: must be about auditors")


def test_the_script_refuses_what_an_auditor_refuses_and_leaves_out_what_is_not_known(
    files: dict[str, list[Path]], tmp_path: Path
) -> None:
    given = {"logits": files["unlearned"], "retrained": files["retrained"], "references": files["references"]}
    done = audited(["auditor=[lira]", "auditor.lira.references=2"], **given)
    assert done.stderr.startswith("error: auditor.lira.references=2: must be at least 4")
    done = audited(["auditor=[interclass_confusion]"], **given)
    assert done.stderr.startswith("error: auditor=interclass_confusion: needs scenario=confusion")
    done = audited(["auditor=[accuracy,cost]"], out=[tmp_path / "numbers.json"], **given)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "numbers.json").read_text())["refused"]["seconds"].startswith("is not known")
    done = audited(["auditor=[accuracy]"], out=[tmp_path / "nowhere" / "numbers.json"], **given)
    assert done.stderr.startswith("error: --out=")


def test_a_members_column_of_another_length_is_refused(trained: Lab, tmp_path: Path) -> None:
    shadow = next(trained.references(2))
    file = written(tmp_path, "short", shadow, test_members=np.ones(3, bool))
    lab = Foreign({"references": [file]}, {"accuracy": build({"_target_": "unlearn.auditors.accuracy.accuracy"}, "a")})
    with pytest.raises(SettingError, match=r"test_members=.*must be 359 booleans"):
        next(lab.references(1))
