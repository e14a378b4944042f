"""A lease: the right to make one thing, held by one process on any machine that shares the folder.

File systems of clusters do not lock reliably, but all of them create a file exclusively. The holder of a lease is the
process whose `<name>.lease.<generation>` is the highest there is; a thread of it counts up inside the file as long as
it lives. A lease is stale when its process is known to be dead, or when nobody has counted for `PATIENCE` seconds of
the waiting process's own clock, so that neither a jump of a clock nor a difference between two matters; then exactly
one waiting process creates the next generation. A holder that was only asleep, and wakes up to find its lease taken, is
interrupted before it can disturb the new one.
"""

import _thread
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HEARTBEAT = 5.0  # seconds between two beats
PATIENCE = 60.0  # without a beat, after which a lease is stale; more than any hiccup of a network file system
POLL = 0.2  # seconds between two looks of a waiting process


class LostLeaseError(RuntimeError):
    """Another process took the lease over while this one was asleep."""


class Lease:
    """Use as a context manager; waits until nobody else holds the lease. One file for each name in `folder`.

    `waiting(holder)` is called once, when there is somebody to wait for; what it raises ends the waiting.
    """

    def __init__(self, folder: Path, name: str, waiting: Callable[[str], None]) -> None:
        self.folder, self.name, self.waiting = folder, name, waiting
        self.file: Path | None = None
        self.stop = threading.Event()
        self.lost = False

    def __enter__(self) -> "Lease":
        self.folder.mkdir(parents=True, exist_ok=True)
        seen: tuple[Path, str] | None = None
        silence, looked, told = 0.0, time.monotonic(), False
        while True:
            highest = self._highest()
            if highest is None:
                if self._create(0):
                    return self
                continue
            content = _read(highest)
            # Whoever stood still, with the machine or for the file system, has not heard silence all that time
            passed, looked = time.monotonic() - looked, time.monotonic()
            silence = silence + min(passed, 2 * POLL) if (highest, content) == seen else 0.0
            seen = (highest, content)
            if _dead(content) or silence > PATIENCE:
                if self._create(_generation(highest) + 1):
                    return self
                continue
            if not told:
                self.waiting(_holder(content))
                told = True
            time.sleep(POLL)

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()
        os.close(self.descriptor)
        if not self.lost:
            self._remove()
        elif error[0] is KeyboardInterrupt:
            raise LostLeaseError(f"{self.file} was taken over by {_holder(_read(self._highest()))}") from None

    def check(self) -> None:
        """Raise `LostLeaseError` if another process has taken the lease over."""
        if self._highest() != self.file:
            self.lost = True
            raise LostLeaseError(f"{self.file} was taken over by {_holder(_read(self._highest()))}")

    def _files(self) -> list[Path]:
        """The leases of this name, the lowest generation first."""
        start = f"{self.name}.lease."
        files = [file for file in self.folder.glob(f"{start}*") if file.name.removeprefix(start).isdecimal()]
        return sorted(files, key=_generation)

    def _highest(self) -> Path | None:
        return next(reversed(self._files()), None)

    def _create(self, generation: int) -> bool:
        file = self.folder / f"{self.name}.lease.{generation}"
        with suppress(FileExistsError):
            self.descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            try:
                self._beat(0)
            except OSError:  # the disk is full: nobody may wait for a lease that nobody has
                os.close(self.descriptor)
                file.unlink(missing_ok=True)
                raise
            if self._highest() == file:  # else another was faster, with a higher generation
                self.file = file
                self.thread = threading.Thread(target=self._live, name=f"lease {self.name}", daemon=True)
                self.thread.start()
                return True
            os.close(self.descriptor)
            file.unlink(missing_ok=True)
        return False

    def _beat(self, count: int) -> None:
        text = json.dumps({**_identity(), "beat": count})
        os.pwrite(self.descriptor, f"{text:<400}\n".encode(), 0)
        os.fsync(self.descriptor)  # a network file system may keep it from the others for as long as their patience

    def _live(self) -> None:
        count = 0
        while not self.stop.wait(HEARTBEAT):
            count += 1
            with suppress(OSError):  # a full disk must not end a training; if it lasts, the lease is taken over
                self._beat(count)
            with suppress(OSError):  # what cannot be seen now is looked at again after the next beat
                if self._highest() != self.file:
                    self.lost = True
                    # A shell's background job may ignore SIGINT
                    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                    _thread.interrupt_main(signal.SIGTERM if ignored else signal.SIGINT)
                    return

    def _remove(self) -> None:
        assert self.file is not None
        own = _generation(self.file)
        for file in self._files():
            if _generation(file) <= own:
                file.unlink(missing_ok=True)


def _generation(file: Path) -> int:
    return int(file.suffix[1:])


def _identity() -> dict[str, Any]:
    """Who this process is, so that another can know whether it still lives."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "place": _place(), "pid": pid, "started": _started(pid)}


def _place() -> str:
    """Where process numbers mean the same: a boot of a machine and, on it, a container's own numbers."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return ""


def _started(pid: int) -> str | None:
    """When a process of this place started, in the kernel's ticks; "" if it has ended, None if nobody can tell."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return None


def _read(file: Path | None) -> str:
    with suppress(OSError):
        return file.read_text() if file else ""
    return ""


def _parsed(content: str) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(content)
        return found if isinstance(found, dict) else {}
    return {}


def _dead(content: str) -> bool:
    """Whether the process that wrote this is known to be dead. Of another place, only its silence can tell."""
    its = _parsed(content)
    if not its.get("place") or its["place"] != _place() or not isinstance(its.get("pid"), int):
        return False
    try:
        os.kill(its["pid"], 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # another user's; or no number of a process
    started = _started(its["pid"])  # of another user's process /proc may not tell
    return started is not None and started != its.get("started")


def _holder(content: str) -> str:
    its = _parsed(content)
    return f"{its['host']}:{its['pid']}" if {"host", "pid"} <= its.keys() else "another process"


def living(folder: Path, name: str) -> bool:
    """Whether somebody holds a lease, or may hold it: one of another machine counts until it is taken over."""
    highest = Lease(folder, name, print)._highest()
    return highest is not None and not _dead(_read(highest))


def held(folder: Path) -> list[str]:
    """The names of the leases in a folder that are `living`."""
    names = {file.name.rpartition(".lease.")[0] for file in folder.glob("*.lease.*")}
    return sorted(name for name in names if living(folder, name))
