"""python scripts/conjectures.py ROW_OR_FOLDER ...: do fairness gap and fragility go together, do the last layers do?

Prints Markdown from the rows of `sweep=fairness_robustness` or any others with its auditors. `--update FILE ...`
rewrites, in each Markdown file, what stands between `<!-- conjectures ARGUMENTS -->` and `<!-- end -->`.
"""

import argparse
import sys
from pathlib import Path

from unlearn.report import blocks
from unlearn.report.conjectures import GAPS, ROBUST, conjectures
from unlearn.report.rows import read
from unlearn.settings import SettingError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("rows", nargs="*", type=Path, help="row files, or folders of them")
    result.add_argument("--gaps", default=",".join(GAPS), help="metrics, separated by commas")
    result.add_argument("--robust", default=ROBUST, help="the metric that says how robust a model is")
    result.add_argument("--update", nargs="+", type=Path, default=[], metavar="FILE", help="Markdown files to rewrite")
    return result


def answers(words: list[str]) -> str:
    """The answers that a command line asks for."""
    options = parser().parse_args(words)
    return conjectures(read(options.rows), options.gaps.split(","), options.robust)


def main() -> None:
    """Print, or update files."""
    options = parser().parse_args()
    try:
        for file in options.update:
            file.write_text(blocks.updated(file.read_text(), "conjectures", answers))
        if not options.update:
            print(answers(sys.argv[1:]))
    except SettingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
