"""Ctrl-C and a job's end by its scheduler: one line, no row, and the same command continues to the same row."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from laws import ROOT

WORDS = ("train.epochs=12", "train.batch_size=16", "auditor=[accuracy]", "objective=forget_accuracy", "device=cpu")


def started(store: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "run.py", *WORDS, f"store={store}", f"dataset.root={store}/data", "wandb.mode=disabled"]
    # A shell that starts tests in the background has them ignore Ctrl-C, and their children inherit it.
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*words, f"hydra.run.dir={store}/logs"], cwd=ROOT, **pipes, **heeding)


def test_ctrl_c_while_it_still_imports_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "run.py", f"store={tmp_path / 'store'}"]
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    run = subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **heeding)
    assert run.stderr is not None
    while "torch._C" not in (line := run.stderr.readline()):  # a line for each module, when it has been imported
        assert line
    run.send_signal(signal.SIGINT)
    output, errors = run.communicate()
    said = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert (run.returncode, output, said) == (130, "", ["interrupted"])


def row(output: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / output.splitlines()[-1]).read_text())
    return document


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_the_same_command_completes_it(tmp_path: Path, number: signal.Signals) -> None:
    run = started(tmp_path / "interrupted")
    assert run.stderr is not None
    assert "epoch 1/12" in run.stderr.readline()
    run.send_signal(number)
    output, errors = run.communicate()
    assert run.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command continues where it stopped"
    assert "Traceback" not in errors
    assert output == ""
    assert not list((tmp_path / "interrupted").glob("rows/*/row.json"))
    again, _ = started(tmp_path / "interrupted").communicate()
    undisturbed, _ = started(tmp_path / "undisturbed").communicate()
    assert row(again)["metrics"] == row(undisturbed)["metrics"]
