"""What a run shows: a bar or plain lines while it trains, and the table at its end."""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unlearn.metrics import Metric
from unlearn.remarks import TITLES

SHOWN = ("original", "independent", "retrained", "unlearned")  # what checks the audits comes first


class OutputError(Exception):
    """Standard output takes no more: a full disk, or nobody who reads it."""


class Progressing:
    """Shows training on standard error: one bar on a terminal; elsewhere a plain line every few seconds.

    Where nothing can be shown, nothing is: work that is being made must not end for that.
    """

    def __init__(self, seconds_between_lines: float = 5.0) -> None:
        self.console = Console(stderr=True)
        self.seconds, self.last = seconds_between_lines, 0.0
        self.bar: Progress | None = None

    def __call__(self, label: str, line: Mapping[str, Any], epochs: int) -> None:
        """One epoch of the training called `label` has ended, or one part of other long work, which has no loss."""
        done = line["epoch"] == epochs
        loss = f", loss {line['loss']:.4f}" if "loss" in line else ""
        text = f"{label}: {'epoch' if loss else 'part'} {line['epoch']}/{epochs}{loss}, {line['seconds']:.1f} s"
        with suppress(OSError):
            if self.console.is_terminal:
                self._move_bar(text, line["epoch"], epochs)
            elif done or time.monotonic() - self.last >= self.seconds:
                self.last = time.monotonic()
                print(text, file=sys.stderr, flush=True)

    def _move_bar(self, text: str, epoch: int, epochs: int) -> None:
        if self.bar is None:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.add_task("", total=epochs)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], description=text, completed=epoch, total=epochs)
        if epoch == epochs:
            self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()
            self.bar = None


def show_all(row: Mapping[str, Any], metrics: Mapping[str, tuple[str, Metric]], file: Path) -> None:
    """Print a row and, last, where its file lies. Raises an `OutputError`."""
    try:
        show(row, metrics)
        print(file, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more when it ends
        said = f"standard output cannot be written to ({error.strerror}); the row is complete: {file}"
        raise OutputError(said) from error


def show(row: Mapping[str, Any], metrics: Mapping[str, tuple[str, Metric]]) -> None:
    """Print a row: its metrics, and what must be said of the unlearned model."""
    names = " · ".join(str(row[key]) for key in ("dataset", "model", "train", "scenario", "method"))
    title = f"{names} · seed {row['seed']} · split {row['split']} · {row['forget']['count']} images forgotten"
    console = show_metrics(title, row["metrics"], metrics, row.get("refused", {}))
    for name, reason in row.get("remarks", {}).items():
        console.print(f"[bold]{row['method']}: {TITLES[name]}[/] ({escape(reason)})", highlight=False)


def show_metrics(
    title: str,
    measured: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, tuple[str, Metric]],
    refused: Mapping[str, Mapping[str, str]],
) -> Console:
    """Print a table: one metric a line, the models side by side, the gap of unlearned to retrained, and the refusals.

    `measured` has the values of each role, and `refused` the reasons. Gives the console, for what is to follow.
    """
    roles = [role for role in SHOWN if role in measured]
    table = Table(title=title)
    table.add_column("metric")
    for role in (*roles, "gap to retrained"):
        table.add_column(role, justify="right", no_wrap=True)
    for name, (_, metric) in metrics.items():
        values = {role: measured[role].get(name) for role in roles}
        if any(value is not None for value in values.values()):
            cells = [written(measured[role], metric) for role in roles]
            table.add_row(metric.title, *cells, difference(values.get("unlearned"), values.get("retrained"), metric))
    console = Console(width=None if sys.stdout.isatty() else 140 + 25 * max(0, len(roles) - 3))
    console.print(table)
    for name, reason in {key: why for its in refused.values() for key, why in its.items()}.items():
        console.print(f"{metrics[name][1].title}: not given ({escape(reason)})", highlight=False)
    return console


def written(values: Mapping[str, Any], metric: Metric) -> str:
    """A value as text, with its interval where it has one."""
    value = values.get(metric.name)
    if value is None:
        return ""
    text = number(value, metric)
    low, high = values.get(f"{metric.name}_low"), values.get(f"{metric.name}_high")
    if low is None or high is None:
        return text
    return f"{text} [{number(low, metric)}, {number(high, metric)}]"


def number(value: float, metric: Metric) -> str:
    """A number in its unit, with a sensible number of digits."""
    if metric.unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    if metric.unit == "count":
        return f"{value:,.0f}"
    if metric.unit == "verdict":
        return "yes" if value else "no"
    if metric.unit == "seconds":
        return f"{value:.2f}"
    return f"{value:.3f}"


def difference(value: float | None, reference: float | None, metric: Metric) -> str:
    """Unlearned minus retrained, signed; nothing for what has no meaning as a difference."""
    if value is None or reference is None or metric.unit in ("verdict", "seconds", "bytes", "count"):
        return ""
    return f"{value - reference:+.3f}"
