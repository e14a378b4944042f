"""A row of a newer schema is named, and neither averaged, overwritten, nor taken for something else."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laws import ROOT, content_of

from unlearn.lab import Lab
from unlearn.report.rows import read
from unlearn.row import row
from unlearn.settings import SettingError
from unlearn.store import file_checksum

status = importlib.import_module("scripts.status")

WORDS = ["train.epochs=1", "method.epochs=1", "auditor=[accuracy]", "objective=test_accuracy"]


@pytest.fixture(scope="module")
def newer(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A store whose row a later version has written, under the same key, with metrics that mean something else."""
    settings, choices = composing(tmp_path_factory.mktemp("newer") / "store", WORDS)
    document, file = row(Lab(settings), choices, [])
    del document["models"]
    file.write_text(json.dumps(document | {"schema": 2, "metrics": {"unlearned": {"forget_accuracy": 99}}}))
    done = json.loads((file.parent / "done.json").read_text())
    (file.parent / "done.json").write_text(json.dumps(done | {"row.json": file_checksum(file)}))
    return (settings, choices), file


def test_a_newer_row_is_neither_believed_nor_overwritten(newer: tuple[Any, Path]) -> None:
    (settings, choices), file = newer
    store = Path(settings["store"])
    before, trained = content_of(store), list[str]()
    with pytest.raises(SettingError) as raised:
        row(Lab(settings, lambda label, *rest: trained.append(label)), choices, [])
    said = "has schema 2; this version reads 1 and leaves it as it is: use the version that made it"
    assert str(raised.value) == f"row={file}: {said}"
    assert trained == []
    assert content_of(store) == before
    with pytest.raises(SettingError, match="has schema 2"):
        read([store / "rows"])


@pytest.mark.parametrize("words", [["explain", "{id}"], ["export", "{store}/x.tar"], ["clean", "--unused", "--delete"]])
def test_scripts_refuse_a_newer_row_in_one_line_and_delete_nothing(words: list[str], newer: tuple[Any, Path]) -> None:
    (settings, _), file = newer
    before = content_of(Path(settings["store"]))
    places = {"id": file.parent.name, "store": settings["store"]}
    command = [sys.executable, "scripts/store.py", "--store", settings["store"]]
    command += [word.format(**places) for word in words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: row={file}: has schema 2; this version reads 1")
    assert content_of(Path(settings["store"])) == before


def test_a_job_of_a_newer_row_is_not_done(newer: tuple[Any, Path]) -> None:
    (settings, _), file = newer
    words = [*WORDS, "device=cpu", "precision=fp32", "wandb.mode=disabled", "train.batch_size=64"]
    words += [f"store={settings['store']}", f"dataset.root={settings['dataset']['root']}"]
    state, said = status.state(words)
    assert state == "refused"
    assert said.startswith(f"row={file}: has schema 2")
    failed = file.parent.with_suffix(".failed")
    file.parent.rename(file.parent.with_name("elsewhere"))
    failed.write_text("{")
    assert status.state(words) == ("failed", "and what it said is damaged")
    failed.unlink()
    file.parent.with_name("elsewhere").rename(file.parent)
