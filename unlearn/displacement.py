"""What methods share that move forgotten images, in the space of features, to a class that is not their own.

Which class that is, is settled once, on the original: the target stands in the place of the label.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.batches import Batches
from unlearn.request import Request
from unlearn.settings import SettingError
from unlearn.signals import accuracy

NO_OTHER = "finds no retained class for a forgotten image to go to, beside its own"
ENOUGH = 0.01  # of the images of a class that is wholly forgotten; the released codes' tolerance


def wholly_forgotten(request: Request) -> Tensor:
    """The classes of which an image is forgotten and none is retained, in order."""
    forgotten = sorted(set(request.forget.labels.tolist()) - set(request.retain.labels.tolist()))
    return torch.tensor(forgotten, dtype=torch.int64)


def check_others(method: str, lab: Any) -> None:
    """Every forgotten image has a class beside its own of which images are retained. Raises `SettingError`."""
    for number in range(len(lab.requests)):
        request = lab.request(number)
        kept, gone = (set(part.labels.tolist()) for part in (request.retain, request.forget))
        if any(kept <= {label} for label in gone):
            raise SettingError("method", method, NO_OTHER)


def nearest_other(method: str, distances: Tensor, labels: Tensor) -> Tensor:
    """The class, B, that is nearest to each image beside its own, from B x C distances.

    A class at an infinite distance is no target; a `SettingError` that names `method` if an image has no other.
    """
    own = nn.functional.one_hot(labels, distances.shape[1]).bool()
    nearest = distances.masked_fill(own, torch.inf).min(dim=1)
    if nearest.values.isinf().any():
        raise SettingError("method", method, NO_OTHER)
    return nearest.indices


def repeated(batches: Batches, times: int) -> Batches:
    """Each batch as often as asked, in immediate succession."""

    def epoch(number: int) -> Iterator[Any]:
        for batch in batches(number):
            yield from [batch] * times

    return Batches(batches.steps * times, epoch)


def accuracy_of_unseen(model: nn.Module, request: Request) -> float:
    """What a model's accuracy on the forget set would be, had it not seen it.

    Of images whose class has others that stay this is `model`'s accuracy on validation images, images that it has not
    seen; of a class that goes as a whole, 0. With both in a forget set, it is their mean.
    """
    stays = ~torch.isin(request.forget.labels.cpu(), wholly_forgotten(request))
    return float(stays.float().mean()) * (accuracy(model, request.validation) if stays.any() else 0.0)


def until_forgotten(model: nn.Module, request: Request) -> Callable[[nn.Module], bool]:
    """Whether a model's accuracy on the forget set is below what unlearning is to leave of it.

    That is `accuracy_of_unseen`, with a tolerance of `ENOUGH` where it is 0.
    """
    target = max(accuracy_of_unseen(model, request), ENOUGH)
    return lambda unlearned: accuracy(unlearned, request.forget) < target
