"""Leases: one holder at a time, whoever dies, sleeps or lives elsewhere."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from unlearn import lease as leases
from unlearn.lease import Lease, LostLeaseError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and patience short enough to be waited for."""
    monkeypatch.setattr(leases, "HEARTBEAT", 0.05)
    monkeypatch.setattr(leases, "PATIENCE", 1.5)
    monkeypatch.setattr(leases, "POLL", 0.02)


def nobody(holder: str) -> None:
    raise AssertionError(f"nobody should hold it, and {holder} does")


def patient(holder: str) -> None:
    """Wait on."""


def lease_of_another(folder: Path, generation: int = 0, **changes: object) -> Path:
    """A file as another process would have left it."""
    folder.mkdir(exist_ok=True)
    file = folder / f"thing.lease.{generation}"
    file.write_text(json.dumps({"host": "elsewhere", "place": "there", "pid": 7, "started": "9", "beat": 3, **changes}))
    return file


def taken_after(folder: Path) -> float:
    began = time.monotonic()
    with Lease(folder, "thing", patient):
        return time.monotonic() - began


def test_a_lease_says_who_holds_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        Lease(tmp_path, "thing", nobody) as lease,
        Lease(tmp_path, "thing.lease", nobody),
        Lease(tmp_path, "th", nobody),
    ):
        lease.check()
        content = json.loads((tmp_path / "thing.lease.0").read_text())
        assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="passed on"), Lease(tmp_path, "thing", nobody):
        raise ValueError("passed on")
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_a_full_disk_does_not_take_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"), Lease(tmp_path, "thing", nobody):
            pass
    assert list(tmp_path.iterdir()) == []
    with Lease(tmp_path, "thing", nobody):
        pass


def test_what_waiting_raises_ends_the_waiting(tmp_path: Path) -> None:
    def impatient(holder: str) -> None:
        raise TimeoutError(holder)

    with Lease(tmp_path, "thing", nobody):
        with (
            pytest.raises(TimeoutError, match=f"{socket.gethostname()}:{os.getpid()}"),
            Lease(tmp_path, "thing", impatient),
        ):
            pass
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("quick")
def test_a_holder_that_lives_is_waited_for_however_long_it_takes(tmp_path: Path) -> None:
    order: list[str] = []

    def hold() -> None:
        with Lease(tmp_path, "thing", nobody):
            started.set()
            time.sleep(4.0)  # more than twice the patience
            order.append("held")

    started, holding = threading.Event(), threading.Thread(target=hold)
    holding.start()
    started.wait()
    with Lease(tmp_path, "thing", patient):
        order.append("waited")
    holding.join()
    assert order == ["held", "waited"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("generation", [0, 4])
def test_a_silent_holder_elsewhere_loses_its_lease_after_the_patience_and_not_before(
    generation: int, tmp_path: Path
) -> None:
    file = lease_of_another(tmp_path, generation)
    assert 1.5 <= taken_after(tmp_path) < 30
    assert not file.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("year", [1980, 2090])
def test_the_times_of_files_and_clocks_say_nothing(year: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = lease_of_another(tmp_path)
    os.utime(file, ((year - 1970) * 3.15e7,) * 2)
    monkeypatch.setattr(time, "time", lambda: (year - 1970) * 3.15e7)
    assert 1.5 <= taken_after(tmp_path) < 30


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}', "\x00" * 400])
def test_a_torn_file_is_nobodys_and_is_taken_after_the_patience(content: str, tmp_path: Path) -> None:
    lease_of_another(tmp_path).write_text(content)
    assert 1.5 <= taken_after(tmp_path) < 30


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    here = {"host": socket.gethostname(), "place": leases._place()}
    lease_of_another(tmp_path, **here, pid=done.pid)
    assert taken_after(tmp_path) < 30
    # Its number was given to another process meanwhile: it is dead all the same
    lease_of_another(tmp_path, **here, pid=os.getpid(), started="1")
    assert taken_after(tmp_path) < 30
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert ended.stdout is not None
    lease_of_another(tmp_path, **here, pid=ended.pid, started=leases._started(ended.pid))
    ended.stdout.read()
    assert taken_after(tmp_path) < 30  # though nobody has asked for its status yet
    ended.communicate()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [None, PermissionError])
def test_a_process_that_cannot_be_seen_is_not_dead(
    error: type[OSError] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(pid: int, number: int) -> None:
        if error:
            raise error(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "kill", asked)
    monkeypatch.setattr(leases, "_started", lambda pid: None)  # as where /proc hides what is another user's
    file = lease_of_another(tmp_path, place=leases._place(), pid=os.getppid())
    assert leases.living(tmp_path, "thing")
    assert 1.5 <= taken_after(tmp_path) < 30
    assert not file.exists()


def test_whoever_stood_still_does_not_take_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock, looks = lease_of_another(tmp_path), [0.0], [0]

    def sleep(seconds: float) -> None:
        looks[0] += 1
        clock[0] += seconds
        if looks[0] == 100:
            clock[0] += 1e6  # a suspended machine, SIGSTOP, a network file system that was away
        elif looks[0] == 110:
            clock.append(clock[0])
            file.write_text(file.read_text() + " ")  # the holder's first beat after it

    monkeypatch.setattr(leases, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    with Lease(tmp_path, "thing", patient):
        assert leases.PATIENCE <= clock[0] - clock[1] < leases.PATIENCE + 1


@pytest.mark.parametrize("ignoring", [True, False])
def test_whoever_loses_a_lease_is_interrupted_also_where_ctrl_c_is_ignored(
    ignoring: bool, tmp_path: Path, quick: None
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignoring else signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as in run.py

    def hold() -> None:
        with Lease(tmp_path, "thing", nobody):
            lease_of_another(tmp_path, generation=1)
            time.sleep(20)

    try:
        with pytest.raises((KeyboardInterrupt, LostLeaseError)):
            hold()
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_every_beat_reaches_the_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("pwrite", "fsync"):
        monkeypatch.setattr(os, name, lambda *words, name=name: called.append(name))
    monkeypatch.setattr(leases, "HEARTBEAT", 0.02)
    with Lease(tmp_path, "thing", nobody):
        while len(called) < 6:
            time.sleep(0.01)
    assert called[:6] == ["pwrite", "fsync"] * 3


@pytest.mark.usefixtures("quick")
def test_a_holder_that_cannot_beat_still_notices_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def hold() -> None:
        with Lease(tmp_path, "thing", nobody):
            monkeypatch.setattr(os, "pwrite", full)
            lease_of_another(tmp_path, 1)
            for _ in range(5000):
                time.sleep(0.02)

    with pytest.raises(LostLeaseError, match="taken over by elsewhere:7"):
        hold()


HOLDER = """
import sys, time
from pathlib import Path
from unlearn import lease as leases
leases.HEARTBEAT, leases.PATIENCE = 0.05, 1.0
with leases.Lease(Path(sys.argv[1]), "thing", print):
    print("held", flush=True)
    for _ in range(1200):
        time.sleep(0.05)
    print("published", flush=True)
"""


@pytest.mark.usefixtures("quick")
def test_a_holder_that_was_asleep_is_stopped_when_it_wakes_up(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    other = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    other.send_signal(signal.SIGSTOP)
    with Lease(tmp_path, "thing", patient) as lease:
        other.send_signal(signal.SIGCONT)
        output, errors = other.communicate(timeout=60)
        lease.check()
    assert other.returncode != 0
    assert output == ""
    assert "LostLeaseError" in errors
    assert f"was taken over by {socket.gethostname()}:{os.getpid()}" in errors
    assert list(tmp_path.iterdir()) == []


def test_what_was_lost_cannot_be_published(tmp_path: Path) -> None:
    with Lease(tmp_path, "thing", nobody) as lease:
        lease_of_another(tmp_path, 1)
        with pytest.raises(LostLeaseError, match="taken over by elsewhere:7"):
            lease.check()
    assert [file.name for file in tmp_path.iterdir()] != []  # the other's lease is left to it


COUNTING = """
import sys
from pathlib import Path
from unlearn.lease import Lease
folder = Path(sys.argv[1])
for _ in range(25):
    with Lease(folder / "leases", "counter", lambda holder: None):
        number = int((folder / "number").read_text())
        (folder / "number").write_text(str(number + 1))
"""


@pytest.fixture
def counted(tmp_path: Path) -> Callable[[int], int]:
    def count(processes: int) -> int:
        (tmp_path / "number").write_text("0")
        words = [sys.executable, "-c", COUNTING, str(tmp_path)]
        started = [subprocess.Popen(words) for _ in range(processes)]
        assert [process.wait() for process in started] == [0] * processes
        return int((tmp_path / "number").read_text())

    return count


def test_of_many_processes_one_at_a_time_holds_it(counted: Callable[[int], int]) -> None:
    assert counted(6) == 150
