"""Teachers: frozen models that a student is drawn to, or driven away from, by the answers that they give.

The divergence is that of knowledge distillation (Hinton, Vinyals & Dean, 2015, arXiv:1503.02531).
"""

from copy import deepcopy

import torch
from torch import Tensor, nn


def frozen(model: nn.Module) -> nn.Module:
    """A copy of `model` that nothing trains: in eval mode, and no parameter of it requires a gradient.

    Its memory format is that of a model in `fit`: while their weights agree, so do their answers, to the last bit.
    """
    return deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def answers(teacher: nn.Module, images: Tensor) -> Tensor:
    """A teacher's scores, B x C, through which no gradient flows."""
    scores: Tensor = teacher(images)
    return scores


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) between the softmax of scores divided by `temperature`, in nats: the mean over B rows.

    Both scores are B x C. It is exactly 0 if they are the same. Some losses multiply it with the squared temperature,
    which keeps the size of its gradient; that is theirs to do.
    """
    ours, its = (nn.functional.log_softmax(scores.float() / temperature, dim=1) for scores in (student, teacher))
    return nn.functional.kl_div(ours, its, reduction="batchmean", log_target=True)
