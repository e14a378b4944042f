"""The vision transformer behind `vit_tiny` and `vit_small` (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unlearn.models.small_images import require_side


def patch_side(height: int, width: int) -> int:
    """Return the side of a patch in pixels: of 2, 4, 8 and 16 the largest that cuts the shorter side in 7 or more.

    Sides of 8 and 16 give 2, 28 and 32 give 4, 64 and 96 give 8, 112 and 224 give 16.
    """
    return max((side for side in (2, 4, 8, 16) if 7 * side <= min(height, width)), default=2)


def vision_transformer(
    model: str, shape: tuple[int, int, int], class_count: int, *, dimension: int, heads: int, depth: int, dropout: float
) -> nn.Module:
    """Timm's `VisionTransformer` for images of `shape` (channels, height, width), on behalf of `model`.

    A side that patches do not divide is padded at its end with zeros, the mean of normalised pixels. A side under 4
    pixels, which would leave a single patch, is a `SettingError`.
    """
    require_side(model, shape, 4)
    channels, height, width = shape
    side = patch_side(height, width)
    bottom, right = -height % side, -width % side
    transformer = VisionTransformer(
        img_size=(height + bottom, width + right),
        patch_size=side,
        in_chans=channels,
        num_classes=class_count,
        embed_dim=dimension,
        depth=depth,
        num_heads=heads,
        # As in the paper: after the position embedding and every dense layer but those of queries, keys and values
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
    )
    if bottom or right:
        # timm 1.0.31's dynamic_img_pad pads as well, but gives the position embedding one row or column too few
        return nn.Sequential(nn.ZeroPad2d((0, right, 0, bottom)), transformer)
    return transformer
