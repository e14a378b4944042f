"""LoTUS: distil the original into itself, its answers on the forget set blurred for as long as it knows that set best.

    minimise CE(theta, softmax((z_o + Gumbel) / tau)) on F + CE(theta, class drawn from theta_o) on a share of R

Spartalis, Semertzidis, Gavves & Daras, "LoTUS: Large-scale machine unlearning with a taste of uncertainty" (CVPR 2025,
arXiv:2503.18314, the number not checked); code cspartalis/LoTUS. The teacher is the original, and labels are not used.
Every epoch begins with d, the student's accuracy on the forget set minus what the teacher has on validation images, or
minus 0 for whole classes, of which a retrained model knows nothing; with both in a forget set, minus their mean.
Forgotten images are fitted to softmax((scores + Gumbel noise) / tau) of the teacher's scores, with
tau = exp(alpha d), and a random share of the retained images to a class drawn from its answer. Once d is -0.01 or less
the training is over, and if it is so at the start, the model is what it was. `validation_target: false` is 0 for all.

Deviations from the released code:
- One noise for each image and step, drawn on the CPU. The released code draws a second one for whichever of the two
  targets an image does not have.
- Its choice between the noisy softmax and a plain one, which its scripts never use, is not offered.
- Images are augmented as their data set asks, alike for student and teacher; accuracies are of images as they are.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.attacks import evaluating
from unlearn.batches import Batch, announced, shuffled
from unlearn.displacement import accuracy_of_unseen
from unlearn.loop import Optimiser, descend, fit
from unlearn.methods.bad_teacher import FORGOTTEN, flagged
from unlearn.request import Request
from unlearn.settings import Count, NotNegative, Probability
from unlearn.signals import accuracy
from unlearn.streams import Streams
from unlearn.teachers import answers, frozen

NEEDS = frozenset({"retain", "forget", "validation"})
NEEDED_IF = {"validation": "validation_target"}
ENOUGH = -0.01  # of accuracy


def lotus(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    optimiser: Optimiser,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    alpha: NotNegative,
    retain_share: Probability,
    validation_target: bool,
) -> nn.Module:
    """Descend on the cross-entropy of the student's answers under the teacher's, softened on the forget set."""
    teacher = frozen(model)
    target = accuracy_of_unseen(teacher, request) if validation_target else 0.0
    temperature, generator = 1.0, torch.Generator()

    def excess(model: nn.Module) -> float:
        with evaluating(model):
            return accuracy(model, request.forget) - target

    def forgotten(model: nn.Module) -> bool:
        return excess(model) <= ENOUGH

    def begin(epoch: int) -> None:
        nonlocal temperature, generator
        temperature, generator = math.exp(alpha * excess(model)), streams("gumbel", epoch)

    def distil(model: nn.Module, batch: Batch) -> Tensor:
        noisy = with_gumbel_noise(answers(teacher, batch.images), generator)
        gone = (batch.labels == FORGOTTEN)[:, None]
        wanted = torch.where(gone, (noisy / temperature).softmax(dim=1), one_hot_of_largest(noisy))
        return nn.functional.cross_entropy(model(batch.images).float(), wanted)

    def backward(loss: Any, parameters: list[nn.Parameter]) -> tuple[Tensor, Mapping[str, float]]:
        shown, _ = descend(loss, parameters)
        return shown, {"temperature": temperature}

    if forgotten(model):
        return model.eval()
    return fit(
        model,
        announced(shuffled(flagged(request, retain_share, streams), batch_size, streams), begin),
        distil,
        streams,
        epochs=epochs,
        optimiser=optimiser,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        until=forgotten,
        backward=backward,
    )


def with_gumbel_noise(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Scores, B x C, plus Gumbel noise: the largest of a row is a draw from the row's softmax."""
    exponential = torch.empty(scores.shape).exponential_(generator=generator)
    return scores.float() - exponential.log().to(scores.device)


def one_hot_of_largest(scores: Tensor) -> Tensor:
    """Float, B x C: 1 at the largest entry of each row."""
    return nn.functional.one_hot(scores.argmax(dim=1), scores.shape[1]).to(scores)
