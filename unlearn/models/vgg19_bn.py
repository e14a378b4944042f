"""VGG-19 with batch normalisation (Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556), as AMUN has it for Tiny ImageNet.

Ebrahimpour-Boroojeny, Sundaram & Chandrasekaran (ICML 2025, arXiv:2503.00917) put one linear layer on the last maps, at
64 pixels 2,048 numbers, without a mean over them.
"""

from collections import OrderedDict

from torch import nn

from unlearn.models.small_images import initialise, require_side
from unlearn.models.vgg16_bn import layers


def vgg19_bn(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """VGG-19 for images of `shape` (channels, height, width): B x C x H x W to B x `class_count`.

    Its last maps, flattened, go to one linear layer; from 32 pixels on they have a cell for every 32 x 32 pixels. Under
    that the last max-pools are left out. A side under 2 pixels is a `SettingError`.
    """
    require_side("vgg19_bn", shape, 2)
    features, pools = layers("E", shape)
    initialise(features)
    _, height, width = shape
    inputs = 512 * (height >> pools) * (width >> pools)
    head = {"flatten": nn.Flatten(), "head": nn.Linear(inputs, class_count)}
    return nn.Sequential(OrderedDict(features=features, **head))
