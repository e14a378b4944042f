"""VGG-16 with batch normalisation (Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.vgg import VGG, cfgs, make_layers

from unlearn.models.small_images import initialise, is_small, require_side


class SevenBySeven(nn.Module):
    """`nn.AdaptiveAvgPool2d(7)` as two matrix products, because PyTorch's has no deterministic backward on CUDA."""

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        for name, side in (("rows", height), ("columns", width)):
            averages = nn.functional.adaptive_avg_pool1d(torch.eye(side), 7)  # side x 7, the weight of pixel in cell
            self.register_buffer(name, averages, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pool B x C x H x W to B x C x 7 x 7."""
        return self.rows.T @ x @ self.columns


def layers(letter: str, shape: tuple[int, int, int]) -> tuple[nn.Sequential, int]:
    """The convolutions of the paper's configuration `letter`, and how many max-pools an image of `shape` has room for.

    Those that would find a side of one pixel, the last ones, are left out.
    """
    channels, height, width = shape
    plan = list(cfgs[letter])
    pools = min(plan.count("M"), min(height, width).bit_length() - 1)
    while plan.count("M") > pools:
        del plan[len(plan) - 1 - plan[::-1].index("M")]
    features = make_layers(plan, batch_norm=True)
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    return features, pools


def vgg16_bn(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """Torchvision's VGG-16 for images of `shape` (channels, height, width): B x C x H x W to B x `class_count`.

    Up to 64 pixels it has the CIFAR head of the unlearning papers (a mean, one linear layer), above torchvision's own
    three layers. Under 32 pixels the last max-pools, which would find a side of one pixel, are left out. A side under
    2 pixels is a `SettingError`.
    """
    require_side("vgg16_bn", shape, 2)
    features, pools = layers("D", shape)
    _, height, width = shape
    if is_small(shape):
        initialise(features)
        head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(512, class_count)}
        return nn.Sequential(OrderedDict(features=features, **head))
    network: nn.Module = VGG(features, num_classes=class_count)
    network.avgpool = SevenBySeven(height >> pools, width >> pools)
    return network
