"""The command line, end to end: what it prints, writes, refuses and returns.

Two commands are started as users start them. The others run in processes forked from one that has already imported
torch, each with a working directory, an environment and files of its own: the same `run.py` from its first line to its
exit status, without four seconds of imports.
"""

import datetime
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from unlearn.checks import check_method
from unlearn.methods.finetune import finetune
from unlearn.settings import SettingError
from unlearn.training import supervised

ROOT = Path(__file__).resolve().parents[1]
RUN = str(ROOT / "run.py")
ROLES = ("original", "retrained", "unlearned")
TRAINED = ("originals", "retrained", "unlearned")
TINY = ("device=cpu", "train.epochs=2", "train.milestones=[]")
SHORT = (*TINY, "method.epochs=1")  # for methods that have epochs

PREFORK = """
import gc, json, os, runpy, sys
import sklearn.linear_model, sklearn.svm, torchvision
import unlearn.auditors.loss_attack, unlearn.auditors.mia_svc, unlearn.report.terminal, unlearn.row, unlearn.track
from hydra.core.plugins import Plugins

Plugins.instance()
gc.freeze()  # or each child spends a second of its exit collecting what it never used
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, name, mode in ((0, os.devnull, os.O_RDONLY), (1, job["out"], os.O_WRONLY), (2, job["err"], os.O_WRONLY)):
    os.dup2(os.open(name, mode | os.O_CREAT, 0o600), number)
os.chdir(job["cwd"])
os.environ.update(job["environment"])
sys.argv = job["words"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Finished(NamedTuple):
    status: int
    out: str
    err: str


class Commands:
    """`run.py` in a folder of its own, started anew or forked from a process that has the imports behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HYDRA"))
        } | {
            "OMP_NUM_THREADS": "1",
            "UNLEARN_DATA": str(folder / "data"),
            "WANDB_CACHE_DIR": str(folder / "wandb-cache"),
            "WANDB_CONFIG_DIR": str(folder / "wandb-config"),
        }
        self.server: subprocess.Popen[str] | None = None

    def started(self, *words: str) -> Finished:
        command = [sys.executable, RUN, *words]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        return Finished(done.returncode, done.stdout, done.stderr)

    def __call__(self, *words: str, out: str = "", err: str = "", **environment: str) -> Finished:
        if self.server is None:
            self.server = subprocess.Popen(
                [sys.executable, "-c", PREFORK],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=self.environment,
            )  # fmt: skip
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.count += 1
        given = {"out": out, "err": err}
        files = {name: Path(place or self.folder / f"{self.count}.{name}") for name, place in given.items()}
        job = {"words": [RUN, *words], "cwd": self.folder, "environment": environment} | files
        self.server.stdin.write(json.dumps(job, default=str) + "\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        return Finished(status, *(file.read_text() if file.is_file() else "" for file in files.values()))

    def close(self) -> None:
        if self.server is not None:
            assert self.server.stdin is not None
            assert self.server.stdout is not None
            self.server.stdin.close()
            self.server.stdout.close()
            self.server.wait()


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """`command(*words)`: one run of `run.py`, in a folder that all commands of this file share."""
    commands = Commands(tmp_path_factory.mktemp("cli"))
    yield commands
    commands.close()


def files_of(store: Path) -> dict[str, int]:
    """Every file below a folder with the time of its last change."""
    return {str(file.relative_to(store)): file.stat().st_mtime_ns for file in store.rglob("*") if file.is_file()}


def row_of(finished: Finished, folder: Path) -> dict[str, Any]:
    """The row whose path is the last line printed."""
    assert finished.status == 0, finished.err
    assert "Traceback" not in finished.err
    document: dict[str, Any] = json.loads((folder / finished.out.splitlines()[-1]).read_text())
    return document


# One row


class Pair(NamedTuple):
    """The same command twice, and the store's files after each."""

    first: Finished
    again: Finished
    before: dict[str, int]
    after: dict[str, int]
    folder: Path


WORDS = (*SHORT, "store=store", "wandb.mode=offline", "wandb.dir=mirror")


@pytest.fixture(scope="module")
def pair(command: Commands) -> Pair:
    """The default configuration, shortened, run as users run it."""
    first = command.started(*WORDS)
    before = files_of(command.folder / "store")
    again = command.started(*WORDS)
    return Pair(first, again, before, files_of(command.folder / "store"), command.folder)


@pytest.fixture(scope="module")
def row(pair: Pair) -> dict[str, Any]:
    return row_of(pair.first, pair.folder)


def test_last_line_is_the_path_of_the_row(pair: Pair, row: dict[str, Any]) -> None:
    assert pair.first.out.splitlines()[-1] == f"store/rows/{row['id']}/row.json"
    assert pair.first.out.endswith("\n")


def test_row_keeps_the_contract(row: dict[str, Any]) -> None:
    contract = (
        "schema id dataset model train scenario method auditors seed split overrides config metrics cost versions "
        "commit device created"
    )
    assert set(contract.split()) <= set(row)
    assert row["schema"] == 1
    assert re.fullmatch("[0-9a-f]{12}", row["id"])
    choices = {"dataset": "digits", "model": "convnet", "train": "standard", "scenario": "random", "method": "finetune"}
    assert {group: row[group] for group in choices} == choices
    assert row["auditors"] == ["accuracy", "loss_attack", "mia_svc", "gap", "cost"]
    assert (row["seed"], row["split"]) == (0, 0)
    assert row["overrides"] == [word for word in WORDS if not word.startswith(("store=", "wandb.", "dataset.root="))]
    assert {"python", "torch", "numpy", "unlearn"} <= row["versions"].keys()
    assert row["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", row["commit"])
    assert row["device"].startswith("cpu")
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(row["created"])
    assert datetime.timedelta(-1) < age < datetime.timedelta(1)


def test_config_of_the_row_is_resolved(row: dict[str, Any], command: Commands) -> None:
    config = row["config"]
    assert "${" not in json.dumps(config)
    assert (config["train"]["epochs"], config["method"]["epochs"], config["scenario"]["fraction"]) == (2, 1, 0.1)


def test_a_row_does_not_say_where_things_lie_on_this_machine(row: dict[str, Any], command: Commands) -> None:
    assert str(command.folder) not in json.dumps(row)
    assert row["config"].keys() & {"store", "checkpoint_seconds", "wandb", "debug"} == set()


def test_metrics_and_cost_stand_for_all_three_models(row: dict[str, Any]) -> None:
    accuracies = {f"{part}_accuracy" for part in ("forget", "retain", "validation", "test")}
    attacks = {"loss_attack_auc", "ks_statistic", "ks_pvalue", "wasserstein", "mia_svc_confidence", "average_gap"}
    for role in ROLES:
        metrics, cost = row["metrics"][role], row["cost"][role]
        assert accuracies | attacks <= metrics.keys()
        assert all(0 <= metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] <= 1 for name in accuracies)
        assert cost.keys() == {"seconds", "sample_gradients", "peak_memory_bytes"}
        assert cost["seconds"] > 0
    # Digits: 1,797 less a fifth for the test set less a tenth of the rest for validation, of which a tenth is forgotten
    train = row["cost"]["original"]["sample_gradients"] // 2
    assert row["forget"]["count"] == round(0.1 * train)
    kept = train - row["forget"]["count"]
    assert row["cost"]["retrained"]["sample_gradients"] == 2 * kept
    assert row["cost"]["unlearned"]["sample_gradients"] == kept
    assert row["metrics"]["retrained"]["average_gap"] == 0
    assert row["metrics"]["retrained"]["tug_of_war"] == 1


def test_table_shows_the_numbers_of_the_row(pair: Pair, row: dict[str, Any]) -> None:
    line = next(line for line in pair.first.out.splitlines() if "Accuracy on the forget set" in line)
    values = [row["metrics"][role]["forget_accuracy"] for role in ROLES]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert [cell.split(" [")[0] for cell in cells[1:4]] == [f"{value:.3f}" for value in values]
    assert cells[4] == f"{values[2] - values[1]:+.3f}"


def test_training_is_shown_on_standard_error_and_leaves_standard_output_alone(pair: Pair) -> None:
    assert re.search(r"^original.*: epoch 2/2, loss \d", pair.first.err, re.MULTILINE)
    assert "epoch" not in pair.first.out


def test_the_same_command_again_prints_the_same_and_changes_nothing(pair: Pair) -> None:
    assert pair.again.status == 0
    assert pair.again.out == pair.first.out
    assert "epoch" not in pair.again.err
    assert pair.before == pair.after
    assert len(pair.before) > 20


def kinds(store: Path) -> dict[str, set[str]]:
    return {kind: {folder.name for folder in (store / kind).glob("*")} for kind in (*TRAINED, "signals", "audits")}


def test_another_auditor_computes_only_that_audit(command: Commands) -> None:
    store = command.folder / "other"
    words = (*SHORT, "store=other", "wandb.mode=disabled", "objective=forget_accuracy")
    less = row_of(command(*words, "auditor=[accuracy]"), command.folder)
    parts, ends = ("forget", "retain", "validation", "test"), ("", "_low", "_high")
    names = {f"{part}_accuracy{end}" for part in parts for end in ends}
    assert all(less["metrics"][role].keys() == names for role in ROLES)
    before = kinds(store)

    finished = command(*words, "auditor=[accuracy,cost]")
    more = row_of(finished, command.folder)
    assert "epoch" not in finished.err
    assert more["id"] != less["id"]
    assert all(more["metrics"][role].items() >= less["metrics"][role].items() for role in ROLES)
    after = kinds(store)
    assert {kind: len(after[kind] - before[kind]) for kind in after if after[kind] != before[kind]} == {"audits": 3}
    assert all(after[kind] >= before[kind] for kind in after)


def test_disabled_mirroring_writes_nothing(command: Commands) -> None:
    words = (*TINY, "method=none", "store=silent", "wandb.mode=disabled", "wandb.dir=nowhere")
    row_of(command(*words, "auditor=[accuracy]", "objective=test_accuracy"), command.folder)
    assert not (command.folder / "nowhere").exists()
    assert not (command.folder / "silent" / "wandb").exists()


def test_standard_output_that_takes_no_more_is_named_and_the_row_is_complete(command: Commands) -> None:
    words = (*TINY, "method=none", "store=full", "wandb.mode=disabled", "auditor=[accuracy]")
    finished = command(*words, "objective=test_accuracy", out="/dev/full")
    (file,) = (command.folder / "full").glob("rows/*/row.json")
    said = "standard output cannot be written to (No space left on device); the row is complete: "
    assert finished.err.splitlines()[-1] == f"error: {said}{file.relative_to(command.folder)}"
    assert finished.status == 2
    assert "Traceback" not in finished.err


def test_progress_that_cannot_be_shown_ends_nothing(command: Commands) -> None:
    words = (*TINY, "method=none", "store=unseen", "wandb.mode=disabled", "auditor=[accuracy]")
    finished = command(*words, "objective=test_accuracy", err="/dev/full")
    assert finished.status == 0
    assert (command.folder / finished.out.splitlines()[-1]).is_file()


# Several rows


def test_two_methods_make_two_rows_of_one_original(command: Commands) -> None:
    words = (*TINY, "method=none,retrain", "store=multi", "wandb.mode=disabled", "auditor=[accuracy,cost]")
    finished = command("-m", *words, "objective=forget_accuracy")
    assert finished.status == 0, finished.err
    paths = [line for line in finished.out.splitlines() if line.endswith("row.json")]
    rows = [json.loads((command.folder / path).read_text()) for path in paths]
    assert [row["method"] for row in rows] == ["none", "retrain"]
    assert rows[0]["id"] != rows[1]["id"]
    counts = {kind: len(names) for kind, names in kinds(command.folder / "multi").items()}
    assert (counts["originals"], counts["retrained"], counts["unlearned"]) == (1, 1, 2)
    # `none` returns the original, `retrain` another model than the reference
    none, retrain = (row["metrics"] for row in rows)
    accuracies = [name for name in none["original"] if "accuracy" in name]
    assert all(none["unlearned"][name] == none["original"][name] for name in accuracies)
    assert any(retrain["unlearned"][name] != retrain["retrained"][name] for name in accuracies)


def test_a_failed_job_does_not_stop_the_others(command: Commands) -> None:
    words = (*TINY, "method=none", "store=failed", "wandb.mode=disabled", "auditor=[accuracy]")
    finished = command("-m", *words, "objective=test_accuracy", "scenario.fraction=0,0.1,0.2")
    assert finished.status != 0
    assert "scenario.fraction=0: must be greater than 0" in finished.err
    assert "Traceback" not in finished.err
    rows = [json.loads(file.read_text()) for file in (command.folder / "failed" / "rows").glob("*/row.json")]
    assert sorted(row["config"]["scenario"]["fraction"] for row in rows) == [0.1, 0.2]


# Help


def test_cfg_prints_the_configuration_and_runs_nothing(command: Commands) -> None:
    finished = command("--cfg", "job", "method=random_label", "method.epochs=3", "store=unused")
    assert finished.status == 0
    config = yaml.safe_load(finished.out)
    assert config["method"]["_target_"] == "unlearn.methods.random_label.random_label"
    assert config["method"]["epochs"] == 3
    assert list(config["auditor"]) == ["accuracy", "loss_attack", "mia_svc", "gap", "cost"]
    assert not (command.folder / "unused").exists()


def test_help_lists_every_group_and_choice(command: Commands) -> None:
    finished = command("--help")
    assert finished.status == 0
    for folder in sorted((ROOT / "conf").iterdir()):
        if folder.is_dir() and folder.name != "local":
            line = next((line for line in finished.out.splitlines() if line.startswith(f"{folder.name}:")), "")
            listed = line.partition(":")[2].replace(",", " ").split()
            assert set(listed) >= {file.stem for file in folder.glob("*.yaml")}


def test_completion_of_bash_installs_and_answers(command: Commands) -> None:
    finished = command("-sc", "install=bash")
    assert finished.status == 0
    assert "complete -o nospace -o default -F hydra_bash_completion" in finished.out
    line = "python run.py method=ra"
    query = command("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert query.out.split() == ["method=random_label"]


# What cannot work is refused in one line, before anything is trained


def refused(command: Commands, *words: str) -> str:
    """Run what must fail: nothing is trained, nothing but one line is said. Returns the line."""
    store = command.folder / f"refused{command.count}"
    given = () if any(word.startswith("store=") for word in words) else (f"store={store}",)
    tiny = [
        word
        for word in (*TINY, "wandb.mode=disabled")
        if not any(word.startswith(its.split("=")[0] + sign) for its in words for sign in "=.")
    ]
    options = [word for word in words if word == "-m"]
    finished = command(*options, *tiny, *given, *words[len(options) :])
    assert finished.status != 0
    assert all("[HYDRA]" in line for line in finished.out.splitlines())  # what it is about to launch
    assert "Traceback" not in finished.err
    assert not any((store / kind).exists() for kind in (*TRAINED, "rows"))
    lines = finished.err.splitlines()
    assert len(lines) == 1, finished.err
    return lines[0]


SOME_CLASS = "scenario=class_wise"
REFUSALS = {
    "no share": (["scenario.fraction=0"], "scenario.fraction=0", "greater than 0"),
    "more than all": (["scenario.fraction=1.5"], "scenario.fraction=1.5", "less than 1"),
    "no number": (["scenario.fraction=abc"], "scenario.fraction=abc", "valid number"),
    "too many": (["scenario.fraction=null", "scenario.count=5000"], "scenario.count=5000", "training images"),
    "share and count": (["scenario.count=5"], "scenario.count=5", "either scenario.fraction or scenario.count"),
    "no such class": ([SOME_CLASS, "scenario.classes=[10]"], "scenario.classes=10", "0 to 9"),
    "negative class": ([SOME_CLASS, "scenario.classes=[-1]"], "scenario.classes.0=-1", "greater than or equal to 0"),
    "no class": ([SOME_CLASS, "scenario.classes=[]"], "scenario.classes=[]", "at least one"),
    "every class": ([SOME_CLASS, "scenario.classes=[0,1,2,3,4,5,6,7,8,9]"], "scenario=", "some must stay"),
    "no such label": (["scenario=class_fraction", "scenario.label=11"], "scenario.label=11", "0 to 9"),
    "no file": (["scenario=indices"], "scenario.file=???", "must be given"),
    "absent file": (["scenario=indices", "scenario.file=absent.txt"], "scenario.file=absent.txt", "no such file"),
    "no such device": (["device=abacus"], "device=abacus", "cpu"),
    "no such precision": (["precision=fp8"], "precision=fp8", "auto, fp32 or bf16"),
    "negative seed": (["seed=-1"], "seed=-1", "greater than or equal to 0"),
    "negative split": (["split=-1"], "split=-1", "greater than or equal to 0"),
    "no such mirror": (["wandb.mode=nope"], "wandb.mode=nope", "'offline', 'online' or 'disabled'"),
    "neither true nor false": (["deterministic=maybe"], "deterministic=maybe", "boolean"),
    "no auditor": (["auditor=[]"], "auditor=[]", "must be one of the choices in conf/auditor"),
    "no data": (["dataset=null"], "dataset=null", "must be one of the choices in conf/dataset"),
    "no model": (["model=null"], "model=null", "must be one of the choices in conf/model"),
    "no training": (["train=Null"], "train=Null", "must be one of the choices in conf/train"),
    "no scenario": (["scenario=null"], "scenario=null", "must be one of the choices in conf/scenario"),
    "no method": (["method=null"], "method=null", "must be one of the choices in conf/method"),
    "no method among several": (["-m", "method=none,null"], "method=none,null", "must be one of the choices"),
    "empty list of methods": (["method=[]"], "method=[]", "must be one of the choices in conf/method"),
    "list of experiments": (["experiment=[none,none]"], "experiment=[none,none]", "must be one of the choices"),
    "null auditor": (["auditor=null"], "auditor=null", "must be one of the choices in conf/auditor"),
    "null among auditors": (["auditor=[accuracy,null]"], "auditor=[accuracy,null]", "must be one of the choices"),
    "null mirror": (["wandb=null"], "wandb=None", "set wandb.mode=disabled"),
    "word for a mirror": (["wandb=offline"], "wandb=offline", "set wandb.mode=disabled"),
    "null device": (["device=null"], "device=None", "must be a valid string"),
    "null store": (["store=null"], "store=None", "must be a valid string"),
    "empty store": (["store="], "store=", "at least 1"),
    "empty data folder": (["dataset.root="], "dataset.root=", "must name a folder"),
    "true for a number": (["seed=true"], "seed=True", "must be a number"),
    "true for a number in a list": ([SOME_CLASS, "scenario.classes=[true]"], "scenario.classes=[True]", "a number"),
    "one for true": (["deterministic=1"], "deterministic=1", "must be true or false"),
    "one for debug": (["debug=1"], "debug=1", "boolean"),
    "more than 64 bits": (["seed=" + "9" * 19], "seed=999", "at most 18 digits"),
    "more than Python reads": (["train.epochs=" + "9" * 5000], "train.epochs=999", "too many digits"),
    "more than float32 holds": (["train.lr=1e308"], "train.lr=1e+308", "at most 1e+30"),
    "no such key to take": (["seed=${nope}"], "seed=${nope}", "not found"),
    "no such variable": (["seed=${oc.env:NOPE}"], "seed=${oc.env:NOPE}", "'NOPE' not found"),
    "itself": (["seed=${seed}"], "seed=${seed}", "Recursive"),
    "no key for the log": (["hydra.run.dir=${nope}"], "hydra.run.dir=${nope}", "not found"),
    "device for nothing": (["device=meta"], "device=meta", "allowed: auto, cpu"),
    "one of many processors": (["device=cpu:5"], "device=cpu:5", "allowed: auto, cpu"),
    "no mode of the mirror": (["~wandb.mode"], "wandb.mode=nothing", "must be there"),
    "list of folders for the mirror": (["wandb.dir=[1]"], "wandb.dir=[1]", "valid string"),
    "no function": (["~method._target_"], "method._target_=nothing", "must name a function"),
    "arguments for Hydra": (["+method._args_=[1]"], "method._args_=[1]", "is not a setting"),
    "no partial": (["+method._partial_=false"], "method._partial_=False", "is not a setting"),
    "conversion": (["+auditor.gap._convert_=x"], "auditor.gap._convert_=x", "is not a setting"),
    "long choice": (["method=" + "x" * 5000], "method=xxx", "one of the choices in conf/method"),
    "long folder of logs": (["hydra.run.dir=/tmp/" + "x" * 300], "hydra.run.dir=/tmp/xxx", "File name too long"),
    "folder of logs nowhere": (["hydra.run.dir=/proc/x"], "hydra.run.dir=/proc/x", "No such file"),
    "long data folder": (["dataset.root=/tmp/" + "x" * 300], "dataset.root=/tmp/xxx", "File name too long"),
    "long list of images": (["scenario=indices", "scenario.file=" + "x" * 300], "scenario.file=xxx", "no such file"),
    "long folder of images": (["dataset=image_folder", "dataset.path=" + "x" * 300], "dataset.path=xxx", "must be a"),
    "long folder of arrays": (["dataset=arrays", "dataset.path=" + "x" * 300], "dataset.path=xxx", "has no"),
    "no processes": (["-m", "cluster=local", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0", "no meaning"),
    "resolved without a configuration": (["--resolve"], "--resolve", "with --cfg or --help"),
    "seeds of which there are none": (["-m", "seed=range(0,0)"], "seed=range(0,0)", "no value"),
    "methods of which there are none": (["-m", "method=glob(zzz*)"], "method=glob(zzz*)", "no value"),
    "class named twice": ([SOME_CLASS, "scenario.classes=[0,0]"], "scenario.classes=[0, 0]", "more than once"),
    "key beside one that must be given": (["scenario=indices", "scenario.path=x"], "scenario.path=x", "there are file"),
    "key of a launcher": (["cluster=local", "hydra.launcher.nope=1"], "hydra.launcher.nope=1", "there are n_jobs,"),
    "no letter Hydra knows": (["seed=\u0661"], "seed=\u0661", "must be key=value"),
    "one of two kinds": (["method=sg_unlearn", "method.compat=[Q9]"], "method.compat=['Q9']", "'Q6' or 'Q6_svhn'"),
    "mode of Hydra": (["hydra.mode=x"], "hydra.mode=x", "[RUN, MULTIRUN]"),
    "list of auditors that is none": (["auditor={a:1}"], "auditor={a:1}", "must be one of the choices"),
    "no requests": (["requests=0"], "requests=0", "greater than 0"),
    "more requests than images": (["scenario.fraction=0.01", "requests=14"], "requests=14", "at most the 13 images"),
    "setting of a method": (["method.lr=-1"], "method.lr=-1", "greater than or equal to 0"),
    "setting of the training": (["train.schedule=nope"], "train.schedule=nope", "'multistep', 'cosine'"),
    "setting of the model": (["model.widths=[0]"], "model.widths", "greater than 0"),
    "setting of an auditor": (["auditor.loss_attack.test_share=1"], "auditor.loss_attack.test_share=1", "less than 1"),
    "objective nobody measures": (["objective=nope"], "objective=nope", "forget_accuracy"),
    "objective not measured here": (["auditor=[accuracy]", "objective=mia"], "objective=mia", "test_accuracy"),
    "gap of nothing measured": (["auditor=[gap]"], "auditor.gap.metrics=forget_accuracy", "not measured"),
    "gap of an interval's end": (["auditor.gap.metrics=[test_accuracy_low]"], "test_accuracy_low", "not measured"),
    "gap of whole classes": (
        ["auditor.gap.metrics=[test_accuracy_forgotten_classes]"],
        "auditor.gap.metrics=test_accuracy_forgotten_classes", "no class is wholly forgotten",
    ),
    "gap over nothing": (["auditor.gap.metrics=[]"], "auditor.gap.metrics=[]", "at least"),
    "validation part needed": (
        ["method=gradient_ascent", "method.until_validation=true", "dataset.validation=0"],
        "method=gradient_ascent", "needs validation images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_work_is_refused_in_one_line(command: Commands, case: str) -> None:
    words, key, allowed = REFUSALS[case]
    line = refused(command, *words)
    assert key in line
    assert allowed in line


def test_an_original_that_diverges_leaves_one_line_and_no_row(command: Commands) -> None:
    store = f"diverged{command.count}"
    finished = command(*TINY, f"store={store}", "wandb.mode=disabled", "train.lr=1e12", "method=none")
    assert finished.status != 0
    assert finished.out == ""
    assert "Traceback" not in finished.err
    last = finished.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "the loss is nan in epoch" in last
    assert not list((command.folder / store).glob("rows/*/row.json"))


DIVERGING = {
    "while training": (["method=finetune", "method.lr=1e12", "method.epochs=2"], "the loss is nan in epoch"),
    "in the last step": (["method=gradient_ascent", "method.lr=1e30", "method.epochs=1"], "are not finite numbers"),
}


@pytest.mark.parametrize("case", DIVERGING)
def test_a_method_that_diverges_leaves_a_row_that_says_so(command: Commands, case: str) -> None:
    words, complaint = DIVERGING[case]
    words = [*TINY, "store=diverged", "wandb.mode=offline", *words]
    finished = command(*words)
    row = row_of(finished, command.folder)
    assert list(row["remarks"]) == ["diverged"]
    assert complaint in row["remarks"]["diverged"]
    assert "diverged (" in finished.out
    assert row["metrics"]["unlearned"] == {}
    assert row["metrics"]["retrained"]["forget_accuracy"] > 0
    assert row["models"].keys() == row["cost"].keys() == {"original", "retrained"}
    assert "not mirrored" not in finished.err
    again = command(*words)
    assert row_of(again, command.folder) == row
    assert "epoch" not in again.err  # nothing is tried again


def test_a_model_at_chance_and_one_that_is_the_original_are_called_so(command: Commands) -> None:
    words = [*TINY, "store=remarked", "wandb.mode=disabled"]
    ruined = row_of(command(*words, "method=gradient_ascent", "method.lr=10", "method.epochs=3"), command.folder)
    assert list(ruined["remarks"]) == ["at_chance"]
    accuracy = ruined["metrics"]["unlearned"]["retain_accuracy"]
    assert f"its accuracy there is {accuracy:.3f}, the most frequent class 0.1" in ruined["remarks"]["at_chance"]
    assert list(row_of(command(*words, "method=none"), command.folder)["remarks"]) == ["identical"]
    assert row_of(command(*words, "method=finetune", "method.epochs=1"), command.folder)["remarks"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(command: Commands) -> None:
    line = refused(command, "device=cuda")
    assert "device=cuda: not on this machine; allowed: auto, cpu" in line


LISTS = {
    "twice": ("3\n4\n3\n", "lists 3 more than once"),
    "out of range": ("3,1000000", "lists 1000000, which is out of range"),
    "negative": ("-1 2", "lists -1, which is out of range"),
    "empty": ("", "lists no image"),
    "words": ("one two", "one number a line"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_of_images_that_cannot_be_is_refused(command: Commands, tmp_path: Path, case: str) -> None:
    text, complaint = LISTS[case]
    file = tmp_path / "forget.txt"
    file.write_text(text)
    line = refused(command, "scenario=indices", f"scenario.file={file}")
    assert f"scenario.file={file}: " in line
    assert complaint in line


def test_a_store_or_data_below_a_file_is_refused(command: Commands, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below"
    assert f"store={place}: cannot be written to" in refused(command, f"store={place}")
    assert "cannot be written to" in refused(command, f"dataset.root={place}")


SMALL = {"convnet": 1, "fastnet": 2, "resnet18": 4, "vgg16_bn": 1, "vit_tiny": 2}


@pytest.mark.parametrize(("model", "side"), SMALL.items())
def test_images_too_small_for_the_model_are_refused(command: Commands, tmp_path: Path, model: str, side: int) -> None:
    for part in ("train", "test"):
        np.save(tmp_path / f"{part}_images.npy", np.zeros((20, side, side, 3), dtype=np.uint8))
        np.save(tmp_path / f"{part}_labels.npy", np.arange(20) % 2)
    line = refused(command, "dataset=arrays", f"dataset.path={tmp_path}", f"model={model}")
    assert f"model={model}: " in line
    assert re.search(rf"{side} ?x ?{side}", line)


def test_a_method_without_its_data_is_refused() -> None:
    # No scenario leaves nothing to retain, so the check is called by itself
    chosen = {"method": finetune, "train": supervised}
    lab: Any = SimpleNamespace(
        requests=[0],
        request=lambda number: SimpleNamespace(forget=[1], retain=[], validation=[1]),
        settings={name: {"_target_": f"{its.__module__}.{its.__name__}"} for name, its in chosen.items()},
        **{name: partial(its) for name, its in chosen.items()},
    )
    with pytest.raises(SettingError, match="method=finetune: needs retain images"):
        check_method(lab)


def test_unknown_choices_and_keys_are_told_what_there_is(command: Commands) -> None:
    finished = command("method=nope", "store=unused")
    assert finished.status != 0
    assert "Could not find 'method/nope'" in finished.err
    assert {file.stem for file in (ROOT / "conf" / "method").glob("*.yaml")} <= set(finished.err.split())
    assert "Traceback" not in finished.err
    finished = command("method.lrr=1", "store=unused")
    assert finished.status != 0
    assert finished.err.startswith("error: method.lrr=1: is not a setting; there are epochs, batch_size, lr, ")
    assert finished.err.count("\n") == 1
    assert "Traceback" not in finished.err
    assert not (command.folder / "unused").exists()


@pytest.mark.parametrize("group", ["experiment", "sweep", "cluster"])
def test_groups_that_are_null_by_default_may_be_set_to_it(command: Commands, group: str) -> None:
    finished, default = command("--cfg", "job", f"{group}=null"), command("--cfg", "job")
    assert finished.status == 0, finished.err
    assert finished.out == default.out


def test_debug_shows_where_an_error_came_from(command: Commands) -> None:
    finished = command(*TINY, "store=unused", "scenario.fraction=0", "debug=true")
    assert finished.status != 0
    assert "SettingError" in finished.err
    assert "settings.py" in finished.err


# The mirror


def records(file: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format, 32 KiB blocks of fragments with a header of 7 bytes each."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # a header does not straddle blocks
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


class Mirrored(NamedTuple):
    run: Any
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def mirrored(pair: Pair, row: dict[str, Any]) -> Mirrored:
    (file,) = (pair.folder / "mirror").glob(f"wandb/offline-run-*/run-{row['id']}.wandb")
    run, history, summary = None, [], {}

    def items(of: Any) -> dict[str, Any]:
        return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in of}

    for record in records(file):
        if record.HasField("run"):
            run = record.run
        elif record.HasField("history"):
            history.append(items(record.history.item))
        elif record.HasField("summary"):
            summary |= items(record.summary.update)
    assert run is not None
    return Mirrored(run, items(run.config.update), history, summary)


def test_the_mirrored_run_is_named_after_the_row(mirrored: Mirrored, row: dict[str, Any]) -> None:
    assert mirrored.run.run_id == row["id"]
    assert mirrored.run.project == "unlearn"
    assert mirrored.run.job_type == "finetune"
    assert {"digits", "convnet", "random", "finetune"} <= set(mirrored.run.tags)
    config = {key: value for key, value in mirrored.config.items() if key != "_wandb"}
    assert config == row["config"]


def test_every_number_of_the_row_is_in_the_mirror(mirrored: Mirrored, row: dict[str, Any]) -> None:
    expected = {f"{role}/{name}": value for role in ROLES for name, value in row["metrics"][role].items()}
    assert len(expected) > 50
    assert {name: mirrored.summary.get(name) for name in expected} == expected


def test_the_curves_of_all_models_are_in_the_mirror(mirrored: Mirrored, pair: Pair, row: dict[str, Any]) -> None:
    for role, kind in zip(ROLES, TRAINED, strict=True):
        (key,) = row["models"][role]
        file = pair.folder / "store" / kind / key / "history.json"
        losses = [line["loss"] for line in json.loads(file.read_text())]
        lines = [line for line in mirrored.history if f"{role}/loss" in line]
        assert [line[f"{role}/loss"] for line in lines] == losses
        assert [line[f"{role}/epoch"] for line in lines] == list(range(1, len(losses) + 1))
        assert all(line[f"{role}/epoch_seconds"] > 0 and f"{role}/seconds" not in line for line in lines)


def test_a_row_is_mirrored_once(pair: Pair) -> None:
    assert len(list((pair.folder / "mirror").glob("wandb/offline-run-*"))) == 1


def test_a_multirun_has_a_group_and_a_run_for_each_row(command: Commands) -> None:
    words = (*TINY, "store=store", "wandb.mode=offline", "wandb.dir=grouped", "auditor=[accuracy]")
    finished = command("-m", "sweep=digits_small", *words, "method=none", "seed=0,1", "objective=test_accuracy")
    assert finished.status == 0, finished.err
    files = list((command.folder / "grouped").glob("wandb/offline-run-*/*.wandb"))
    runs = [record.run for file in files for record in records(file) if record.HasField("run")]
    assert len({run.run_id for run in runs}) == len(files) == 2
    assert {run.run_group for run in runs} == {"digits_small"}


def test_a_mirror_that_cannot_be_written_fails_nothing(command: Commands, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = (*TINY, "method=none", "store=unmirrored", "wandb.mode=offline", f"wandb.dir={tmp_path / 'file' / 'below'}")
    finished = command(*words, "auditor=[accuracy]")  # nothing of it is the default objective
    row = row_of(finished, command.folder)
    assert f"wandb: row {row['id']} was not mirrored" in finished.err
    assert not (command.folder / "unmirrored" / "wandb").exists()
