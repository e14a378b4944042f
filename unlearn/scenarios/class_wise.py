"""Forget every training image of one or several classes."""

import torch
from torch import Tensor

from unlearn.data.images import Data
from unlearn.settings import Index, SettingError
from unlearn.streams import Streams


def class_wise(data: Data, streams: Streams, *, classes: list[Index]) -> Tensor:
    """All images of `classes`, numbered from 0."""
    if not classes:
        raise SettingError("scenario.classes", classes, "name at least one class")
    if len(set(classes)) < len(classes):
        raise SettingError("scenario.classes", classes, "names a class more than once")
    for label in classes:
        existing_class("scenario.classes", label, data)
    return torch.isin(data.train.labels.cpu(), torch.tensor(classes)).nonzero().flatten()


def existing_class(key: str, label: int, data: Data) -> None:
    """Raise `SettingError` unless the training set has images of the class."""
    if label >= data.class_count or not (data.train.labels == label).any():
        raise SettingError(key, label, f"not a class of dataset {data.name}, which has 0 to {data.class_count - 1}")
