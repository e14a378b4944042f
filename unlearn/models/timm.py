"""Any of the models of timm (Wightman, "PyTorch Image Models", 2019), by name, with local weights or none."""

from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm import create_model, list_models, list_pretrained
from torch import Tensor, nn

from unlearn.settings import SettingError


def create(name: str, shape: tuple[int, int, int], **options: Any) -> nn.Module:
    """Build timm's `name` for images of `shape`, telling it their size if its constructor has a place for that."""
    channels, height, width = shape
    try:
        return create_model(name, in_chans=channels, img_size=(height, width), **options)
    except TypeError as error:
        if "'img_size'" not in str(error):
            raise
        return create_model(name, in_chans=channels, **options)


def with_own_head(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return `state` with `network`'s classifier wherever its own is missing or for another number of classes."""
    config: Any = network.pretrained_cfg
    names = config["classifier"] or ()
    heads = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    own = {key: value for key, value in network.state_dict().items() if key.startswith(heads)}
    return state | {key: value for key, value in own.items() if key not in state or state[key].shape != value.shape}


def timm(shape: tuple[int, int, int], class_count: int, *, name: str, weights: Path | None) -> nn.Module:
    """Timm's model `name` for images of `shape` (channels, height, width): B x C x H x W to B x `class_count`.

    `weights` is a local safetensors file of the same architecture, or `None` for a random initialisation; nothing is
    ever downloaded. Its head is dropped if the number of classes differs; timm fits its first layer to the channels
    and its position embedding to the size. A `SettingError` names an unknown model, images that the model cannot take,
    and a file that does not fit.
    """
    known = {*list_models(), *list_pretrained()}
    if name not in known:
        close = ", ".join(get_close_matches(name, sorted(known), n=5, cutoff=0))
        raise SettingError("model.name", name, f"must be a model of timm; the closest are {close}")
    try:
        network = create(name, shape, num_classes=class_count)
        # One blank image tells what no attribute does: whether this size survives every stage
        with torch.no_grad():
            network.eval()(torch.zeros(1, *shape))
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        allowed = f"must be a model that takes images of {' x '.join(map(str, shape))}: {error}"
        raise SettingError("model.name", name, shorten(allowed, 240)) from error
    if weights is None:
        return network.train()
    try:
        # The tensors and not the path: timm reads pickles too, and if it drops a head it checks nothing else either
        source = {"state_dict": with_own_head(load_file(weights), network), "hf_hub_id": None, "url": None}
        overlay = source | {"num_classes": class_count, "label_offset": 0}
        return create(name, shape, num_classes=class_count, pretrained=True, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError, SafetensorError) as error:
        allowed = f"must be a safetensors file of the weights of {name}: {error}"
        raise SettingError("model.weights", weights, shorten(allowed, 240)) from error
