"""Forget the images that are memorised most, or least, or neither, by a file of scores.

Zhao, Kurmanji, Bărbulescu, Triantafillou & Triantafillou (NeurIPS 2024, arXiv:2406.01257) found that what is hardly
memorised is nearly forgotten by doing nothing, and that methods differ on what is memorised most. `scores` is a file as
`method=rum` reads it; `scripts/memorisation.py` writes one. Images without a score are never chosen. `middle` are those
around the median; `each` is the paper's own forget set, a third of least, middle and most. Equal scores, which counts
of a few models give to many images, are in an order drawn for the split.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unlearn.data.images import Data
from unlearn.memorisation import of_images
from unlearn.scenarios.random import number_to_forget
from unlearn.settings import Count, SettingError, Share
from unlearn.streams import Streams

ORDER = ("least", "middle", "most")


def memorised(
    data: Data,
    streams: Streams,
    *,
    scores: str,
    which: Literal["most", "least", "middle", "each"],
    fraction: Share | None,
    count: Count | None,
) -> Tensor:
    """A `fraction` of the training set, or `count` images of it, chosen by their `scores`."""
    number = number_to_forget(data, fraction, count)
    known = of_images(scores, data.train_index, "scenario.scores")
    chance = torch.randperm(len(known), generator=streams("ties")).numpy()
    ranked = np.lexsort((chance, known))[: int(np.isfinite(known).sum())]  # nan comes last
    if number > len(ranked):
        allowed = f"has scores for {len(ranked)} of the {len(known)} training images, and {number} are to be forgotten"
        raise SettingError("scenario.scores", scores, allowed)
    thirds = np.diff([0, number // 3, 2 * number // 3, number])
    least, middle, most = thirds if which == "each" else (number * (which == its) for its in ORDER)
    start = (len(ranked) - middle) // 2
    chosen = [ranked[:least], ranked[start : start + middle], ranked[len(ranked) - most :]]
    return torch.from_numpy(np.concatenate(chosen)).sort().values
