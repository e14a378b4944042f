"""Which entries of a model matter to a set of images: the masks that confine unlearning to them.

SalUn (Fan et al., ICLR 2024, arXiv:2310.12508) ranks every entry of every parameter by the absolute gradient of the
forget set's loss at the original model, and lets only the first ones move.
"""

import torch
from torch import Tensor, nn

from unlearn.attacks import evaluating
from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of
from unlearn.session import current


def salient(model: nn.Module, images: Images, share: float, *, batch_size: int = 500) -> dict[str, Tensor]:
    """For each trained parameter, by its name, which of its entries are among the `share` with the largest gradients.

    The gradient is that of the mean cross-entropy over all `images`, in eval mode and without augmentation; entries are
    ranked over the whole model and exactly round(share * entries) are chosen. The model comes back as it was, and the
    session counts one gradient an image.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    totals = [torch.zeros_like(parameter) for parameter in named.values()]
    with evaluating(model), torch.enable_grad():
        for rows in torch.arange(len(images)).split(batch_size):
            batch = images[rows]
            scores = model(as_model_input(batch.pixels, device_of(model)))
            loss = nn.functional.cross_entropy(scores, batch.labels.to(scores.device), reduction="sum")
            gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
            torch._foreach_add_(totals, gradients)
    current().sample_gradients += len(images)
    sizes = [total.numel() for total in totals]
    ranked = torch.cat([total.abs().flatten() for total in totals])
    chosen = torch.zeros_like(ranked, dtype=torch.bool)
    chosen[ranked.topk(round(share * len(ranked))).indices] = True
    parts = zip(named.items(), chosen.split(sizes), strict=True)
    return {name: part.view_as(parameter) for (name, parameter), part in parts}
