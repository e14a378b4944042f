"""A share of CIFAR-10, class by class: real photographs for experiments of minutes on two cores."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256 as hashed
from typing import Annotated

from annotated_types import Gt, Le
from torch import Tensor

from unlearn.data import disk
from unlearn.data.cifar10 import convert
from unlearn.data.images import PARTS, Data, Images
from unlearn.data.split import stratified
from unlearn.settings import Positive, Probability, SettingError
from unlearn.streams import Streams

FILES_OF = "cifar10"
"""The data set whose files are read, and fetched by `scripts/fetch_data.py`."""


def cifar10_small(
    *,
    root: str,
    sha256: Mapping[str, str | None],
    share: Annotated[float, Gt(0), Le(1)],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read CIFAR-10 and keep `share` of every class of the training, validation and test part, always the same images.

    The files are CIFAR-10's own. A `DataError` says what is missing.
    """
    data = disk.read(
        FILES_OF, convert, root=root, sha256=sha256, validation=validation, augment=augment, mean=mean, std=std
    )
    kept = {part: _kept(part, getattr(data, part), share) for part in PARTS}
    parts = {part: getattr(data, part)[index] for part, index in kept.items()}
    content = hashed(f"{data.content} {share}".encode()).hexdigest()
    return replace(data, name="cifar10_small", **parts, train_index=data.train_index[kept["train"]], content=content)


def _kept(part: str, images: Images, share: float) -> Tensor:
    _, kept = stratified(images.labels, share, Streams("cifar10_small")(part))
    if len(images) and len(kept) == 0:
        raise SettingError("dataset.share", share, f"leaves no image of the {part} part")
    return kept
