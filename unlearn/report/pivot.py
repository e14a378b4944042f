"""Rows across the values of one key: a line a model, a column a value, a table a metric."""

import re
from collections.abc import Sequence

from unlearn.report.abbreviations import heading, legend
from unlearn.report.cells import Summary, summarise, text
from unlearn.report.rows import CONTESTANTS, HEADS, Line, Row, chosen, settings, values_of, where
from unlearn.report.table import WRITERS, Format
from unlearn.report.writers import Cell, Table, written_csv
from unlearn.settings import SettingError

COLUMNS = ("metric", "line", "key", "value", "mean", "low", "high", "n")


def pivot(rows: Sequence[Row], key: str, columns: Sequence[str], form: Format, *, abbreviations: bool = False) -> str:
    """A table for each metric of `columns`, with a column for each value that rows have of `key`, as in `where`.

    Cells are those of `table`; where a model has no row with a value its cell is empty. CSV has one line a cell. Raises
    `SettingError` for a key that no row has, for one that tells no rows apart, and for rows that differ in more of
    their setting than this key.
    """
    metrics = chosen(columns)
    values = values_of(rows, key)
    if len(values) < 2:
        raise SettingError("--pivot", key, f"must tell rows apart; all of them have {values[0]}")
    found: dict[str, dict[str, Line]] = {}
    title, notes = "", []
    for value in values:
        of_value = settings(where(rows, f"{key}={value}"))
        if len(of_value) > 1:
            others = "; ".join(its.title for its in of_value)
            raise SettingError("--pivot", key, f"rows with {value} are of several settings: {others}")
        title = of_value[0].title
        notes += [f"{value}: {note}" for note in of_value[0].notes]
        for line in of_value[0].lines:
            found.setdefault(_without(line.name, key), {})[value] = line

    order = [*HEADS.values(), *CONTESTANTS]
    found = dict(sorted(found.items(), key=lambda its: order.index(its[0]) if its[0] in order else len(order)))

    def summaries(metric_name: str) -> dict[tuple[str, str], Summary | None]:
        metric = next(its for its in metrics if its.name == metric_name)
        return {
            (name, value): summarise(line.values(metric_name), metric)
            for name, lines in found.items()
            for value, line in lines.items()
        }

    if form == "csv":
        cells = [
            [metric.name, name, key, value, its.mean, its.low, its.high, its.n]
            for metric in metrics
            for (name, value), its in summaries(metric.name).items()
            if its is not None
        ]
        return written_csv(COLUMNS, cells)
    tables = []
    for metric in metrics:
        known = summaries(metric.name)
        lines = [[Cell(name), *(Cell(text(known.get((name, value)), metric)) for value in values)] for name in found]
        shown = [*notes, *(legend([metric]) if abbreviations else [])]
        head = ["model", *(f"{key}={value}" for value in values)]
        tables.append(
            Table(title=f"{heading(metric, abbreviations)}; {title}", head=head, left=1, lines=lines, notes=shown)
        )
    return "\n\n".join(WRITERS[form](table) for table in tables)


def _without(name: str, key: str) -> str:
    """A line's name without the value that its column already has."""
    name = re.sub(rf"(?:, )?\b{re.escape(key)}=[^,)]*", "", name)
    return name.replace(" ()", "").replace("(, ", "(")
