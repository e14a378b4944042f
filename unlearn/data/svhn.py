"""SVHN: 99,289 house numbers photographed from the street, one digit an image; the training split without its extra.

Netzer, Wang, Coates, Bissacco, Wu & Ng, Reading digits in natural images with unsupervised feature learning, NIPS
Workshop on Deep Learning and Unsupervised Feature Learning, 2011.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from torchvision.datasets import SVHN

from unlearn.data import disk, torchvision_sets
from unlearn.data.images import Data
from unlearn.settings import Positive, Probability

ARCHIVES = {file: (md5, [url]) for url, file, md5 in (SVHN.split_list["train"], SVHN.split_list["test"])}


def _like_cifar(root: Path, *, train: bool, download: bool) -> SimpleNamespace:
    found = SVHN(root, split="train" if train else "test", download=download)
    return SimpleNamespace(data=found.data.transpose(0, 2, 3, 1), targets=found.labels)


convert = partial(torchvision_sets.convert, "svhn", _like_cifar, ARCHIVES)


def svhn(
    *,
    root: str,
    sha256: Mapping[str, str | None],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read SVHN: 3 x 32 x 32, 10 classes, 73,257 and 26,032 images. A `DataError` says what is absent or damaged."""
    return disk.read(
        "svhn", convert, root=root, sha256=sha256, validation=validation, augment=augment, mean=mean, std=std
    )
