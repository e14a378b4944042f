"""Rows across the values of one key: a line a model, a column a value, a table a setting and metric."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unlearn.metrics import Metric
from unlearn.report.abbreviations import heading, legend
from unlearn.report.cells import Summary, summarise, text
from unlearn.report.rows import (
    COLUMNS,
    CONTESTANTS,
    HEADS,
    Line,
    Lines,
    Row,
    Title,
    chosen,
    grouped,
    settings,
    titles,
)
from unlearn.report.selection import values_of, where
from unlearn.report.table import WRITERS, Format
from unlearn.report.writers import Cell, Table, written_csv
from unlearn.settings import SettingError

HEAD = (*COLUMNS, "metric", "line", "key", "value", "mean", "low", "high", "n")


class Pivoted(NamedTuple):
    """The rows that differ in the key alone: the lines of each value, under their names without it."""

    title: Title
    settings: Mapping[str, Lines]
    lines: Mapping[str, Mapping[str, Line]]

    def summaries(self, metric: Metric) -> dict[tuple[str, str], Summary | None]:
        """By line and value, one metric's summary."""
        return {
            (name, value): summarise(line.values(metric.name), metric)
            for name, lines in self.lines.items()
            for value, line in lines.items()
        }


def pivot(rows: Sequence[Row], key: str, columns: Sequence[str], form: Format, *, abbreviations: bool = False) -> str:
    """A table for each setting and metric of `columns`, with a column for each value of `key`, as in `where`.

    Rows are of one setting if they differ in nothing but this key. Cells are those of `table`; where a model has no row
    with a value its cell is empty. CSV has one line a cell. Raises `SettingError` for no rows, for a key that no row
    has, and for one that tells no rows apart.
    """
    metrics, groups = chosen(columns), grouped(rows, key)
    values = values_of(rows, key)
    if len(values) < 2:
        raise SettingError("--pivot", key, f"must tell rows apart; all of them have {values[0]}")
    found = [_pivoted(group, title, key) for group, title in zip(groups, titles(groups, key), strict=True)]
    if form == "csv":
        cells = [
            [
                *(*its.settings[value].columns[:-1], its.title.details),
                *(metric.name, name, key, value),
                *(summary.mean, summary.low, summary.high, summary.n),
            ]
            for its in found
            for metric in metrics
            for (name, value), summary in its.summaries(metric).items()
            if summary is not None
        ]
        return written_csv(HEAD, cells)
    return "\n\n".join(WRITERS[form](_table(its, key, metric, abbreviations)) for its in found for metric in metrics)


def _pivoted(rows: Sequence[Row], title: Title, key: str) -> Pivoted:
    of_value: dict[str, Lines] = {}
    lines: dict[str, dict[str, Line]] = {}
    for value in values_of(rows, key):
        its = settings(where(rows, f"{key}={value}"))
        if len(its) > 1:  # a user's own data, whose content differs as well
            of = "; ".join(lines.title.details for lines in its)
            raise SettingError("--pivot", key, f"rows with {value} are of several settings: {of}")
        of_value[value] = its[0]
        for line in its[0].lines:
            lines.setdefault(_without(line.name, key), {})[value] = line
    order = [*HEADS.values(), *CONTESTANTS]
    ordered = sorted(lines.items(), key=lambda its: order.index(its[0]) if its[0] in order else len(order))
    return Pivoted(title, of_value, dict(ordered))


def _table(its: Pivoted, key: str, metric: Metric, abbreviations: bool) -> Table:
    known = its.summaries(metric)
    return Table(
        title=f"{heading(metric, abbreviations)}; {its.title}",
        head=["model", *(f"{key}={value}" for value in its.settings)],
        left=1,
        lines=[[Cell(name), *(Cell(text(known.get((name, at)), metric)) for at in its.settings)] for name in its.lines],
        notes=[
            *(f"{value}: {note}" for value, lines in its.settings.items() for note in lines.notes),
            *(legend([metric]) if abbreviations else []),
        ],
    )


def _without(name: str, key: str) -> str:
    """A line's name without the value that its column already has."""
    name = re.sub(rf"(?:, )?\b{re.escape(key)}=[^,)]*", "", name)
    return name.replace(" ()", "").replace("(, ", "(")
