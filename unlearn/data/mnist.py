"""MNIST: 70,000 handwritten digits, 28 x 28, grey.

LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition, Proceedings of the IEEE, 1998.
"""

from collections.abc import Mapping
from functools import partial

from torchvision.datasets import MNIST

from unlearn.data import disk, torchvision_sets
from unlearn.data.images import Data
from unlearn.settings import Positive, Probability

# The Common Visual Data Foundation's copy of the same files, which TensorFlow Datasets reads
MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist/"
ARCHIVES = {
    f"MNIST/raw/{file}": (md5, [f"{mirror}{file}" for mirror in (*MNIST.mirrors, MIRROR)])
    for file, md5 in MNIST.resources
}
convert = partial(torchvision_sets.convert, "mnist", MNIST, ARCHIVES)


def mnist(
    *,
    root: str,
    sha256: Mapping[str, str | None],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read MNIST: 1 x 28 x 28, 10 classes, 60,000 and 10,000 images. A `DataError` says what is absent or damaged."""
    return disk.read(
        "mnist", convert, root=root, sha256=sha256, validation=validation, augment=augment, mean=mean, std=std
    )
