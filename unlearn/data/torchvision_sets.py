"""The data sets that torchvision reads: official files where they lie, downloaded where they are absent."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from unlearn.data import disk
from unlearn.data.download import download, intact

Archives = Mapping[str, tuple[str, Sequence[str]]]
# What torchvision raises for files that are absent, cut short, or of another kind
UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, LookupError, AssertionError, pickle.UnpicklingError)


def convert(name: str, kind: Callable[..., Any], archives: Archives, folder: Path) -> disk.Arrays:
    """The four arrays of `disk.NAMES` of the data set that torchvision's class `kind` reads.

    `archives` maps each official file, by its place below torchvision's root, to its md5 and its sources. They are
    looked for in `folder` and in the folder around it, and then downloaded into `folder`. A `DataError` names them
    when that fails as well.
    """
    for root in (folder, folder.parent):
        # With the archive in place, torchvision's download only unpacks it
        unpack = all(intact(root / file, md5) for file, (md5, _) in archives.items())
        with suppress(*UNREADABLE):
            return load(kind, root, download=unpack)
    try:
        for file, (md5, urls) in archives.items():
            download(folder / file, md5, urls)
        return load(kind, folder, download=True)
    except UNREADABLE as error:
        looked_for = f"neither the four arrays nor the official files ({', '.join(archives)}) are complete in {folder}"
        raise disk.DataError("dataset", name, f"{looked_for}, and none came ({error}); {disk.how(name)}") from error


def load(kind: Callable[..., Any], root: Path, download: bool) -> disk.Arrays:
    """The arrays that `kind(root, train=..., download=...)` holds: images N x H x W x C (or N x H x W), labels N."""
    arrays = {}
    for part in ("train", "test"):
        found = kind(root, train=part == "train", download=download)
        images = np.asarray(found.data)
        arrays[f"{part}_images"] = images[..., None] if images.ndim == 3 else images
        arrays[f"{part}_labels"] = np.asarray(found.targets)
    return arrays
