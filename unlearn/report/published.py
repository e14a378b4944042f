"""The papers' figures, `results/published/*.yaml`: read and checked, brought to our metrics and units.

A file is a paper, a table of it one key of `tables`, and a part of a table what has one setting and one row a method.
`NAME/TABLE/PART` is a part's address. A part has all the keys of its table, and may replace any of them. A row is under
our name for the method, or under another name that `methods` declares with `ours: false`. A cell is a value, or
`[value, deviation]`; what the source does not give is absent. `provenance`, of a paper, a table, a part or a cell:

    paper         read in the paper's text
    authors_log   read in logs, notebooks or files that the authors published
    second_hand   read in what others wrote of the paper, or ran after it
    recalled      from memory: unverified

What is made here of printed figures is `computed`, and stands in no file.

A table whose `form` of the average gap is `signed` adds the reference's test accuracy minus the method's, without the
absolute value, so that a better test accuracy lowers the gap; `gaps` computes both forms.
"""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import yaml  # type: ignore[import-untyped]
from annotated_types import Gt, Interval, MinLen

from unlearn.report.rows import declared
from unlearn.settings import NotNegative, SettingError

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published"
REFERENCE = "retrain"
ROUNDING = 0.015  # of a mean of differences of figures with two digits, which has two digits itself

Provenance = Literal["paper", "authors_log", "second_hand", "recalled"]
Unit = Literal["percent", "fraction", "number", "seconds", "minutes"]
Words = Annotated[str, MinLen(1)]

LARGEST: Mapping[str, float] = {"percent": 100.0, "fraction": 1.0}
OURS: Mapping[str, tuple[str, float]] = {  # a unit of theirs -> our unit, and what to multiply with
    "percent": ("fraction", 0.01),
    "fraction": ("fraction", 1.0),
    "number": ("number", 1.0),
    "seconds": ("seconds", 1.0),
    "minutes": ("seconds", 60.0),
}


class _Checked(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cell(_Checked):
    """A figure and what stands behind its +-."""

    value: float
    deviation: NotNegative | None = None
    provenance: Provenance | Literal["computed"] | None = None


def _cell(given: Any) -> Any:
    if isinstance(given, list) and len(given) == 2:
        return {"value": given[0], "deviation": given[1]}
    return {"value": given} if isinstance(given, int | float) else given


class Gap(_Checked):
    """How an average gap was made: of which columns, and whether test accuracy enters with its sign."""

    form: Literal["absolute", "signed", "unknown"]
    over: list[str] = []


class Column(_Checked):
    """A column: its heading, our metric if there is one, and how to come from one to the other."""

    title: Words
    unit: Unit
    metric: str | None = None
    complement: bool = False
    gap: Gap | None = None


class Method(_Checked):
    """What a paper calls a method; `ours` says that the key is our name of the same method."""

    name: Words
    ours: bool = True
    note: str = ""


class Part(_Checked):
    """The rows of one setting of a table, and the setting; `recipe` has the keys of our configurations."""

    paper: str
    table: str
    part: str
    name: Words
    caption: Words
    page: Annotated[int, Gt(0)] | None = None
    provenance: Provenance
    dataset: Words
    model: Words
    train: Words | None = None
    scenario: Words
    fraction: Annotated[float, Interval(gt=0, lt=1)] | None = None
    runs: Annotated[int, Gt(0)] | None = None
    runs_are: str = ""
    spread: str = ""
    access: list[Literal["forget", "retain"]] = []
    recipe: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {}
    columns: Annotated[dict[str, Column], MinLen(1)]
    rows: Annotated[dict[str, dict[str, Annotated[Cell, pydantic.BeforeValidator(_cell)]]], MinLen(1)]
    retrain_of: str | None = None
    unexplained: dict[str, str] = {}
    notes: list[Words] = []

    @property
    def address(self) -> str:
        """What names it on a command line."""
        return f"{self.paper}/{self.table}/{self.part}"


class Paper(_Checked):
    """One paper, with the parts of its tables under their addresses."""

    title: Words
    authors: Annotated[list[Words], MinLen(1)]
    venue: Words
    year: int
    arxiv: Annotated[str, pydantic.StringConstraints(pattern=r"^\d{4}\.\d{5}$")]
    sources: Annotated[list[Words], MinLen(1)]
    provenance: Provenance
    notes: list[Words] = []
    unread: list[Words] = []
    methods: dict[str, Method]
    parts: Annotated[dict[str, Part], MinLen(1)]


class Gaps(NamedTuple):
    """An average gap as it is printed and as the printed means give it, in the column's unit.

    Papers average each run's differences, and those of noisy runs are larger than the differences of the means: by how
    much is in `expected`, that of normal runs with the printed deviations, in the form that the file declares.
    """

    printed: float
    absolute: float
    signed: float
    form: str
    expected: float

    @property
    def declared(self) -> float:
        """The gap of the means in the declared form."""
        return self.signed if self.form == "signed" else self.absolute

    def agrees(self, form: str | None = None) -> bool:
        """Whether the printed gap can be of this form, within rounding and what noise adds; None is the declared."""
        means = {"signed": self.signed, "absolute": self.absolute}[form or self.form]
        noise = self.expected - self.declared
        return means - ROUNDING <= self.printed <= means + noise + ROUNDING


@cache
def paper(name: str, folder: Path = PUBLISHED) -> Paper:
    """One paper's figures. Raises `SettingError` for a file that is absent or not as it must be."""
    file = folder / f"{name}.yaml"
    if not file.is_file():
        raise SettingError("--published", name, f"must be one of {', '.join(papers(folder))}")
    try:
        document = yaml.safe_load(file.read_text())
        tables = document.pop("tables")
        parts = {
            f"{name}/{table}/{part}": {
                "paper": name,
                "table": table,
                "part": part,
                "provenance": document["provenance"],
                **{key: value for key, value in its.items() if key != "parts"},
                **changes,
            }
            for table, its in tables.items()
            for part, changes in its["parts"].items()
        }
        result = Paper.model_validate(document | {"parts": parts})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise SettingError(str(file), ".".join(map(str, first["loc"])), first["msg"]) from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise SettingError("published", file, f"must be a paper with tables and their parts ({error!r})") from error
    for part in result.parts.values():
        _check(result, part, file)
    return result


def papers(folder: Path = PUBLISHED) -> list[str]:
    """The names of the papers with figures here."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def _check(its: Paper, part: Part, file: Path) -> None:
    """Rows, columns and ranges; what the schema alone cannot say."""

    def fault(key: str, value: object, allowed: str) -> SettingError:
        return SettingError(f"{file}: {part.address}: {key}", value, allowed)

    metrics = declared()
    for name, column in part.columns.items():
        if column.complement and column.unit not in LARGEST:
            raise fault(name, column.unit, "has no complement")
        if column.metric is not None:
            if column.metric not in metrics:
                raise fault(name, column.metric, f"must be one of {', '.join(sorted(metrics))}")
            if metrics[column.metric].unit != OURS[column.unit][0]:
                raise fault(name, column.unit, f"is not a unit of {column.metric}")
        if column.gap and (unknown := set(column.gap.over) - part.columns.keys()):
            raise fault(f"{name}.gap.over", min(unknown), f"must be one of {', '.join(part.columns)}")
    for method, cells in part.rows.items():
        if method not in its.methods:
            raise fault("rows", method, f"must be one of {', '.join(its.methods)}")
        for name, cell in cells.items():
            if name not in part.columns:
                raise fault(method, name, f"must be one of {', '.join(part.columns)}")
            if cell.provenance == "computed":
                raise fault(f"{method}.{name}", "computed", "must be the provenance of a figure that was read")
            if not 0 <= cell.value <= LARGEST.get(part.columns[name].unit, math.inf):
                raise fault(f"{method}.{name}", cell.value, f"is no {part.columns[name].unit}")
    if part.retrain_of and f"{part.paper}/{part.retrain_of}/{part.part}" not in its.parts:
        raise fault("retrain_of", part.retrain_of, "must be a table with a part of this name")
    if unknown := part.unexplained.keys() - part.rows.keys():
        raise fault("unexplained", min(unknown), f"must be one of {', '.join(part.rows)}")


def find(address: str, folder: Path = PUBLISHED) -> list[Part]:
    """The parts of the table `NAME/TABLE`, or the one `NAME/TABLE/PART`. Raises `SettingError`, listing what exists."""
    name, _, rest = address.partition("/")
    if name not in papers(folder):
        raise SettingError("--published", address, f"must be NAME/TABLE, NAME one of {', '.join(papers(folder))}")
    parts = paper(name, folder).parts.values()
    found = [part for part in parts if rest in (part.table, f"{part.table}/{part.part}")]
    if not found:
        tables = dict.fromkeys(f"{name}/{part.table}" for part in parts)
        if rest.partition("/")[0] in {part.table for part in parts}:
            tables = {part.address: None for part in parts if part.table == rest.partition("/")[0]}
        raise SettingError("--published", address, f"must be one of {', '.join(tables)}")
    return found


def reference(part: Part, folder: Path = PUBLISHED) -> Mapping[str, Cell]:
    """The retrained model's row, which may stand in another table; empty where it is not known."""
    if REFERENCE in part.rows or part.retrain_of is None:
        return part.rows.get(REFERENCE, {})
    return paper(part.paper, folder).parts[f"{part.paper}/{part.retrain_of}/{part.part}"].rows[REFERENCE]


def in_our_units(cell: Cell, column: Column) -> Cell:
    """A cell as a value of our metric: a fraction instead of percent, an accuracy instead of its complement."""
    _, factor = OURS[column.unit]
    value = LARGEST[column.unit] - cell.value if column.complement else cell.value
    deviation = None if cell.deviation is None else cell.deviation * factor
    return Cell(value=value * factor, deviation=deviation, provenance=cell.provenance)


def gaps(part: Part, method: str, folder: Path = PUBLISHED) -> Gaps | None:
    """The average gap of one row, printed and recomputed in both forms; None where a figure for that is missing."""
    column = next((name for name, its in part.columns.items() if its.gap and its.gap.over), None)
    row, retrained = part.rows[method], reference(part, folder)
    if column is None:
        return None
    gap = part.columns[column].gap
    if gap is None or column not in row or not set(gap.over) <= row.keys() & retrained.keys():
        return None
    absolute, signed, expected = [], [], []
    for name in gap.over:
        theirs, of_retrained = row[name], retrained[name]
        difference = of_retrained.value - theirs.value
        has_sign = part.columns[name].metric == "test_accuracy"
        absolute.append(abs(difference))
        signed.append(difference if has_sign else abs(difference))
        noise = math.hypot(theirs.deviation or 0.0, of_retrained.deviation or 0.0)
        signed_here = has_sign and gap.form == "signed"
        expected.append(difference if signed_here else _mean_of_absolute(difference, noise))
    printed, count = row[column].value, len(gap.over)
    return Gaps(printed, sum(absolute) / count, sum(signed) / count, gap.form, sum(expected) / count)


def _mean_of_absolute(mean: float, deviation: float) -> float:
    """E|x| of a normal x."""
    if deviation == 0:
        return abs(mean)
    z = mean / deviation / math.sqrt(2)
    return deviation * math.sqrt(2 / math.pi) * math.exp(-z * z) + mean * math.erf(z)
