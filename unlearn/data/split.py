"""The validation part: taken out of the training set, class by class, before anything else happens."""

import torch
from torch import Tensor


def stratified(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out): a `share` of every class is held out, rounded to whole images; both sorted."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        held_out[shuffled[: round(share * len(members))]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
