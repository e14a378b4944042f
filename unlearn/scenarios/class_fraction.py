"""Forget a share of one class, such as 50 % of CIFAR-100's class 68."""

import torch
from torch import Tensor

from unlearn.data.images import Data
from unlearn.scenarios.class_wise import existing_class
from unlearn.settings import Index, Share
from unlearn.streams import Streams


def class_fraction(data: Data, streams: Streams, *, label: Index, fraction: Share) -> Tensor:
    """A random `fraction` of the images of class `label`, at least one."""
    existing_class("scenario.label", label, data)
    members = (data.train.labels.cpu() == label).nonzero().flatten()
    number = max(1, round(fraction * len(members)))
    return members[torch.randperm(len(members), generator=streams("forget"))[:number]].sort().values
