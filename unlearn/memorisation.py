"""How much of each image is memorised: Feldman's scores, what stands in for them, and files of either.

Memorisation (Feldman, STOC 2020, arXiv:1906.05271; Feldman & Zhang, NeurIPS 2020, arXiv:2008.03703; neither checked) is
how much likelier a model is to get an image right for having been trained on it. A file of scores has a number for each
image of the official training set, in its order and before the validation part is taken out; nan is no score.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from unlearn.reference_signals import stacked
from unlearn.settings import SettingError
from unlearn.signals import Floats, Signals
from unlearn.subject import Shadow

PUBLISHED = ("memorization", "tr_mem")  # RUM's file for CIFAR-10, Feldman & Zhang's for CIFAR-100

PROXIES: Mapping[str, Callable[[Signals], Floats]] = {
    "confidence": lambda signals: -signals.margin,  # ranks as the loss does, and does not saturate
    "entropy": lambda signals: signals.entropy,
}
"""What one model says of an image in the place of its score: larger is more memorised."""


def correctness(signals: Signals) -> Floats:
    """1 for images that are classified correctly, 0 for others."""
    return signals.correct.astype(np.float64)


def contrasts(
    references: Iterable[Shadow], signal: Callable[[Signals], Floats], parts: Sequence[str]
) -> dict[str, Floats]:
    """For each part, what having been a member did to a signal of each image in each pair of models: pairs x images.

    The models come as `Laboratory.references` gives them, two by two trained on complementary halves, so that one of a
    pair has seen an image and the other has not; else a `SettingError`. Of `correctness` the mean over the pairs is
    Feldman's estimate.
    """
    found = {}
    for part, its in stacked(references, signal, parts).items():
        (ours, theirs), (saw, did_not) = ((values[::2], values[1::2]) for values in (its.values, its.members))
        if (saw == did_not).any():
            raise SettingError("references", part, "must come in pairs of models trained on complementary halves")
        found[part] = np.where(saw, ours - theirs, theirs - ours)
    return found


def read(file: str, key: str = "") -> Floats:
    """All scores of a file, which must be numbers in one dimension. Raises a `SettingError` of `key`."""
    allowed = "must be an .npy, or an .npz with one array or one called " + " or ".join(PUBLISHED)
    try:
        found = np.load(Path(file).expanduser(), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SettingError(key, file, f"{allowed} ({error})") from error
    if isinstance(found, np.lib.npyio.NpzFile):
        with found:
            names = [name for name in PUBLISHED if name in found.files] or found.files
            if len(names) != 1:
                raise SettingError(key, file, f"{allowed}, and has {', '.join(names) or 'none'}")
            found = found[names[0]]
    if found.ndim != 1 or found.dtype.kind not in "fiu" or np.isinf(found).any():
        what = "must hold finite numbers, or nan for want of one, in one dimension"
        raise SettingError(key, file, f"{what}, and holds {found.dtype} {found.shape}")
    return found.astype(np.float64)


def of_images(file: str, numbers: Tensor, key: str) -> Floats:
    """The scores of images, or nan, by their numbers in the official order. Raises a `SettingError` of `key`."""
    scores = read(file, key)
    if int(numbers.max()) >= len(scores):
        raise SettingError(key, file, f"has {len(scores)} scores, and no image {int(numbers.max())}")
    result: Floats = scores[numbers.cpu().numpy()]
    return result
