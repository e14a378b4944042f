"""python scripts/table.py ROW_OR_FOLDER ... [--columns a,b]: print rows as tables, as Markdown or other text.

`--published NAME/TABLE` puts a paper's figures (results/published) beside ours. `--plot FILE` draws test accuracy
against the loss attack's AUC, or other `--metrics across,up[,area]`, with the noise of exact retraining. `--update
FILE ...` rewrites, in each Markdown file, what stands between `<!-- table ARGUMENTS -->` and `<!-- end -->`.
"""

import argparse
import sys
import typing
from pathlib import Path

from unlearn.report import blocks, comparison
from unlearn.report.pivot import pivot
from unlearn.report.published import papers
from unlearn.report.rows import Row
from unlearn.report.selection import add_words, selected
from unlearn.report.table import COLUMNS, WRITERS, Format
from unlearn.report.table import table as written
from unlearn.report.writers import written_csv
from unlearn.settings import SettingError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_words(result)
    result.add_argument("--columns", "--metrics", metavar="METRIC,...", help=f"default: {','.join(COLUMNS)}")
    result.add_argument("--published", metavar="NAME/TABLE", help="set a paper's figures beside ours")
    result.add_argument(
        "--relative", action="store_true", help="with --published: distances to each one's own retrained"
    )
    result.add_argument("--format", choices=typing.get_args(Format), default="markdown")
    result.add_argument("--abbreviations", action="store_true", help="head columns as papers do, with a legend")
    result.add_argument("--best", action="store_true", help="bold what is significantly better than the second best")
    result.add_argument("--pivot", metavar="KEY", help="a table a metric, with a column for each value of this key")
    result.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw utility against forgetting and cost as FILE.png and FILE.pdf, or as FILE alone if it ends in "
        ".png, .pdf or .svg",
    )
    result.add_argument("--update", nargs="+", type=Path, default=[], metavar="FILE", help="Markdown files to rewrite")
    return result


def picture(rows: list[Row], options: argparse.Namespace) -> str:
    """Draw the trade-off; `--metrics` are the two axes and what the marks' areas show. Gives the files, a line each."""
    from unlearn.report import plot  # matplotlib is slow to import, and tables do without

    for name in ("published", "best", "relative", "pivot"):
        if getattr(options, name):
            raise SettingError(f"--{name}", str(getattr(options, name)).lower(), "is for tables, not for --plot")
    columns = plot.AXES if options.columns is None else options.columns.split(",")
    figure = plot.trade_off(rows, columns, abbreviations=options.abbreviations)
    return "\n".join(str(file) for file in plot.written(figure, options.plot))


def table(words: list[str]) -> str:
    """The tables that a command line asks for, or the files of the picture."""
    options = parser().parse_args(words)
    rows = selected(options.files, options)
    if options.plot:
        return picture(rows, options)
    if options.published == "":
        raise SettingError("--published", "''", f"must be NAME/TABLE, NAME one of {', '.join(papers())}")
    if options.relative and not options.published:
        raise SettingError("--relative", "true", "is for --published")
    if options.best and (options.format == "csv" or options.published):
        raise SettingError("--best", "true", "is for tables of ours in Markdown, LaTeX or HTML")
    columns = None if options.columns is None else options.columns.split(",")
    if options.pivot:
        if options.published or options.best:
            raise SettingError("--pivot", options.pivot, "is for tables of ours, without --best")
        return pivot(rows, options.pivot, columns or list(COLUMNS), options.format, abbreviations=options.abbreviations)
    if options.published:
        found = comparison.compare(rows, options.published, columns, relative=options.relative)
        if options.format == "csv":
            return written_csv(comparison.HEAD, [line for its in found for line in comparison.raw(its)])
        tables = [comparison.tabled(its, options.abbreviations) for its in found]
        return "\n\n".join(WRITERS[options.format](its) for its in tables)
    return written(
        rows,
        columns or list(COLUMNS),
        options.format,
        abbreviations=options.abbreviations,
        mark_best=options.best,
    )


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
