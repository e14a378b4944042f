"""A table from row files: one line a model, one column a metric, means over seeds and splits."""

from collections.abc import Sequence
from typing import Literal

from unlearn.metrics import Metric
from unlearn.report.abbreviations import heading, legend
from unlearn.report.cells import best, summarise, text
from unlearn.report.rows import COLUMNS as OF_SETTING
from unlearn.report.rows import CONTESTANTS, Line, Lines, Row, chosen, declared, read, settings
from unlearn.report.writers import Cell, Table, written_csv, written_html, written_latex, written_markdown

__all__ = ["COLUMNS", "CONTESTANTS", "WRITERS", "Format", "Row", "declared", "markdown", "read", "table"]

COLUMNS = (
    "forget_accuracy",
    "retain_accuracy",
    "test_accuracy",
    "loss_attack_auc",
    "loss_attack_passed",
    "average_gap",
    "seconds",
)

Format = Literal["markdown", "latex", "csv", "html"]
WRITERS = {"markdown": written_markdown, "latex": written_latex, "html": written_html}


def markdown(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """A Markdown table for each setting among the rows; lines are original, retrained, and then the methods.

    Cells are the mean over runs with its 95 % t-interval; a single run is shown as it is, and a cell that fewer runs
    have than its line says how many. Where several seeds have several splits the interval is over the seeds' means, see
    `unlearn.report.cells.independent`. Raises `SettingError` for no rows, for a column that no auditor declares, and
    for rows whose average would mean nothing: two models of one run, other data or settings than they seem to have.
    """
    return table(rows, columns, "markdown")


def table(
    rows: Sequence[Row], columns: Sequence[str], form: Format, *, abbreviations: bool = False, mark_best: bool = False
) -> str:
    """The tables of `markdown` in any format; CSV has one line a model with the raw numbers, `_low`, `_high` and `_n`.

    `abbreviations` heads columns as papers do, with a legend; `mark_best` makes the best method's cell bold where it is
    significantly better than the second best, see `unlearn.report.cells.best`.
    """
    its, metrics = settings(rows), chosen(columns)
    if form == "csv":
        return _csv(its, metrics)
    return "\n\n".join(
        WRITERS[form](tabled(lines, metrics, abbreviations=abbreviations, mark_best=mark_best)) for lines in its
    )


def tabled(its: Lines, metrics: Sequence[Metric], *, abbreviations: bool = False, mark_best: bool = False) -> Table:
    """A setting's table, ready to be written in a format; see `table`."""
    bold = {metric.name: best(its.lines, metric) if mark_best else None for metric in metrics}

    def cells(line: Line) -> list[Cell]:
        shown = [
            Cell(text(summarise(line.values(metric.name), metric), metric), line.name == bold[metric.name])
            for metric in metrics
        ]
        return [Cell(line.name), *shown, Cell(str(len(line.runs)))]

    return Table(
        title=str(its.title),
        head=["model", *(heading(metric, abbreviations) for metric in metrics), "runs"],
        left=1,
        lines=[cells(line) for line in its.lines],
        notes=[
            *its.notes,
            *([_why_none(its.lines)] if mark_best and not any(bold.values()) else []),
            *(legend(metrics) if abbreviations else []),
        ],
    )


def _why_none(lines: Sequence[Line]) -> str:
    """Why `--best` marks nothing in a table."""
    runs = sorted(len(line.runs) for line in lines if line.method is not None and line.method not in CONTESTANTS)
    if len(runs) < 2:
        return "nothing is bold: there are not two methods to compare"
    if runs[-2] < 2:
        return "nothing is bold: one run does not tell a difference from chance"
    return "nothing is bold: no method is significantly better than the second best"


def _csv(its: Sequence[Lines], metrics: Sequence[Metric]) -> str:
    numbers = [f"{metric.name}{end}" for metric in metrics for end in ("", "_low", "_high", "_n")]
    head = [*OF_SETTING, "line", *numbers, "runs"]
    lines: list[list[object]] = []
    for setting in its:
        for line in setting.lines:
            cells: list[object] = [*setting.columns, line.name]
            for metric in metrics:
                found = summarise(line.values(metric.name), metric)
                cells += ["", "", "", 0] if found is None else [found.mean, found.low, found.high, found.n]
            lines.append([*cells, len(line.runs)])
    return written_csv(head, lines)
