"""python scripts/pages.py [--check]: write a page for each method and auditor into docs/, from what stands elsewhere.

Docstrings say the idea, annotations what a setting may be, YAMLs the defaults and where they come from, row files our
numbers; a heading of docs/*.md that begins with the name of a method or an auditor is linked. `--check` writes nothing
and names the pages that are stale.
"""

import argparse
import inspect
import json
import re
import sys
import typing
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from hydra.utils import get_method
from omegaconf import OmegaConf
from pydantic import ConfigDict, PydanticInvalidForJsonSchema, TypeAdapter

from unlearn.layers import SCOPES
from unlearn.report.table import CONTESTANTS, Row, markdown, read

ROOT = Path(__file__).resolve().parents[1]
LETTERS = (
    "In the equations F is the forget set, R what is retained, V the validation part, D all training images;\n"
    "n_f, n_r and n are their numbers; theta_o is the original's weights, z its scores and h its features."
    " The rest are settings."
)
FOLDERS = {"method": "methods", "auditor": "audits"}
MARK = "<!-- written by scripts/pages.py: change what it reads, then `make pages` -->"
TYPES = {"boolean": "`true`, `false`", "null": "`null`", "string": "text", "object": "mapping", "array": "list"}
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤", "minItems": "with at least"}
BOUNDS |= {"maxItems": "at most", "multipleOf": "a multiple of"}


class Setting(NamedTuple):
    """One key of a YAML: its value as written there, and its comment."""

    name: str
    default: str
    comment: str


class Entry(NamedTuple):
    """One method or auditor: the comment that heads its YAML, the settings there, and the function that they go to."""

    group: str
    name: str
    comment: str
    settings: list[Setting]
    values: Mapping[str, Any]
    function: Any
    module: Any


def remarks(text: str) -> Iterator[tuple[int, int, str]]:
    """Line, column and words of each comment in a YAML; a `#` inside a value begins none."""
    for event in yaml.parse(text):
        if isinstance(event, yaml.ScalarEvent):
            start, end = event.start_mark.index, event.end_mark.index
            text = text[:start] + text[start:end].replace("#", ".") + text[end:]
    for number, line in enumerate(text.splitlines()):
        _, mark, words = line.partition("#")
        if mark and not words.strip().startswith("@"):  # Hydra's own directives
            yield number, line.index("#"), words.strip()


def written(node: Any, text: str) -> str:
    """A value as its YAML has it, on one line."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(written(item, text) for item in node.value)}]"
    if isinstance(node, yaml.MappingNode):
        return f"{{{', '.join(f'{written(key, text)}: {written(value, text)}' for key, value in node.value)}}}"
    return " ".join(text[node.start_mark.index : node.end_mark.index].split()) or "null"


def settings(text: str, name: str = "") -> tuple[str, list[Setting]]:
    """The comment above the first key, and each key with its own; of what stands below `name`, if something does.

    A comment behind a value goes on in the lines below that begin further right than the key; in the column of the keys
    it is about the next one.
    """
    mapping = yaml.compose(text)
    mapping = {key.value: value for key, value in mapping.value}.get(name, mapping)
    lines = [key.start_mark.line for key, _ in mapping.value]
    comments: dict[int, list[str]] = defaultdict(list)
    for line, column, words in remarks(text):
        above = bisect_right(lines, line) - 1
        about_next = above >= 0 and column <= mapping.start_mark.column
        comments[min(above + about_next, len(lines) - 1)].append(words)
    own = enumerate((key.value, written(value, text)) for key, value in mapping.value)
    return " ".join(comments[-1]), [Setting(*each, " ".join(comments[number])) for number, each in own]


def allowed(kind: Any) -> str:
    """What an annotation admits, in words: what pydantic, which checks the settings, makes of it."""
    try:
        return described(TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).json_schema())
    except PydanticInvalidForJsonSchema:  # what no YAML can write: a class, a callable
        return f"`{inspect.formatannotation(kind)}`"


def described(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(described(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{plain(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    text = TYPES.get(kind, kind) + (f" of {described(schema['items'])}" if "items" in schema else "")
    limits = " and ".join(f"{sign} {schema[bound]}" for bound, sign in BOUNDS.items() if bound in schema)
    return f"{text} {limits}".strip()


def plain(value: object) -> str:
    """A value as one writes it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


@cache
def entries(group: str) -> list[Entry]:
    """Every method, or every auditor: each YAML of the group but the lists, which only name others."""
    found = []
    for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
        values: Any = OmegaConf.to_container(OmegaConf.load(file))
        below = file.stem if group == "auditor" else ""  # an auditor's settings stand below its name
        values = values.get(below, values)
        if "_target_" in values:
            comment, own = settings(file.read_text(), below)
            own = [setting for setting in own if setting.name not in ("_target_", "defaults")]
            function = inspect.unwrap(get_method(values["_target_"]))
            found.append(Entry(group, file.stem, comment, own, values, function, sys.modules[function.__module__]))
    return found


@cache
def committed() -> dict[Path, list[Row]]:
    """The rows that we publish, by folder."""
    return {folder: read([folder]) for folder in sorted((ROOT / "results" / "rows").iterdir()) if folder.is_dir()}


def prose(docstring: str) -> str:
    """A docstring as Markdown: blank lines around each list, or it and its neighbours would run into each other."""
    lines: list[str] = []
    listed = False
    for line in inspect.cleandoc(docstring).splitlines():
        item = re.match(r" *([-*]|\d+\.) " if listed else r" *([-*]|1\.) ", line) is not None
        within = item or (listed and line[:1] in ("", " "))
        lines += ["", line] if within != listed and lines and lines[-1] else [line]
        listed = within
    return "\n".join(lines)


def linked(text: str) -> str:
    """Papers and released code, as links."""
    text = re.sub(r"^(Exact retraining|Known failure modes):", r"**\1:**", text, flags=re.MULTILINE)
    text = re.sub(r"(?<!\[)arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"(; code\s)([\w-]+/[\w-]+)", r"\1[\2](https://github.com/\2)", text)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table of words."""
    cells = [[re.sub(r"<(?=\S)", "&lt;", cell.replace("|", r"\|")) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])


def command(it: Entry) -> str:
    """What runs it: an auditor together with those whose metrics it builds on."""
    if it.group == "method":
        needed = [f" method.{own.name}=FILE" for own in it.settings if own.default == "???"]
        return f"python run.py method={it.name}{''.join(needed)}"
    owners = {metric.name: other.name for other in entries("auditor") for metric in other.module.METRICS}
    words = re.findall(r"[\w.]+", " ".join(setting.default for setting in it.settings))
    names = [*sorted({owners[word] for word in words if word in owners} - {it.name}), it.name]
    scenario = f" scenario={it.module.SCENARIO}" if hasattr(it.module, "SCENARIO") else ""
    return f"python run.py auditor=[{','.join(names)}]{scenario}"


def setting_table(it: Entry) -> str:
    """What a YAML says: its first comment, and each setting with its default, what it may be, and its comment."""
    first = f"{it.comment[:1].upper()}{it.comment[1:]}." if it.comment else ""
    if not it.settings:
        return f"{first} It has no settings.".strip()
    prefix = "method" if it.group == "method" else f"auditor.{it.name}"
    hints = typing.get_type_hints(it.function, include_extras=True)
    lines = [(f"`{key}`", f"`{value}`", allowed(hints.get(key, Any)), said) for key, value, said in it.settings]
    head = f"{first} `{prefix}.KEY=VALUE` changes one.".strip()
    return f"{head}\n\n{table(('key', 'default', 'may be', 'comment'), lines)}"


def metric_table(it: Entry) -> str:
    """What an auditor measures."""
    best = {"reference": "the retrained model's"}
    lines = [
        (f"`{m.name}`", m.title, m.unit, best.get(m.better, m.better), "95 %" if m.interval else "none", m.source)
        for m in it.module.METRICS
    ]
    return "## Metrics\n\n" + table(("name in rows", "title", "unit", "best", "interval", "source"), lines)


def numbers(it: Entry) -> Iterator[str]:
    """For each folder of rows that has some of this method: which settings are not the defaults, and the table."""
    for folder, rows in committed().items():
        ours = [row for row in rows if row["method"] == it.name]
        other: dict[str, set[str]] = defaultdict(set)
        for key, row in ((own.name, row) for own in it.settings for row in ours):
            if (value := row["config"]["method"].get(key, it.values[key])) != it.values[key]:
                other[key].add(plain(value))
        if ours:
            place = folder.relative_to(ROOT)
            apart = ", ".join(f"`{key}={','.join(sorted(values))}`" for key, values in other.items())
            said = f" Other than the defaults: {apart}." if apart else ""
            yield f"From [{place}](../../{place}).{said}\n\n{markdown(ours)}"


def calibration(it: Entry) -> Iterator[str]:
    """For each folder of rows in which both controls were audited by it: what they score."""
    for folder, rows in committed().items():
        controls = [row for row in rows if row["method"] in CONTESTANTS and it.name in row["auditors"]]
        measured = {name for row in controls for name in row["metrics"]["unlearned"]}
        columns = [metric.name for metric in it.module.METRICS if metric.name in measured]
        if columns and {row["method"] for row in controls} == {*CONTESTANTS}:
            place = folder.relative_to(ROOT)
            yield f"From [{place}](../../{place}).\n\n{markdown(controls, columns)}"


def mentions(name: str) -> Iterator[str]:
    """Links to the headings of hand-written pages that begin with a name."""
    for file in sorted((ROOT / "docs").glob("*.md")):
        for heading in re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE):
            if re.match(rf"{name}(_|$)", re.sub(r"\W+", "_", heading.lower())):
                yield f"[{heading}](../{file.name}#{re.sub(r'[^a-z0-9_ -]', '', heading.lower()).replace(' ', '-')})"


def page(it: Entry) -> str:
    """The page of one method or auditor."""
    files = [f"{it.module.__name__.replace('.', '/')}.py", f"conf/{it.group}/{it.name}.yaml"]
    given = ", ".join(f"`{part}`" for part in sorted(getattr(it.module, "NEEDS", ()))) or "no images"
    facts = [f"Needs: {given}."] if it.group == "method" else []
    if it.group == "method" and any(own.name == "lr" for own in it.settings):
        facts.append(f"What it may change: `layers={'`, `'.join(SCOPES)}`, or names of modules.")
    facts.append(f"Sources: {', '.join(f'[{file}](../../{file})' for file in files)}.")
    facts += [f"More: {', '.join(found)}."] if (found := list(mentions(it.name))) else []
    ours = list(numbers(it) if it.group == "method" else calibration(it))
    heading = "## Our numbers" if it.group == "method" else "## What an exact retrain scores, and the original"
    parts = [
        f"# {it.name}\n\n{MARK}",
        prose(it.module.__doc__),
        f"```sh\n{command(it)}\n```",
        " ".join(facts),
        f"## Settings\n\n{prose(it.function.__doc__)}",
        setting_table(it),
        *([metric_table(it)] if it.group == "auditor" else []),
        *([heading, *ours] if ours else []),
    ]
    return linked("\n\n".join(parts)) + "\n"


def index(group: str) -> str:
    """The list of a group's pages, each with the first paragraph of its docstring."""
    ideas = [(it.name, " ".join(it.module.__doc__.partition("\n\n")[0].split())) for it in entries(group)]
    lines = [f"- [{name}]({name}.md): {idea}" for name, idea in ideas]
    head = [f"# {group.capitalize()}s", "", MARK, "", *([LETTERS, ""] if group == "method" else [])]
    return linked("\n".join([*head, *lines])) + "\n"


def pages() -> dict[Path, str]:
    """Every page and its text."""
    found = {}
    for group in ("method", "auditor"):
        folder = ROOT / "docs" / FOLDERS[group]
        found[folder / "README.md"] = index(group)
        found |= {folder / f"{it.name}.md": page(it) for it in entries(group)}
    return found


def stale(wanted: Mapping[Path, str]) -> list[Path]:
    """Pages that are missing or differ, and those of ours that nothing asks for any more."""
    differ = [file for file, text in wanted.items() if not file.is_file() or file.read_text() != text]
    there = sorted({other for file in wanted for other in file.parent.glob("*.md")} - wanted.keys())
    return differ + [file for file in there if MARK in file.read_text()]


def main() -> None:
    """Write what is stale, or say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only name stale pages, and fail if there are any")
    check, wanted = parser.parse_args().check, pages()
    files = stale(wanted)
    for file in files:
        print(f"{'stale' if check else 'written' if file in wanted else 'removed'}: {file.relative_to(ROOT)}")
        if not check and file in wanted:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(wanted[file])
        elif not check:
            file.unlink()
    sys.exit(1 if check and files else 0)


if __name__ == "__main__":
    main()
