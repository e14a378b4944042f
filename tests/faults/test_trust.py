"""What comes from elsewhere is read and not run: no unpickling, no shell, no way out of a folder, no bomb."""

import ast
import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import ROOT, yaml_of
from PIL import Image
from test_cli import Commands

from unlearn.configuration import composed
from unlearn.data.images import Data
from unlearn.settings import SettingError, build

EXAMPLES = 10 * int(os.environ.get("UNLEARN_FAULTS", "30"))
SOURCES = [ROOT / "run.py", *(file for part in ("unlearn", "scripts") for file in sorted((ROOT / part).rglob("*.py")))]

# The sources


RUN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.call"}
UNPICKLED = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNPACKED = {"extractall", "extract", "unpack_archive"}
EXCEPTIONS = {
    # torchvision unpickles CIFAR's official archives, whose md5 it compares first: that module has its errors' name
    ("unlearn/data/torchvision_sets.py", "import pickle"): "pickle.UnpicklingError",
}


def complaints(tree: ast.AST) -> Iterator[str]:
    """What a source does that could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.partition(".")[0] in UNPICKLED)
        if isinstance(node, ast.ImportFrom):
            yield from (f"from {node.module}" for _ in [0] if str(node.module).partition(".")[0] in UNPICKLED)
            names = {f"{node.module}.{name.name}" for name in node.names}
            yield from sorted(f"from {name}" for name in names & {*RUN, "torch.load", "numpy.load", "yaml.load"})
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {its.arg: ast.unparse(its.value) for its in node.keywords}
        if name in RUN or name.rpartition(".")[2] in UNPACKED or name.partition(".")[0] in UNPICKLED:
            yield name
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only"
        if name.startswith("yaml.") and "load" in name and not name.startswith("yaml.safe_load"):
            yield name
        for key in ("shell", "allow_pickle"):
            if keywords.get(key, "False") != "False":
                yield f"{name}({key}={keywords[key]})"


def test_no_source_runs_what_it_reads() -> None:
    trees = {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in SOURCES}
    found = {(file, said) for file, tree in trees.items() for said in complaints(tree)}
    assert found == set(EXCEPTIONS)
    for (file, _), name in EXCEPTIONS.items():
        uses = [ast.unparse(node) for node in ast.walk(trees[file]) if isinstance(node, ast.Attribute)]
        assert {use for use in uses if use.startswith("pickle.")} == {name}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import joblib as j", "from os import system",
        "from torch import load", "eval(text)", "os.system(text)", "torch.load(file)",
        "torch.load(file, weights_only=False)", "torch.load(f, weights_only=w)",
        "np.load(file, allow_pickle=True)", "subprocess.run(words, shell=True)", "archive.extractall(folder)",
        "shutil.unpack_archive(file)", "yaml.load(text)", "yaml.full_load(text)",
    ],
)  # fmt: skip
def test_each_of_these_would_be_found(text: str) -> None:
    assert len(list(complaints(ast.parse(text)))) == 1


def test_what_is_safe_is_not_complained_of() -> None:
    text = (
        "model.eval(); np.load(f); np.load(f, allow_pickle=False); torch.load(f, weights_only=True); yaml.safe_load(t)"
    )
    assert list(complaints(ast.parse(f"{text}; subprocess.run(words, shell=False); re.compile(t)"))) == []


# Paths


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    opened = Commands(tmp_path_factory.mktemp("trust"))
    yield opened
    opened.close()


OUT = {
    "method": "../scenario/random",
    "experiment": "../../{outside}/evil",
    "+experiment": "../../{outside}/evil",
    "auditor": "[accuracy,../method/none]",
    "sweep": "cifar10_fastnet/../../experiment/none",
    "cluster": "..",
}


@pytest.mark.parametrize("key", OUT)
def test_no_choice_leads_out_of_its_folder(key: str, commands: Commands) -> None:
    outside = os.path.relpath(commands.folder, ROOT)
    (commands.folder / "evil.yaml").write_text("# @package _global_\nseed: 7\n")
    value = OUT[key].format(outside=outside)
    assert (ROOT / "conf" / "experiment" / f"../../{outside}/evil.yaml").is_file()
    finished = commands(f"{key}={value}", "store=unused", "wandb.mode=disabled")
    group = key.removeprefix("+")
    assert (finished.status, finished.out) == (2, "")
    allowed = f"must be one of the choices in conf/{group}, which `run.py --help` lists"
    assert finished.err == f"error: {group}={value}: {allowed}\n"
    assert not (commands.folder / "unused").exists()
    with pytest.raises(SettingError, match="must be one of the choices"):
        composed([f"{key}={value}"])


MISSING = {
    "no folder": (["dataset=image_folder", "dataset.path=nowhere"], "dataset.path=nowhere: must be a folder"),
    "no path": (["dataset=arrays"], "dataset.path=???: must be given"),
    "a file for a folder": (["dataset=image_folder", "dataset.path={file}"], "dataset.path={file}: must be a folder"),
    "a store in a file": (["store={file}"], "store={file}: cannot be written to"),
    "another program": (["method._target_=os.system"], "method._target_=os.system: "),
    "no such method": (["method._target_=unlearn.no.such"], "method._target_=unlearn.no.such: "),
    "another folder's": (["method._target_=unlearn.auditors.accuracy.accuracy"], "method"),
    "no weights": (["method=imported", "~method.epochs", "method.weights=nowhere"], "method.weights=nowhere"),
}


@pytest.mark.parametrize("case", MISSING)
def test_places_that_are_not_there_are_one_line(case: str, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words, said = MISSING[case]
    words = [word.format(file=tmp_path / "file") for word in words if word != "~method.epochs"]
    store = [] if any(word.startswith("store=") for word in words) else ["store=unused"]
    finished = commands(*words, *store, "wandb.mode=disabled", "device=cpu", "train.epochs=1")
    assert finished.status == 2
    (line,) = finished.err.splitlines()
    assert line.startswith(f"error: {said.format(file=tmp_path / 'file')}")
    assert not list((commands.folder / "unused").glob("*/*"))


# Images


def read(path: Path, root: Path) -> Data:
    settings = yaml_of("dataset", "image_folder") | {"root": str(root), "path": str(path), "size": 8, "validation": 0}
    data: Data = build(settings, "dataset")()
    return data


def encoded() -> dict[str, bytes]:
    """An image in every format and form that a folder may hold, by its file's name."""
    draw = np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    deep = Image.fromarray(draw.integers(0, 65536, (40, 50)).astype(np.uint16))
    pages: dict[str, Any] = {"save_all": True, "append_images": [colour.rotate(9)]}
    forms: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "a.png": (colour, "PNG", {}), "palette.png": (colour.convert("P"), "PNG", {"transparency": 3}),
        "deep.png": (deep, "PNG", {}), "moving.png": (colour, "PNG", pages), "a.jpg": (colour, "JPEG", {}),
        "cmyk.jpg": (colour.convert("CMYK"), "JPEG", {}), "progressive.jpg": (colour, "JPEG", {"progressive": True}),
        "a.tif": (colour, "TIFF", {}), "lzw.tif": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "deep.tif": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}), "a.webp": (colour, "WEBP", {}),
        "moving.webp": (colour, "WEBP", pages), "a.bmp": (colour, "BMP", {}), "a.ppm": (colour, "PPM", {}),
        "deep.pgm": (deep.convert("I"), "PPM", {}), "a.gif.png": (colour.convert("P"), "GIF", {}),
    }  # fmt: skip
    found = {}
    for name, (image, kind, options) in forms.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found[name] = stream.getvalue()
    return found


def hurt(content: bytes, draw: random.Random) -> bytes:
    """A file with some of what happens to files, mostly near its beginning, where its sizes stand."""
    its, kind = bytearray(content), draw.choice(["cut", "anywhere", "head", "shift"])
    if kind == "cut":
        return bytes(its[: draw.randrange(len(its))])
    if kind == "shift":
        place = draw.randrange(len(its))
        its[place : place + draw.randrange(1, 8)] = bytes([255] * draw.randrange(8))
        return bytes(its)
    for _ in range(draw.randrange(1, 6)):
        its[draw.randrange(min(len(its), 120 if kind == "head" else len(its)))] = draw.choice([0, 1, 127, 128, 255])
    return bytes(its)


def test_damaged_images_of_every_format_are_read_or_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    draw, sound = random.Random(3), encoded()
    for label in ("ant", "bee"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for name, content in sound.items():
            (tmp_path / "images" / label / f"sound_{name}").write_bytes(content)
    assert len(read(tmp_path / "images", tmp_path / "data").train) + 6 == 2 * len(sound)  # all of them
    capfd.readouterr()
    for number in range(EXAMPLES):
        name = draw.choice(sorted(sound))
        (tmp_path / "images" / "ant" / f"{number}_{name}").write_bytes(hurt(sound[name], draw))
    (tmp_path / "images" / "ant" / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "images" / "bee" / "notes.txt").write_text("")
    (tmp_path / "images" / "cat").mkdir()
    os.mkfifo(tmp_path / "images" / "ant" / "pipe.png")  # reading it would wait for ever
    (tmp_path / "images" / "ant" / "device.png").symlink_to("/dev/zero")
    (tmp_path / "images" / "ant" / "lost.png").symlink_to("nowhere")
    data = read(tmp_path / "images", tmp_path / "data")
    (listed,) = (file for file in (tmp_path / "data").glob("*/left_out.json") if "notes" in file.read_text())
    left_out = {
        str(Path(name).relative_to(tmp_path / "images")): why for name, why in json.loads(listed.read_text()).items()
    }
    assert {"bee/notes.txt", "cat", "ant/pipe.png", "ant/device.png", "ant/lost.png"} < left_out.keys()
    assert left_out["ant/program.png"].startswith("UnidentifiedImageError: cannot identify image file")
    assert not [name for name in left_out if "sound" in name]
    unreadable = len(left_out) - 5
    assert unreadable > EXAMPLES / 5
    assert len(data.train) + len(data.test) == 2 * len(sound) + EXAMPLES + 1 - unreadable
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("image_folder: ")]
    assert told[0].startswith("image_folder: 5 files are not images of a class and are left out: ")
    assert told[1].startswith(f"image_folder: {unreadable} of {2 * len(sound) + EXAMPLES + 1} files cannot be read")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), number).save(tmp_path / "images" / "ab"[number % 2] / f"{number}.png")
    for side in (10_000, 20_000):  # the first is what Pillow only warns of
        bomb = tmp_path / "images" / "a" / f"{side}.png"
        Image.new("1", (side, side)).save(bomb)
        assert bomb.stat().st_size < 100_000  # of what would be 400 MB
    data = read(tmp_path / "images", tmp_path / "data")
    assert len(data.train) + len(data.test) == 20
    (listed,) = (tmp_path / "data").glob("*/left_out.json")
    reasons = [why.partition(":")[0] for why in json.loads(listed.read_text()).values()]
    assert reasons == ["DecompressionBombWarning", "DecompressionBombError"]


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    levels = np.array([0, 128, 129, 255, 256, 32767, 32896, 65407, 65535], dtype=np.uint16)
    for number in range(20):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        flat = np.full((8, 8), levels[number % len(levels)])
        Image.fromarray(flat).save(tmp_path / "images" / "ab"[number % 2] / f"{number}.{('png', 'tif')[number // 10]}")
    data = read(tmp_path / "images", tmp_path / "data")
    assert data.shape == (1, 8, 8)
    pixels = torch.cat([data.train.pixels, data.test.pixels])[:, 0, 0, 0]
    assert sorted(set(pixels.tolist())) == [0, 1, 127, 128, 255]
    wanted = [round(int(levels[number % len(levels)]) / 257) for number in range(20)]
    assert sorted(pixels.tolist()) == sorted(wanted)
