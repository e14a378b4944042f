"""Which rows a report is of: the words that its scripts share, and what they choose."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from unlearn.configuration import composed, jobs, normal
from unlearn.report.rows import ABSENT, ELSEWHERE, SETTING, Row, inside, read
from unlearn.settings import SettingError

FILTERS = (*SETTING, "method", "seed", "split", "requests", "precision", "layers")


def add_words(parser: argparse.ArgumentParser) -> None:
    """Add row files and what chooses among them to a command line."""
    parser.add_argument("files", nargs="*", type=Path, metavar="ROWS", help="row files, or folders of them")
    parser.add_argument("--rows", metavar="METHOD,...", help="only the rows of these methods")
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only rows that have it")
    parser.add_argument("--sweep", metavar="NAME", help="only the rows that `run.py sweep=NAME` makes")


def selected(files: Sequence[Path], options: argparse.Namespace) -> list[Row]:
    """The rows among `files` that the words of a command line choose."""
    rows = read(files)
    for condition in options.where:
        rows = where(rows, condition)
    if options.sweep is not None:
        rows = of_jobs(rows, (normal(composed(words)[0]) for words in jobs([f"sweep={options.sweep}"])))
        if not rows:
            raise SettingError("--sweep", options.sweep, "has no row among these; `python run.py sweep=...` makes them")
    if options.rows is not None:
        rows = of_methods(rows, options.rows.split(","))
    return rows


def of_methods(rows: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """The rows of these methods. Raises `SettingError` for a method that no row has."""
    there = sorted({row["method"] for row in rows})
    for method in methods if rows else ():
        if method not in there:
            raise SettingError("--rows", method, f"must be one of {', '.join(there)}")
    return [row for row in rows if row["method"] in methods]


def of_jobs(rows: Sequence[Row], jobs: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows that jobs with these settings make: the same data, models, methods, audits and draws, wherever kept."""
    wanted = [_identity(settings) for settings in jobs]
    return [row for row in rows if _identity(row["config"]) in wanted]


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    its: dict[str, Any] = {
        key: config.get(key) for key in (*SETTING, "method", "auditor", "seed", "split", "requests", "layers")
    }
    dataset = {key: value for key, value in its["dataset"].items() if key not in ELSEWHERE}
    return its | {"dataset": dataset}


def where(rows: Sequence[Row], condition: str) -> list[Row]:
    """The rows for which `key=value` holds: of a row's names and numbers, or of its configuration (`train.epochs=10`).

    Raises `SettingError` for a key that no row has, and for a value that no row has.
    """
    key, sign, text = condition.partition("=")
    if not sign:
        raise SettingError("--where", condition, "must be key=value")
    if not rows:
        return []
    having = [(row, value) for row in rows if (value := _at(row, key)) is not ABSENT]
    if not having:
        keys = ", ".join(FILTERS)
        raise SettingError("--where", key, f"must be one of {keys}, or a key of a row's configuration (train.epochs)")
    kept = [row for row, value in having if _is(value, text)]
    if not kept:
        values = dict.fromkeys(str(value) for _, value in having)
        raise SettingError("--where", condition, f"no row has it; {key} is {', '.join(sorted(values))}")
    return kept


def values_of(rows: Sequence[Row], key: str) -> list[str]:
    """The values that rows have of a key of `where`: numbers by size, and then words. `SettingError` if none has it."""
    values = {str(value): value for row in rows if (value := _at(row, key)) is not ABSENT}
    if not values:
        raise SettingError("--pivot", key, f"must be one of {', '.join(FILTERS)}, or a key of a row's configuration")
    numbers = [text for text, value in values.items() if isinstance(value, int | float)]
    return sorted(numbers, key=float) + sorted(values.keys() - set(numbers))


def _is(value: Any, text: str) -> bool:
    """Whether a value is what the text says, written as in a YAML: a word, a number, true, null, a list."""
    try:
        wanted = yaml.safe_load(text)
    except yaml.YAMLError:
        wanted = text
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return bool(value == wanted) or str(value) == text


def _at(row: Row, key: str) -> Any:
    """A row's value under a name or a dotted path into its configuration."""
    if key in FILTERS:
        return row.get(key, "all" if key == "layers" else ABSENT)
    value = inside(row["config"], key)
    return ABSENT if isinstance(value, Mapping) else value
