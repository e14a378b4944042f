"""What the documentation says is true: its commands compose, its example obeys the laws, its tables are the rows'."""

import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from laws import ROOT, assert_keys_are_the_keyword_only_parameters, assert_like
from packaging.requirements import Requirement
from packaging.version import Version

import unlearn.methods
from unlearn.lab import Lab
from unlearn.report.blocks import updated
from unlearn.settings import build
from unlearn.streams import Streams

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    presets = [file.read_text().splitlines()[1][2:] for file in sorted((ROOT / "conf").glob("[es][xw]*/*.yaml"))]
    words = [line.split("        ")[0] for line in lines + presets]
    return sorted({line.split("run.py ", 1)[1] for line in words if "run.py " in line})


def test_the_readme_and_the_presets_show_commands() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(command: str) -> None:
    words = [word for word in shlex.split(command) if not word.startswith("-")]
    # A sweep's commas become one job's values, as Hydra's sweeper would make them.
    single = [re.sub(r"=([^\[,]*),.*", r"=\1", word) for word in words]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert hydra_compose("config", overrides=single).method


def table_commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    words = [line.split("table.py ", 1)[1].split("        ")[0] for line in lines if "table.py " in line]
    return sorted({words for words in words if words.startswith("results/rows") and "--plot" not in words})


@pytest.mark.parametrize("command", table_commands())
def test_every_command_for_a_table_of_our_rows_prints_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "| model |" in importlib.import_module("scripts.table").table(shlex.split(command))


def test_every_command_for_a_page_is_one() -> None:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    pages = [line.split("report.py", 1)[1] for line in lines if "report.py" in line]
    assert pages
    for words in pages:
        assert importlib.import_module("scripts.report").parser().parse_args(shlex.split(words)).output


def test_every_local_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_method_runs_by_the_protocol(
    lab: Callable[..., Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "adding.md"
    (tmp_path / "warm_restart.py").write_text(blocks(page, "python")[0])
    settings = yaml.safe_load(blocks(page, "yaml")[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "unlearn.methods.warm_restart", importlib.import_module("warm_restart"))
    monkeypatch.setattr(unlearn.methods, "warm_restart", sys.modules["warm_restart"], raising=False)
    method = build(settings, "method")
    assert_keys_are_the_keyword_only_parameters(settings, method.func, ("model", "request", "streams"))
    made = lab()
    original = made.load(made.original())
    result = method(made.load(made.original()), made.request(0).limited_to({"retain"}), Streams("test"))
    assert_like(result, original, made.data.test)


def test_the_tables_in_the_pages_are_those_of_the_rows() -> None:
    table = importlib.import_module("scripts.table")
    for page in PAGES:
        assert table.updated(page.read_text()) == page.read_text(), f"{page.name}: run `make tables`"
    page = ROOT / "docs" / "tables.md"
    answers = importlib.import_module("scripts.conjectures").answers
    assert updated(page.read_text(), "conjectures", answers) == page.read_text(), "run `make tables`"


def test_constraints_pin_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(Version(pinned[requirement.name.lower()])), requirement.name


def test_the_changelog_and_the_citation_know_the_version() -> None:
    assert f"version: {unlearn.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
