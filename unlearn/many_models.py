"""What many models, alike but for their randomness, answer on each image; and whether two sets of them are alike."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from unlearn.signals import Signals
from unlearn.statistics import LEVEL, bootstrapped, permutation_pvalue
from unlearn.subject import Subject

Floats = NDArray[np.float64]
Models = Annotated[int, Ge(4)]
"""How many models a set has."""


def models_by_images(
    subjects: Iterable[Subject], signal: Callable[[Signals], Floats], parts: Sequence[str]
) -> dict[str, Floats]:
    """A signal of all models on each of `parts`; of one model at a time are all its logits in memory."""
    rows = [[signal(getattr(subject, part)) for part in parts] for subject in subjects]
    return {part: np.stack(its) for part, its in zip(parts, zip(*rows, strict=True), strict=True)}


def over_images(values: Floats, generator: np.random.Generator, name: str) -> dict[str, float]:
    """The mean over images with its bootstrap interval for other images; of a single image, no interval."""
    if len(values) == 1:
        return {name: float(values[0])}
    return bootstrapped(lambda chosen: float(values[chosen].mean()), len(values), generator, name)


def exchange_verdict(
    distance: Callable[[Floats, Floats], float],
    ours: Floats,
    others: Floats,
    oracles: Floats,
    generator: np.random.Generator,
    exchanges: int,
    name: str,
) -> dict[str, float]:
    """Are our models farther from the oracles than other retrained ones? The p-value, and passed above 0.05.

    Were ours retrained too, the two sets could be mixed without changing anything: the p-value is the share of random
    mixtures whose excess distance is at least the observed one. Images may hang together as they like.
    """

    def excess(first: Floats, second: Floats) -> float:
        return distance(first, oracles) - distance(second, oracles)

    pvalue = permutation_pvalue(excess, ours, others, generator, exchanges)
    return {f"{name}_pvalue": pvalue, f"{name}_passed": float(pvalue > 1 - LEVEL)}
