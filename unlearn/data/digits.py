"""Digits: 1,797 real 8 x 8 images of handwritten digits that ship inside scikit-learn, so no download is needed.

Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998. The set has no official split; ours holds out
a fifth of every class as the test set, always the same one.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from unlearn.data import disk
from unlearn.data.images import PARTS, Data, Images
from unlearn.data.split import stratified
from unlearn.settings import Positive, Probability
from unlearn.streams import Streams


def convert(folder: Path) -> disk.Arrays:
    """The four arrays; the grey levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits  # a second to import, and needed by the first read only

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test = stratified(torch.from_numpy(digits.target), 0.2, Streams("digits")("test"))
    return {
        "train_images": images[train],
        "train_labels": digits.target[train],
        "test_images": images[test],
        "test_labels": digits.target[test],
    }


def digits(
    *,
    root: str,
    sha256: Mapping[str, str | None],
    validation: Probability,
    label_noise: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read the digits: 1 x 8 x 8, 10 classes, a share `label_noise` of the labels of every part replaced by another.

    The noise falls on all parts alike, so that training and test images stay exchangeable and an image never trained on
    looks to an attack like a test image.
    """
    data = disk.read(
        "digits", convert, root=root, sha256=sha256, validation=validation, augment=augment, mean=mean, std=std
    )
    train, held_out, test = (
        _noisy(getattr(data, part), label_noise, Streams("digits")("noise", part)) for part in PARTS
    )
    return replace(data, train=train, validation=held_out, test=test)


def _noisy(images: Images, share: float, generator: torch.Generator) -> Images:
    # A fixed number and not a coin for each image: parts of a few hundred must not differ in their noise by chance.
    chosen = torch.randperm(len(images), generator=generator)[: round(share * len(images))]
    labels = images.labels.clone()
    labels[chosen] = (labels[chosen] + torch.randint(1, 10, chosen.shape, generator=generator)) % 10
    return images.relabelled(labels)
