"""Named random streams: every random choice has a name, and the name alone decides what is drawn.

There is no global seed. A result is the same whether its parents were just trained or came from the store, because
nothing that happened before can have moved a stream.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Streams:
    """A tree of random generators: `streams("order", epoch)` is the same generator state whenever it is asked for."""

    def __init__(self, *root: str | int) -> None:
        self.root = root

    def seed(self, *name: str | int) -> int:
        """A 63-bit seed for `name`; equal names give equal seeds, on every machine."""
        text = json.dumps([*self.root, *name])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def __call__(self, *name: str | int) -> torch.Generator:
        """A fresh CPU generator for `name`. Draw on the CPU and move, so that the device does not change a result."""
        return torch.Generator().manual_seed(self.seed(*name))

    def child(self, *name: str | int) -> "Streams":
        """The streams below `name`, for a second loop or a second model in the same method."""
        return Streams(*self.root, *name)

    @contextmanager
    def seeded(self, *name: str | int) -> Iterator[None]:
        """Seed torch's global generators inside the block, for what knows no other (initialisation, dropout)."""
        with forked():
            torch.manual_seed(self.seed(*name))
            yield


@contextmanager
def forked() -> Iterator[None]:
    """Put torch's global generators, the CPU's and that of the GPU in use, back where they were after the block.

    `fork_rng` by itself would start every GPU of the machine, and warn that there are several.
    """
    in_use = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(in_use):
        yield
