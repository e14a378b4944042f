"""Our rows beside a paper's figures: the difference of each cell, whether either interval holds the other's mean, how
far the two agree on the order of the methods, and in what the set-ups differ.

Where the set-ups differ in data or model, no figure of one can be that of the other. What still compares is how far a
method lies from its own retrained model: `relative` sets these distances side by side.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import spearmanr

from unlearn.metrics import Metric
from unlearn.report.abbreviations import heading, legend
from unlearn.report.cells import Summary, summarise
from unlearn.report.published import PUBLISHED, Cell, Column, Paper, Part, find, gaps, in_our_units, paper, reference
from unlearn.report.rows import COLUMNS, CONTESTANTS, COSTS, HEADS, Line, Lines, Row, Run, chosen, declared, settings
from unlearn.report.writers import Cell as Shown
from unlearn.report.writers import Table
from unlearn.settings import SettingError

ROLES = {"none": HEADS["original"], "retrain": HEADS["retrained"]}  # their row -> our line


class Compared(NamedTuple):
    """One cell of both, or of ours alone; `matches` is None where neither has an interval."""

    line: str
    metric: Metric
    ours: Summary
    theirs: Cell | None

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        return None if self.theirs is None else self.ours.mean - self.theirs.value

    @property
    def matches(self) -> bool | None:
        """Whether one of the two intervals, ours or what stands behind their +-, holds the other's mean."""
        if self.theirs is None or self.difference is None:
            return None
        reach = [half for half in (self.ours.half, self.theirs.deviation) if half is not None]
        return abs(self.difference) <= max(reach) if reach else None


class Comparison(NamedTuple):
    """Our lines of one setting beside one part of a published table."""

    lines: Lines
    part: Part
    cells: Sequence[Compared]
    notes: Sequence[str]
    relative: bool = False

    @property
    def orders(self) -> list[str]:
        """By metric, how far the methods' order is the same: Spearman's rank correlation, of four or more methods."""
        pairs: dict[Metric, list[tuple[float, float]]] = defaultdict(list)
        for cell in self.cells:
            if cell.line not in HEADS.values() and cell.theirs is not None:
                pairs[cell.metric].append((cell.ours.mean, cell.theirs.value))
        said = []
        for metric, both in pairs.items():
            ours, theirs = zip(*both, strict=True)
            if len(both) >= 4 and len(set(ours)) > 1 and len(set(theirs)) > 1:
                found = spearmanr(ours, theirs).statistic
                said.append(f"{metric.title}: the order of {len(both)} methods correlates at {found:+.2f} (Spearman)")
        return said

    @property
    def counted(self) -> str:
        """How many cells match."""
        both = [cell for cell in self.cells if cell.theirs is not None]
        judged = [cell for cell in both if cell.matches is not None]
        within = sum(cell.matches is True for cell in judged)
        left = f"; {len(both) - len(judged)} not judged" if len(judged) < len(both) else ""
        return f"{within} of {len(judged)} cells match: one interval holds the other's mean{left}"


def compare(
    rows: Sequence[Row],
    address: str,
    columns: Sequence[str] | None = None,
    folder: Path = PUBLISHED,
    *,
    relative: bool = False,
) -> list[Comparison]:
    """Each setting of ours beside the part of the table that forgets the same share, or that the address names.

    `columns` limits the metrics; `relative` compares distances to each side's own retrained model. Their original and
    retrained models stand beside ours; our contestants, which papers do not have, stand beside nothing. Raises
    `SettingError` for a table that does not exist, for a setting that fits no part of it, and where not a single cell
    can be compared.
    """
    parts = find(address, folder)
    wanted = [metric.name for metric in chosen(columns)] if columns is not None else None
    return [_compared(lines, _fitting(lines, parts, address), wanted, folder, relative) for lines in settings(rows)]


def _fitting(lines: Lines, parts: Sequence[Part], address: str) -> Part:
    if len(parts) == 1:
        return parts[0]
    same = [part for part in parts if part.fraction is not None and part.fraction == _fraction(lines)]
    if len(same) == 1:
        return same[0]
    raise SettingError("--published", address, f"must be one of {', '.join(part.address for part in parts)}")


def _fraction(lines: Lines) -> float | None:
    fraction: float | None = lines.rows[0]["config"]["scenario"].get("fraction")
    return fraction


def _compared(lines: Lines, part: Part, wanted: Sequence[str] | None, folder: Path, relative: bool) -> Comparison:
    said: dict[str, None] = {}
    cells = []
    retrained = next(line for line in lines.lines if line.name == HEADS["retrained"])
    its_reference = reference(part, folder)
    if relative and not its_reference:
        raise SettingError("--relative", part.address, "has no retrained model: there is nothing to take distances to")
    for line in lines.lines:
        their_name = next((name for name, head in ROLES.items() if head == line.name), None)
        if line.method in CONTESTANTS:
            continue
        method = their_name or line.method or ""
        if relative and method == "retrain":
            continue
        theirs = its_reference if method == "retrain" else part.rows.get(method, {})
        for name, column in part.columns.items():
            if name not in theirs or column.metric is None or (wanted is not None and column.metric not in wanted):
                continue
            if _says_nothing(method, declared()[column.metric]):
                continue
            ours = summarise(line.values(column.metric), declared()[column.metric])
            its: Cell | str = in_our_units(theirs[name], column)
            if relative:
                if column.gap or column.metric in COSTS or name not in its_reference:
                    continue
                ours = summarise(_distances(line, retrained, column.metric), declared()[column.metric])
                its = _apart(in_our_units(theirs[name], column), in_our_units(its_reference[name], column))
            if column.gap:
                its = _gap(part, method, name, column, lines, folder)
            if isinstance(its, str):
                said[its] = None
            elif ours is not None:
                cells.append(Compared(line.name, declared()[column.metric], ours, its))
                if its.provenance == "computed":
                    said[f"{line.name}, {column.title}: {_recomputed(part, method, name, folder)}"] = None
    if not cells:
        there = ", ".join(name for name in part.rows if paper(part.paper, folder).methods[name].ours)
        methods = f"its methods are {there}" if there else "none of its methods is ours"
        why = "; ".join(["has no cell that our rows have, too", methods, *said])
        raise SettingError("--published", part.address, why)
    notes = [*said, *differences(lines, part, cells, folder)]
    return Comparison(lines, part, _with_contestants(cells, lines, retrained, relative), notes, relative)


def _with_contestants(cells: Sequence[Compared], lines: Lines, retrained: Line, relative: bool) -> list[Compared]:
    """The cells with ours of `none` and `retrain` after the original and the reference: they head every table."""
    metrics = list({cell.metric.name: cell.metric for cell in cells}.values())
    ours = []
    for line in lines.lines:
        for metric in metrics if line.method in CONTESTANTS else ():
            values = _distances(line, retrained, metric.name) if relative else line.values(metric.name)
            if (its := summarise(values, metric)) is not None:
                ours.append(Compared(line.name, metric, its, None))
    heads = [cell for cell in cells if cell.line in HEADS.values()]
    return [*heads, *ours, *cells[len(heads) :]]


def _recomputed(part: Part, method: str, column: str, folder: Path) -> str:
    """What must be said of an average gap that is not the printed one."""
    its, deviation = gaps(part, method, folder), part.rows[method][column].deviation
    behind = "" if deviation is None else f" ± {deviation:.2f}"
    printed, signed = (its.printed, its.signed) if its else (math.nan, math.nan)
    return f"theirs recomputed without the sign; printed {printed:.2f}{behind}, signed {signed:.2f}"


def _distances(line: Line, retrained: Line, metric: str) -> dict[Run, float | None]:
    """In each run, the line's value minus the retrained model's."""
    both = {run: (its, retrained.runs[run].get(metric)) for run, its in line.values(metric).items()}
    return {run: None if one is None or other is None else one - other for run, (one, other) in both.items()}


def _apart(one: Cell, other: Cell) -> Cell:
    """A difference of two figures; behind its ± is what it would be if the two were independent."""
    spreads = (one.deviation, other.deviation)
    deviation = None if None in spreads else math.hypot(*(each for each in spreads if each is not None))
    return Cell(value=one.value - other.value, deviation=deviation, provenance=one.provenance)


def _says_nothing(method: str, metric: Metric) -> bool:
    """Equal by definition, or of different things: p-values, the reference's gap to itself, the original's cost."""
    of_role = (method == "retrain" and metric.name == "average_gap") or (method == "none" and metric.name in COSTS)
    return of_role or metric.name.endswith("pvalue")


def _gap(part: Part, method: str, name: str, column: Column, lines: Lines, folder: Path) -> Cell | str:
    """Their average gap as ours is made, or why there is none."""
    its = column.gap
    theirs = [part.columns[other].metric for other in its.over] if its else []
    audits = [row["config"]["auditor"] for row in lines.rows]
    ours: list[str] = next((its["gap"]["metrics"] for its in audits if "gap" in its), [])
    if its is None or its.form == "unknown":
        return f"{column.title} is not compared: how theirs was made is not known"
    if set(theirs) != set(ours):
        return f"{column.title} is not compared: theirs is over {_listed(theirs)}, ours over {_listed(ours)}"
    if its.form == "absolute":
        return in_our_units(part.rows[method][name], column)
    computed = gaps(part, method, folder)
    if computed is None:
        return f"{column.title} is not compared where theirs, which has a sign, cannot be computed without it"
    return in_our_units(Cell(value=computed.absolute, provenance="computed"), column)


def differences(lines: Lines, part: Part, cells: Sequence[Compared], folder: Path = PUBLISHED) -> list[str]:
    """In what the set-ups differ, or may, one line each."""
    row = lines.rows[0]
    found = []
    for key in ("dataset", "model", "train", "scenario"):
        theirs = getattr(part, key)
        if theirs is not None and theirs != row[key]:
            found.append(f"{key}: ours {row[key]}, theirs {theirs}")
    if part.fraction != _fraction(lines):
        found.append(f"fraction: ours {_said(_fraction(lines))}, theirs {_said(part.fraction)}")
    if row["requests"] != 1:
        found.append(f"requests: ours {row['requests']}, theirs 1")
    runs = sorted({cell.ours.n for cell in cells})
    are = f" ({part.runs_are})" if part.runs_are else ""
    if runs != [part.runs]:
        found.append(f"runs: ours {_listed(runs)}, theirs {_said(part.runs)}{are}")
    for path, theirs in part.recipe.items():
        group, key = path.split(".")
        ours = row["config"][group].get(key, "not said")
        if ours != theirs:
            found.append(f"{path}: ours {_said(ours)}, theirs {_said(theirs)}")
    if part.train is None and not any(path.startswith("train.") for path in part.recipe):
        found.append(f"train: ours {row['train']}, theirs not said")
    methods = paper(part.paper, folder).methods
    for name in dict.fromkeys(its["method"] for its in lines.rows):
        if name not in part.rows:
            continue
        for key, theirs in part.settings.get(name, {}).items():
            ours = {str(its["config"]["method"].get(key)) for its in lines.rows if its["method"] == name}
            if ours != {str(theirs)}:
                found.append(f"method {name}: {key} is {_listed(sorted(ours))} in ours, {theirs} in theirs")
        if methods[name].note:
            found.append(f"method {name}, in theirs: {methods[name].note}")
    if part.access == ["forget"]:
        found.append("data: theirs may use the forget set alone; what ours may use is a setting of each method")
    return found


def _said(value: Any) -> str:
    return "not said" if value is None else str(value)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values) or "nothing"


def _figure(metric: Metric, value: float, half: float | None, sign: str) -> str:
    factor, digits = (100.0, ".2f") if metric.unit == "fraction" else (1.0, ".3f")
    return f"{value * factor:{sign}{digits}}" + ("" if half is None else f" ± {half * factor:{digits}}")


def tabled(comparison: Comparison, abbreviations: bool = False) -> Table:
    """A comparison as a table: a line a cell, fractions in percent as papers print them."""
    lines, sign = [], "+" if comparison.relative else ""
    for cell in comparison.cells:
        percent = " (%)" if cell.metric.unit == "fraction" else ""
        texts = [
            cell.line,
            f"{heading(cell.metric, abbreviations)}{percent}",
            _figure(cell.metric, cell.ours.mean, cell.ours.half, sign),
            str(cell.ours.n),
            "" if cell.theirs is None else _figure(cell.metric, cell.theirs.value, cell.theirs.deviation, sign),
            "" if cell.difference is None else _figure(cell.metric, cell.difference, None, "+"),
            {True: "", False: "outside both", None: "" if cell.theirs is None else "not judged"}[cell.matches],
        ]
        lines.append([Shown(text) for text in texts])
    part, its = comparison.part, paper(comparison.part.paper)
    metrics = list({cell.metric.name: cell.metric for cell in comparison.cells}.values())
    head = ["model", "metric", "ours", "runs", "theirs", "difference", "interval"]
    spread = f"; behind their ± is the {part.spread}" if part.spread else ""
    return Table(
        title=f"{comparison.lines.title}, beside {part.name} ({part.part}) of {its.title}, arXiv:{its.arxiv}",
        head=head,
        left=2,
        lines=lines,
        notes=[
            *(["every figure is the distance to its own retrained model"] if comparison.relative else []),
            comparison.counted,
            *comparison.orders,
            f"theirs: {PROVENANCE[part.provenance]}{spread}",
            *comparison.notes,
            *comparison.lines.notes,
            *part.notes,
            *_of_paper(its, part.paper),
            *(legend(metrics) if abbreviations else []),
        ],
    )


def _of_paper(its: Paper, name: str) -> list[str]:
    """The notes of the whole paper that are short enough to be read below a table, and where the others are."""
    short = [note for note in its.notes if len(note) <= SHORT]
    return short + ([f"more of the paper in results/published/{name}.yaml"] if len(short) < len(its.notes) else [])


SHORT = 120  # characters
PROVENANCE = {
    "paper": "read in the paper",
    "authors_log": "read in the authors' logs",
    "second_hand": "second-hand, not read in the paper",
    "recalled": "recalled, unverified",
}
HEAD = (
    *COLUMNS,
    *("line", "metric"),
    *("ours", "ours_low", "ours_high", "ours_n", "published", "theirs", "theirs_deviation", "provenance"),
    *("difference", "match"),
)


def raw(comparison: Comparison) -> list[list[object]]:
    """The lines of a comparison as raw numbers in our units, under `HEAD`."""
    part = comparison.part
    found: list[list[object]] = []
    for cell in comparison.cells:
        theirs: list[object] = [None, None, None]
        if cell.theirs is not None:
            theirs = [cell.theirs.value, cell.theirs.deviation, cell.theirs.provenance or part.provenance]
        match = {True: "yes", False: "no", None: ""}[cell.matches]
        ours = [cell.ours.mean, cell.ours.low, cell.ours.high, cell.ours.n]
        both = [*ours, part.address, *theirs, cell.difference, match]
        found.append([*comparison.lines.columns, cell.line, cell.metric.name, *both])
    return found
