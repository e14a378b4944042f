"""Forget training images drawn uniformly, without replacement: the field's "random 10 %"."""

import torch
from torch import Tensor

from unlearn.data.images import Data
from unlearn.settings import Count, SettingError, Share
from unlearn.streams import Streams


def random(data: Data, streams: Streams, *, fraction: Share | None, count: Count | None) -> Tensor:
    """A `fraction` of the training set (after the validation part is out), or `count` images of it; one of the two."""
    number = number_to_forget(data, fraction, count)
    return torch.randperm(len(data.train), generator=streams("forget"))[:number].sort().values


def number_to_forget(data: Data, fraction: float | None, count: int | None) -> int:
    """How many images are meant, some and not all. Raises a `SettingError`."""
    if (fraction is None) == (count is None):
        raise SettingError("scenario.count", count, "give either scenario.fraction or scenario.count, the other null")
    number = count or max(1, round((fraction or 0) * len(data.train)))
    if number >= len(data.train):
        key, value = ("scenario.count", count) if count else ("scenario.fraction", fraction)
        raise SettingError(key, value, f"must leave some of the {len(data.train)} training images")
    return number
