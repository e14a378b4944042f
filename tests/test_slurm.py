"""A real Slurm: rows made by its jobs are those made without it, also when jobs are pre-empted, stopped or fail.

Needs Debian's `slurm-wlm` and `munge` and starts them itself. `.ci/run` installs them, and with its UNLEARN_SLURM=1
their absence is a failure; elsewhere these tests are then skipped. Only these: `pytest -m slurm`.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import ROOT
from slurm_cluster import missing, slurm_cluster, wait_for
from test_lab import unclocked

from unlearn.files import load_state

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(missing()) and not os.environ.get("UNLEARN_SLURM"), reason=f"this machine lacks {', '.join(missing())}"
    ),
]

SMALL = ("device=cpu", "train.epochs=2", "train.milestones=[]", "auditor=[accuracy]", "objective=forget_accuracy")
SMALL += ("wandb.mode=disabled",)
LAUNCHER = ("gpus_per_node=0", "cpus_per_task=1", "mem_gb=1", "partition=main", "account=null", "qos=null")
JOBS = ("cluster=slurm", *(f"hydra.launcher.{word}" for word in LAUNCHER))
EPOCHS = 600  # half a minute on a fast idle core: one that is told to stop goes on for seven seconds, twice
PATIENCE = 600.0  # seconds; a job begins with half a minute of imports where others have the cores


class Cluster:
    """A running Slurm, and a folder for what its jobs make."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.environment = environment | {"OMP_NUM_THREADS": "1", "UNLEARN_DATA": str(folder / "data")}

    @contextmanager
    def running(self, name: str, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
        """`run.py -m` in the background, its store in the folder `name`, its logs and errors beside it."""
        command = [sys.executable, str(ROOT / "run.py"), "-m", f"store={name}", f"hydra.sweep.dir={name}-logs"]
        with (self.folder / f"{name}.err").open("w") as errors:
            places: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": errors, "cwd": self.folder}
            run = subprocess.Popen([*command, *SMALL, *words], env=self.environment, **places)
            try:
                yield run
            finally:
                run.kill()
                run.wait()

    def errors(self, name: str) -> str:
        """What a command has written to its standard error."""
        return (self.folder / f"{name}.err").read_text()

    def slurm(self, *words: str) -> str:
        """What a command of Slurm's prints."""
        return subprocess.run(words, env=self.environment, check=True, capture_output=True, text=True).stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        pairs = (word.partition("=") for word in self.slurm("scontrol", "show", "job", "-o", number).split())
        return {key: value for key, _, value in pairs}

    def rows(self, store: str) -> dict[str, dict[str, Any]]:
        """The rows in a store by their id."""
        files = (self.folder / store).glob("rows/*/row.json")
        return {file.parent.name: unclocked(json.loads(file.read_text())) for file in files}

    def log(self, name: str, job: str, end: str) -> str:
        """What a job of the submission `name` has written to its output (`out`) or errors (`err`) so far."""
        return "".join(file.read_text() for file in (self.folder / f"{name}-logs/.submitit/{job}").glob(f"*.{end}"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assert not missing(), f"UNLEARN_SLURM is set, and this machine lacks {', '.join(missing())}"
    with slurm_cluster(cpus=2) as environment:
        yield Cluster(environment, tmp_path_factory.mktemp("cluster"))


def test_an_array_makes_the_rows_that_are_made_without_it(cluster: Cluster) -> None:
    words = ("method=none,finetune", "seed=0,1")
    with cluster.running("array", *JOBS, *words) as array, cluster.running("plain", *words) as plain:
        assert array.wait(PATIENCE) == 0, cluster.errors("array")
        assert plain.wait(PATIENCE) == 0, cluster.errors("plain")
    rows = cluster.rows("array")
    assert len(rows) == 4
    assert rows == cluster.rows("plain")
    (script,) = (cluster.folder / "array-logs").glob(".submitit/*/*_submission.sh")
    options = re.findall(r"^#SBATCH --(.+)$", script.read_text(), re.MULTILINE)
    assert {"array=0-3%4", "cpus-per-task=1", "mem=1GB", "requeue", "time=240"} <= set(options)
    # Each job used as many threads as it asked for cores, whatever this machine has
    assert {row["device"].rpartition(", ")[2] for row in rows.values()} == {"1 threads"}


def test_what_sbatch_refuses_is_one_line(cluster: Cluster) -> None:
    words = (*JOBS, "method=none", "hydra.launcher.partition=nowhere")
    with cluster.running("refused", *words) as run:
        assert run.wait(PATIENCE) == 2
    last = cluster.errors("refused").splitlines()[-1]
    assert last.startswith(
        "error: hydra.launcher.partition=nowhere: sbatch: error: invalid partition specified: nowhere"
    )
    assert "Traceback" not in cluster.errors("refused")


def test_a_job_that_is_stopped_continues_and_one_that_fails_says_why(cluster: Cluster) -> None:
    words = ("method=finetune", f"method.epochs={EPOCHS}", "checkpoint_seconds=0")

    def epochs() -> list[int]:
        return [int(found) for found in re.findall(r"finetune, .* epoch (\d+)/", cluster.log("stopped", job, "err"))]

    def kept() -> int:
        """The epochs of the method that the job would not have to repeat now."""
        assert run.poll() is None, cluster.errors("stopped")
        files = cluster.folder.glob("stopped/unlearned/*.partial/checkpoints/fit1.pt")
        return next((int(load_state(file, torch.device("cpu"))["epoch"]) for file in files), 0)

    def reasons() -> set[str]:
        files = (cluster.folder / "stopped").glob("rows/*.failed")
        return {json.loads(file.read_text())["reason"] for file in files}

    disturbances = (
        # What Slurm sends when a job's time is almost up; submitit then has the job queued again
        ("scancel", "--signal=USR2"),
        # A pre-emption: SIGCONT and SIGTERM, which submitit ignores, and SIGKILL some seconds later
        ("srun", "--partition=urgent", "--ntasks=2", "true"),
    )
    with (
        cluster.running("stopped", *JOBS, *words, "train.lr=0.1,1e12") as run,
        cluster.running("undisturbed", *words, "train.lr=0.1") as plain,
    ):
        queued = partial(cluster.slurm, "squeue", "--noheader", "--format=%F")
        wait_for("a submission", lambda: queued() or run.poll() is not None, PATIENCE)
        assert run.poll() is None, cluster.errors("stopped")
        job, before = f"{queued().split()[0]}_0", 0
        for count, (command, *options) in enumerate(disturbances, start=1):
            wait_for("some epochs", lambda: kept() >= before + 5, PATIENCE)  # noqa: B023  called at once
            cluster.slurm(command, *options, *([job] if command == "scancel" else []))
            wait_for("a place in the queue", lambda: cluster.job(job)["JobState"] == "PENDING", PATIENCE)
            assert cluster.job(job)["Restarts"] == str(count)
            before, told = kept(), len(epochs())
            assert "interrupted" in reasons()
            # Slurm leaves two minutes between a job's end and its next start
            cluster.slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
            wait_for("another epoch", lambda: epochs()[told:], PATIENCE)  # noqa: B023
            assert epochs()[told] == before + 1  # the first that a start makes is always reported
        assert run.wait(PATIENCE) != 0
        assert plain.wait(PATIENCE) == 0, cluster.errors("undisturbed")

    assert cluster.log("stopped", job, "out").count("Starting with JobEnvironment") == 3
    assert epochs() == sorted({*epochs(), EPOCHS})
    assert "original" not in cluster.log("stopped", job, "err").partition("finetune")[2]  # what was complete is read
    rows = cluster.rows("stopped")
    assert len(rows) == 1
    assert rows == cluster.rows("undisturbed")

    (failed,) = (cluster.folder / "stopped").glob("rows/*.failed")
    left = json.loads(failed.read_text())
    assert left["reason"].startswith("DivergedError: original, seed 0: the loss is nan in epoch 1 ")
    assert "train.lr=1000000000000.0" in left["overrides"]
    assert cluster.errors("stopped").splitlines()[-1] == "error: " + left["reason"].removeprefix("DivergedError: ")
    assert "Traceback" not in cluster.errors("stopped")
