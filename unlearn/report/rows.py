"""Rows from their files, and as the lines of a table: what is of one setting, of one method, of one run."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from unlearn import auditors
from unlearn.metrics import Metric
from unlearn.remarks import TITLES
from unlearn.row import readable
from unlearn.settings import SettingError

CONTESTANTS = ("none", "retrain")  # they head every table
SETTING = ("dataset", "model", "train", "scenario")
HEADS = {"original": "original", "retrained": "retrained (reference)"}  # role -> its line
NEEDED = ("id", *SETTING, "method", "seed", "split", "requests", "precision", "forget", "config", "metrics", "models")
ELSEWHERE = ("root", "path")  # where a data set lies, which is no part of what it is
OF_THE_STORE = ("recipe.json", "done.json")  # which lie beside the rows of a store
FILTERS = (*SETTING, "method", "seed", "split", "requests", "precision", "layers")

Row = Mapping[str, Any]
Run = tuple[int, int]
"""Seed and split."""


class Line(NamedTuple):
    """One line of a table: the method, None for the original and the reference, and the metrics of each run."""

    name: str
    method: str | None
    runs: Mapping[Run, Mapping[str, Any]]

    def values(self, metric: str) -> list[float | None]:
        """One metric in each run."""
        return [run.get(metric) for run in self.runs.values()]


class Lines(NamedTuple):
    """The rows of one setting as lines, the original and the reference first, and what must be said of them."""

    rows: Sequence[Row]
    lines: Sequence[Line]
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """The setting in one line."""
        row = self.rows[0]
        return f"{' · '.join(row[group] for group in SETTING)}, {row['forget']['count']} images forgotten"


@cache
def declared() -> dict[str, Metric]:
    """Every metric that some auditor declares."""
    modules = [import_module(f"{auditors.__name__}.{info.name}") for info in iter_modules(auditors.__path__)]
    return {metric.name: metric for module in modules for metric in module.METRICS}


def chosen(columns: Iterable[str]) -> list[Metric]:
    """The metrics of these names. Raises `SettingError` for one that no auditor declares."""
    metrics = declared()
    for column in columns:
        if column not in metrics:
            raise SettingError("column", column, f"must be one of {', '.join(sorted(metrics))}")
    return [metrics[column] for column in columns]


def read(paths: Iterable[Path]) -> list[Row]:
    """Rows from files, and from all `*.json` below folders. Raises `SettingError` for what is not a row of ours.

    A row that several of the paths lead to is read once.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]
    rows: list[Row] = []
    for file in files:
        if file.name in OF_THE_STORE:
            continue
        try:
            document = json.loads(file.read_text())
            document["schema"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingError("row", file, f"must be a row file of this program ({error!r})") from error
        readable(document, file)
        if missing := [key for key in NEEDED if key not in document]:
            raise SettingError("row", file, f"must be a row file of this program, and has no {missing[0]}")
        if document not in rows:
            rows.append(document)
    return rows


def of_methods(rows: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """The rows of these methods. Raises `SettingError` for a method that no row has."""
    there = sorted({row["method"] for row in rows})
    for method in methods if rows else ():
        if method not in there:
            raise SettingError("--rows", method, f"must be one of {', '.join(there)}")
    return [row for row in rows if row["method"] in methods]


def of_jobs(rows: Sequence[Row], jobs: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows that jobs with these settings make: the same data, models, methods, audits and draws, wherever kept."""
    wanted = [_identity(settings) for settings in jobs]
    return [row for row in rows if _identity(row["config"]) in wanted]


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    its: dict[str, Any] = {
        key: config.get(key) for key in (*SETTING, "method", "auditor", "seed", "split", "requests", "layers")
    }
    dataset = {key: value for key, value in its["dataset"].items() if key not in ELSEWHERE}
    return its | {"dataset": dataset}


def where(rows: Sequence[Row], condition: str) -> list[Row]:
    """The rows for which `key=value` holds: of a row's names and numbers, or of its configuration (`train.epochs=10`).

    Raises `SettingError` for a key that no row has, and for a value that no row has.
    """
    key, sign, text = condition.partition("=")
    if not sign:
        raise SettingError("--where", condition, "must be key=value")
    if not rows:
        return []
    having = [(row, value) for row in rows if (value := _at(row, key)) is not _ABSENT]
    if not having:
        keys = ", ".join(FILTERS)
        raise SettingError("--where", key, f"must be one of {keys}, or a key of a row's configuration (train.epochs)")
    kept = [row for row, value in having if _is(value, text)]
    if not kept:
        values = dict.fromkeys(str(value) for _, value in having)
        raise SettingError("--where", condition, f"no row has it; {key} is {', '.join(sorted(values))}")
    return kept


def values_of(rows: Sequence[Row], key: str) -> list[str]:
    """The values that rows have of a key of `where`: numbers by size, and then words. `SettingError` if none has it."""
    values = {str(value): value for row in rows if (value := _at(row, key)) is not _ABSENT}
    if not values:
        raise SettingError("--pivot", key, f"must be one of {', '.join(FILTERS)}, or a key of a row's configuration")
    numbers = [text for text, value in values.items() if isinstance(value, int | float)]
    return sorted(numbers, key=float) + sorted(values.keys() - set(numbers))


def _is(value: Any, text: str) -> bool:
    """Whether a value is what the text says, written as in a YAML: a word, a number, true, null, a list."""
    try:
        wanted = yaml.safe_load(text)
    except yaml.YAMLError:
        wanted = text
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return bool(value == wanted) or str(value) == text


_ABSENT = object()


def _at(row: Row, key: str) -> Any:
    """A row's value under a name or a dotted path into its configuration."""
    if key in FILTERS:
        return row.get(key, "all" if key == "layers" else _ABSENT)
    value: Any = row["config"]
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return _ABSENT if isinstance(value, Mapping) else value


def settings(rows: Sequence[Row]) -> list[Lines]:
    """The lines of each setting among the rows: original, reference, and then the methods.

    Raises `SettingError` for no rows, and for rows whose average would mean nothing: of one run twice, of other data or
    settings than they seem to have.
    """
    if not rows:
        raise SettingError("rows", "none", "at least one row file is needed")
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[setting(row)].append(row)
    return [_lines(group, declared()) for group in groups.values()]


def setting(row: Row) -> str:
    """What two rows must share to stand in one table: names and settings, not where files lie, nor the draws."""
    config = {group: dict(row["config"][group]) for group in SETTING}
    for key in ELSEWHERE:
        config["dataset"].pop(key, None)
    return json.dumps([[row[group] for group in SETTING], config, row["requests"], row["precision"]], sort_keys=True)


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """Row id -> its line: the method, and those of its settings in which rows of the same method differ."""
    names = {}
    for row in rows:
        same = [other["config"]["method"] for other in rows if other["method"] == row["method"]]
        its = row["config"]["method"]
        differing = [key for key in its if any(other.get(key) != its[key] for other in same)]
        layers = [row["layers"]] if row.get("layers", "all") != "all" else []
        details = [f"{key}={its[key]}" for key in differing] + [f"layers={layer}" for layer in layers]
        names[row["id"]] = row["method"] + (f" ({', '.join(details)})" if details else "")
    return names


def check_alike(rows: Sequence[Row]) -> None:
    """Rows of one table come from the same recipes: of a seed there is one original, of a seed and split one reference.

    Their keys hold what the names and settings of a row do not, such as the content of the data.
    """
    first: dict[tuple[object, ...], tuple[object, Row]] = {}
    for row in rows:
        auditors = row["config"]["auditor"]
        seen: dict[tuple[object, ...], object] = {
            ("original model", row["seed"]): row["models"]["original"],
            ("retrained model", row["seed"], row["split"]): row["models"]["retrained"],
            ("forget set", row["split"]): row["forget"],
            **{(f"setting of auditor {name}",): its for name, its in auditors.items()},
        }
        for what, value in seen.items():
            other = first.setdefault(what, (value, row))
            if other[0] != value:
                raise SettingError("row", row["id"], f"has another {what[0]} than {other[1]['id']}: not one table")


def _joined(known: Mapping[str, Any], row: Row, role: str, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """The metrics that several rows have of the same model, which other auditors may have measured in each.

    Costs may differ, as they do between two stores in which the same model was made; the last one is shown.
    """
    its = row["metrics"][role]
    for name in known.keys() & its.keys():
        of_cost = name in metrics and metrics[name].unit in ("seconds", "bytes")
        if known[name] != its[name] and not of_cost:
            raise SettingError("row", row["id"], f"has another {name} of the {role} model than rows of the same run")
    return {**known, **its}


def _lines(rows: Sequence[Row], metrics: Mapping[str, Metric]) -> Lines:
    runs: dict[str, dict[Run, Mapping[str, Any]]] = {head: {} for head in HEADS.values()}
    methods: dict[str, str] = {}
    check_alike(rows)
    names = _names(rows)
    for row in sorted(rows, key=_order(names)):
        run, line = (row["seed"], row["split"]), names[row["id"]]
        if run in runs.setdefault(line, {}):
            raise SettingError(
                "row", row["id"], f"repeats {line}, seed {run[0]}, split {run[1]}: give one of them only"
            )
        for role, head in HEADS.items():
            runs[head][run] = _joined(runs[head].get(run, {}), row, role, metrics)
        runs[line][run] = row["metrics"]["unlearned"]
        methods[line] = row["method"]
    return Lines(rows, [Line(name, methods.get(name), its) for name, its in runs.items()], _notes(rows, names))


def _order(names: Mapping[str, str]) -> Callable[[Row], tuple[bool, str, str]]:
    return lambda row: (row["method"] not in CONTESTANTS, row["method"], names[row["id"]])


def _notes(rows: Sequence[Row], names: Mapping[str, str]) -> list[str]:
    """What the rows' remarks say: a line for each method and kind, with the number of runs and the first's reason."""
    counts = Counter(names[row["id"]] for row in rows)
    said: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (names[row["id"]], row["seed"], row["split"])):
        for kind, reason in row.get("remarks", {}).items():
            said[names[row["id"]], kind].append(reason)
    return [
        f"{line}: {TITLES[kind]} in {len(reasons)} of {counts[line]} runs ({reasons[0]})"
        for (line, kind), reasons in said.items()
    ]
