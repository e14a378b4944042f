"""What models drawn for 224 x 224 photographs share to take small images: the size rule, a stem, an initialisation."""

from torch import nn

from unlearn.settings import SettingError

SMALL = 64  # pixels; the longest side that gets the small-image stem, so that Tiny ImageNet still does


def is_small(shape: tuple[int, int, int]) -> bool:
    """Say whether an image of `shape` (channels, height, width) is one for small-image stems and heads."""
    return max(shape[1:]) <= SMALL


def require_side(model: str, shape: tuple[int, int, int], smallest: int) -> None:
    """Raise a `SettingError` that names `model` if a side of `shape` (channels, height, width) is below `smallest`."""
    _, height, width = shape
    if min(height, width) < smallest:
        allowed = f"takes images from {smallest} x {smallest} pixels on, and these have {height} x {width}"
        raise SettingError("model", model, allowed)


def initialise(network: nn.Module) -> None:
    """Draw every convolution anew as torchvision does: He et al., "Delving deep into rectifiers", ICCV 2015."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def fit_stem(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Give a torchvision ResNet the first layer that images of `shape` (channels, height, width) need.

    Small ones get one 3 x 3 convolution and no max-pool (He et al., CVPR 2016, arXiv:1512.03385, section 4.2), which
    leaves every stage 4 times the side; others keep ImageNet's stem, for any number of channels.
    """
    if is_small(shape):
        conv = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        conv = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
    initialise(conv)
    network.conv1 = conv
    return network
