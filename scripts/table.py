"""python scripts/table.py ROW_OR_FOLDER ... [--columns a,b]: print rows as Markdown tables.

`--update FILE ...` rewrites, in each Markdown file, what stands between `<!-- table ARGUMENTS -->` and `<!-- end -->`.
"""

import argparse
import sys
from pathlib import Path

from unlearn.report import blocks
from unlearn.report.table import COLUMNS, markdown, read
from unlearn.settings import SettingError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("rows", nargs="*", type=Path, help="row files, or folders of them")
    result.add_argument("--columns", default=",".join(COLUMNS), help="metrics, separated by commas")
    result.add_argument("--update", nargs="+", type=Path, default=[], metavar="FILE", help="Markdown files to rewrite")
    return result


def table(words: list[str]) -> str:
    """The tables that a command line asks for."""
    options = parser().parse_args(words)
    return markdown(read(options.rows), options.columns.split(","))


def updated(text: str) -> str:
    """A Markdown text with all its table blocks made anew. Raises `SettingError` for one that does not end."""
    return blocks.updated(text, "table", table)


def main() -> None:
    """Print, or update files."""
    options = parser().parse_args()
    try:
        for file in options.update:
            file.write_text(updated(file.read_text()))
        if not options.update:
            print(table(sys.argv[1:]))
    except SettingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
