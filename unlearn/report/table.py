"""A table from row files: one line a model, one column a metric, means over seeds and splits."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
from scipy.stats import t

from unlearn import auditors
from unlearn.metrics import Metric
from unlearn.remarks import TITLES
from unlearn.report.terminal import number
from unlearn.row import SCHEMA
from unlearn.settings import SettingError

COLUMNS = (
    "forget_accuracy",
    "retain_accuracy",
    "test_accuracy",
    "loss_attack_auc",
    "loss_attack_passed",
    "average_gap",
    "seconds",
)
CONTESTANTS = ("none", "retrain")  # they head every table
SETTING = ("dataset", "model", "train", "scenario")
NEEDED = ("id", *SETTING, "method", "seed", "split", "requests", "precision", "forget", "config", "metrics", "models")
OF_THE_STORE = ("recipe.json", "done.json")  # which lie beside the rows of a store

Row = Mapping[str, Any]


def declared() -> dict[str, Metric]:
    """Every metric that some auditor declares."""
    modules = [import_module(f"{auditors.__name__}.{info.name}") for info in iter_modules(auditors.__path__)]
    return {metric.name: metric for module in modules for metric in module.METRICS}


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
            schema = document["schema"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingError("row", file, f"must be a row file of this program ({error!r})") from error
        if schema != SCHEMA:
            raise SettingError("row", file, f"has schema {schema}; this version reads {SCHEMA}")
        if missing := [key for key in NEEDED if key not in document]:
            raise SettingError("row", file, f"must be a row file of this program, and has no {missing[0]}")
        if document not in rows:
            rows.append(document)
    return rows


def markdown(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """A Markdown table for each setting among the rows; lines are original, retrained, and then the methods.

    Cells are the mean over runs with its 95 % t-interval; a single run is shown as it is, and a cell that fewer runs
    have than its line says how many. Raises `SettingError` for no rows, for a column that no auditor declares, and for
    rows whose average would mean nothing: of one run twice, of other data or settings than they seem to have.
    """
    metrics = declared()
    if not rows:
        raise SettingError("rows", "none", "at least one row file is needed")
    for column in columns:
        if column not in metrics:
            raise SettingError("column", column, f"must be one of {', '.join(sorted(metrics))}")
    settings: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        settings[setting(row)].append(row)
    return "\n\n".join(_one_setting(group, columns, metrics) for group in settings.values())


def setting(row: Row) -> str:
    """What two rows must share to stand in one table: names and settings, not where files lie, nor the draws."""
    config = {group: dict(row["config"][group]) for group in SETTING}
    for key in ("root", "path"):
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


def _one_setting(rows: Sequence[Row], columns: Sequence[str], metrics: Mapping[str, Metric]) -> str:
    lines: dict[str, dict[tuple[int, int], Mapping[str, Any]]] = defaultdict(dict)
    check_alike(rows)
    names = _names(rows)
    for row in sorted(rows, key=lambda row: (row["method"] not in CONTESTANTS, row["method"], names[row["id"]])):
        run, line = (row["seed"], row["split"]), names[row["id"]]
        if run in lines[line]:
            raise SettingError(
                "row", row["id"], f"repeats {line}, seed {run[0]}, split {run[1]}: give one of them only"
            )
        for role, head in (("original", "original"), ("retrained", "retrained (reference)")):
            lines[head][run] = _joined(lines[head].get(run, {}), row, role, metrics)
        lines[line][run] = row["metrics"]["unlearned"]
    heads = [line for line in ("original", "retrained (reference)") if line in lines]
    text = [
        f"{' · '.join(rows[0][group] for group in SETTING)}, {rows[0]['forget']['count']} images forgotten",
        "",
        f"| model | {' | '.join(metrics[column].title for column in columns)} | runs |",
        f"|---|{'---:|' * (len(columns) + 1)}",
    ]
    for line in [*heads, *(line for line in lines if line not in heads)]:
        runs = lines[line]
        cells = [_cell([run.get(column) for run in runs.values()], metrics[column]) for column in columns]
        text.append(f"| {line} | {' | '.join(cells)} | {len(runs)} |")
    if notes := _notes(rows, names):
        text += ["", *notes]
    return "\n".join(text)


def _notes(rows: Sequence[Row], names: Mapping[str, str]) -> list[str]:
    """What the rows' remarks say: a line for each method and kind, with the number of runs and the first's reason."""
    counts = Counter(names[row["id"]] for row in rows)
    said: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (names[row["id"]], row["seed"], row["split"])):
        for kind, reason in row.get("remarks", {}).items():
            said[names[row["id"]], kind].append(reason)
    return [
        f"- {line}: {TITLES[kind]} in {len(reasons)} of {counts[line]} runs ({reasons[0]})"
        for (line, kind), reasons in said.items()
    ]


def _cell(values: Sequence[float | None], metric: Metric) -> str:
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if len(known) == 0:
        return ""
    if metric.unit == "verdict":
        return f"{known.sum():.0f} of {len(known)}"
    fewer = f" (n = {len(known)})" if len(known) < len(values) else ""
    mean = number(float(known.mean()), metric)
    if len(known) == 1 or metric.unit in ("bytes", "count"):
        return mean + fewer
    half = t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return f"{mean} ± {number(float(half), metric)}{fewer}"
