"""Forget mislabelled images: the interclass confusion test, of two classes some of whose labels were swapped.

Goel, Prabhu, Sanyal, Lim, Torr & Kumaraguru, "Towards adversarial evaluations for inexact machine unlearning"
(arXiv:2201.06640). The original is trained with the swapped labels, and what it is to forget is just these images: the
retrained model has never seen them, so whatever confusion it lacks and the unlearned model shows was not forgotten.
Released code: shash42/Evaluating-Inexact-Unlearning. It swaps the first images of each class; here they are drawn.

Swapped labels are those of the forget set everywhere: methods are given them, the reference models of attacks are
trained with them, and so are a pool of their own for each forget set, and signals carry them. So an attack asks after
the image as it was trained on, and `forget_accuracy` is the share that is still taken for the wrong class: high for
the original, low for the retrained model. The auditor `interclass_confusion` alone looks at the true labels.
"""

import torch
from torch import Tensor

from unlearn.data.images import Data
from unlearn.scenarios.class_wise import existing_class
from unlearn.settings import Count, Index, SettingError
from unlearn.streams import Streams


def confusion(data: Data, streams: Streams, *, classes: list[Index], count: Count) -> Tensor:
    """`count` images, half of them random ones of the first of two `classes`, half of the second."""
    if len(set(classes)) != 2 or len(classes) != 2:
        raise SettingError("scenario.classes", classes, "name two different classes")
    if count % 2:
        raise SettingError("scenario.count", count, "must be even, for half of the images are of either class")
    chosen = []
    for label in sorted(classes):
        existing_class("scenario.classes", label, data)
        members = (data.train.labels.cpu() == label).nonzero().flatten()
        if count // 2 >= len(members):
            allowed = f"must leave some of the {len(members)} training images of class {label}"
            raise SettingError("scenario.count", count, allowed)
        chosen.append(members[torch.randperm(len(members), generator=streams("forget", label))[: count // 2]])
    return torch.cat(chosen).sort().values


def relabelled(labels: Tensor, *, classes: list[int], count: int) -> Tensor:
    """The labels that forgotten images of these true labels are trained with: each the other of the two."""
    return sum(classes) - labels
