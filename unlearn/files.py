"""Files that are complete or not there, and unfinished work that carries its own checksum.

What libraries raise on a full disk is an error of their own, or one without a number; here it is always an `OSError`
that says what is wrong.
"""

import hashlib
import io
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

DIGEST = 32  # bytes of a sha256


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A stream whose content takes the place of `file` when the block ends well, and else leaves nothing."""
    # Machines that share the folder may have processes of the same number
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write(file: Path, content: bytes) -> None:
    """Write `content`, complete or not at all. Raises `OSError`."""
    with replacing(file) as stream:
        stream.write(content)


def write_array(file: Path, array: NDArray[Any]) -> None:
    """Write an .npy file, complete or not at all. Raises `OSError`."""
    stream = io.BytesIO()
    np.save(stream, array)
    write(file, stream.getvalue())


def write_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed .npz file, complete or not at all. Raises `OSError`."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write(file, stream.getvalue())


def save_state(file: Path, state: Any) -> None:
    """Keep the state of unfinished work: tensors, numbers and text in lists and dicts. Raises `OSError`."""
    stream = io.BytesIO()
    torch.save(state, stream)
    content = stream.getvalue()
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, hashlib.sha256(content).digest() + content)


def load_state(file: Path, device: torch.device) -> Any:
    """A state that was kept, its tensors on `device`. Nothing but tensors, numbers and text is unpickled."""
    content = file.read_bytes()[DIGEST:]
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def damaged(folder: Path) -> Path | None:
    """The first file below a folder of unfinished work that is not as it was kept; those half written do not count."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            content = file.read_bytes()
            if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
                return file
    return None
