"""Kills at random moments, processes that share a store, damaged files: nothing is lost, and nothing wrong is believed.

`make test` tries a tenth, `make faults` all: 100 kills, 8 processes for 24 rows, 100 damaged files.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import ROOT, content_of
from test_lab import unclocked

from unlearn.lab import Lab
from unlearn.row import row
from unlearn.store import Store, fault

SHARE = int(os.environ.get("UNLEARN_FAULTS", "30")) / 300
KILLS, PROCESSES, DAMAGED = round(100 * SHARE), (8 if SHARE == 1 else 3), round(100 * SHARE)
WORDS = ("train.epochs=12", "method.epochs=4", "auditor=[standard]", "device=cpu", "wandb.mode=disabled")
WORDS += ("checkpoint_seconds=0",)  # or what is killed within a minute has nothing to continue from

LONG = "train.epochs=80"  # so that a kill is likely to come in the middle of a training


def command(store: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *WORDS, f"store={store}", *words]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "UNLEARN_DATA": str(folder / "data")}


def rows_of(store: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in store.glob("rows/*/row.json")}


def bits_of(store: Path, suffix: str) -> dict[str, str]:
    """The checksum of every file of a kind, by its place in a store."""
    return {
        f"{done.parent.parent.name}/{done.parent.name}/{name}": checksum
        for done in store.glob("*/*/done.json")
        for name, checksum in json.loads(done.read_text()).items()
        if name.endswith(suffix)
    }


def assert_sound(store: Path) -> None:
    """Every thing that counts as complete is what its recipe and its checksums say."""
    for done in store.glob("*/*/done.json"):
        if done.parent.suffix != ".partial":
            assert fault(done.parent, json.loads((done.parent / "recipe.json").read_text())) is None


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_row(tmp_path: Path) -> None:
    folder, draw = tmp_path / "work", random.Random(7)
    folder.mkdir()
    began = time.monotonic()
    subprocess.run(
        command(tmp_path / "quiet", LONG), cwd=folder, env=environment(tmp_path), check=True, capture_output=True
    )
    duration = time.monotonic() - began
    ((key, undisturbed),) = rows_of(tmp_path / "quiet").items()
    store, complete, sent, continued = tmp_path / "killed", 0, 0, 0
    for number in range(KILLS):
        running = subprocess.Popen(
            command(store, LONG),
            cwd=folder,
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            running.wait(timeout=draw.uniform(0.3, 1.0) * duration)
        except subprocess.TimeoutExpired:
            running.send_signal((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3])
            sent += 1
        _, errors = running.communicate()
        first = re.search(rb"epoch (\d+)/", errors)  # is of epoch 1, unless the training had been begun before
        continued += first is not None and int(first[1]) > 1
        assert b"Traceback" not in errors, errors.decode()
        assert_sound(store)
        if rows_of(store):  # it was faster than the kill: from the beginning again
            assert unclocked(rows_of(store)[key]) == unclocked(undisturbed)
            complete += 1
            shutil.rmtree(store)
    subprocess.run(command(store, LONG), cwd=folder, env=environment(tmp_path), check=True, capture_output=True)
    assert unclocked(rows_of(store)[key]) == unclocked(undisturbed)
    assert complete < KILLS
    assert sent > KILLS / 3  # a run that was continued is often faster than the kill
    assert continued
    ours, theirs = bits_of(store, ".safetensors"), bits_of(tmp_path / "quiet", ".safetensors")
    assert ours == theirs
    # Outputs lie under a key of all the model's files, its measured seconds among them, so only their bits are the same
    outputs = [sorted(set(bits_of(its, ".npy").values())) for its in (store, tmp_path / "quiet")]
    assert outputs[0] == outputs[1]


def test_processes_that_share_a_store_make_each_thing_once(tmp_path: Path) -> None:
    store, logs = tmp_path / "store", []
    methods = "method=finetune,random_label,gradient_ascent"
    running = []
    for number in range(PROCESSES):
        log = tmp_path / f"{number}.log"
        logs.append(log)
        words = command(store, methods, f"split={number}", f"hydra.sweep.dir={tmp_path / str(number)}")
        words.insert(2, "-m")
        with log.open("w") as stream:
            running.append(
                subprocess.Popen(words, cwd=tmp_path, env=environment(tmp_path), stdout=stream, stderr=stream)
            )
    assert [process.wait() for process in running] == [0] * PROCESSES, "\n".join(log.read_text() for log in logs)
    assert len(rows_of(store)) == 3 * PROCESSES
    counts = {kind: len(list((store / kind).glob("*/done.json"))) for kind in ("originals", "retrained", "unlearned")}
    assert counts == {"originals": 1, "retrained": PROCESSES, "unlearned": 3 * PROCESSES}
    said = "\n".join(log.read_text() for log in logs)
    assert said.count("original, seed 0: epoch 12/12") == 1
    assert said.count("waiting for") >= PROCESSES - 1
    assert_sound(store)
    assert not list(store.rglob("*.partial"))
    assert not list((store / "locks").iterdir())


@pytest.fixture(scope="module")
def made(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Any]]:
    store = tmp_path_factory.mktemp("damage") / "store"
    composed = composing(store, ["train.epochs=1", "method.epochs=1", "auditor=[accuracy]", "objective=test_accuracy"])
    return store, composed, row(Lab(composed.settings), composed.choices, [])[0]


def damage(file: Path, draw: random.Random) -> str:
    """One of the things that happen to files; says which."""
    content = bytearray(file.read_bytes())
    kind = draw.choice(["flip", "truncate", "empty", "delete", "append", "swap"])
    if kind == "flip":
        place = draw.randrange(len(content))
        content[place] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    elif kind == "delete":
        file.unlink()
    elif kind == "swap":
        file.write_bytes(np.random.default_rng(draw.randrange(2**32)).bytes(len(content)))
    else:
        file.write_bytes({"truncate": content[: len(content) // 2], "empty": b"", "append": content + b"\0"}[kind])
    return kind


def test_every_damaged_file_is_found_set_aside_and_made_again(
    made: tuple[Path, Any, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pristine, composed, document = made
    files = sorted(file.relative_to(pristine) for file in pristine.glob("*/*/*") if file.is_file())
    draw, kinds, things = random.Random(11), set(), set()
    for number in range(DAMAGED):
        store = tmp_path / str(number)
        shutil.copytree(pristine, store)
        kind = draw.choice(sorted({file.parts[0] for file in files}))
        file = draw.choice([file for file in files if file.parts[0] == kind])
        recipe = json.loads((pristine / file.parent / "recipe.json").read_text())
        kinds.add(damage(store / file, draw))
        things.add(file.parts[0])
        assert Store(store).find(file.parts[0], recipe) is None, file

        def make(folder: Path, source: Path = pristine / file.parent) -> None:
            for each in source.iterdir():
                if each.name not in ("done.json", "recipe.json"):  # which the store writes
                    shutil.copy(each, folder)

        again = Store(store).get(file.parts[0], recipe, make)
        assert content_of(again.folder) == content_of(pristine / file.parent)
        assert len(list((store / "set_aside").iterdir())) == 1
        assert "set aside as" in capsys.readouterr().err
    assert len(kinds) > 3
    assert len(things) > 3

    for kind in ("originals", "unlearned", "signals", "rows"):  # and a whole run makes again just what it needs
        store = tmp_path / kind
        shutil.copytree(pristine, store)
        for file in files:
            if file.parts[0] == kind and file.suffix in (".safetensors", ".npy", ".json"):
                damage(store / file, draw)
        if kind != "rows":
            shutil.rmtree(store / "rows")
        settings = composed.settings | {"store": str(store)}
        assert unclocked(row(Lab(settings), composed.choices, [])[0]) == unclocked(document)


def test_damaged_unfinished_work_is_found_set_aside_and_begun_again(
    made: tuple[Path, Any, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, composed, _ = made
    words = composed.settings | {"train": composed.settings["train"] | {"epochs": 3}, "checkpoint_seconds": 0}
    undisturbed = Lab(words).original()
    draw, kinds = random.Random(13), set()

    def killed_after_two(label: str, line: dict[str, Any], epochs: int) -> None:
        if line["epoch"] == 3:
            raise KeyboardInterrupt

    for number in range(max(4, DAMAGED // 5)):
        settings = words | {"store": str(tmp_path / str(number))}
        with pytest.raises(KeyboardInterrupt):
            Lab(settings, killed_after_two).original()
        (file,) = (tmp_path / str(number)).glob("originals/*.partial/checkpoints/fit1.pt")
        content = file.read_bytes()
        kind = damage(file, draw)
        while kind == "delete":  # which is no damage: it begins again
            file.write_bytes(content)
            kind = damage(file, draw)
        kinds.add(kind)
        hurt = file.read_bytes()
        epochs: list[int] = []
        again = Lab(settings, lambda label, line, of, epochs=epochs: epochs.append(line["epoch"])).original()
        assert epochs == [1, 2, 3], kind
        said = capsys.readouterr().err
        assert "checkpoints has a damaged fit1.pt; set aside as" in said
        (kept,) = (tmp_path / str(number) / "set_aside").glob("*/fit1.pt")
        assert kept.read_bytes() == hurt
        assert (again.folder / "model.safetensors").read_bytes() == (
            undisturbed.folder / "model.safetensors"
        ).read_bytes()
    assert len(kinds) > 1
