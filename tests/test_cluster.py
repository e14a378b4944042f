"""Several processes on this machine, and what docs/cluster.md says; a real Slurm is in test_slurm.py."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from laws import ROOT
from test_docs import blocks
from test_lab import unclocked

from scripts import status

PAGE = ROOT / "docs" / "cluster.md"
SWEEPS = sorted(file.stem for file in (ROOT / "conf" / "sweep").glob("*.yaml"))
LAUNCHERS = {"local": "JoblibLauncher", "slurm": "SlurmLauncher"}
SMALL = ("device=cpu", "train.epochs=2", "train.milestones=[]", "auditor=[accuracy]", "objective=forget_accuracy")
SMALL += ("wandb.mode=disabled",)


def composed(*words: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(words), return_hydra_config=True)


def started(folder: Path, store: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
    """`run.py -m` in a session of its own, whose processes can be found by it."""
    command = [sys.executable, str(ROOT / "run.py"), "-m", f"store={store}", f"hydra.sweep.dir={store}-logs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UNLEARN_DATA": str(folder / "data"), **environment}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    return subprocess.Popen([*command, *SMALL, *words], env=environment, start_new_session=True, **pipes)


def rows(store: Path) -> dict[str, Any]:
    return {file.parent.name: unclocked(json.loads(file.read_text())) for file in store.glob("rows/*/row.json")}


def processes(session: int) -> set[int]:
    """The processes of a session that are still there, zombies aside."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.add(int(place.name))
    return found


def resident(process: int) -> int:
    """The pages of memory that a process has, by which a worker is told from its keepers."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1])


@pytest.mark.parametrize("cluster", LAUNCHERS)
@pytest.mark.parametrize("sweep", [None, *SWEEPS])
def test_every_sweep_goes_with_every_cluster(sweep: str | None, cluster: str) -> None:
    found = composed(*([f"sweep={sweep}"] if sweep else []), f"cluster={cluster}")
    assert found.hydra.launcher._target_.rpartition(".")[2] == LAUNCHERS[cluster]
    assert found.hydra.mode.name == "MULTIRUN"
    alone = composed(*([f"sweep={sweep}"] if sweep else []))
    assert found.hydra.sweeper == alone.hydra.sweeper
    ours, theirs = ({key: value for key, value in each.items() if key != "hydra"} for each in (found, alone))
    assert ours == theirs


def test_jobs_in_processes_make_the_rows_that_are_made_one_after_the_other(tmp_path: Path) -> None:
    words = ("method=none,finetune", "train.lr=0.1,1e12")
    runs = {"local": started(tmp_path, "local", "cluster=local", *words), "plain": started(tmp_path, "plain", *words)}
    for name, run in runs.items():
        _, errors = run.communicate()
        assert run.returncode != 0
        last = "error: original, seed 0: the loss is nan in epoch 1 (learning rate 1000000000000.0)"
        assert errors.splitlines()[-1] == last, name
        assert "Traceback" not in errors
    made = rows(tmp_path / "local")
    assert {row["method"] for row in made.values()} == {"none", "finetune"}
    assert made == rows(tmp_path / "plain")
    failed = {name: {file.name for file in tmp_path.glob(f"{name}/rows/*.failed")} for name in runs}
    assert len(failed["local"]) == 2
    assert failed["local"] == failed["plain"]


def test_processes_that_are_interrupted_leave_nobody_behind(tmp_path: Path) -> None:
    words = ("cluster=local", "method=none", "train.epochs=2000", "seed=0,1")
    run = started(tmp_path, "store", *words)
    assert run.stderr is not None
    while "epoch 1/2000" not in run.stderr.readline():
        assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate()
    assert run.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command continues where it stopped"
    end = time.monotonic() + 60
    while processes(run.pid):
        assert time.monotonic() < end, processes(run.pid)
        time.sleep(0.1)


def test_a_process_that_is_killed_is_one_line(tmp_path: Path) -> None:
    run = started(tmp_path, "store", "cluster=local", "method=none", "train.epochs=2000", "seed=0,1")
    assert run.stderr is not None
    while "epoch 1/2000" not in run.stderr.readline():
        assert run.poll() is None
    workers = processes(run.pid) - {run.pid}
    os.kill(max(workers, key=resident), signal.SIGKILL)  # as the kernel does where memory is short
    _, errors = run.communicate()
    assert run.returncode == 2
    assert errors.splitlines()[-1] == "error: a process was killed; the same command continues"
    assert "Traceback" not in errors


def test_a_machine_without_slurm_says_so(tmp_path: Path) -> None:
    run = started(tmp_path, "store", "cluster=slurm", "method=none", PATH=str(tmp_path))
    _, errors = run.communicate()
    assert run.returncode == 2
    assert errors.splitlines()[-1].startswith('error: cluster=slurm: Could not detect "srun"')
    assert "Traceback" not in errors


def test_the_settings_files_of_the_guide_are_read(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    slurm, default = blocks(PAGE, "yaml")
    (tmp_path / "local" / "slurm.yaml").write_text(slurm)
    (tmp_path / "local" / "default.yaml").write_text(default)
    own = f"hydra.searchpath=[file://{tmp_path}]"
    found = composed(own, "cluster=slurm")
    assert yaml.safe_load(slurm).items() <= dict(found.hydra.launcher).items()
    for words in ((), ("cluster=local",), ("cluster=slurm",)):
        assert composed(own, *words).store == yaml.safe_load(default)["store"]


def test_the_keys_of_the_guide_are_those_of_the_launcher() -> None:
    table = re.findall(r"^\| (`.+?`) \|", PAGE.read_text(), re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    own = yaml.safe_load((ROOT / "conf" / "cluster" / "slurm.yaml").read_text())["hydra"]["launcher"]
    assert named == own.keys() - {"submitit_folder"}
    composed("cluster=slurm", "+hydra.launcher.additional_parameters.nice=100")


def test_the_other_commands_of_the_guide_are_real() -> None:
    lines = [line for block in blocks(PAGE, "sh") for line in block.splitlines()]
    checked = set()
    for line in lines:
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        if words[:2] == ["python", "scripts/status.py"]:
            assert len(status.jobs(words[2:])) > 1
        elif words[:2] == ["python", "scripts/fetch_data.py"]:
            assert (ROOT / "conf" / "dataset" / f"{words[2]}.yaml").exists()
            assert words[2] in (ROOT / "scripts" / "fetch_data.py").read_text()
        checked.add(" ".join(words[:2]))
    # pip is checked by the Makefile's own use of the extra, run.py in test_docs, Slurm's in test_slurm
    assert checked == {
        "python run.py", "python scripts/status.py", "python scripts/fetch_data.py", "pip install", "wandb sync",
        "squeue --me", "scontrol requeue", "scontrol update",
    }  # fmt: skip
