"""One number an image from many models: what each answered, and whether it had been trained on the image."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, MultipleOf
from numpy.typing import NDArray

from unlearn.signals import Signals
from unlearn.subject import Shadow

Floats = NDArray[np.float64]
References = Annotated[int, Ge(2), MultipleOf(2)]
"""How many models trained on halves: they come in pairs on complementary halves."""


@dataclass(frozen=True)
class ReferenceSignals:
    """A signal of K models on N images, and whether the image was a member of the model's half, both K x N."""

    values: Floats
    members: NDArray[np.bool_]

    def __getitem__(self, images: NDArray[np.int64] | NDArray[np.bool_]) -> "ReferenceSignals":
        return ReferenceSignals(self.values[:, images], self.members[:, images])

    @property
    def inside(self) -> Floats:
        """N x K/2: each image's values in the models that were trained on it; N x 0 for validation images."""
        return self._where(self.members)

    @property
    def outside(self) -> Floats:
        """N x K/2: each image's values in the models that were not; N x K for validation images."""
        return self._where(~self.members)

    def _where(self, chosen: NDArray[np.bool_]) -> Floats:
        counts = chosen.sum(axis=0)
        if len(np.unique(counts)) > 1:
            raise ValueError(
                f"members of {counts.min()} to {counts.max()} models; complementary halves give one number"
            )
        return self.values.T[chosen.T].reshape(chosen.shape[1], -1 if chosen.size else 0)


def stacked(
    shadows: Iterable[Shadow], signal: Callable[[Signals], Floats], parts: Sequence[str]
) -> dict[str, ReferenceSignals]:
    """A signal of all models on each of `parts`; of one model at a time are all its logits in memory."""
    values: dict[str, list[Floats]] = {part: [] for part in parts}
    members: dict[str, list[NDArray[np.bool_]]] = {part: [] for part in parts}
    for shadow in shadows:
        for part in parts:
            values[part].append(signal(getattr(shadow, part)))
            members[part].append(shadow.members[part])
    return {part: ReferenceSignals(np.stack(values[part]), np.stack(members[part])) for part in parts}


def clipped_margin(signals: Signals) -> Floats:
    """The logit-scaled confidence within +-100, so that a Gaussian's density never overflows."""
    return signals.margin.clip(-100, 100)
