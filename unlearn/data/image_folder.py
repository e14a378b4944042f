"""A user's own images: any tree with one folder per class, all images made square and of one size, once.

As torchvision's `ImageFolder`, classes are numbered in the order of their folders' names.
"""

import json
import os
import struct
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from torchvision.datasets.folder import IMG_EXTENSIONS

from unlearn.data import disk
from unlearn.data.images import Data
from unlearn.data.split import stratified
from unlearn.files import write
from unlearn.settings import Count, Positive, Probability, Share
from unlearn.streams import Streams

# Those of the endings, whatever a file is called: of all that Pillow knows, one starts a program (EPS)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LEFT_OUT = "left_out.json"
BESIDE = "lies beside the folders of the classes"
HIDDEN = "is hidden, by its name"
# What Pillow raises for damaged files, and for images so large that they are an attack (the warning made an error)
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


Tree = dict[str, list[str]]  # a class's name, its image files
Reasons = dict[str, str]  # what is left out, and why


def convert(
    path: Path, train: Tree, test: Tree, others: Reasons, size: int, test_share: float, folder: Path
) -> disk.Arrays:
    """The four arrays of the images of `path`, N x `size` x `size` x C; `folder` is where they will lie.

    C is 1 if every image is grey, else 3. With an empty `test`, `test_share` of every class of `train` is held out,
    always the same images. Files that cannot be read are left out, as are the `others`, and 16-bit ones scaled to 8,
    each said in a line on standard error; `left_out.json` has all that was left out. A `DataError` says what the tree
    lacks.
    """
    names = sorted(train)
    strangers = sorted(test.keys() - train.keys())
    if strangers:
        raise disk.DataError("dataset.path", path, f"has test images of {strangers[0]}, and no training images of it")
    files = [[file for name in names for file in part.get(name, [])] for part in (train, test)]
    numbers = [label for part in (train, test) for label, name in enumerate(names) for _ in part.get(name, [])]
    say("are not images of a class and are left out", list(others))
    pixels, readable, unreadable = _pixels(files[0] + files[1], size)
    write(folder / LEFT_OUT, json.dumps(others | unreadable, indent=1).encode())
    labels = torch.tensor(numbers)[readable]
    if test:
        in_test = torch.arange(len(numbers))[readable] >= len(files[0])
        kept, held_out = (~in_test).nonzero().flatten(), in_test.nonzero().flatten()
    else:
        kept, held_out = stratified(labels, test_share, Streams("image_folder")("test"))
    for label, name in enumerate(names):
        if not (labels[kept] == label).any():
            raise disk.DataError("dataset.path", path, f"class {name} has no training image that can be read")
    if len(held_out) == 0:
        raise disk.DataError("dataset.path", path, "leaves no test image; add images, or raise dataset.test_share")
    return {
        "train_images": pixels[kept],
        "train_labels": labels[kept].numpy(),
        "test_images": pixels[held_out],
        "test_labels": labels[held_out].numpy(),
    }


def image_folder(
    *,
    root: str,
    path: str,
    size: Count,
    test_share: Share,
    sha256: Mapping[str, str | None],
    validation: Probability,
    augment: list[str],
    mean: list[float],
    std: list[Positive],
) -> Data:
    """Read the images below `path`, made `size` x `size`: the shorter side resized, then the centre cut out.

    `path` holds `train/` and `test/` (or `val/`) with a folder per class each, or just a folder per class; then
    `test_share` of every class becomes the test set. Links are followed, also out of `path`, but into no folder twice.
    The arrays lie below `root`, and are made again when an image is added, removed, renamed or changed. A `DataError`
    says what `path` lacks.
    """
    place = Path(path).expanduser().resolve()
    if not os.path.isdir(place):  # which a name that is too long is not, either
        raise disk.DataError("dataset.path", path, "must be a folder with one folder of images for each class")
    try:
        train, test, others = _parts(place)
    except OSError as error:
        raise disk.DataError("dataset.path", path, f"cannot be read ({error})") from error
    if len(train) < 2:
        raise disk.DataError(
            "dataset.path", path, f"must hold a folder of images for each of two or more classes, has {sorted(train)}"
        )
    return disk.read(
        "image_folder",
        partial(convert, place, train, test, others, size, test_share),
        root=root,
        sha256=sha256,
        validation=validation,
        augment=augment,
        mean=mean,
        std=std,
        source=[str(place), size, test_share, train, test, _stamps(train), _stamps(test)],
    )


def say(what: str, files: Sequence[str], count: int | None = None) -> None:
    """A line on standard error about some files, of which it names the first three."""
    if files:
        of = "" if count is None else f" of {count}"
        some = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        print(f"image_folder: {len(files)}{of} files {what}: {some}", file=sys.stderr)


def _parts(path: Path) -> tuple[Tree, Tree, Reasons]:
    others: Reasons = {}
    tests = [path / name for name in ("test", "val") if (path / name).is_dir()]
    if not tests or not (path / "train").is_dir():
        return _tree(path, path, others), {}, others
    parts = ("train", "test", "val")
    others |= {str(path / name): BESIDE for name in sorted(os.listdir(path)) if name not in parts}
    # An unlabelled test/ has no folders of classes, and val/ is the test set
    train = _tree(path, path / "train", others)
    return train, next(filter(None, (_tree(path, place, others) for place in tests)), {}), others


def _stamps(tree: Tree) -> list[tuple[int, int]]:
    """Size and time of every file of a tree, in its order."""
    found = (os.stat(file) for files in tree.values() for file in files)
    return [(its.st_size, its.st_mtime_ns) for its in found]


def _tree(path: Path, folder: Path, others: Reasons) -> Tree:
    above = {str(place) for place in (path, *path.parents, folder)}
    found: Tree = {}
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not (folder / name).is_dir():
            others[str(folder / name)] = HIDDEN if name.startswith(".") else BESIDE
        else:
            found[name] = _images(str(folder / name), set(above), others)
    others |= {str(folder / name): "a class without images" for name, files in found.items() if not files}
    return {name: files for name, files in found.items() if files}


def _images(folder: str, seen: set[str], others: Reasons) -> list[str]:
    # A link may lead up again: no folder is entered twice for one class, and none that the class lies in
    real = os.path.realpath(folder)
    if real in seen:
        others[folder] = f"leads to {real}, whose images are there already"
        return []
    seen.add(real)
    found = []
    for name in sorted(os.listdir(folder)):
        place = os.path.join(folder, name)
        if name.startswith("."):
            others[place] = HIDDEN
        elif name.lower().endswith(IMG_EXTENSIONS) and os.path.isfile(place):
            found.append(place)
        elif os.path.isdir(place):
            found += _images(place, seen, others)
        else:
            others[place] = "not an image by its name, or not a file"
    return found


def _pixels(files: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray, Reasons]:
    """Pixels of the files that could be read, N x size x size x C, which of all files those are, and the others."""
    pixels = np.zeros((len(files), size, size, 3), dtype=np.uint8)
    unreadable: Reasons = {}

    def fill(number: int) -> str:
        try:
            square, kind = _square(files[number], size)
        except UNREADABLE as error:
            unreadable[files[number]] = " ".join(f"{type(error).__name__}: {error}".split())
            return "damaged"
        pixels[number] = square if square.ndim == 3 else square[..., None]
        return kind

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # of metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        kinds = np.array(list(pool.map(fill, range(len(files)))))
    for kind, what in (("damaged", "cannot be read and are left out"), ("deep", "have 16 bits and are scaled to 8")):
        say(what, [file for file, its in zip(files, kinds, strict=True) if its.startswith(kind)], len(files))
    readable = kinds != "damaged"
    channels = 3 if any(kind.endswith("colour") for kind in kinds) else 1
    return pixels[readable][..., :channels], readable, dict(sorted(unreadable.items()))


def _square(file: str, size: int) -> tuple[np.ndarray, str]:
    with Image.open(file, formats=FORMATS) as image:
        deep = "deep " if _deep(image) else ""
        if image.mode.startswith(("I", "F")):
            levels = np.asarray(image)
            if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
                raise ValueError("its levels have no known range")
            kind, eight_bit = "deep grey", Image.fromarray(np.rint(levels / 257).astype(np.uint8))
        elif image.mode in ("1", "L", "LA"):
            kind, eight_bit = f"{deep}grey", image.convert("L")
        else:
            # A palette goes by way of RGBA, because Pillow warns of its transparency otherwise
            direct = image.convert("RGBA") if image.mode == "P" else image
            kind, eight_bit = f"{deep}colour", direct.convert("RGB")
        return np.asarray(ImageOps.fit(eight_bit, (size, size), Image.Resampling.BILINEAR)), kind


def _deep(image: ImageFile) -> bool:
    """Whether an open file has 16 bits a level, of which Pillow itself will keep the upper 8."""
    for tile in image.tile:
        raw, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if ";16" in str(raw) or (tile.codec_name.startswith("ppm") and max(more, default=0) > 255):
            return True
    return False
