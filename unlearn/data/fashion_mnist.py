"""Fashion-MNIST: 70,000 pictures of clothes in the format of MNIST, 28 x 28, grey.

Xiao, Rasul & Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms,
arXiv:1708.07747, 2017.
"""

from collections.abc import Mapping
from functools import partial

from torchvision.datasets import FashionMNIST

from unlearn.data import disk, torchvision_sets
from unlearn.data.images import Data
from unlearn.settings import Positive, Probability

# The copy of the same files that Keras reads
MIRROR = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
ARCHIVES = {
    f"FashionMNIST/raw/{file}": (md5, [f"{mirror}{file}" for mirror in (*FashionMNIST.mirrors, MIRROR)])
    for file, md5 in FashionMNIST.resources
}
convert = partial(torchvision_sets.convert, "fashion_mnist", FashionMNIST, ARCHIVES)


def fashion_mnist(
    *,
    root: str,
    sha256: Mapping[str, str | None],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read Fashion-MNIST: 1 x 28 x 28, 10 classes, 60,000 and 10,000 images.

    A `DataError` says what is absent or damaged.
    """
    return disk.read(
        "fashion_mnist", convert, root=root, sha256=sha256, validation=validation, augment=augment, mean=mean, std=std
    )
