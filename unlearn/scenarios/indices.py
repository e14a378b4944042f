"""Forget the images that a file of the user's own lists, by their numbers in the data set's official training order."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unlearn.data.images import Data
from unlearn.settings import SettingError
from unlearn.streams import Streams


def indices(data: Data, streams: Streams, *, file: str) -> Tensor:
    """The images listed in `file`: .npy, or text with numbers separated by lines, commas or spaces."""
    numbers = _read(file)
    size = data.official_count

    def refuse(what: str) -> SettingError:
        return SettingError("scenario.file", file, f"{what}; allowed are distinct numbers from 0 to {size - 1}")

    if len(numbers) == 0:
        raise refuse("lists no image")
    if numbers.min() < 0 or numbers.max() >= size:
        worst = numbers[(numbers < 0) | (numbers >= size)][0]
        raise refuse(f"lists {worst}, which is out of range")
    unique, counts = np.unique(numbers.astype(np.int64), return_counts=True)
    if (counts > 1).any():
        raise refuse(f"lists {unique[counts > 1][0]} more than once")
    position = torch.full((size,), -1)
    position[data.train_index] = torch.arange(len(data.train))
    chosen = position[torch.from_numpy(unique)]
    if (chosen < 0).any():
        held_out = unique[(chosen < 0).numpy()]
        count = f"lists {held_out[0]} and {len(held_out) - 1} more of the validation part"
        if size > len(data.train) + len(data.validation):
            count += " or of what dataset.share leaves out"
        raise refuse(f"{count} (set dataset.validation=0, or drop them)")
    return chosen.sort().values


def _read(file: str) -> NDArray[Any]:
    """Integers of any type: what does not fit into 64 signed bits is still to be named as it stands in the file."""
    allowed = "must be a .npy file of integers, or text with one number a line or separated by commas"
    if not os.path.isfile(file):  # which a name that is too long is not, either
        raise SettingError("scenario.file", file, f"no such file; {allowed}")
    try:
        if file.endswith(".npy"):
            numbers = np.load(file, allow_pickle=False).reshape(-1)
        else:
            numbers = np.array([int(word) for word in Path(file).read_text().replace(",", " ").split()], dtype=np.int64)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise SettingError("scenario.file", file, f"{allowed} ({error})") from error
    if numbers.size and not np.issubdtype(numbers.dtype, np.integer):
        raise SettingError("scenario.file", file, f"{allowed}, and holds {numbers.dtype}")
    return numbers
