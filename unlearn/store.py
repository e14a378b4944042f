"""The store: everything that was ever made, under a hash of exactly the settings that determine it.

`<root>/<kind>/<key>/` holds `recipe.json`, the files, and `done.json` with their checksums, written last. A folder
without it does not exist; one that does not match it is set aside with a message and made again.
"""

import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from unlearn.files import damaged, write
from unlearn.lease import Lease, LostLeaseError
from unlearn.settings import SettingError
from unlearn.streams import forked

FORMAT = {
    "originals": 1,
    "retrained": 1,
    "unlearned": 2,
    "adversarial": 1,
    "signals": 1,
    "audits": 1,
    "rows": 1,
    "tune": 1,
}
"""Raised by one for a kind whenever the code changes what its recipes mean."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def key_of(kind: str, recipe: dict[str, Any]) -> str:
    """Twelve hex digits that stand for the recipe."""
    text = json.dumps({"format": FORMAT[kind], **recipe}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Stored:
    """A complete folder of the store."""

    kind: str
    key: str
    folder: Path

    def json(self, name: str) -> Any:
        """The content of one of its JSON files."""
        return json.loads((self.folder / name).read_text())

    @cached_property
    def content(self) -> str:
        """A hash of all its files: what depends on the bits, and not only on the recipe, is keyed by this."""
        return hashlib.sha256((self.folder / "done.json").read_bytes()).hexdigest()


class BusyError(RuntimeError):
    """Another process is making the thing asked for, and the caller did not want to wait."""


_patient: ContextVar[bool] = ContextVar("patient", default=True)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Inside the block `Store.get` raises `BusyError` instead of waiting for another process; makers still wait."""
    token = _patient.set(False)
    try:
        yield
    finally:
        _patient.reset(token)


class Store:
    """A folder of made things. From one that cannot be written to, what is complete in it can be had all the same.

    Raises `SettingError` when there is no such folder and none can be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: dict[Path, Stored] = {}
        self.sealed: str | None = None  # why nothing can be made here
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error.strerror) from error
        try:
            probe = root / f".probe-{os.getpid()}"
            probe.write_text("x")  # a full disk still takes an empty file
        except OSError as error:
            self.sealed = error.strerror
        with suppress(OSError):  # another machine's process may have the same number
            probe.unlink()

    def check_writable(self) -> None:
        """Raise `SettingError` if nothing can be made here."""
        if self.sealed:
            raise self._refusal(self.sealed)

    def _refusal(self, why: str | None) -> SettingError:
        return SettingError("store", self.root, f"cannot be written to ({why}); name another folder")

    def find(self, kind: str, recipe: dict[str, Any]) -> Stored | None:
        """What was made by this recipe, verified once per process; None when there is none, or a damaged one."""
        key = key_of(kind, recipe)
        folder = self.root / kind / key
        if folder not in self._verified:
            if fault(folder, recipe):
                return None
            self._verified[folder] = Stored(kind, key, folder)
        return self._verified[folder]

    def get(self, kind: str, recipe: dict[str, Any], make: Callable[[Path], None]) -> Stored:
        """What was made by this recipe; made now, by one process only, if it is not there.

        `make(folder)` writes its files into the folder it is given, and may keep unfinished work in
        `folder/checkpoints` by `files.save_state`, which is still there when the next process tries after an
        interruption. Raises `SettingError` where it cannot be written.
        """
        found = self.find(kind, recipe)
        if found:
            return found
        self.check_writable()
        try:
            return self._got(kind, recipe, make)
        except OSError as error:
            ours = isinstance(error, PermissionError) and Path(str(error.filename)).is_relative_to(self.root)
            if error.errno not in FULL and not ours:
                raise
            allowed = f"cannot be written to ({error.strerror}); what is complete stays, and when there is room again"
            raise SettingError("store", self.root, f"{allowed} the same command continues") from error

    def _got(self, kind: str, recipe: dict[str, Any], make: Callable[[Path], None]) -> Stored:
        folder = self.root / kind / key_of(kind, recipe)
        folder.parent.mkdir(parents=True, exist_ok=True)

        def waiting(holder: str) -> None:
            if not _patient.get():
                raise BusyError(f"{kind}-{folder.name}")
            print(f"store: waiting for {holder}, which is making {folder}", file=sys.stderr, flush=True)

        while True:
            try:
                with Lease(self.root / "locks", f"{kind}-{folder.name}", waiting) as lease:
                    os.listdir(folder.parent)  # a network file system may remember that the thing was not there
                    found = self.find(kind, recipe)
                    if found is None:
                        if os.path.lexists(folder):  # with the lease: another may have made it again meanwhile
                            self._set_aside(folder, fault(folder, recipe))
                        self._make(folder, recipe, make, lease)
                        found = self._verified[folder] = Stored(kind, folder.name, folder)
                return found
            except LostLeaseError as error:  # what its new holder makes will do
                print(f"store: {error}", file=sys.stderr, flush=True)

    def _make(self, folder: Path, recipe: dict[str, Any], make: Callable[[Path], None], lease: Lease) -> None:
        partial = folder.with_suffix(".partial")
        if os.path.lexists(partial) and not partial.is_dir():
            self._set_aside(partial, "is not a folder")
        partial.mkdir(exist_ok=True)
        if fault(partial, recipe):  # else only its name was wanting
            self._fill(partial, recipe, make, lease)
        lease.check()
        shutil.rmtree(partial / "checkpoints", ignore_errors=True)  # not sooner: what comes before may find a full disk
        try:
            os.replace(partial, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if wrong := fault(folder, recipe):
                self._set_aside(folder, wrong)
                os.replace(partial, folder)
            else:  # another has brought the same, without the lease
                shutil.rmtree(partial)

    def _fill(self, partial: Path, recipe: dict[str, Any], make: Callable[[Path], None], lease: Lease) -> None:
        kept = partial / "checkpoints"
        for leftover in list(partial.iterdir()):
            if leftover.is_dir() != (leftover == kept):
                self._set_aside(leftover, "has no place there")
            elif leftover != kept:
                leftover.unlink()
        if wrong := damaged(kept):
            self._set_aside(kept, f"has a damaged {wrong.name}")
        # A maker may be called under an auditor's no_grad, and must not move the caller's random state.
        token = _patient.set(True)  # what has begun is finished
        try:
            with torch.enable_grad(), forked():
                make(partial)
        finally:
            _patient.reset(token)
        lease.check()  # who has slept must not mark what the new holder is at as complete
        write_json(partial / "recipe.json", recipe)
        write_json(partial / "done.json", {name: file_checksum(partial / name) for name in sorted(_files(partial))})

    def _set_aside(self, folder: Path, fault: str | None) -> None:
        place = self.root / "set_aside" / "-".join(folder.relative_to(self.root).parts)
        number = next(n for n in itertools.count() if not os.path.lexists(f"{place}-{n}"))
        place.parent.mkdir(exist_ok=True)
        os.replace(folder, f"{place}-{number}")
        print(f"store: {folder} {fault}; set aside as {place}-{number} and made again", file=sys.stderr)


def write_json(file: Path, value: object) -> None:
    """Write `value`, complete or not at all."""
    write(file, json.dumps(value, indent=1, allow_nan=False).encode())


def fault(folder: Path, recipe: dict[str, Any]) -> str | None:
    """What is wrong with a folder that should hold what `recipe` makes, and nothing else; None if nothing is."""
    try:
        there = _files(folder)
        if odd := [name for name, plain in there.items() if not plain]:
            return f"holds {min(odd)}, which is not a plain file"
        done = json.loads((folder / "done.json").read_text())
        if json.loads((folder / "recipe.json").read_text()) != json.loads(json.dumps(recipe)):
            return "was made by another recipe"
        # Hidden files are a file system's or a browser's own
        if more := [name for name in there.keys() - done.keys() - {"done.json"} if not name.startswith(".")]:
            return f"holds {min(more)}, which its done.json does not name"
        if lacking := done.keys() - there.keys():  # before anything is opened: a name may be a way out
            return f"is incomplete (no {min(lacking)})"
        changed = [name for name, checksum in done.items() if file_checksum(folder / name) != checksum]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"is incomplete ({error})"
    return f"has a damaged {changed[0]}" if changed else None


def _files(folder: Path) -> dict[str, bool]:
    """The names in a folder of the store, and whether each is a plain file; unfinished work does not count."""
    with os.scandir(folder) as entries:
        return {each.name: each.is_file(follow_symlinks=False) for each in entries if each.name != "checkpoints"}


def file_checksum(file: Path) -> str:
    """The sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def with_content(settings: Mapping[str, Any], *files: str) -> dict[str, Any]:
    """The settings, with the sha256 of a file in the place of its name where one of the keys `files` names one.

    Lists of settings, such as the stages of a method, are treated alike.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key in files and value:
            found[key] = file_checksum(Path(value).expanduser())
        elif isinstance(value, list):
            found[key] = [with_content(its, *files) if isinstance(its, Mapping) else its for its in value]
        else:
            found[key] = value
    return found
