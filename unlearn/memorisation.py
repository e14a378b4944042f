"""How much of each image is memorised: Feldman's scores, what stands in for them, and files of either.

Memorisation (Feldman, STOC 2020, arXiv:1906.05271; Feldman & Zhang, NeurIPS 2020, arXiv:2008.03703; neither checked) is
how much likelier a model is to get an image right for having been trained on it. A file of scores has a number for each
image of the official training set, in its order and before the validation part is taken out; nan is no score.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from unlearn.settings import SettingError
from unlearn.signals import Floats, Signals
from unlearn.subject import Shadow

PUBLISHED = ("memorization", "tr_mem")  # RUM's file for CIFAR-10, Feldman & Zhang's for CIFAR-100

PROXIES: Mapping[str, Callable[[Signals], Floats]] = {
    "confidence": lambda signals: -signals.margin,  # ranks as the loss does, and does not saturate
    "entropy": lambda signals: signals.entropy,
}
"""What one model says of an image in the place of its score: larger is more memorised."""


def contrasts(references: Iterable[Shadow], parts: Sequence[str]) -> dict[str, tuple[Floats, Floats]]:
    """For each part, what having been a member did to each image in each pair of reference models: pairs x images.

    The models come as `Laboratory.references` gives them, two by two trained on complementary halves, so that one of a
    pair has seen an image and the other has not. The first array is of being right, so -1, 0 or 1, and its mean over
    the pairs is Feldman's estimate; the second of the probability of the true class.
    """
    found: dict[str, list[tuple[Floats, Floats]]] = {part: [] for part in parts}
    models = iter(references)
    for one, other in zip(models, models, strict=True):
        for part in parts:
            sign = np.where(one.members[part], 1.0, -1.0)
            ours, theirs = getattr(one, part), getattr(other, part)
            right = sign * (ours.correct.astype(np.float64) - theirs.correct)
            found[part].append((right, sign * (ours.confidence - theirs.confidence)))
    return {
        part: (np.stack([right for right, _ in its]), np.stack([its for _, its in its])) for part, its in found.items()
    }


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
