"""Stores that cannot be written to: a full disk loses nothing and is one line, and what is complete can be read."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from laws import ROOT, content_of
from test_kills_and_damage import SHARE, assert_sound, environment, rows_of
from test_lab import unclocked

from unlearn.lab import Lab
from unlearn.row import row
from unlearn.settings import SettingError
from unlearn.store import Store

WORDS = ["train.epochs=2", "method.epochs=2", "auditor=[accuracy]", "objective=test_accuracy"]
FULL = "cannot be written to (No space left on device)"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Writes = Callable[[str, Path], int | None]  # (kind, file) -> the number of the error that it ends in, if any
_writes: Writes | None = None


def _audited(event: str, arguments: tuple[Any, ...]) -> None:
    """What Python asks of every opening, new folder and renaming, whoever's code it is."""
    if _writes is None or event not in ("open", "os.mkdir", "os.rename"):
        return
    file, writing = arguments[0], event != "open" or (arguments[2] or 0) & WRITING
    if writing and isinstance(file, str | os.PathLike) and (number := _writes(event, Path(file))):
        raise OSError(number, os.strerror(number), str(file))


@contextmanager
def writes(refused: Writes) -> Iterator[None]:
    """Inside the block writes end as `refused` says."""
    global _writes
    if not hasattr(sys, "_writes_are_audited"):  # a hook is for ever
        sys.addaudithook(_audited)
        sys._writes_are_audited = True  # type: ignore[attr-defined]
    _writes = refused
    try:
        yield
    finally:
        _writes = None


@pytest.fixture(scope="module")
def undisturbed(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    settings, choices = composing(store, WORDS)
    return store, row(Lab(settings), choices, [])[0]


@contextmanager
def saying(start: str) -> Iterator[None]:
    """A `SettingError` of the block is one line, which starts so."""
    try:
        yield
    except SettingError as error:
        if not str(error).startswith(start) or "\n" in str(error):
            raise AssertionError(f"{error} does not start with {start}") from error
        raise


def complete(store: Path) -> set[str]:
    return {str(done.parent) for done in store.glob("*/*/done.json") if done.parent.suffix != ".partial"}


def names_in(store: Path) -> Counter[str]:
    """How many files of each name each kind of thing has; keys of outputs depend on how long a training took."""
    places = (file.relative_to(store) for file in store.rglob("*") if file.is_file())
    return Counter(f"{place.parts[0]} {place.name}" for place in places)


def test_every_write_may_fail_for_want_of_space(
    composing: Callable[..., Any], undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    store, failed = tmp_path / "store", set[str]()
    settings, choices = composing(store, WORDS)
    shown, there = Counter[str](), set[str]()

    def once(kind: str, file: Path) -> int | None:
        write = f"{kind} {file}"
        if not file.is_relative_to(store) or write in failed:
            return None
        failed.add(write)
        return errno.ENOSPC if SHARE == 1 or len(failed) % 3 == 0 else None

    document = None
    while document is None:
        with suppress(SettingError), writes(once), saying(f"store={store}: {FULL}"):
            document, _ = row(Lab(settings, lambda label, *rest: shown.update([label])), choices, [])
        assert there <= complete(store), "what was complete is lost"
        there = complete(store)
        assert_sound(store)
        assert not list((store / "locks").glob("*")), "somebody would be waited for"
    assert unclocked(document) == unclocked(undisturbed[1])
    assert {its.partition(" ")[0] for its in failed} == {"open", "os.mkdir", "os.rename"}
    assert len(failed) > 100
    # A training can be lost while its last state cannot be kept: without the folder, the file, and its name
    assert max(shown.values()) <= 2 * 4
    assert names_in(store) == names_in(undisturbed[0])


TRIES = """
import json, shutil, subprocess, sys
from pathlib import Path
from unlearn.lab import Lab
from unlearn.row import row
from unlearn.settings import SettingError
place, size = Path(sys.argv[1]), 8
settings, choices = json.loads(sys.argv[2])
settings["store"] = str(place / "store")
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)], check=True)
while True:
    try:
        document, _ = row(Lab(settings), choices, [])
        break
    except SettingError as error:
        print(error)
    size += int(sys.argv[3])
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(place)], check=True)
shutil.copytree(settings["store"], sys.argv[4])  # out of this namespace
print(json.dumps(document))
"""


def in_a_namespace(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A command as root of file systems of its own; skips the test where nobody may have these."""
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"file systems cannot be mounted here ({error})")
    return subprocess.run([*own, *words], capture_output=True, text=True, check=False, **settings)


def test_a_disk_that_is_full_at_any_size(
    composing: Callable[..., Any], undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    place, copied = tmp_path / "disk", tmp_path / "copied"
    place.mkdir()
    composed = json.dumps(composing(place / "store", WORDS))
    done = in_a_namespace(
        *(sys.executable, "-c", TRIES, str(place), composed, "4" if SHARE == 1 else "24", str(copied)),
        env=environment(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    *refusals, last = done.stdout.splitlines()
    assert unclocked(json.loads(last)) == unclocked(undisturbed[1])
    assert len(refusals) > 10
    for refusal in refusals:
        assert refusal.startswith(f"store={place / 'store'}: {FULL}")
    assert names_in(copied) == names_in(undisturbed[0])


def command(store: Path, root: str, *words: str) -> list[str]:
    places = (f"store={store}", f"dataset.root={root}", f"hydra.run.dir={store.parent}/logs")
    return [sys.executable, str(ROOT / "run.py"), "device=cpu", "wandb.mode=disabled", *places, *WORDS, *words]


def test_a_run_on_a_full_disk_is_one_line_and_continues_when_there_is_room(
    composing: Callable[..., Any], undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    store, root = tmp_path / "store", composing(tmp_path, [])[0]["dataset"]["root"]
    size = max(file.stat().st_size for file in undisturbed[0].rglob("*.safetensors"))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size - 1, hard))
    settings: dict[str, Any] = {"cwd": tmp_path, "env": environment(tmp_path), "capture_output": True, "text": True}
    words = command(store, root)
    full = subprocess.run(words, **settings, preexec_fn=small, check=False)
    assert (full.returncode, full.stdout) == (2, "")
    assert "Traceback" not in full.stderr
    assert full.stderr.splitlines()[-1].startswith(f"error: store={store}: cannot be written to (File too large)")
    assert rows_of(store) == {}
    done = subprocess.run(words, **settings, check=False)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(store)) == 1
    assert_sound(store)


# Where nothing can be written at all


def sealed(store: Path, kind: str, file: Path) -> int | None:
    return errno.EROFS if file.is_relative_to(store) else None


def test_what_is_complete_is_read_from_a_sealed_store_and_what_is_not_is_refused_before_any_training(
    composing: Callable[..., Any], undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    before, shown = content_of(store), Counter[str]()
    _, choices = composing(store, WORDS)
    refusal = f"store={store}: cannot be written to (Read-only file system); name another folder"

    def opened(*words: str) -> Lab:
        return Lab(composing(store, [*WORDS, *words])[0], lambda label, *rest: shown.update([label]))

    with writes(partial(sealed, store)):
        assert row(opened(), choices, [])[0] == undisturbed[1]
        for words in (["method=random_label"], ["seed=1"], ["auditor=[accuracy,loss_attack]"]):
            with pytest.raises(SettingError) as raised:
                row(opened(*words), choices, [])
            assert str(raised.value) == refusal
        assert opened("method=random_label").signals(opened().original())  # of a complete original
        with pytest.raises(SettingError, match="cannot be written to"):
            Store(store).check_writable()
    assert shown == {}
    assert content_of(store) == before
    (store / "rows" / undisturbed[1]["id"] / "row.json").write_text("damaged")
    with writes(partial(sealed, store)), pytest.raises(SettingError, match="Read-only file system"):
        row(opened(), choices, [])
    Store(store).check_writable()
    assert unclocked(row(opened(), choices, [])[0]) == unclocked(undisturbed[1])


def test_a_store_that_is_sealed_while_it_is_used_is_one_line(composing: Callable[..., Any], tmp_path: Path) -> None:
    settings, choices = composing(tmp_path / "store", WORDS)
    opened = Lab(settings)
    refusal = f"store={tmp_path / 'store'}: cannot be written to (Read-only file system)"
    with writes(partial(sealed, tmp_path / "store")), pytest.raises(SettingError), saying(refusal):
        row(opened, choices, [])
    with writes(lambda kind, file: errno.EACCES if "locks" in file.parts else None), pytest.raises(SettingError), \
            saying(f"store={tmp_path / 'store'}: cannot be written to (Permission denied)"):  # fmt: skip
        row(opened, choices, [])


SEALED = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" "$1" || exit 99
shift
exec "$@"
"""


def test_a_complete_run_prints_its_table_from_a_read_only_file_system(tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = command(store, str(tmp_path / "data"), "wandb.mode=offline", f"wandb.dir={tmp_path}")
    settings: dict[str, Any] = {"cwd": tmp_path, "env": environment(tmp_path)}
    first = subprocess.run([*words, "wandb.mode=disabled"], **settings, check=True, capture_output=True, text=True)
    before = content_of(store)
    again = in_a_namespace("bash", "-c", SEALED, "sealed", str(store), *words, **settings)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    (line,) = again.stderr.splitlines()
    assert line.startswith("wandb: row ")
    assert "Read-only file system" in line
    assert not list(tmp_path.glob("wandb/*run*")), "without a mark it would be sent every time"
    other = in_a_namespace("bash", "-c", SEALED, "sealed", str(store), *words, "method=random_label", **settings)
    assert (other.returncode, other.stdout) == (2, "")
    allowed = "cannot be written to (Read-only file system); name another folder"
    assert other.stderr.splitlines() == [f"error: store={store}: {allowed}"]
    assert content_of(store) == before


@pytest.mark.parametrize("place", ["hydra.run.dir", "dataset.root"])
def test_other_places_that_cannot_be_written_to_are_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = command(tmp_path / "store", str(tmp_path / "data"))
    words = [word for word in words if not word.startswith(place)] + [f"{place}={tmp_path / 'file' / 'below'}"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"{tmp_path / 'file'}" in line
    assert "cannot be written to" in line
