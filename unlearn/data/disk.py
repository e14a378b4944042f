"""Arrays on disk: every data set is four plain .npy files under `<root>/<name>/`, whose sha256 is checked once.

The first read converts (with torchvision, scikit-learn or Pillow, as the loader says); later reads map the files.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlearn.data.augment import STEPS
from unlearn.data.images import Data, Images
from unlearn.data.split import stratified
from unlearn.files import replacing
from unlearn.lease import Lease, LostLeaseError
from unlearn.settings import SettingError
from unlearn.streams import Streams

Arrays = dict[str, np.ndarray]
NAMES = ("train_images", "train_labels", "test_images", "test_labels")


class DataError(SettingError):
    """Data that is absent, cut short or not what it should be: says which file, where, and how to get it."""


def read(
    name: str,
    convert: Callable[[Path], Arrays],
    *,
    root: str,
    sha256: Mapping[str, str | None],
    validation: float,
    augment: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    class_count: int | None = None,
    source: Sequence[object] = (),
) -> Data:
    """Read the data set `name`, converting it first if its arrays are not there yet.

    `convert(folder)` returns the four arrays of `NAMES`: images uint8 N x H x W x C, labels integers. `validation` is
    the share of the training set held out, class by class; the draw belongs to the data set and to no seed. `source`,
    for a user's own files, is where they lie and all else that the arrays depend on: each has its own folder.

    A `DataError` names a file that is absent, damaged or unlike `sha256`, and the way to get it; a `SettingError`
    names a `validation` or `augment` that cannot be.
    """
    _allowed(validation, augment)
    if not root:
        raise SettingError("dataset.root", "", "must name a folder")
    folder = Path(root).expanduser() / (f"{name}-{_digest(source)}" if source else name)
    remedy = f"delete it, and it is made again from {source[0]}" if source else f"delete it and {how(name)}"
    _convert_once(folder, convert)
    found = _verified(name, folder, sha256, remedy)
    arrays = {kind: np.load(folder / f"{kind}.npy", mmap_mode="c") for kind in NAMES}
    if (wrong := fault(arrays)) is not None:
        raise DataError("dataset", name, f"{folder}: {wrong}; {remedy}")
    # The hashes are of bytes alone, and of a data set of a known name the shape is known
    shape = str(arrays["train_images"].shape[1:]) if source else ""
    labels = torch.from_numpy(np.asarray(arrays["train_labels"], dtype=np.int64))
    kept, held_out = stratified(labels, validation, Streams("validation")(name))
    train = Images(torch.from_numpy(arrays["train_images"]), labels, tuple(augment))
    test_labels = torch.from_numpy(np.asarray(arrays["test_labels"], dtype=np.int64))
    return Data(
        name=name,
        train=train[kept],
        validation=Images(train.pixels[held_out], labels[held_out]),
        test=Images(torch.from_numpy(arrays["test_images"]), test_labels),
        train_index=kept,
        official_count=len(labels),
        class_count=class_count or int(labels.max()) + 1,
        mean=tuple(mean),
        std=tuple(std),
        content=hashlib.sha256("".join([*(found[kind] for kind in NAMES), shape]).encode()).hexdigest(),
    )


def fault(arrays: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong with the four arrays of `NAMES`, in words that name the array; `None` if nothing is."""
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or images.ndim != 4:
            return f"{part}_images is {images.dtype} {images.shape}, and must be uint8, N x H x W x C"
        if images.shape[1] in (1, 3) and images.shape[3] > 4:
            return f"{part}_images has shape {images.shape}: the channels must come last, N x H x W x C"
        if images.shape[1:] != arrays["train_images"].shape[1:]:
            return f"test_images has shape {images.shape}, but train_images {arrays['train_images'].shape}"
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            return f"{part}_labels is {labels.dtype} {labels.shape}, and must be one integer an image"
        if len(labels) != len(images):
            return f"{part}_labels has {len(labels)} labels for {len(images)} images"
        if len(labels) == 0:
            return f"{part}_images is empty"
        if labels.min() < 0:
            return f"{part}_labels has the label {labels.min()}; labels count from 0"
    present = np.unique(arrays["train_labels"])
    highest, part = max((int(arrays[f"{part}_labels"].max()), part) for part in ("train", "test"))
    if len(present) <= highest:
        missing = next((number for number, label in enumerate(present) if number != label), len(present))
        allowed = "classes are numbered without gaps"
        return f"{part}_labels has the label {highest}, and train_labels no image of class {missing}; {allowed}"
    if len(present) < 2:
        return "train_labels has one class only; two are needed"
    return None


def write(folder: Path, arrays: Arrays) -> None:
    """Write the four arrays, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in NAMES:
        dtype = np.uint8 if kind.endswith("images") else np.int64
        with replacing(folder / f"{kind}.npy") as stream:
            np.save(stream, np.ascontiguousarray(arrays[kind], dtype=dtype))


def leased(folder: Path) -> Lease:
    """The right to write the arrays of a folder, which is made; whoever has to wait for it says for whom."""

    def waiting(holder: str) -> None:
        print(f"data: waiting for {holder}, which is writing {folder}", file=sys.stderr, flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    return Lease(folder, "arrays", waiting)


def checksum(file: Path) -> str:
    """The sha256 of an array's content, without the .npy header. Raises `ValueError` for a file cut short."""
    array = np.load(file, mmap_mode="r")
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def how(name: str) -> str:
    """How to get a data set, for an error's end."""
    return f"run `python scripts/fetch_data.py {name}` (dataset.root or UNLEARN_DATA says where data lies)"


def _allowed(validation: float, augment: Sequence[str]) -> None:
    if not 0 <= validation < 1:
        raise SettingError("dataset.validation", validation, "must be at least 0 and less than 1")
    if not STEPS.keys() >= set(augment):
        raise SettingError("dataset.augment", list(augment), f"each step must be one of {', '.join(STEPS)}")


def _digest(source: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(source).encode()).hexdigest()[:12]


def _convert_once(folder: Path, convert: Callable[[Path], Arrays]) -> None:
    try:
        while not _complete(folder):
            with suppress(LostLeaseError), leased(folder):  # what its new holder writes will do
                if not _complete(folder):
                    write(folder, convert(folder))
    except OSError as error:
        raise DataError("dataset.root", folder.parent, f"cannot be written to ({error})") from error


def _complete(folder: Path) -> bool:
    return all((folder / f"{kind}.npy").exists() for kind in NAMES)


def _verified(name: str, folder: Path, expected: Mapping[str, str | None], remedy: str) -> dict[str, str]:
    """The sha256 of each array, computed when a file is new or has changed, and compared with the YAML's."""
    mark = folder / "verified.json"
    known = _known(mark)
    found: dict[str, str] = {}
    for kind in NAMES:
        file = folder / f"{kind}.npy"
        stat = [file.stat().st_size, file.stat().st_mtime_ns]
        if known.get(kind, {}).get("stat") != stat:
            try:
                known[kind] = {"stat": stat, "sha256": checksum(file)}
            except (ValueError, EOFError, OSError) as error:
                raise DataError("dataset", name, f"{file} is damaged or cut short; {remedy}") from error
        found[kind] = known[kind]["sha256"]
        wanted = expected.get(kind)
        if wanted is not None and found[kind] != wanted:
            raise DataError("dataset", name, f"{file} has sha256 {found[kind]}, expected {wanted}; {remedy}")
    text = json.dumps(known, indent=1)
    # A shared folder may be read-only: then each run hashes anew, which costs a second and changes nothing
    with suppress(OSError):
        if not mark.exists() or mark.read_text() != text:
            with replacing(mark) as stream:
                stream.write(text.encode())
    return found


def _known(mark: Path) -> dict[str, Any]:
    try:
        known = json.loads(mark.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
