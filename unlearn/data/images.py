"""The two nouns of the data: `Images` (pixels and labels) and `Data` (the three parts of one data set)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Images:
    """Labelled images, and what training does to them.

    `pixels` is uint8, N x H x W x C; `labels` is int64, N; `augment` names the steps of `augment.py`, in order.
    """

    pixels: Tensor
    labels: Tensor
    augment: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Images":
        index = index.to(self.labels.device)
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def relabelled(self, labels: Tensor) -> "Images":
        """The same pixels under other labels."""
        return replace(self, labels=labels.to(self.labels))

    def joined(self, other: "Images") -> "Images":
        """These images followed by `other`'s; the augmentation is these images'."""
        return replace(
            self, pixels=torch.cat([self.pixels, other.pixels]), labels=torch.cat([self.labels, other.labels])
        )

    def to(self, device: torch.device) -> "Images":
        """The same images on `device`."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


def as_model_input(pixels: Tensor, device: torch.device) -> Tensor:
    """Float images in [0, 1], B x C x H x W, channels last in memory, from uint8 B x H x W x C."""
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


@dataclass(frozen=True)
class Data:
    """One data set, its validation part already taken out of the training set.

    `train_index` gives each training image's position in the official order of the data set's training images, of which
    there are `official_count`: also those held out, and those that a share of a data set leaves out. `content` is the
    sha256 of all arrays, which is the data set's identity, wherever its files lie.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    train_index: Tensor
    official_count: int
    class_count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    content: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, height, width, channels = self.train.pixels.shape
        return channels, height, width

    def to(self, device: torch.device) -> "Data":
        """The same data on `device`, unless it would take more than half of a GPU's free memory."""
        images = (self.train, self.validation, self.test)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(part.pixels.numel() for part in images) > free // 2:
                return self
        train, validation, test = (part.to(device) for part in images)
        return replace(self, train=train, validation=validation, test=test)
