"""Tiny-ImageNet: 110,000 photographs in 200 classes, 64 x 64; the labelled official validation set is the test set.

Le & Yang, Tiny ImageNet visual recognition challenge, Stanford CS 231N, 2015.
"""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from unlearn.data import disk
from unlearn.data.download import download
from unlearn.data.images import Data
from unlearn.settings import Positive, Probability

TREE = "tiny-imagenet-200"
ARCHIVES = {
    f"{TREE}.zip": (
        "90528d7ca1a48142e341f4ef8d21d0de",
        [
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip",
        ],
    )
}


def convert(folder: Path) -> disk.Arrays:
    """The four arrays, from the official zip or its unpacked tree in `folder` or around it, or else downloaded.

    Classes are numbered in the order of `wnids.txt`.
    """
    places = [place / TREE for place in (folder, folder.parent)]
    trees = [tree for tree in (*places, folder) if (tree / "wnids.txt").is_file()]
    zips = [place.with_suffix(".zip") for place in places if place.with_suffix(".zip").is_file()]
    try:
        if trees:
            files = [file.relative_to(trees[0]).as_posix() for file in trees[0].glob("train/*/images/*.JPEG")]
            return _arrays(files, lambda name: (trees[0] / name).read_bytes())
        if not zips:
            zips = [folder / f"{TREE}.zip"]
            download(zips[0], *ARCHIVES[zips[0].name])
        with zipfile.ZipFile(zips[0]) as archive:
            files = [name.removeprefix(f"{TREE}/") for name in archive.namelist() if name.endswith(".JPEG")]
            return _arrays(files, lambda name: archive.read(f"{TREE}/{name}"))
    except (OSError, LookupError, ValueError, zipfile.BadZipFile) as error:
        looked_for = f"neither the four arrays nor {TREE}.zip nor its tree {TREE}/ is complete in {folder}"
        raise disk.DataError(
            "dataset", "tiny_imagenet", f"{looked_for} ({error}); {disk.how('tiny_imagenet')}"
        ) from error


def tiny_imagenet(
    *,
    root: str,
    sha256: Mapping[str, str | None],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read Tiny-ImageNet: 3 x 64 x 64, 200 classes, 100,000 and 10,000 images. A `DataError` says what is missing."""
    return disk.read(
        "tiny_imagenet", convert, root=root, sha256=sha256, validation=validation, augment=augment, mean=mean, std=std
    )


def _arrays(files: list[str], read: Callable[[str], bytes]) -> disk.Arrays:
    classes = {wnid: number for number, wnid in enumerate(read("wnids.txt").decode().split())}
    train = [(name, classes[name.split("/")[1]]) for name in files if name.startswith("train/")]
    counts = np.bincount([label for _, label in train], minlength=len(classes))
    if counts.min() != counts.max():
        # The official classes are of one size: without this, a tree half unpacked would pass for the data set
        raise ValueError(f"its classes have {counts.min()} to {counts.max()} training images, not equally many")
    # By class and then by number, so that the order is that of no file system
    train.sort(key=lambda pair: (pair[1], int(pair[0].rpartition("_")[2].removesuffix(".JPEG"))))
    lines = [line.split("\t") for line in read("val/val_annotations.txt").decode().splitlines()]
    test = [(f"val/images/{line[0]}", classes[line[1]]) for line in lines]

    def pixels(name: str) -> np.ndarray:
        with Image.open(io.BytesIO(read(name))) as image:
            return np.asarray(image.convert("RGB"))

    return {
        "train_images": np.stack([pixels(name) for name, _ in train]),
        "train_labels": np.array([label for _, label in train]),
        "test_images": np.stack([pixels(name) for name, _ in test]),
        "test_labels": np.array([label for _, label in test]),
    }
