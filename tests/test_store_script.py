"""scripts/store.py: what is in a store, where it comes from, whether it is sound, and what may go."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laws import ROOT, content_of

from scripts import store as store_script
from unlearn.lab import Lab
from unlearn.lease import Lease
from unlearn.row import row

WORDS = ["train.epochs=1", "method.epochs=1", "auditor=[accuracy]", "objective=test_accuracy"]


def script(root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "store.py"), "--store", str(root), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def made(root: Path) -> dict[str, set[str]]:
    return {folder.name: {each.parent.name for each in folder.glob("*/done.json")} for folder in root.iterdir()}


@pytest.fixture(scope="module")
def rows(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A store of two rows that share their original and reference, and two reference models."""
    root = tmp_path_factory.mktemp("kept") / "store"
    documents = []
    for method in ("finetune", "random_label"):
        settings, choices = composing(root, [*WORDS, f"method={method}"])
        documents.append(row(Lab(settings), choices, [])[0])
    list(Lab(composing(root, WORDS).settings).references(2))
    return root, documents


@pytest.fixture
def kept(rows: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    shutil.copytree(rows[0], tmp_path / "store")
    return tmp_path / "store", rows[1]


def test_list_names_every_thing_and_counts_each_kind(rows: tuple[Path, list[dict[str, Any]]]) -> None:
    lines = script(rows[0], "list").stdout.splitlines()
    named = {tuple(line.split()[:2]) for line in lines if ": " not in line}
    assert named == {(kind, key) for kind, keys in made(rows[0]).items() for key in keys}
    assert any(line.startswith("originals: 3 things, ") for line in lines)
    assert any("digits convnet supervised finetune seed 0" in line for line in lines)


def test_explain_says_what_made_a_thing_and_what_uses_it(rows: tuple[Path, list[dict[str, Any]]]) -> None:
    root, (first, second) = rows
    original, unlearned = first["models"]["original"][0], first["models"]["unlearned"][0]
    said = script(root, "explain", original).stdout
    assert f"originals {original}: digits convnet supervised seed 0" in said
    assert "lr: 0.1" in said
    _, _, users = said.partition("used by:")
    for key in (unlearned, second["models"]["unlearned"][0], first["id"], second["id"]):
        assert key in users
    above, _, below = script(root, "explain", unlearned[:6]).stdout.partition("used by:")
    assert original in above.partition("made from:")[2]
    assert first["id"] in below
    assert second["id"] not in below
    assert script(root, "explain", "zzz").stderr == (
        "error: key=zzz: must be a thing of the store, or its beginning; 0 things fit\n"
    )


def test_verify_finds_every_kind_of_damage_and_nothing_else(kept: tuple[Path, list[dict[str, Any]]]) -> None:
    root, _ = kept
    before = content_of(root)
    sound = script(root, "verify")
    assert (sound.returncode, sound.stdout.splitlines()[-1].startswith("0 of ")) == (0, True)
    assert content_of(root) == before
    damaged = [
        next((root / kind).glob("*/done.json")).parent for kind in ("originals", "retrained", "unlearned", "rows")
    ]
    model = damaged[0] / "model.safetensors"
    flipped = bytearray(model.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    model.write_bytes(flipped)
    (damaged[1] / "model.safetensors").write_bytes(b"")
    (damaged[2] / "cost.json").unlink()
    damaged[3].rename(damaged[3].with_name("0123456789ab"))
    damaged[3] = damaged[3].with_name("0123456789ab")
    damaged += [next((root / kind).glob("*/done.json")).parent for kind in ("signals", "audits")]
    (damaged[4] / "done.json").unlink()
    (damaged[5] / "done.json").write_text("{}")
    damaged.append(root / "originals" / "fedcba987654")
    damaged[6].symlink_to("nowhere")
    (root / "originals" / "00000000000a.partial").mkdir()
    found = script(root, "verify")
    assert found.returncode == 1
    assert {line.split(" ")[0] for line in found.stdout.splitlines()[:-1]} == {str(folder) for folder in damaged}
    assert found.stdout.splitlines()[-1].startswith("7 of ")


def test_a_bundle_brings_rows_and_all_they_were_made_from(
    kept: tuple[Path, list[dict[str, Any]]], tmp_path: Path, composing: Callable[..., Any]
) -> None:
    root, (first, second) = kept
    done = script(root, "export", tmp_path / "one.tar", first["id"])
    assert done.returncode == 0, done.stderr
    other = tmp_path / "other"
    assert "things taken" in script(other, "import", tmp_path / "one.tar").stdout
    there = made(other)
    assert there["rows"] == {first["id"]}
    assert there["unlearned"] == set(first["models"]["unlearned"])
    assert there["originals"] == set(first["models"]["original"])
    assert not there["unlearned"] & set(second["models"]["unlearned"])
    settings, choices = composing(other, [*WORDS, "method=finetune"])
    trained: list[str] = []
    assert row(Lab(settings, lambda label, *rest: trained.append(label)), choices, [])[0] == first
    assert trained == []
    assert script(other, "import", tmp_path / "one.tar").stdout.splitlines() == ["0 things taken"]
    assert script(root, "export", tmp_path / "all.tar").returncode == 0
    script(other, "import", tmp_path / "all.tar")
    assert made(other)["rows"] == {first["id"], second["id"]}
    assert made(other)["originals"] == set(first["models"]["original"])  # reference models are of no row


def test_a_bundle_is_not_trusted(kept: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    root, (first, _) = kept
    script(root, "export", tmp_path / "good.tar", first["id"])
    key = first["models"]["original"][0]
    for name, kind in (
        ("../evil", "file"), ("originals/../../evil", "file"), ("/tmp/evil", "file"), (f"originals/{key}/..", "file"),
        (f"originals/{key}/a/b", "file"), (f"elsewhere/{key}/x", "file"), (f"originals/{key}/x", "link"),
    ):  # fmt: skip
        with tarfile.open(tmp_path / "bad.tar", "w") as bundle:
            member = tarfile.TarInfo(name)
            if kind == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = 4
            bundle.addfile(member, io.BytesIO(b"evil"))
        done = script(tmp_path / "new", "import", tmp_path / "bad.tar")
        assert done.returncode == 1
        assert done.stderr == f"error: file={name}: has no place in a bundle\n"
    assert list((tmp_path / "new").iterdir()) == []
    with tarfile.open(tmp_path / "good.tar") as good, tarfile.open(tmp_path / "changed.tar", "w") as bundle:
        for each in good:
            source = good.extractfile(each)
            assert source
            content = source.read()
            if each.name.endswith(f"{key}/model.safetensors"):
                content = content[:-1] + bytes([content[-1] ^ 1])
            bundle.addfile(each, io.BytesIO(content))
    said = script(tmp_path / "new", "import", tmp_path / "changed.tar").stdout
    assert f"left out: originals/{key} has a damaged model.safetensors" in said
    assert made(tmp_path / "new").get("originals", set()) == set()
    (tmp_path / "text.tar").write_text("no")
    assert "must be a bundle of" in script(tmp_path / "new", "import", tmp_path / "text.tar").stderr


def test_clean_says_what_it_would_and_deletes_only_when_told(kept: tuple[Path, list[dict[str, Any]]]) -> None:
    root, (first, second) = kept
    busy, left = root / "originals" / "111111111111.partial", root / "unlearned" / "222222222222.partial"
    for folder in (busy, left, root / "set_aside" / "originals-3-0"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    (root / "set_aside" / "link").symlink_to("nowhere")
    marked = next((root / "rows" / second["id"]).glob("done.json"))
    marked.unlink()
    before = content_of(root)
    everything = ["clean", "--set-aside", "--unused"]
    with Lease(root / "locks", "originals-111111111111", print):
        refused = script(root, *everything, "--delete")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("error: clean=--unused: must wait for originals-111111111111, which is being")
        assert refused.stderr.count("\n") == 1
        said = script(root, "clean", "--partial").stdout.splitlines()
        assert content_of(root).keys() - before.keys() == {"locks/originals-111111111111.lease.0"}
        assert said[:-1] == [f"would delete {left}", f"would delete {marked.parent}"]
        deleted = script(root, "clean", "--partial", "--delete").stdout.splitlines()
        assert deleted[:-1] == [f"deleted {left}", f"deleted {marked.parent}"]
    would = {line.removeprefix("would delete ") for line in script(root, *everything).stdout.splitlines()[:-1]}
    deleted = script(root, *everything, "--delete").stdout.splitlines()[:-1]
    assert {line.removeprefix("deleted ") for line in deleted} == would
    assert {str(root / "set_aside" / name) for name in ("originals-3-0", "link")} < would
    there = made(root)
    assert there["unlearned"] == set(first["models"]["unlearned"])
    assert len(there["originals"]) == 3  # reference models stay until they are named
    assert len(there["audits"]) == len(there["signals"]) - 2 == 3
    assert busy.exists()
    script(root, "clean", "--unused", "--references", "--delete")
    assert made(root)["originals"] == set(first["models"]["original"])
    assert "would delete" not in script(root, "clean", "--unused", "--references").stdout


def test_clean_keeps_what_somebody_begins_to_need_while_it_deletes(
    kept: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, (_, second) = kept
    shutil.rmtree(root / "rows" / second["id"])
    options = store_script.parser().parse_args(["clean", "--unused", "--delete"])
    lines = store_script.cleaned(root, options)
    first = next(lines)
    with Lease(root / "locks", "rows-111111111111", print):
        others = list(lines)[:-1]
    assert first.startswith("deleted ")
    assert others
    for line in others:
        folder, _, why = line.removeprefix("kept ").partition(": ")
        assert why == "rows-111111111111 is being made"
        assert (Path(folder) / "done.json").exists()


def test_import_leaves_to_its_maker_what_is_being_made(kept: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    root, (first, _) = kept
    script(root, "export", tmp_path / "one.tar", first["id"])
    key = first["models"]["original"][0]
    with Lease(tmp_path / "other" / "locks", f"originals-{key}", print):
        said = script(tmp_path / "other", "import", tmp_path / "one.tar").stdout
    assert f"left out: originals/{key} is being made by {socket.gethostname()}:{os.getpid()}\n" in said
    assert "originals" not in made(tmp_path / "other")
    assert script(tmp_path / "other", "import", tmp_path / "one.tar").stdout == "1 things taken\n"
    assert list((tmp_path / "other" / "locks").iterdir()) == []


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`refusal(root, *words)` is the one line that a command ends with, which is not done."""

    def said(root: Path, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["store.py", "--store", str(root), *map(str, words)])
        with pytest.raises(SystemExit) as raised:
            store_script.main()
        assert isinstance(raised.value.code, str), "or its status would be 0"
        assert "\n" not in raised.value.code
        return raised.value.code

    return said


def test_a_row_that_is_cut_off_is_one_line(
    kept: tuple[Path, list[dict[str, Any]]], tmp_path: Path, refusal: Callable[..., str]
) -> None:
    root, (first, second) = kept
    (root / "rows" / first["id"] / "row.json").write_text(json.dumps(first)[:300])
    before = content_of(root)
    for words in (["explain", second["id"]], ["export", tmp_path / "x.tar"], ["clean", "--unused", "--delete"]):
        assert refusal(root, *words).startswith(f"error: rows={first['id']}: cannot be read (JSONDecodeError: ")
    assert content_of(root) == before
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.parametrize("recipe", ['["x"]', "7", '{"original": "x"}', '{"original": {}}', "[" * 200_000])
def test_a_recipe_of_another_shape_is_one_line(
    recipe: str,
    kept: tuple[Path, list[dict[str, Any]]],
    refusal: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, (first, _) = kept
    foreign = root / "originals" / "abcdefabcdef"
    foreign.mkdir()
    (foreign / "recipe.json").write_text(recipe)
    (foreign / "done.json").write_text("{}")
    start = "error: originals=abcdefabcdef: cannot be read ("
    assert refusal(root, "explain", first["id"]).startswith(start)
    assert capsys.readouterr().out == ""
    if recipe != '{"original": {}}':  # of which a list says nothing
        assert refusal(root, "list").startswith(start)
        assert f"{first['id']} " in capsys.readouterr().out  # the others are listed
    assert [line.partition(" ")[0] for line in store_script.verified(root)] == [str(foreign)]


@pytest.mark.parametrize("place", ["nowhere/x.tar", "", "one.tar/x.tar"])
def test_a_bundle_that_cannot_be_written_is_one_line(
    place: str, rows: tuple[Path, list[dict[str, Any]]], tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "one.tar").write_text("")
    said = refusal(rows[0], "export", tmp_path / place)
    assert said.startswith(f"error: file={tmp_path / place}: cannot be written (")
    assert [file.name for file in tmp_path.iterdir()] == ["one.tar"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clean"], "error: clean=nothing: must be told what: --partial, --set-aside, --unused"),
        (["export", "x.tar", "0"], "error: key=0: must be a thing of the store"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    done = script(tmp_path / "store", *words)
    assert (done.returncode, done.stderr.startswith(said), done.stderr.count("\n")) == (1, True, 1)
    missing = script(tmp_path / "nowhere", "list")
    assert missing.stderr == f"error: --store={tmp_path / 'nowhere'}: must be the folder of a store\n"
    assert not os.path.exists(tmp_path / "nowhere")
    empty = script(tmp_path / "store", "export", tmp_path / "x.tar")
    assert empty.stderr == "error: keys=none: there is no row in this store to export\n"
    assert json.dumps(made(tmp_path / "store")) == "{}"
