"""The generated pages: fresh, complete, rendered as they are meant, and true to comments, annotations and rows."""

import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval, Len, MinLen
from laws import ROOT, stems, yaml_of
from markdown_it import MarkdownIt

from unlearn.lab import Lab
from unlearn.settings import Count, Index, NotNegative, Positive, Probability, Share

pages = importlib.import_module("scripts.pages")
EVERY = [(group, name) for group in ("method", "auditor") for name in stems(group)]
FILES = sorted(file for group in pages.FOLDERS.values() for file in (ROOT / "docs" / group).glob("*.md"))


def text_of(group: str, name: str) -> str:
    return (ROOT / "docs" / pages.FOLDERS[group] / f"{name}.md").read_text()


def rendered(markdown: str) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(markdown))


def names_in_tables(markdown: str) -> list[str]:
    return re.findall(r"<tr>\s*<td><code>(.*?)</code></td>", rendered(markdown))


def test_the_pages_are_fresh() -> None:
    assert [str(file.relative_to(ROOT)) for file in pages.stale(pages.pages())] == [], "run `make pages`"


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_yaml_has_a_page_that_lists_all_its_keys(group: str, name: str) -> None:
    keys = [key for key in yaml_of(group, name) if key not in ("_target_", "defaults")]
    if group == "auditor":
        keys += [metric.name for metric in importlib.import_module(f"unlearn.auditors.{name}").METRICS]
    assert names_in_tables(text_of(group, name)) == keys
    assert f'<a href="{name}.md">' in rendered(text_of(group, "README"))


@pytest.mark.parametrize("name", stems("method"))
def test_a_methods_page_begins_with_its_idea_and_an_equation(name: str) -> None:
    html = rendered(text_of("method", name)).split("-->", 1)[1]
    assert re.match(r"\s*<p>[^<]+</p>\s*<pre><code>[^<]*(theta|minimise)[^<]*</code></pre>", html)


@pytest.mark.parametrize("name", stems("auditor"))
def test_an_auditors_card_says_what_a_retrain_scores_and_where_it_fails(name: str) -> None:
    html = rendered(text_of("auditor", name))
    for head in ("Exact retraining:", "Known failure modes:"):
        assert re.search(rf"<p><strong>{head}</strong> (?s:.){{40,}}", html), head


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_link_leads_somewhere(file: Path) -> None:
    for target in re.findall(r'<a href="(?!https:)(.*?)"', rendered(file.read_text())):
        path, _, anchor = target.partition("#")
        assert (file.parent / path).exists(), target
        headings = re.findall(r"^#+ (.+)$", (file.parent / path).read_text(), re.MULTILINE) if anchor else []
        assert anchor in ["", *(heading.lower().replace(" ", "-") for heading in headings)]


@pytest.mark.parametrize("name", ["munba", "sg_unlearn"])
def test_the_games_are_linked_from_their_methods(name: str) -> None:
    assert "(../games.md#" in text_of("method", name)


def command_of(group: str, name: str) -> list[str]:
    found = re.search(r"^```sh\npython run.py (.*)\n```", text_of(group, name), re.MULTILINE)
    assert found
    return shlex.split(found[1])


@pytest.mark.parametrize("name", stems("method"))
def test_the_command_of_a_method_chooses_it(name: str, compose: Callable[[list[str]], Any]) -> None:
    assert compose(command_of("method", name)).choices["method"] == name


@pytest.mark.parametrize("name", stems("auditor"))
def test_the_command_of_an_auditor_is_accepted(name: str, lab: Callable[..., Lab]) -> None:
    assert name in lab(*command_of("auditor", name)).auditors


@pytest.mark.parametrize(
    ("text", "head", "settings"),
    [
        ("# of all\na: 1\nb: 2 # of b", "of all", [("a", "1", ""), ("b", "2", "of b")]),
        ("a: 1 # one,\n  # and more\n\n  # and more\nb: 2", "", [("a", "1", "one, and more and more"), ("b", "2", "")]),
        ("a: 1 # of a\n# of b\nb: 2 # too", "", [("a", "1", "of a"), ("b", "2", "of b too")]),
        ("a: 1\n# last", "", [("a", "1", "last")]),
        ("# @package _global_\n# of all\n\n# on\na: 1", "of all on", [("a", "1", "")]),
        ("a: 'x # y' # z\nb: x#y", "", [("a", "'x # y'", "z"), ("b", "x#y", "")]),
        (
            "a: 5.0e-4\nb:\nc: null\nd: [1,  2] # d",
            "",
            [*zip("abcd", ("5.0e-4", "null", "null", "[1, 2]"), ["", "", "", "d"], strict=True)],
        ),
        ("a: # all\n  - x # of x\n  - y\nb: 1", "", [("a", "[x, y]", "all of x"), ("b", "1", "")]),
        ("a:\n  b: 1 # of b\n  c: [x]\nd: {e: 2}", "", [("a", "{b: 1, c: [x]}", "of b"), ("d", "{e: 2}", "")]),
    ],
)
def test_a_comment_is_read_with_its_key(text: str, head: str, settings: list[tuple[str, str, str]]) -> None:
    assert pages.settings(text) == (head, settings)


def test_settings_below_a_name_are_read_alone() -> None:
    text = "# head\nsome:\n  a: 1 # of a\n    # goes on\n  # of b\n  b: 2\nother: 3 # no"
    assert pages.settings(text, "some") == ("head", [("a", "1", "of a goes on"), ("b", "2", "of b no")])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Positive, "number > 0"),
        (NotNegative, "number ≥ 0"),
        (Share, "number > 0 and < 1"),
        (Probability, "number ≥ 0 and ≤ 1"),
        (Count, "integer > 0"),
        (Index, "integer ≥ 0"),
        (Annotated[int, Interval(ge=2, lt=5)], "integer ≥ 2 and < 5"),
        (float, "number"),
        (int, "integer"),
        (bool, "`true`, `false`"),
        (str, "text"),
        (Any, "anything"),
        (Literal["one", "two"], "`one`, `two`"),
        (Literal["only"], "`only`"),
        (Literal[1, True, None], "`1`, `true`, `null`"),
        (Literal["released"] | None, "`released` or `null`"),
        (Positive | None, "number > 0 or `null`"),
        (str | list[str], "text or list of text"),
        (Annotated[list[str], MinLen(1)], "list of text with at least 1"),
        (Annotated[list[Share], Len(1, 3)], "list of number > 0 and < 1 with at least 1 and at most 3"),
        (dict[str, int], "mapping"),
        (Callable[..., int], "`collections.abc.Callable[..., int]`"),
    ],
)
def test_an_annotation_is_said_in_words(kind: Any, words: str) -> None:
    assert pages.allowed(kind) == words


def test_a_list_in_a_docstring_stays_one() -> None:
    text = "Idea.\n\nDeviations:\n- One,\n  in two lines.\n- Two.\nQ2 is none.\n\n1. a\n2. b\nIn\n2026. No list."
    html = rendered(pages.prose(text))
    assert html.count("<li>") == 4
    assert "<p>Q2 is none.</p>" in html
    assert "<p>In\n2026. No list.</p>" in html


def test_papers_and_code_become_links_once() -> None:
    text = pages.linked("X (2025, arXiv:2411.15537); code A-b/C. See [arXiv:2411.15537](u).")
    assert text == (
        "X (2025, [arXiv:2411.15537](https://arxiv.org/abs/2411.15537)); code [A-b/C](https://github.com/A-b/C). "
        "See [arXiv:2411.15537](u)."
    )


def test_a_cell_cannot_break_its_table() -> None:
    html = rendered(pages.table(("a", "b"), [("x | y", "<b>"), ("z", "< 1")]))
    assert html.count("<td>") == 4
    assert "<td>x | y</td>" in html
    assert "<td>&lt;b&gt;</td>" in html


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another repository, with one method and a row of it."""
    files = {
        "conf/config.yaml": "objective: test_accuracy",
        "conf/method/pull.yaml": "# half-way\n_target_: pull_of_tests.pull\npull: 0.5 # ours\nthen: null\n",
        "conf/auditor/all.yaml": "defaults: []",
        "docs/notes.md": "# Notes\n\n## Pull and its price\n",
        "pull_of_tests.py": '"""Pull: back.\n\nNo paper."""\n\nfrom unlearn.settings import Share\n\n'
        'NEEDS = frozenset({"retain"})\n\n\n'
        'def pull(model, request, streams, *, pull: Share, then: str | None):\n    """Pull."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    row = json.loads(next((ROOT / "results" / "rows" / "digits").glob("*.json")).read_text())
    row |= {"method": "pull", "config": row["config"] | {"method": {"_target_": "old.pull", "pull": 0.25, "gone": 1}}}
    (tmp_path / "results/rows/mine").mkdir(parents=True)
    (tmp_path / "results/rows/mine/row.json").write_text(json.dumps(row))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    for cached in (pages.entries, pages.committed):
        cached.cache_clear()
    yield tmp_path
    for cached in (pages.entries, pages.committed):
        cached.cache_clear()
    sys.modules.pop("pull_of_tests", None)


def test_two_new_files_make_a_page(house: Path) -> None:
    page = pages.pages()[house / "docs" / "methods" / "pull.md"]
    for line in (
        "No paper.",
        "python run.py method=pull",
        "Needs: `retain`.",
        "[Pull and its price](../notes.md#pull-and-its-price)",
        "Half-way. `method.KEY=VALUE` changes one.",
        "| `pull` | `0.5` | number > 0 and < 1 | ours |",
        "| `then` | `null` | text or `null` |  |",
        "From [results/rows/mine](../../results/rows/mine). Other than the defaults: `pull=0.25`.",
        "\n| pull | ",
    ):
        assert line in page
    assert "- [pull](pull.md): Pull: back.\n" in pages.pages()[house / "docs" / "methods" / "README.md"]


def run(*words: str) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pages.py", *words])
        with pytest.raises(SystemExit) as finished:
            pages.main()
    return finished.value.code


def test_stale_pages_are_named_written_and_removed(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = house / "docs" / "methods"
    assert run("--check") == 1
    assert "stale: docs/methods/pull.md\n" in capsys.readouterr().out
    assert not folder.exists()
    assert run() == 0
    capsys.readouterr()
    assert run("--check") == 0
    assert capsys.readouterr().out == ""
    (folder / "gone.md").write_text(pages.MARK)
    (folder / "by_hand.md").write_text("# Not of this script")
    (folder / "pull.md").write_text("edited")
    assert run("--check") == 1
    assert capsys.readouterr().out == "stale: docs/methods/pull.md\nstale: docs/methods/gone.md\n"
    assert run() == 0
    assert capsys.readouterr().out == "written: docs/methods/pull.md\nremoved: docs/methods/gone.md\n"
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "by_hand.md", "pull.md"]
