"""A user's own arrays: images and labels in four .npy files."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from unlearn.data import disk
from unlearn.data.images import Data
from unlearn.settings import Positive, Probability


def convert(path: Path, folder: Path) -> disk.Arrays:
    """The four arrays of `disk.NAMES` in `path`, N x H x W becoming N x H x W x 1; `folder` is where copies will lie.

    A `DataError` names an array that is absent, damaged, or not what images and labels must be.
    """
    found = {}
    for kind in disk.NAMES:
        try:
            array = np.load(path / f"{kind}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise disk.DataError("dataset.path", path, f"{kind}.npy cannot be read ({error})") from error
        found[kind] = array[..., None] if kind.endswith("images") and array.ndim == 3 else array
    if (wrong := disk.fault(found)) is not None:
        raise disk.DataError("dataset.path", path, wrong)
    return found


def arrays(
    *,
    root: str,
    path: str,
    sha256: Mapping[str, str | None],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read `train_images.npy`, `train_labels.npy`, `test_images.npy` and `test_labels.npy` from the folder `path`.

    Images are uint8, N x H x W or N x H x W x C; labels are integers, N, counted from 0 without gaps. They are copied
    below `root`, again when a file's time or size changes. A `DataError` names an array that is not so.
    """
    place = Path(path).expanduser().resolve()
    files = [place / f"{kind}.npy" for kind in disk.NAMES]
    missing = [file.name for file in files if not os.path.isfile(file)]
    if missing:
        raise disk.DataError("dataset.path", path, f"{place} has no {', '.join(missing)}")
    return disk.read(
        "arrays",
        partial(convert, place),
        root=root,
        sha256=sha256,
        validation=validation,
        augment=augment,
        mean=mean,
        std=std,
        source=[str(place), *([file.stat().st_size, file.stat().st_mtime_ns] for file in files)],
    )
