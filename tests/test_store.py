"""The store trusts nothing, makes a thing once, and loses nothing: damage, interruptions, and several processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import content_of, random_state_untouched

from unlearn import lease as leases
from unlearn import store as stores
from unlearn.files import load_state, save_state
from unlearn.settings import SettingError
from unlearn.store import FORMAT, Store, Stored, file_checksum, key_of, write_json

RECIPE: dict[str, Any] = {"seed": 0, "train": {"lr": 0.1, "milestones": [1, 2]}}
CONTENT = bytes(range(24))


class Maker:
    """Writes one file, and counts how often it was asked to."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.calls = content, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "weights.bin").write_bytes(self.content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def made(root: Path) -> Stored:
    return Store(root).get("originals", RECIPE, Maker())


# Identity


def test_a_key_is_the_recipe_and_not_its_order() -> None:
    turned = {"train": {"milestones": [1, 2], "lr": 0.1}, "seed": 0}
    key = key_of("originals", RECIPE)
    assert key_of("originals", turned) == key
    assert len(key) == 12
    int(key, 16)
    others: list[dict[str, Any]] = [
        RECIPE | {"seed": 1},
        RECIPE | {"train": {"lr": 0.1, "milestones": [2, 1]}},
        RECIPE | {"train": {"lr": 0.2, "milestones": [1, 2]}},
        RECIPE | {"more": None},
        {"seed": 0},
    ]
    assert len({key, *(key_of("originals", other) for other in others)}) == 6


def test_a_key_changes_with_the_format_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {kind: key_of(kind, RECIPE) for kind in FORMAT}
    monkeypatch.setitem(FORMAT, "signals", FORMAT["signals"] + 1)
    assert {kind for kind in FORMAT if key_of(kind, RECIPE) != before[kind]} == {"signals"}


def test_what_is_there_is_not_made_again(root: Path) -> None:
    make, store = Maker(), Store(root)
    first = store.get("originals", RECIPE, make)
    turned = {"train": {"milestones": [1, 2], "lr": 0.1}, "seed": 0}
    for again in (store.get("originals", RECIPE, make), Store(root).get("originals", turned, make)):
        assert again == first
    assert make.calls == 1
    assert (first.folder / "weights.bin").read_bytes() == CONTENT
    assert first.json("recipe.json") == RECIPE
    checksums = {name: file_checksum(first.folder / name) for name in ("recipe.json", "weights.bin")}
    assert first.json("done.json") == checksums
    assert first.folder == root / "originals" / key_of("originals", RECIPE)

    assert store.get("retrained", RECIPE, make).folder != first.folder
    assert store.get("originals", RECIPE | {"seed": 1}, make).folder != first.folder
    assert make.calls == 3


def test_content_is_that_of_the_bits(root: Path) -> None:
    first = made(root)
    shutil.rmtree(first.folder)
    assert made(root).content == first.content
    shutil.rmtree(first.folder)
    assert Store(root).get("originals", RECIPE, Maker(b"other")).content != first.content


# Damage


def assert_made_again(root: Path, damaged: dict[str, bytes], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The damaged folder is set aside as it is, with a message, and a sound one takes its place."""
    make = Maker()
    stored = Store(root).get("originals", RECIPE, make)
    assert make.calls == 1
    assert content_of(stored.folder)["weights.bin"] == CONTENT
    told = capsys.readouterr().err
    assert message in told
    assert str(stored.folder) in told
    place = Path(told.split("set aside as ")[1].split(" and made again")[0])
    assert place.parent == root / "set_aside"
    assert content_of(place) == damaged
    assert Store(root).get("originals", RECIPE, make) == stored
    assert make.calls == 1
    assert capsys.readouterr().err == ""


def forget_in_mark(folder: Path, name: str) -> None:
    mark = json.loads((folder / "done.json").read_text())
    del mark[name]
    (folder / "done.json").write_text(json.dumps(mark))


def linked(file: Path) -> None:
    file.replace(file.parents[3] / "elsewhere")
    file.symlink_to(file.parents[3] / "elsewhere")


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "done.json").unlink(), "is incomplete"),
        (lambda folder: (folder / "done.json").write_text(""), "is incomplete"),
        (lambda folder: (folder / "done.json").write_text("[]"), "is incomplete"),
        (lambda folder: (folder / "done.json").write_bytes(b"\xff\xfe"), "is incomplete"),
        (lambda folder: (folder / "weights.bin").unlink(), "is incomplete"),
        (lambda folder: (folder / "recipe.json").unlink(), "is incomplete"),
        (lambda folder: (folder / "weights.bin").write_bytes(CONTENT[:-1]), "has a damaged weights.bin"),
        (lambda folder: (folder / "weights.bin").write_bytes(b""), "has a damaged weights.bin"),
        (lambda folder: (folder / "weights.bin").write_bytes(CONTENT + b"\0"), "has a damaged weights.bin"),
        (lambda folder: (folder / "recipe.json").write_text('{"seed": 1}'), "was made by another recipe"),
        (lambda folder: (folder / "done.json").write_text("{}"), "holds recipe.json, which its done.json"),
        (lambda folder: forget_in_mark(folder, "weights.bin"), "holds weights.bin, which its done.json"),
        (lambda folder: forget_in_mark(folder, "recipe.json"), "holds recipe.json, which its done.json"),
        (lambda folder: (folder / "more").write_text(""), "holds more, which its done.json"),
        (lambda folder: (folder / "done.json").write_text("[" * 200_000), "is incomplete"),
        (lambda folder: (folder / "recipe.json").write_text("[" * 200_000), "is incomplete"),
        (lambda folder: (folder / "more").mkdir(), "holds more, which is not a plain file"),
        (lambda folder: linked(folder / "weights.bin"), "holds weights.bin, which is not a plain file"),
        (lambda folder: fifo(folder / "done.json"), "holds done.json, which is not a plain file"),
    ],
    ids=[
        "unmarked",
        "empty mark",
        "listed mark",
        "binary mark",
        "no file",
        "no recipe",
        "cut",
        "empty",
        "longer",
        "foreign",
        "mark of nothing",
        "forgetful mark",
        "mark without recipe",
        "more",
        "deep mark",
        "deep recipe",
        "folder",
        "link",
        "pipe",
    ],
)
def test_a_damaged_folder_is_set_aside_and_made_again(
    damage: Callable[[Path], None], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(root).folder
    damage(folder)
    assert_made_again(root, content_of(folder), message, capsys)


def test_a_recipe_that_is_not_the_one_asked_for_is_foreign_even_when_its_checksums_hold(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Store(root).get("originals", RECIPE | {"seed": 1}, Maker(b"other"))
    place = root / "originals" / key_of("originals", RECIPE)
    other.folder.rename(place)
    assert_made_again(root, content_of(place), "was made by another recipe", capsys)


def test_a_flipped_bit_anywhere_is_found(root: Path) -> None:
    folder = made(root).folder
    for name, content in content_of(folder).items():
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            (folder / name).write_bytes(flipped)
            assert Store(root).find("originals", RECIPE) is None, (name, place)
        (folder / name).write_bytes(content)
    assert Store(root).find("originals", RECIPE) is not None


def test_no_name_in_a_mark_leads_out_of_the_folder(root: Path) -> None:
    folder = made(root).folder
    for name in ("/dev/zero", "../../../outside", "a\0b", "\ud800"):
        mark = json.loads((folder / "done.json").read_text())
        (folder / "done.json").write_text(json.dumps(mark | {name: "0"}))
        assert str(stores.fault(folder, RECIPE)).startswith("is incomplete (no ")
        (folder / "done.json").write_text(json.dumps(mark))


def test_hidden_files_and_unfinished_work_beside_the_files_are_no_damage(root: Path) -> None:
    folder = made(root).folder
    (folder / ".nfs0001").write_text("")
    (folder / "checkpoints").mkdir()  # which could not be deleted
    assert Store(root).find("originals", RECIPE)


def test_damage_upon_damage_keeps_every_piece(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (made(root).folder / "weights.bin").write_bytes(b"damage %d" % number)
    shutil.rmtree(min((root / "set_aside").iterdir()))  # the user looked at the first one and deleted it
    for number in (3, 4):
        (made(root).folder / "weights.bin").write_bytes(b"damage %d" % number)
    made(root)
    kept = {(place / "weights.bin").read_bytes() for place in (root / "set_aside").iterdir()}
    assert kept == {b"damage %d" % number for number in range(1, 5)}
    assert capsys.readouterr().err.count("set aside") == 5


def test_what_another_process_has_made_again_is_not_set_aside(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, make, fault = made(root).folder, Maker(), stores.fault
    (folder / "weights.bin").write_bytes(b"damage")

    def slowly(*asked: Any) -> str | None:
        monkeypatch.setattr(stores, "fault", fault)
        found = fault(*asked)
        Store(root).get("originals", RECIPE, make)  # meanwhile the other one finds the same damage
        return found

    monkeypatch.setattr(stores, "fault", slowly)
    Store(root).get("originals", RECIPE, make)
    assert make.calls == 1
    assert len(list((root / "set_aside").iterdir())) == 1


# Making


def test_an_interrupted_make_leaves_nothing_but_its_checkpoints(root: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"half")
        save_state(folder / "checkpoints" / "fit1.pt", {"epoch": 7})
        (folder / "checkpoints" / ".fit1.pt.123").write_bytes(b"half a state")
        raise KeyboardInterrupt

    found = {}

    def resumed(folder: Path) -> None:
        found.update(load_state(folder / "checkpoints" / "fit1.pt", torch.device("cpu")))
        Maker()(folder)

    with pytest.raises(KeyboardInterrupt):
        Store(root).get("originals", RECIPE, interrupted)
    assert Store(root).find("originals", RECIPE) is None
    assert not (root / "originals" / key_of("originals", RECIPE)).exists()

    stored = Store(root).get("originals", RECIPE, resumed)
    assert found == {"epoch": 7}
    assert content_of(stored.folder).keys() == {"weights.bin", "recipe.json", "done.json"}
    assert [entry.name for entry in (root / "originals").iterdir()] == [stored.key]


def test_what_is_in_the_place_of_a_thing_or_of_its_unfinished_work_is_set_aside(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = root / "originals" / key_of("originals", RECIPE)
    partial = place.with_suffix(".partial")

    def make(folder: Path) -> None:
        save_state(folder / "checkpoints" / "fit1.pt", {})
        Maker()(folder)

    def folder_within(name: str) -> None:
        (partial / name).mkdir(parents=True)

    def file_within(name: str) -> None:
        partial.mkdir()
        (partial / name).write_text("x")

    puts: list[Callable[[], Any]] = [
        lambda: place.write_text("x"),
        lambda: place.symlink_to("nowhere"),
        lambda: partial.write_text("x"),
        lambda: partial.symlink_to("nowhere"),
        lambda: folder_within("sub"),
        lambda: file_within("checkpoints"),
    ]
    place.parent.mkdir(parents=True)
    for number, put in enumerate([*puts, *puts], 1):  # and what is set aside already stays
        put()
        stored = Store(root).get("originals", RECIPE, make)
        assert content_of(stored.folder)["weights.bin"] == CONTENT
        assert [entry.name for entry in place.parent.iterdir()] == [place.name]
        assert len(list((root / "set_aside").iterdir())) == number
        assert capsys.readouterr().err.count("set aside as") == 1
        shutil.rmtree(place)


def publish(folder: Path, content: bytes) -> None:
    """Put a thing in its place as another process would, with a lease of its own."""
    other = Store(folder.parents[1] / "other").get("originals", RECIPE, Maker(content))
    shutil.move(other.folder, folder)


@pytest.mark.parametrize("sound", [True, False])
def test_what_another_has_brought_meanwhile_is_used_if_it_is_sound(sound: bool, root: Path) -> None:
    make = Maker()

    def slowly(folder: Path) -> None:
        make(folder)
        publish(folder.with_suffix(""), b"the other's")
        if not sound:
            (folder.with_suffix("") / "weights.bin").write_bytes(b"damage")

    stored = Store(root).get("originals", RECIPE, slowly)
    assert (stored.folder / "weights.bin").read_bytes() == (b"the other's" if sound else CONTENT)
    assert [entry.name for entry in (root / "originals").iterdir()] == [stored.key]
    assert Store(root).get("originals", RECIPE, make) == stored
    assert make.calls == 1
    assert (root / "set_aside").exists() != sound


def test_what_a_network_file_system_remembers_to_be_absent_is_looked_for_with_the_lease(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, fault, listdir, listed = made(root), stores.fault, os.listdir, list[Path]()

    def remembered(folder: Path, recipe: dict[str, Any]) -> str | None:
        return fault(folder, recipe) if listed else "is incomplete (No such file or directory)"

    monkeypatch.setattr(stores, "fault", remembered)
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    make = Maker()
    assert Store(root).get("originals", RECIPE, make) == stored
    assert make.calls == 0
    assert listed == [root / "originals"]


# Lost leases


def taken_over(root: Path, over: bool) -> None:
    """Another process has taken the lease, and perhaps it has given it back by now."""
    start = root / "locks" / f"originals-{key_of('originals', RECIPE)}.lease"
    if over:
        Path(f"{start}.0").unlink()
    else:
        Path(f"{start}.1").write_text(json.dumps({"host": "elsewhere", "place": "there", "pid": 7, "started": "9"}))


def test_what_the_new_holder_of_a_lost_lease_has_made_is_used(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Path] = []

    def asleep(folder: Path) -> None:
        calls.append(folder)
        Maker()(folder)
        publish(folder.with_suffix(""), b"the new holder's")
        taken_over(root, over=True)

    stored = Store(root).get("originals", RECIPE, asleep)
    assert (stored.folder / "weights.bin").read_bytes() == b"the new holder's"
    assert len(calls) == 1
    assert "was taken over by another process" in capsys.readouterr().err


@pytest.mark.parametrize("marked", [False, True])
def test_unfinished_work_of_the_new_holder_of_a_lost_lease_is_left_alone(
    marked: bool, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[dict[str, bytes]] = []

    def slept() -> None:
        taken_over(root, over=False)
        monkeypatch.setattr(leases, "PATIENCE", 0.5)

    def asleep(folder: Path) -> None:
        if not found:
            save_state(folder / "checkpoints" / "fit1.pt", {"epoch": 90})
            if not marked:
                slept()
        found.append(content_of(folder))
        Maker()(folder)

    checksum = stores.file_checksum

    def slow(file: Path) -> str:  # of large files
        if marked and file.suffix == ".bin" and len(found) == 1:
            slept()
        return checksum(file)

    monkeypatch.setattr(stores, "file_checksum", slow)
    removed, rmtree = list[Any](), shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **words: removed.append(folder) or rmtree(folder, **words))
    stored = Store(root).get("originals", RECIPE, asleep)
    assert content_of(stored.folder)["weights.bin"] == CONTENT
    assert "was taken over by elsewhere:7" in capsys.readouterr().err
    assert len(removed) == 1
    if not marked:
        assert [set(content) for content in found] == [{"checkpoints/fit1.pt"}] * 2


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1)])
def test_a_failed_make_passes_its_error_on_and_frees_the_lock(error: BaseException, root: Path) -> None:
    def failing(folder: Path) -> None:
        raise error

    store, make = Store(root), Maker()
    with pytest.raises(type(error)):
        store.get("originals", RECIPE, failing)
    store.get("originals", RECIPE, make)
    assert make.calls == 1


def test_a_make_learns_under_no_grad_and_moves_no_global_generator(root: Path) -> None:
    def learning(folder: Path) -> None:
        weight = torch.nn.Parameter(torch.rand(3))
        (weight**2).sum().backward()
        assert weight.grad is not None
        torch.manual_seed(5)
        torch.rand(10)
        Maker()(folder)

    torch.manual_seed(7)
    with torch.no_grad(), random_state_untouched():
        Store(root).get("originals", RECIPE, learning)
        assert not torch.is_grad_enabled()


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    for bad in ({"a": float("nan")}, {"a": float("inf")}, {"a": object()}, {"a": np.float32(1)}):
        with pytest.raises((ValueError, TypeError)):
            write_json(file, bad)
    assert json.loads(file.read_text()) == {"a": 1}


@pytest.mark.parametrize("below", ["file", "file/store"])
def test_a_store_that_cannot_be_written_to_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError) as raised:
        Store(tmp_path / below)
    assert str(raised.value).startswith(f"store={tmp_path / below}: cannot be written to (")
    assert raised.value.key == "store"


def test_opening_a_store_leaves_nothing_in_it(root: Path) -> None:
    Store(root)
    assert list(root.iterdir()) == []


# Several processes

ASKING = """
import json, pathlib, sys, time
from unlearn.files import save_state
from unlearn.store import Store
root, recipe = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
def make(folder):
    save_state(folder / "checkpoints" / "fit1.pt", [7])
    print("making", flush=True)
    {inside}
    (folder / "weights.bin").write_bytes(b"made by the other")
print(Store(root).get("originals", recipe, make).key, flush=True)
"""


def other_process(root: Path, inside: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", ASKING.format(inside=inside), str(root), json.dumps(RECIPE)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, text=True, env=environment, **pipes)


def test_two_processes_make_a_thing_once_and_the_waiting_one_says_for_whom(root: Path) -> None:
    others: list[subprocess.Popen[str]] = []
    told: list[str] = []

    def make(folder: Path) -> None:
        other = other_process(root, "raise SystemExit('made twice')")
        others.append(other)
        assert other.stderr is not None
        told.append(other.stderr.readline())  # comes only once the other one waits
        Maker()(folder)

    stored = Store(root).get("originals", RECIPE, make)
    output, errors = others[0].communicate()
    assert others[0].returncode == 0, errors
    assert output == f"{stored.key}\n"
    assert f"waiting for {socket.gethostname()}:{os.getpid()}, " in told[0]
    assert f"which is making {root / 'originals' / stored.key}" in told[0]
    assert errors == ""


def test_a_killed_maker_frees_its_lock_and_leaves_its_checkpoints(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = other_process(root, "time.sleep(3600)")
    assert other.stdout is not None
    assert other.stdout.readline() == "making\n"
    found, said = {}, ""

    def make(folder: Path) -> None:
        found["epoch"] = load_state(folder / "checkpoints" / "fit1.pt", torch.device("cpu"))
        Maker()(folder)

    def ask() -> None:
        found["stored"] = Store(root).get("originals", RECIPE, make)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    while "waiting for" not in said:  # the other one holds the lock, and will for an hour
        said += capsys.readouterr().err
        time.sleep(0.01)
    assert "stored" not in found
    other.send_signal(signal.SIGKILL)
    other.communicate()
    asking.join(600)
    assert found["epoch"] == [7]
    assert (found["stored"].folder / "weights.bin").read_bytes() == CONTENT
    assert "checkpoints" not in {entry.name for entry in found["stored"].folder.iterdir()}


def test_threads_of_one_process_wait_for_each_other(root: Path) -> None:
    make, started, results = Maker(), threading.Barrier(4), []

    def ask() -> None:
        started.wait()
        results.append(Store(root).get("originals", RECIPE, make))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.calls == 1
    assert results == [results[0]] * 4
