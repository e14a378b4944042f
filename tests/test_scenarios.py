"""Which images each scenario names, against counts made by hand, and how each bad request is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_positions, yaml_of

from unlearn.data.images import Data, Images
from unlearn.lab import Lab
from unlearn.settings import SettingError, build
from unlearn.streams import Streams


@pytest.fixture(scope="module")
def data(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The digits under their true labels, a tenth of each class held out."""
    settings = composing(tmp_path_factory.mktemp("unused"), ["dataset.label_noise=0"]).settings["dataset"]
    read: Data = build(settings, "dataset")()
    return read


@pytest.fixture(scope="module")
def official(composing: Callable[..., Any], data: Data, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The whole training set in its official order, as it lies on disk."""
    root = Path(composing(tmp_path_factory.mktemp("unused"), []).settings["dataset"]["root"]) / "digits"
    arrays = [torch.from_numpy(np.load(root / f"train_{kind}.npy")) for kind in ("images", "labels")]
    return Images(arrays[0], arrays[1])


def forget(data: Data, scenario: str, split: int = 0, **settings: Any) -> torch.Tensor:
    positions: torch.Tensor = build(yaml_of("scenario", scenario) | settings, "scenario")(data, Streams("s", split))
    assert_positions(positions, data)
    return positions


def refusal(data: Data, scenario: str, **settings: Any) -> SettingError:
    with pytest.raises(SettingError) as raised:
        forget(data, scenario, **settings)
    assert "\n" not in str(raised.value)
    return raised.value


# Random


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 130), (0.5, 648), (0.9, 1166), (1e-6, 1)])
def test_random_fraction_is_of_the_training_set_without_validation(data: Data, fraction: float, count: int) -> None:
    assert len(data.train) == 1295
    assert len(forget(data, "random", fraction=fraction, count=None)) == count


@pytest.mark.parametrize("count", [1, 7, 1294])
def test_random_count_is_exact(data: Data, count: int) -> None:
    assert len(forget(data, "random", fraction=None, count=count)) == count


def test_random_is_uniform_over_the_training_set(data: Data) -> None:
    hits = np.zeros(len(data.train))
    scenario = build(yaml_of("scenario", "random"), "scenario")
    for split in range(400):
        hits[scenario(data, Streams("s", split)).numpy()] += 1
    mean, share = 400 * 130 / 1295, 130 / 1295
    assert hits.sum() == 400 * 130
    # Hypergeometric counts: their spread over positions is that of a binomial, within 5 standard errors
    assert hits.var() == pytest.approx(400 * share * (1 - share), rel=5 * np.sqrt(2 / 1295))
    assert abs(np.corrcoef(hits, np.arange(1295))[0, 1]) < 4 / np.sqrt(1295)
    assert hits.max() < mean + 6 * np.sqrt(mean)


def test_random_forget_sets_of_one_split_are_nested(data: Data) -> None:
    small, large = (set(forget(data, "random", fraction=None, count=count).tolist()) for count in (20, 200))
    assert small < large


@pytest.mark.parametrize(
    ("fraction", "count", "key"),
    [
        (None, None, "scenario.count"),
        (0.1, 5, "scenario.count"),
        (0.0, None, "scenario.fraction"),
        (1.0, None, "scenario.fraction"),
        (-0.1, None, "scenario.fraction"),
        ("half", None, "scenario.fraction"),
        (0.9999, None, "scenario.fraction"),
        (None, 0, "scenario.count"),
        (None, -3, "scenario.count"),
        (None, 2.5, "scenario.count"),
        (None, 1295, "scenario.count"),
        (None, 9999, "scenario.count"),
    ],
)
def test_random_refuses(data: Data, fraction: Any, count: Any, key: str) -> None:
    error = refusal(data, "random", fraction=fraction, count=count)
    value = fraction if key == "scenario.fraction" else count
    assert (error.key, error.value) == (key, value)
    assert str(error).startswith(f"{key}={value}: ")
    allowed = ("must be", "must leave some of the 1295 training images", "give either")
    assert error.allowed.startswith(allowed)


# Classes


@pytest.mark.parametrize("classes", [[0], [9], [3, 5], [5, 3], list(range(9))])
def test_class_wise_is_every_image_of_the_classes(data: Data, classes: list[int]) -> None:
    chosen = forget(data, "class_wise", classes=classes)
    wanted = [i for i, label in enumerate(data.train.labels.tolist()) if label in classes]
    assert chosen.tolist() == wanted


@pytest.mark.parametrize(
    ("classes", "key", "value", "allowed"),
    [
        ([], "scenario.classes", [], "name at least one class"),
        ([10], "scenario.classes", 10, "not a class of dataset digits, which has 0 to 9"),
        ([0, 11, 12], "scenario.classes", 11, "not a class of dataset digits, which has 0 to 9"),
        ([2, -1], "scenario.classes.1", -1, "must be greater than or equal to 0"),
        (3, "scenario.classes", 3, "must be a valid list"),
        (["cat"], "scenario.classes.0", "cat", "must be a valid integer"),
    ],
)
def test_class_wise_refuses(data: Data, classes: Any, key: str, value: Any, allowed: str) -> None:
    error = refusal(data, "class_wise", classes=classes)
    assert (error.key, error.value) == (key, value)
    assert error.allowed.startswith(allowed)


def test_a_class_without_training_images_is_no_class(data: Data) -> None:
    kept = (data.train.labels != 4).nonzero().flatten()
    without = replace(data, train=data.train[kept], train_index=data.train_index[kept])
    for scenario, settings in (("class_wise", {"classes": [4]}), ("class_fraction", {"label": 4, "fraction": 0.5})):
        assert refusal(without, scenario, **settings).value == 4


def test_forgetting_every_class_is_refused_by_the_lab(lab: Callable[..., Lab], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^scenario=.*: forgets all 1295 training images; some must stay$"):
        lab("scenario=class_wise", f"scenario.classes={list(range(10))}")
    assert not (tmp_path / "store" / "originals").exists()


@pytest.mark.parametrize(("label", "fraction"), [(0, 0.5), (7, 0.1), (9, 0.99), (3, 1e-6)])
def test_class_fraction_is_that_share_of_one_class(data: Data, label: int, fraction: float) -> None:
    members = int((data.train.labels == label).sum())
    chosen = forget(data, "class_fraction", label=label, fraction=fraction)
    assert set(data.train.labels[chosen].tolist()) == {label}
    assert len(chosen) == max(1, round(fraction * members))


def test_class_fraction_draws_from_the_whole_class(data: Data) -> None:
    drawn = torch.cat([forget(data, "class_fraction", split, label=2, fraction=0.3) for split in range(30)])
    assert torch.equal(drawn.unique(), (data.train.labels == 2).nonzero().flatten())


@pytest.mark.parametrize(
    ("label", "fraction", "key"),
    [
        (10, 0.5, "scenario.label"),
        (-1, 0.5, "scenario.label"),
        ("zero", 0.5, "scenario.label"),
        (0, 0.0, "scenario.fraction"),
        (0, 1.0, "scenario.fraction"),
        (0, None, "scenario.fraction"),
    ],
)
def test_class_fraction_refuses(data: Data, label: Any, fraction: Any, key: str) -> None:
    error = refusal(data, "class_fraction", label=label, fraction=fraction)
    assert (error.key, error.value) == (key, label if key == "scenario.label" else fraction)
    assert error.allowed.startswith(("must be", "not a class of dataset digits, which has 0 to 9"))


# A file of the user's own


def as_text(separator: str, file: Path, numbers: list[int]) -> None:
    file.write_text(separator.join(map(str, numbers)))


def as_array(kind: str, file: Path, numbers: list[int]) -> None:
    np.save(file, np.array(numbers, dtype=kind))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("lines.txt", partial(as_text, "\n")),
        ("spaces.txt", partial(as_text, " ")),
        ("commas.csv", partial(as_text, ",")),
        ("mixed.csv", partial(as_text, ", \r\n")),
        ("no_suffix", partial(as_text, "\t")),
        ("long.npy", partial(as_array, "int64")),
        ("short.npy", partial(as_array, "uint16")),
        ("big_endian.npy", partial(as_array, ">i4")),
        ("unsigned.npy", partial(as_array, "uint64")),
    ],
)
def test_indices_are_numbers_in_the_official_order(
    name: str, write: Callable[[Path, list[int]], None], data: Data, official: Images, tmp_path: Path
) -> None:
    held_out = set(range(len(official))) - set(data.train_index.tolist())
    assert len(held_out) == len(data.validation) == 143
    numbers = [n for n in (1437, 0, 1, 700, 333, 901, *range(40, 90)) if n not in held_out]
    assert numbers != sorted(numbers)
    write(tmp_path / name, numbers)
    chosen = forget(data, "indices", file=str(tmp_path / name))
    named = torch.tensor(sorted(numbers))
    assert torch.equal(data.train.pixels[chosen], official.pixels[named])
    assert torch.equal(data.train.labels[chosen], official.labels[named])
    assert torch.equal(data.train_index[chosen], named)
    assert not torch.equal(chosen, named)  # positions are not numbers once a validation part is out


def test_indices_without_a_validation_part_are_positions(lab: Callable[..., Lab], tmp_path: Path) -> None:
    (tmp_path / "forget.txt").write_text("5 3 1437")
    here = lab("scenario=indices", f"scenario.file={tmp_path / 'forget.txt'}", "dataset.validation=0")
    assert here.forget.tolist() == [3, 5, 1437]


@pytest.mark.parametrize(
    ("name", "content", "allowed"),
    [
        ("empty.txt", b"", "lists no image; allowed are distinct numbers from 0 to 1437"),
        ("blank.csv", b" ,\n", "lists no image"),
        ("below.txt", b"3 -1", "lists -1, which is out of range; allowed are distinct numbers from 0 to 1437"),
        ("above.txt", b"3 1438 99999", "lists 1438, which is out of range"),
        ("twice.txt", b"7 3 9 7", "lists 7 more than once"),
        ("header.csv", b"index\n3\n4", "must be a .npy file of integers, or text with one number a line"),
        ("floats.txt", b"3.0\n4", "must be a .npy file of integers"),
        ("huge.txt", b"3 " + b"9" * 40, "must be a .npy file of integers"),
        ("binary.txt", bytes(range(256)), "must be a .npy file of integers"),
        ("empty.npy", b"", "must be a .npy file of integers"),
        ("text.npy", b"3 4 5", "must be a .npy file of integers"),
    ],
)
def test_indices_refuses_files(name: str, content: bytes, allowed: str, data: Data, tmp_path: Path) -> None:
    file = str(tmp_path / name)
    Path(file).write_bytes(content)
    error = refusal(data, "indices", file=file)
    assert (error.key, error.value) == ("scenario.file", file)
    assert error.allowed.startswith(allowed)


@pytest.mark.parametrize(
    ("array", "allowed"),
    [
        (np.array([3.0, 4.0]), "must be a .npy file of integers, or text with one number a line or separated by"),
        (np.ones(1438, dtype=bool), "must be a .npy file of integers"),
        (np.array(["3"]), "must be a .npy file of integers"),
        (np.array([3, None]), "must be a .npy file of integers"),
        (np.zeros((0,), dtype=np.int64), "lists no image"),
        (np.array([[3, 4], [5, 3]]), "lists 3 more than once"),
        (np.array([3, 2**63], dtype=np.uint64), "lists 9223372036854775808, which is out of range"),
        (np.array([2**64 - 1, 3], dtype=np.uint64), "lists 18446744073709551615, which is out of range"),
    ],
)
def test_indices_refuses_arrays(array: Any, allowed: str, data: Data, tmp_path: Path) -> None:
    file = str(tmp_path / "forget.npy")
    np.save(file, array, allow_pickle=True)
    error = refusal(data, "indices", file=file)
    assert (error.key, error.value) == ("scenario.file", file)
    assert error.allowed.startswith(allowed)


def test_indices_refuses_what_is_no_file(data: Data, tmp_path: Path) -> None:
    for file in (tmp_path / "absent.txt", tmp_path):
        error = refusal(data, "indices", file=str(file))
        assert (error.key, error.value) == ("scenario.file", str(file))
        assert error.allowed.startswith("no such file; must be a .npy file of integers")


def test_indices_of_the_validation_part_are_refused_with_both_ways_out(data: Data, tmp_path: Path) -> None:
    held_out = sorted(set(range(1438)) - set(data.train_index.tolist()))
    file = tmp_path / "forget.txt"
    file.write_text(" ".join(str(n) for n in [*data.train_index[:5].tolist(), *held_out[2:5]]))
    error = refusal(data, "indices", file=str(file))
    assert error.allowed.startswith(f"lists {held_out[2]} and 2 more of the validation part")
    assert "dataset.validation=0, or drop them" in error.allowed
