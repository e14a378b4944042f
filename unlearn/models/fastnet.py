"""A small, fast convolutional net for 32 x 32 images: about 1 M parameters in three blocks of 3 x 3 layers.

In the spirit of speed-run CIFAR training (Page, "How to train your ResNet", 2018; Jordan, arXiv:2404.00498): a fixed
first layer that whitens 2 x 2 patches, early pooling, identity-like initialisation, a scaled linear head. Trained by
`train=fast`. The whitening is computed from the very images that a model is trained on, so a retrained model owes
nothing to the forget set.
"""

import torch
from torch import Tensor, nn

from unlearn.models.small_images import require_side
from unlearn.settings import Count, Positive

PATCH = 2
BIAS_SPEED = 64  # Jordan 2024


class Norm(nn.Module):
    """Batch norm without a gain, and a bias that learns `BIAS_SPEED` times as fast as other parameters.

    The bias is stored divided by the root of that: its gradient grows by the root, and so does the step that it takes.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.statistics = nn.BatchNorm2d(channels, affine=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """B x channels x H x W to the same shape."""
        shifted: Tensor = self.statistics(x) + BIAS_SPEED**0.5 * self.bias[:, None, None]
        return shifted


class Block(nn.Module):
    """Conv, pool, norm, GELU, conv, norm, GELU; a side of one pixel is not pooled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = Norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = Norm(outputs)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """B x inputs x H x W to B x outputs x H/2 x W/2."""
        x = self.conv1(x)
        if min(x.shape[-2:]) > 1:
            x = nn.functional.max_pool2d(x, 2)
        x = nn.functional.gelu(self.norm1(x))
        return nn.functional.gelu(self.norm2(self.conv2(x)))


class FastNet(nn.Module):
    """Whitening stem, blocks, global max pool, linear head times `scale`."""

    def __init__(self, channels: int, class_count: int, widths: list[int], scale: float) -> None:
        super().__init__()
        stem = 2 * channels * PATCH**2
        self.stem = nn.Conv2d(channels, stem, PATCH)
        self.stem.weight.requires_grad_(False)
        self.blocks = nn.Sequential(*(Block(i, o) for i, o in zip([stem, *widths], widths, strict=False)))
        self.head = nn.Linear(widths[-1], class_count, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """B x channels x H x W to B x classes."""
        x = self.blocks(nn.functional.gelu(self.stem(x)))
        scores: Tensor = self.head(torch.amax(x, (2, 3)))
        return scores * self.scale

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the stem to the principal directions of normalised images' patches, at unit variance, both signs."""
        size = self.stem.weight[0].numel()
        patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, size)
        values, directions = torch.linalg.eigh(torch.cov(patches.T.double()).cpu())
        filters = (directions / (values + 5e-4).sqrt()).T.flip(0).reshape(size, *self.stem.weight.shape[1:])
        self.stem.weight.copy_(torch.cat([filters, -filters]))


def fastnet(shape: tuple[int, int, int], class_count: int, *, widths: list[Count], scale: Positive) -> nn.Module:
    """A `FastNet` for images of `shape` (channels, height, width); sides of at least 3 pixels."""
    require_side("fastnet", shape, 3)
    return FastNet(shape[0], class_count, widths, scale)
