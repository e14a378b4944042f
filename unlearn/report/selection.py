"""Which rows a report is of: the words that its scripts share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from unlearn.configuration import composed, jobs, normal
from unlearn.report.rows import Row, of_jobs, of_methods, read, where
from unlearn.settings import SettingError


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
