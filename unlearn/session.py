"""What surrounds a training: its precision, its checkpoints, its curves and what it costs.

The lab opens a session around every training and every method; the loop reads it, so that methods never handle a
device, a precision or a file. Outside a session the loop runs in fp32 and keeps nothing.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass
class Session:
    """One training or one call of a method.

    `checkpoint` is the folder for unfinished work, or None; `history` holds one dict an epoch; `loading_seconds` is
    the time spent making batches or in `apart`, which `seconds` leaves out; `frozen` modules stay in eval mode
    (`layers.scope`); `arrays` are kept beside the model, for pictures. `drawn(images, positions)` is told each batch of
    `batches.shuffled` before it is made, and `stepped()` the end of each step of the loop, for whoever watches a
    training (`replay`).
    """

    precision: str = "fp32"
    label: str = ""
    checkpoint: Path | None = None
    checkpoint_seconds: float = 0.0
    show: Callable[[str, dict[str, Any], int], None] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    sample_gradients: int = 0
    loading_seconds: float = 0.0
    fits: int = 0
    frozen: list[nn.Module] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    drawn: Callable[[Any, Tensor], None] | None = None
    stepped: Callable[[], None] | None = None
    started: float = field(default_factory=time.perf_counter)

    def seconds(self, device: torch.device) -> float:
        """Seconds of finished work so far, across interruptions, without the making of batches."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - self.started - self.loading_seconds

    def record(self, line: dict[str, Any], epochs: int) -> None:
        """Keep one epoch's line of the curves, and show it."""
        self.history.append(line)
        if self.show:
            self.show(self.label, line, epochs)

    def charge(self, cost: dict[str, Any]) -> None:
        """Count work that was done for this session elsewhere, or long ago, as if it had been done here."""
        self.started -= cost["seconds"]
        self.sample_gradients += cost["sample_gradients"]

    def counts(self, device: torch.device) -> dict[str, Any]:
        """What a checkpoint must remember of the session."""
        return {"history": self.history, "sample_gradients": self.sample_gradients, "seconds": self.seconds(device)}

    def resume(self, counts: dict[str, Any]) -> None:
        """Go on counting from a checkpoint's counts."""
        self.history, self.sample_gradients = counts["history"], counts["sample_gradients"]
        self.started, self.loading_seconds = time.perf_counter() - counts["seconds"], 0.0


_current: ContextVar[Session | None] = ContextVar("session", default=None)


def current() -> Session:
    """The session in force, or a plain one that keeps nothing."""
    return _current.get() or Session()


@contextmanager
def session(**settings: Any) -> Iterator[Session]:
    """Open a session for the code inside the block."""
    opened = Session(**settings)
    token = _current.set(opened)
    try:
        yield opened
    finally:
        _current.reset(token)


@contextmanager
def apart() -> Iterator[None]:
    """Inside the block the clock of the session in force stands still: something with its own costs is made there."""
    now, began = current(), time.perf_counter()
    try:
        yield
    finally:
        now.loading_seconds += time.perf_counter() - began


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, Linux only


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak since the reset: bytes allocated on a GPU, or the process's resident set on a Linux CPU; None elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
