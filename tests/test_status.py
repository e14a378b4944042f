"""scripts/status.py: each job of a sweep is where the store says it is."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from laws import ROOT

from unlearn.configuration import composed
from unlearn.data import download
from unlearn.lab import Lab
from unlearn.lease import Lease
from unlearn.loop import DivergedError
from unlearn.row import identity, row
from unlearn.settings import SettingError
from unlearn.store import key_of

status = importlib.import_module("scripts.status")
SWEEPS = sorted(file.stem for file in (ROOT / "conf" / "sweep").glob("*.yaml"))


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    words = ["train.epochs=1", "method.epochs=1", "auditor=[accuracy]", "objective=test_accuracy", "device=cpu"]
    return [*words, "wandb.mode=disabled", f"store={tmp_path / 'store'}", f"dataset.root={tmp_path}"]


def opened(words: list[str]) -> tuple[Lab, dict[str, str]]:
    settings, choices = composed(words)
    return Lab(settings), choices


def script(words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "status.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweeps_jobs_are_those_that_hydra_would_start(sweep: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[f"sweep={sweep}"], return_hydra_config=True)
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # which composing may import anew

        sweeper = BasicSweeper(max_batch_size=None, params=config.hydra.sweeper.params)
        sweeper.config_loader = GlobalHydra.instance().config_loader()
        words = [f"sweep={sweep}", *sweeper._parse_config()]
        parse = OverridesParser.create(config_loader=sweeper.config_loader)
        expected = sweeper.split_arguments(parse.parse_overrides(words), None)
    assert sorted(sorted(job) for job in status.jobs([f"sweep={sweep}"])) == sorted(
        sorted(job) for batch in expected for job in batch
    )


def test_words_narrow_a_sweep() -> None:
    found = status.jobs(["sweep=cifar10_fastnet", "method=munba", "seed=5,6"])
    assert sorted(found) == [
        ["sweep=cifar10_fastnet", "method=munba", f"seed={seed}", "method.epochs=2"] for seed in (5, 6)
    ]
    assert status.jobs(["method=none"]) == [["method=none"]]
    with pytest.raises(SettingError, match="Could not find 'sweep/nothing'"):
        status.jobs(["sweep=nothing"])


def test_a_job_is_done_running_failed_begun_or_missing(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lab, choices = opened(small)
    key = key_of("rows", identity(lab, choices))
    rows = lab.store.root / "rows"
    assert status.state(small) == ("missing", "")
    with Lease(lab.store.root / "locks", f"rows-{key}", print):
        assert status.state(small) == ("running", "")
    (rows / f"{key}.partial").mkdir(parents=True)
    assert status.state(small) == ("begun", "and killed")

    def failing(self: Lab, role: str) -> Any:
        raise failures.pop()

    failures: list[BaseException] = [KeyboardInterrupt(), OSError(5, "No\nanswer"), DivergedError("inf")]
    with monkeypatch.context() as patch:
        patch.setattr(Lab, "subject", failing)
        for said in ("DivergedError: inf", "OSError: [Errno 5] No answer", "interrupted"):
            with pytest.raises(BaseException, match=r"inf|No\sanswer|^$"):
                row(lab, choices, ["method=x"])
            assert status.state(small) == ("failed", said)
            kept = json.loads((rows / f"{key}.failed").read_text())
            assert kept["overrides"] == ["method=x"]
            assert kept["device"].startswith("cpu")
    row(lab, choices, [])
    assert status.state(small) == ("done", "")
    assert not (rows / f"{key}.failed").exists()
    assert status.state([*small, "method=random_label", "method.lr=-1"])[0] == "refused"


@pytest.mark.parametrize("dataset", ["cifar10", "svhn", "tiny_imagenet"])
def test_nothing_is_downloaded(
    dataset: str, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("status must not download")

    monkeypatch.setattr(download, "_receive", no_network)
    said = f"and its data are not here; run `python scripts/fetch_data.py {dataset}` (dataset.root or UNLEARN_DATA says"
    found = status.state([*small, f"dataset={dataset}", "model=fastnet"])
    assert (found[0], found[1].partition(" where")[0]) == ("missing", said)
    assert capsys.readouterr().err == ""
    with pytest.raises(AssertionError, match="must not download"):  # which is allowed again
        download.download(Path("absent"), "", ["https://example.org"])


def test_the_script_counts_names_and_says_how_to_go_on(small: list[str]) -> None:
    lab, choices = opened([*small, "method=random_label"])
    row(lab, choices, [])
    words = [*small, "method=random_label,finetune", "seed=0,1"]
    found = script(words)
    assert found.returncode == 3, found.stderr
    *lines, counts, command = found.stdout.splitlines()
    assert sorted(lines) == [
        "missing: method=finetune seed=0", "missing: method=finetune seed=1", "missing: method=random_label seed=1",
    ]  # fmt: skip
    assert counts == "1 done, 3 missing, of 4 jobs"
    assert command.startswith("python run.py -m train.epochs=1 ")
    assert command.endswith(" method=random_label,finetune seed=0,1")
    done = script([*small, "method=random_label"])
    assert (done.returncode, done.stdout) == (0, "1 done, of 1 jobs\n")
    wrong = script(["modell=none"])
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: words=modell=none: ")
    assert wrong.stderr.count("\n") == 1
