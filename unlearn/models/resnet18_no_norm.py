"""ResNet-18 without batch norm, so that `train=spectral_clip` bounds all of its layers: AMUN's smooth model.

Ebrahimpour-Boroojeny, Sundaram & Chandrasekaran (ICML 2025, arXiv:2503.00917); code Ali-E/AMUN, `models/resnet.py`
with `bn=False`. Its convolutions have no biases either, so features grow in proportion to pixels, and to halve the sum
of the three blocks that have a projection, as that code does, is the same as to multiply the features by 1/8: `scale`.
"""

from torch import Tensor, nn
from torchvision import models

from unlearn.models.small_images import fit_stem, require_side
from unlearn.settings import Positive


class Scaled(nn.Module):
    """Multiplies by a fixed factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * self.factor


def without_norm(channels: int) -> nn.Module:
    """Stand in for a norm layer of `channels` channels."""
    return nn.Identity()


def initialise_isometric(conv: nn.Conv2d) -> None:
    """Draw a convolution of operator norm 1, about: nothing rescales a signal that its layers shrink.

    Without a stride it is orthogonal at the centre and zero elsewhere, which keeps every length (Xiao et al., ICML
    2018, arXiv:1806.05393), and so are shortcuts; with a stride that would see one pixel in four, so it is Gaussian.
    """
    if conv.stride == (1, 1) or conv.kernel_size == (1, 1):
        row, column = (side // 2 for side in conv.kernel_size)
        nn.init.zeros_(conv.weight)
        nn.init.orthogonal_(conv.weight.data[:, :, row, column])
    else:
        fan_in = conv.weight[0].numel()
        nn.init.normal_(conv.weight, std=fan_in**-0.5)


def resnet18_no_norm(shape: tuple[int, int, int], class_count: int, *, scale: Positive) -> nn.Module:
    """ResNet-18 for images of `shape` (channels, height, width): B x C x H x W to B x `class_count`.

    The stem is that of `resnet18`; `scale` multiplies the features before the head. A side under 8 pixels is a
    `SettingError`.
    """
    require_side("resnet18_no_norm", shape, 8)
    network = fit_stem(models.resnet18(weights=None, num_classes=class_count, norm_layer=without_norm), shape)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            initialise_isometric(module)
    network.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), Scaled(scale))
    return network
