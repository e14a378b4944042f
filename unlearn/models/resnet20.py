"""ResNet-20, the 0.27 M parameter net for CIFAR (He et al., CVPR 2016, arXiv:1512.03385, section 4.2)."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from unlearn.models.small_images import initialise, require_side


class PaddedShortcut(nn.Module):
    """Shortcut A of the paper, which has no parameters: every second pixel, and zeros for the new channels."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides and add the channels: B x C x H x W to B x (C + new) x H / 2 x W / 2, rounded up."""
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


def resnet20(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """ResNet-20 with shortcut A for images of `shape` (channels, height, width): B x C x H x W to B x `class_count`.

    Three stages of three blocks, 16, 32 and 64 wide. A side under 4 pixels, which its two halvings would run past, is
    a `SettingError`.
    """
    require_side("resnet20", shape, 4)
    blocks = [
        *(BasicBlock(16, 16) for _ in range(3)),
        BasicBlock(16, 32, stride=2, downsample=PaddedShortcut(16)),
        *(BasicBlock(32, 32) for _ in range(2)),
        BasicBlock(32, 64, stride=2, downsample=PaddedShortcut(32)),
        *(BasicBlock(64, 64) for _ in range(2)),
    ]
    network = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(shape[0], 16, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(16),
            relu=nn.ReLU(inplace=True),
            blocks=nn.Sequential(*blocks),
            # To one cell this is a plain mean, deterministic on CUDA, which the pooling to more cells is not
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(64, class_count),
        )
    )
    initialise(network)
    return network
