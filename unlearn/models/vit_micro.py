"""A vision transformer of the size of a test (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929); the size is ours."""

from torch import nn

from unlearn.models.vision_transformer import vision_transformer
from unlearn.settings import Count, Probability


def vit_micro(shape: tuple[int, int, int], class_count: int, *, depth: Count, dropout: Probability) -> nn.Module:
    """A transformer 48 wide with 3 heads for images of `shape`: B x C x H x W to B x `class_count`.

    Patches have 2 to 16 pixels a side, by the image's size (`patch_side`). A side under 4 pixels is a `SettingError`.
    """
    return vision_transformer("vit_micro", shape, class_count, dimension=48, heads=3, depth=depth, dropout=dropout)
