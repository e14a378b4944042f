"""ViT-Small (Touvron et al., "Training data-efficient image transformers", ICML 2021, arXiv:2012.12877)."""

from torch import nn

from unlearn.models.vision_transformer import vision_transformer
from unlearn.settings import Count, Probability


def vit_small(shape: tuple[int, int, int], class_count: int, *, depth: Count, dropout: Probability) -> nn.Module:
    """A transformer 384 wide with 6 heads for images of `shape`: B x C x H x W to B x `class_count`.

    Patches have 2 to 16 pixels a side, by the image's size (`patch_side`). A side under 4 pixels is a `SettingError`.
    """
    return vision_transformer("vit_small", shape, class_count, dimension=384, heads=6, depth=depth, dropout=dropout)
