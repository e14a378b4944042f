"""python scripts/report.py [ROW_OR_FOLDER ...]: write one page of HTML of these rows, by default of all in the store.

It holds the tables, the trade-off of utility, forgetting and cost, and, from the signals that the store has beside the
rows, ROC curves, accuracy by class, every forgotten image, and AMUN's adversarial neighbours. It needs no network and
nothing beside it.
"""

import argparse
import sys
from pathlib import Path

from unlearn.files import write
from unlearn.report.page import page
from unlearn.report.selection import add_words, selected
from unlearn.report.table import COLUMNS
from unlearn.settings import SettingError
from unlearn.store import Store

STORE = Path("outputs/store")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_words(result)
    result.add_argument("--columns", "--metrics", metavar="METRIC,...", help=f"default: {','.join(COLUMNS)}")
    result.add_argument("--store", type=Path, metavar="FOLDER", help=f"default: {STORE}")
    result.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    return result


def report(words: list[str]) -> Path:
    """Write the page that a command line asks for, and give its file."""
    options = parser().parse_args(words)
    root = options.store or STORE
    store = Store(root) if root.is_dir() else None
    if store is None and (options.store or not options.files):
        raise SettingError("--store", root, "is not there; a run of `run.py` makes a store")
    files = options.files or [root / "rows"]
    columns = list(COLUMNS) if options.columns is None else options.columns.split(",")
    content = page(selected(files, options), store, columns)
    try:
        write(options.output, content.encode())
    except OSError as error:
        raise SettingError("--output", options.output, f"cannot be written ({error.strerror})") from error
    return Path(options.output)


def main() -> None:
    """Write the page and print where it is."""
    try:
        print(report(sys.argv[1:]))
    except SettingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
