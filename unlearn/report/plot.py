"""What each method gives up for what: utility against forgetting, with its cost, beside the retrained model.

Pictures are figures of matplotlib, drawn without a display, and the same rows give the same bytes.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import t

from unlearn.metrics import Metric
from unlearn.report.abbreviations import heading
from unlearn.report.cells import Summary, independent, summarise
from unlearn.report.rows import HEADS, Lines, Row, Run, chosen, crossed, settings
from unlearn.settings import SettingError

AXES = ("loss_attack_auc", "test_accuracy", "sample_gradients")
"""Forgetting, utility and cost, unless others are asked for."""

FORMATS = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""File types, with the metadata that would make two pictures of the same rows differ."""

STYLE = {"svg.hashsalt": "unlearn", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
WIDTH, HEIGHT = 7.4, 6.0  # inches of one setting's picture
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # told apart by colour-blind eyes, and of different lightness
LARGEST = 420.0  # square points of the largest mark
AS_RETRAINING = 160.0  # of a method that costs as much as retraining, where that leaves the others small enough
SMALLEST = 9.0


@contextmanager
def drawing() -> Iterator[None]:
    """Inside the block pictures look the same whatever settings of matplotlib the user has."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def written(figure: Figure, file: Path) -> list[Path]:
    """Write a picture as PNG and as PDF, or as what the suffix of `file` says alone. Gives the files.

    Raises `SettingError` for another suffix, and for a place that cannot be written to.
    """
    if file.suffix and file.suffix not in FORMATS:
        raise SettingError("--plot", file, f"must end in {', '.join(FORMATS)}, or in nothing for .png and .pdf")
    files = [file] if file.suffix else [file.with_name(f"{file.name}{suffix}") for suffix in (".png", ".pdf")]
    try:
        with drawing():
            for its in files:
                figure.savefig(its, dpi=200, metadata=FORMATS[its.suffix])
    except OSError as error:
        raise SettingError("--plot", file, f"cannot be written ({error.strerror})") from error
    return files


def as_svg(figure: Figure) -> bytes:
    """A picture as SVG, its text as outlines: the same everywhere."""
    stream = io.BytesIO()
    with drawing():
        figure.savefig(stream, format="svg", metadata=FORMATS[".svg"], dpi=150)
    return stream.getvalue()


class Mark(NamedTuple):
    """One line of a table as a point: what it is called, where it lies, and its share of retraining's cost."""

    name: str
    method: str | None
    x: Summary
    y: Summary
    cost: float | None


class Floor(NamedTuple):
    """How far exact retraining lies from itself, to either side of the reference; `source` says how that is known."""

    half: float
    source: str


def trade_off(rows: Sequence[Row], columns: Sequence[str] = AXES, *, abbreviations: bool = False) -> Figure:
    """The picture: one panel a setting, one mark a line of its table, placed by two metrics, large if it cost much.

    `columns` are the metrics across and up, and the one that the marks' areas show, which may be left out. Raises
    `SettingError` for rows that no table can be made of, and for metrics that cannot be drawn or that no row has.
    """
    if len(columns) not in (2, 3):
        raise SettingError("--metrics", ",".join(columns), "must be forgetting,utility or forgetting,utility,cost")
    metrics = chosen(columns)
    for metric in metrics[:2]:
        if metric.unit == "verdict":
            raise SettingError("--metrics", metric.name, "is a verdict, which has no place on an axis")
    every = settings(rows)
    with drawing():
        figure = Figure(figsize=(WIDTH, HEIGHT * len(every)))
        for number, its in enumerate(every):
            bottom = 1 - (number + 1) / len(every)
            axes = figure.add_axes((0.1, bottom + 0.22 / len(every), 0.87, 0.72 / len(every)))
            _draw(axes, its, metrics, abbreviations)
    return figure


def marks(its: Lines, metrics: Sequence[Metric]) -> list[Mark]:
    """The lines of a setting that have both coordinates. Raises `SettingError` if there is none."""
    dear = _mean(its.lines[1].values(metrics[2].name)) if len(metrics) == 3 else None
    found = []
    for line in its.lines:
        x, y = (summarise(line.values(metric.name), metric) for metric in metrics[:2])
        cost = _mean(line.values(metrics[2].name)) if dear else None
        if x is not None and y is not None:
            found.append(Mark(line.name, line.method, x, y, cost / dear if cost is not None and dear else None))
    for metric in metrics[:2]:
        if all(value is None for line in its.lines for value in line.values(metric.name).values()):
            raise SettingError("--metrics", metric.name, f"is in no row of {its.title}")
    return found


def floor(its: Lines, metric: Metric) -> Floor | None:
    """The noise floor of a metric's mean over runs; None where the runs are too few to know it.

    From a second retrained model, the contestant `retrain` or the `independent` one of `self_check`, it is the 95 %
    prediction interval of the mean of as many new differences, whose mean is zero by the recipe. Without one it is the
    interval of the references' own mean, in which the forget sets differ, too.
    """
    reference = its.lines[1].values(metric.name)
    again: dict[Run, float | None] = {
        (row["seed"], row["split"]): value
        for row in its.rows
        if (value := row["metrics"].get("independent", {}).get(metric.name)) is not None
    }
    for line in its.lines:
        if line.method == "retrain":
            again |= line.values(metric.name)
    known = {run: (again[run], value) for run, value in sorted(reference.items()) if run in again}
    differences = {run: one - other for run, (one, other) in known.items() if one is not None and other is not None}
    apart = np.array([*independent(differences).values()])
    if len(apart) > 1:
        half = float(t.ppf(0.975, len(apart)) * np.sqrt((apart**2).mean() / len(apart)))
        return Floor(half, f"{len(differences)} independent retrained models")
    own = summarise(reference, metric)
    return None if own is None or own.half is None else Floor(own.half, f"the interval of {own.n} references")


def _mean(values: Mapping[Run, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None


# Drawing


def _draw(axes: Axes, its: Lines, metrics: Sequence[Metric], abbreviations: bool) -> None:
    points = marks(its, metrics)
    reference = next((point for point in points if point.name == HEADS["retrained"]), None)
    floors = [floor(its, metric) for metric in metrics[:2]]
    if reference is not None:
        look: dict[str, Any] = {"color": GREY, "alpha": 0.22, "lw": 0, "zorder": 0}
        across, up = (found.half if found is not None else 0.0 for found in floors)
        if across > 0:
            axes.axvspan(reference.x.mean - across, reference.x.mean + across, **look)
        if up > 0:
            axes.axhspan(reference.y.mean - up, reference.y.mean + up, **look)
        axes.axvline(reference.x.mean, color="black", lw=0.6, ls=":", zorder=1)
        axes.axhline(reference.y.mean, color="black", lw=0.6, ls=":", zorder=1)
    largest = max([point.cost for point in points if point.cost is not None], default=1.0)
    scale = min(AS_RETRAINING, LARGEST / max(largest, 1e-9))
    for point in points:
        look = _look(point, scale)
        axes.errorbar(
            point.x.mean,
            point.y.mean,
            xerr=point.x.half,
            yerr=point.y.half,
            fmt="none",
            ecolor=look["edgecolors"],
            elinewidth=0.7,
            alpha=0.35,
            zorder=2,
        )
        axes.scatter([point.x.mean], [point.y.mean], zorder=4 if point.method is None else 3, linewidths=1.0, **look)
    _limit(axes, points)
    _direct(axes, metrics, abbreviations)
    axes.set_title(str(its.title), fontsize=10, loc="left")
    axes.margins(0.06)
    _explain(axes, its, metrics, floors, scale, abbreviations)
    _label(axes, points)


def _look(point: Mark, scale: float) -> dict[str, Any]:
    if point.name == HEADS["retrained"]:
        return {"s": 130, "marker": "*", "facecolors": "black", "edgecolors": "black"}
    if point.name == HEADS["original"]:
        return {"s": 55, "marker": "s", "facecolors": "white", "edgecolors": "black"}
    area = 36.0 if point.cost is None else max(SMALLEST, scale * point.cost)
    colour = ORANGE if point.method in ("none", "retrain") else BLUE
    face = "white" if colour == ORANGE else (0, 0.447, 0.698, 0.35)
    return {"s": area, "marker": "o", "facecolors": face, "edgecolors": colour}


def _limit(axes: Axes, points: Sequence[Mark]) -> None:
    """Show all means, and of error bars a part: those of two runs may be longer than all else."""
    for values, limit in (
        ([point.x for point in points], axes.set_xlim),
        ([point.y for point in points], axes.set_ylim),
    ):
        low, high = min(its.mean for its in values), max(its.mean for its in values)
        room = max(high - low, 1e-3 * max(abs(high), 1e-9))
        ends = [end for its in values for end in (its.low, its.high) if end is not None]
        low_end = max(min([low, *ends]), low - room / 4)
        high_end = min(max([high, *ends]), high + room / 4)
        limit(low_end - 0.08 * room, high_end + 0.08 * room)


def _direct(axes: Axes, metrics: Sequence[Metric], abbreviations: bool) -> None:
    """Name the axes, and say which way is better."""
    for metric, name, words in (
        (metrics[0], axes.set_xlabel, ("→ better", "← better")),
        (metrics[1], axes.set_ylabel, ("→ better", "← better")),
    ):
        better = {"higher": words[0], "lower": words[1], "reference": "best: as retrained"}[metric.better]
        name(f"{heading(metric, abbreviations)} ({better})")


def _explain(
    axes: Axes,
    its: Lines,
    metrics: Sequence[Metric],
    floors: Sequence[Floor | None],
    scale: float,
    abbreviations: bool,
) -> None:
    """What the marks, bars and bands mean, below the axes."""

    def round_mark(colour: str, face: object, area: float, label: str) -> Line2D:
        look: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": colour, "markersize": math.sqrt(area)}
        return Line2D([], [], ls="", marker="o", label=label, **look)

    handles: list[Any] = [
        Line2D([], [], ls="", marker="*", color="black", markersize=10, label=HEADS["retrained"]),
        Line2D([], [], ls="", marker="s", markerfacecolor="white", markeredgecolor="black", label="original"),
    ]
    if any(line.method in ("none", "retrain") for line in its.lines):
        handles.append(round_mark(ORANGE, "white", 36, "none, retrain: what audits must find and pass"))
    if len(metrics) == 3 and any(point.cost is not None for point in marks(its, metrics)):
        cost = heading(metrics[2], abbreviations)
        face = (0, 0.447, 0.698, 0.35)
        handles.append(round_mark(BLUE, face, scale, f"method; area: {cost[0].lower()}{cost[1:]}, here as retraining"))
        handles.append(round_mark(BLUE, face, max(SMALLEST, scale / 8), "an eighth of retraining"))
    else:
        handles.append(round_mark(BLUE, (0, 0.447, 0.698, 0.35), 36, "method"))
    sources = {found.source for found in floors if found is not None and found.half > 0}
    if sources:
        handles.append(Patch(color=GREY, alpha=0.35, lw=0, label=f"noise of exact retraining ({'; '.join(sources)})"))
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.47, -0.12),
        ncols=2,
        fontsize=8,
        frameon=False,
        handletextpad=0.6,
        columnspacing=1.4,
    )
    runs = sorted({len(line.runs) for line in its.lines})
    count = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    seeds = " over seeds" if any(crossed(line.runs) for line in its.lines) else ""
    bars = f"; bars: 95 % t-intervals{seeds}" if runs[-1] > 1 else ": no intervals, and no noise of retraining"
    note = f"Means over {count} runs{bars}" if runs[-1] > 1 else f"One run{bars}"
    axes.annotate(note, (0.47, -0.12), xycoords="axes fraction", xytext=(0, -50), textcoords="offset points",
                  ha="center", va="top", fontsize=8)  # fmt: skip


def _label(axes: Axes, points: Sequence[Mark]) -> None:
    """A name beside every mark, where it covers neither another mark nor another name, with a line if it is far."""
    names = [
        axes.text(
            point.x.mean,
            point.y.mean,
            point.name.removesuffix(" (reference)"),
            fontsize=7.5,
            fontweight="bold" if point.method is None else "normal",
            zorder=6,
        )
        for point in points
    ]
    look = {"arrowstyle": "-", "color": "black", "lw": 0.4, "alpha": 0.6}
    across, up = [point.x.mean for point in points], [point.y.mean for point in points]
    # By steps and not by time, so that the same rows give the same picture
    adjust_text(names, across, up, ax=axes, iter_lim=500, expand=(1.15, 1.4), arrowprops=look)
