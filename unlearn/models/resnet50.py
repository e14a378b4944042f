"""ResNet-50 (He et al., "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385)."""

from torch import nn
from torchvision import models

from unlearn.models.small_images import fit_stem, require_side


def resnet50(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """Torchvision's ResNet-50 for images of `shape` (channels, height, width): B x C x H x W to B x `class_count`.

    Up to 64 pixels it has the CIFAR stem of the unlearning papers (a 3 x 3 convolution, no max-pool), above
    torchvision's own. A side under 8 pixels, which its three halvings would run past, is a `SettingError`.
    """
    require_side("resnet50", shape, 8)
    return fit_stem(models.resnet50(weights=None, num_classes=class_count), shape)
