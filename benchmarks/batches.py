"""Augmented, normalised float batches of CIFAR-10-shaped images: ours against a DataLoader with torchvision transforms.

python benchmarks/batches.py

Every loader does the same to the same images in this process: crop after 4 pixels of padding, flip, division by 255,
normalisation. Timed is the second epoch, so that no loader pays for starting workers or for a first step.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from unlearn.batches import shuffled
from unlearn.data.images import Images
from unlearn.models.normalise import Normalise
from unlearn.streams import Streams

COUNT, BATCH = 50_000, 256
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR = Path(__file__).resolve().parents[1] / "data" / "cifar10"


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets hand them out: each a PIL image that goes through its transforms alone."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.pixels, self.labels = pixels, labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def images() -> tuple[NDArray[np.uint8], NDArray[np.int64], str]:
    """The first images of CIFAR-10 where it lies on this machine, else noise of its shape; and which of the two."""
    if (CIFAR / "train_images.npy").exists():
        pixels, labels = (np.load(CIFAR / f"train_{kind}.npy", mmap_mode="r")[:COUNT] for kind in ("images", "labels"))
        return np.array(pixels), labels.astype(np.int64), "CIFAR-10"
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8), draw.integers(0, 10, COUNT), "noise"


def ours(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Callable[[], Iterator[Any]]:
    data = Images(torch.from_numpy(pixels), torch.from_numpy(labels), augment=("crop", "flip"))
    batches = shuffled(data, BATCH, Streams("benchmark"))
    normalise = Normalise(3, MEAN, STD)
    return lambda: ((normalise(batch.images), batch.labels) for batch in batches(0))


def torchvisions(pixels: NDArray[np.uint8], labels: NDArray[np.int64], workers: int) -> Callable[[], Iterator[Any]]:
    loader = DataLoader(
        OneByOne(pixels, labels), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: iter(loader)


def seconds(epoch: Callable[[], Iterator[Any]]) -> float:
    """Seconds of the second epoch, which must be normalised float batches of every image."""
    for _ in range(2):
        began, count = time.perf_counter(), 0
        for batch, _labels in epoch():
            assert batch.shape[1:] == (3, 32, 32)
            assert batch.dtype == torch.float32
            count += len(batch)
        spent = time.perf_counter() - began
        assert count == COUNT
    return spent


def main() -> None:
    pixels, labels, kind = images()
    print(f"{COUNT:,} images of {kind}, batch {BATCH}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    loaders = {
        "unlearn.batches.shuffled": ours(pixels, labels),
        "DataLoader, torchvision transforms, num_workers=0": torchvisions(pixels, labels, 0),
        "DataLoader, torchvision transforms, num_workers=2": torchvisions(pixels, labels, 2),
    }
    spent = {name: seconds(epoch) for name, epoch in loaders.items()}
    slowest = max(spent.values())
    print(f"{'loader':<50} {'images/s':>10} {'ratio':>7}")
    for name, took in spent.items():
        print(f"{name:<50} {COUNT / took:>10,.0f} {slowest / took:>7.2f}")


if __name__ == "__main__":
    main()
