"""Downloads that give up: a source that is silent, or trickles, is left for the next one within twenty seconds."""

import hashlib
import os
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

PATIENCE = 20.0  # seconds
# Bytes in that time. CIFAR's own host has served 55 kB/s since June 2026, an hour a file (pytorch/vision#9536)
LEAST = 2_000_000
_allowed = ContextVar("allowed", default=True)


class NotHereError(OSError):
    """A file that is not here, where nothing may be downloaded."""


@contextmanager
def nothing_downloaded() -> Iterator[None]:
    """Inside the block `download` takes what is here, and raises `NotHereError` for what is not."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def download(file: Path, md5: str, urls: Sequence[str]) -> None:
    """Make `file` exist with this md5, from the first of `urls` that delivers it.

    Each source is one line on standard error; when all have failed, an `OSError` says why each did. Only the last
    source may be slow, because there is nothing better to turn to.
    """
    if intact(file, md5):
        return
    if not _allowed.get():
        raise NotHereError(f"{file} is not here, and nothing is downloaded now")
    file.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    for number, url in enumerate(urls):
        # A thread that was given up may still write, so each source has its own file
        partial = file.with_name(f".{file.name}.{os.getpid()}.{number}")
        host = urlsplit(url).hostname
        print(f"downloading {file.name} from {host}", file=sys.stderr, flush=True)
        try:
            _receive(url, partial, least=1 if url == urls[-1] else LEAST)
            if not intact(partial, md5):
                raise OSError("sent something else (its md5 differs)")
            os.replace(partial, file)
        except OSError as error:
            failed.append(f"{host}: {error}")
        else:
            return
        finally:
            partial.unlink(missing_ok=True)
    raise OSError("; ".join(failed))


def intact(file: Path, md5: str) -> bool:
    """Whether `file` is there and has this md5."""
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5


def _receive(url: str, file: Path, least: int) -> None:
    # A thread, because no timeout of urllib bounds the look-up of a name, or a host with many dead addresses
    problems: list[Exception] = []
    stop = Event()

    def copy() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "unlearn"})
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                if stop.is_set():
                    return
                with file.open("wb") as out:
                    while not stop.is_set() and (chunk := answer.read(1 << 16)):
                        out.write(chunk)
        except (OSError, HTTPException, ValueError) as error:
            problems.append(error)

    thread = Thread(target=copy, daemon=True)
    thread.start()
    before = 0
    while True:
        thread.join(PATIENCE)
        if not thread.is_alive():
            break
        now = file.stat().st_size if file.exists() else 0
        if now - before < least:
            stop.set()
            raise TimeoutError(f"only {now - before} bytes in {PATIENCE:.0f} s")
        before = now
    if problems:
        raise OSError(getattr(problems[0], "reason", problems[0])) from problems[0]
