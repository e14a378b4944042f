"""Guard rails: what a reader must know of an unlearned model before believing any other number of its row."""

import numpy as np

from unlearn.lab import Lab
from unlearn.statistics import proportion
from unlearn.store import Stored

TITLES = {
    "diverged": "diverged",
    "at_chance": "at chance on the retained images",
    "identical": "identical to the original",
}


def remarks(lab: Lab) -> dict[str, str]:
    """What is wrong with the method's model, each with its reason; nothing of a model that is as it should be.

    `at_chance`: on the retained images it is no better than always naming their most frequent class, as far as the 95 %
    Wilson interval of its accuracy can tell. `identical`: every weight and statistic is the original's, bit for bit.
    """
    found = {}
    retain = lab.subject("unlearned").retain
    commonest = float(np.bincount(retain.labels).max() / len(retain))
    accuracy = proportion(retain.correct, "accuracy")
    if accuracy["accuracy_low"] <= commonest:
        found["at_chance"] = (
            f"its accuracy there is {accuracy['accuracy']:.3f}, the most frequent class {commonest:.3f}"
        )
    if same_bits(lab.original(), lab.unlearned()):
        found["identical"] = "every weight and statistic is bit for bit the original's"
    return found


def same_bits(first: Stored, second: Stored) -> bool:
    """Whether two stored models have the same weights and buffers."""
    ours, theirs = (stored.json("done.json")["model.safetensors"] for stored in (first, second))
    return bool(ours == theirs)
