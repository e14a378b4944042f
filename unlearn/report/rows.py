"""Rows from their files, and as the lines of a table: what is of one setting, of one method, of one run."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

from unlearn import auditors
from unlearn.auditors.cost import METRICS as OF_COST
from unlearn.metrics import Metric
from unlearn.remarks import TITLES
from unlearn.row import readable
from unlearn.settings import SettingError

CONTESTANTS = ("none", "retrain")  # they head every table
SETTING = ("dataset", "model", "train", "scenario")
HEADS = {"original": "original", "retrained": "retrained (reference)"}  # role -> its line
NEEDED = ("id", *SETTING, "method", "seed", "split", "requests", "precision", "forget", "config", "metrics", "models")
MAPPINGS = ("config", *(f"config.{group}" for group in (*SETTING, "method", "auditor")), "forget", "models", "metrics")
COSTS = frozenset(metric.name for metric in OF_COST)
"""What the auditor `cost` declares, which is of the machine, too: the same model may have cost more elsewhere."""
ELSEWHERE = ("root", "path")  # where a data set lies, which is no part of what it is
OF_THE_STORE = ("recipe.json", "done.json")  # which lie beside the rows of a store

Row = Mapping[str, Any]
Run = tuple[int, int]
"""Seed and split."""


class Line(NamedTuple):
    """One line of a table: the method, None for the original and the reference, and the metrics of each run."""

    name: str
    method: str | None
    runs: Mapping[Run, Mapping[str, Any]]

    def values(self, metric: str) -> dict[Run, float | None]:
        """One metric in each run."""
        return {run: its.get(metric) for run, its in self.runs.items()}


class Title(NamedTuple):
    """A setting's names, and the keys in which it differs from others of the same names."""

    names: str
    details: str = ""

    def __str__(self) -> str:
        """The setting in one line."""
        return f"{self.names} ({self.details})" if self.details else self.names


class Lines(NamedTuple):
    """The rows of one setting as lines, the original and the reference first, and what must be said of them."""

    rows: Sequence[Row]
    lines: Sequence[Line]
    notes: Sequence[str]
    title: Title

    @property
    def columns(self) -> list[object]:
        """What names the setting in CSV, under `COLUMNS`."""
        row = self.rows[0]
        return [*(row[key] for key in COLUMNS[:6]), row["forget"]["count"], self.title.details]


COLUMNS = (*SETTING, "requests", "precision", "forgotten", "setting")


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
        if (wrong := _damage(document)) is not None:
            raise SettingError("row", file, f"must be a row file of this program, and {wrong}")
        if document not in rows:
            rows.append(document)
    return rows


def _damage(document: Mapping[str, Any]) -> str | None:
    """What a row lacks of what tables read, in words; None if nothing."""
    if missing := [key for key in NEEDED if key not in document]:
        return f"has no {missing[0]}"
    flat = dict(_flat(document))
    roles = [f"metrics.{role}" for role in (*HEADS, "unlearned")]
    if missing := [key for key in (*MAPPINGS, *roles) if not isinstance(inside(document, key), Mapping)]:
        return f"has no {missing[0]}"
    if missing := [key for key in ("forget.count", *(f"models.{role}" for role in HEADS)) if flat.get(key) is None]:
        return f"has no {missing[0]}"
    for key in (*SETTING, "method", "seed", "split", "requests", "precision"):
        if not isinstance(document[key], int | str):
            return f"its {key} is {document[key]!r}"
    for key, value in flat.items():
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if key.startswith("metrics.") and value is not None and not is_number:
            return f"its {key} is {value!r}, which is no number"
    return None


ABSENT = object()
"""What lies under a path that leads nowhere."""


def inside(value: Any, key: str) -> Any:
    """What lies under a dotted path; `ABSENT` if nothing does."""
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves under their dotted paths."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def settings(rows: Sequence[Row]) -> list[Lines]:
    """The lines of each setting among the rows: original, reference, and then the methods.

    Rows of one model that were audited differently are one run. Raises `SettingError` for no rows, and for rows whose
    average would mean nothing: two models of one run, other data or settings than they seem to have.
    """
    groups = grouped(rows)
    return [_lines(group, title) for group, title in zip(groups, titles(groups), strict=True)]


def grouped(rows: Sequence[Row], across: str = "") -> list[list[Row]]:
    """The rows of each setting, or of those that differ in the key `across` alone. `SettingError` for no rows."""
    if not rows:
        raise SettingError("rows", "none", "at least one row file is needed")
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[setting(row, across)].append(row)
    return list(groups.values())


def setting(row: Row, across: str = "") -> str:
    """What two rows must share to stand in one table: names and settings, not where files lie, nor the draws."""
    return json.dumps(_setting(row, across), sort_keys=True)


def _setting(row: Row, across: str = "") -> dict[str, Any]:
    """A row's setting by key, without the key `across` and all that is below it."""
    names = {key: row[key] for key in (*SETTING, "requests", "precision")}
    dataset = {key: value for key, value in row["config"]["dataset"].items() if key not in ELSEWHERE}
    its = names | dict(_flat({group: row["config"][group] for group in SETTING} | {"dataset": dataset}))
    # The hashes of a known data set say what it is; of a user's own files only their content does, or their place
    hashes = row["config"]["dataset"].get("sha256") or {}
    if None in hashes.values() or not hashes:
        its["data"] = row.get("data", row["config"]["dataset"].get("path"))
    above = (across, *(["data"] if across.partition(".")[0] == "dataset" else []))
    return {key: value for key, value in its.items() if key not in above and not key.startswith(f"{across}.")}


def titles(groups: Sequence[Sequence[Row]], across: str = "") -> list[Title]:
    """What heads the table of each setting; where names coincide, the keys that differ tell them apart."""
    names = []
    for group in groups:
        counts = {row["forget"]["count"] for row in group}
        forgotten = f", {min(counts)} images forgotten" if len(counts) == 1 else ""
        names.append(" · ".join(group[0][key] for key in SETTING if key != across) + forgotten)
    found = []
    for name, group in zip(names, groups, strict=True):
        same = [_setting(other[0], across) for known, other in zip(names, groups, strict=True) if known == name]
        its = _setting(group[0], across)
        differing = [key for key in dict.fromkeys(key for other in same for key in other) if _differ(same, key)]
        found.append(Title(name, ", ".join(f"{key}={_short(its.get(key, 'absent'))}" for key in differing)))
    return found


def _differ(settings: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(its.get(key, ABSENT) != settings[0].get(key, ABSENT) for its in settings)


def _short(value: Any) -> str:
    """A value as text, of a hash the beginning."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]{52}$", r"\1", str(value))


def line_names(rows: Sequence[Row]) -> dict[str, str]:
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
            ("number of images to forget",): row["forget"]["count"],
            **({("data set",): row["data"]} if "data" in row else {}),
            **{(f"setting of auditor {name}",): its for name, its in auditors.items()},
        }
        for what, value in seen.items():
            other = first.setdefault(what, (value, row))
            if other[0] != value:
                raise SettingError("row", row["id"], f"has another {what[0]} than {other[1]['id']}: not one table")


def _joined(known: Mapping[str, Any], row: Row, role: str) -> dict[str, Any]:
    """The metrics that several rows have of the same model, which other auditors may have measured in each.

    `COSTS` may differ, as they do between two stores in which the same model was made; the last one is shown.
    """
    its = row["metrics"][role]
    for name in sorted(known.keys() & its.keys() - COSTS):
        if known[name] != its[name]:
            raise SettingError("row", row["id"], f"has another {name} of the {role} model than rows of the same run")
    return {**known, **its}


def _lines(rows: Sequence[Row], title: Title) -> Lines:
    runs: dict[str, dict[Run, Mapping[str, Any]]] = {head: {} for head in HEADS.values()}
    methods: dict[str, str] = {}
    made: dict[tuple[str, Run], object] = {}
    check_alike(rows)
    names = line_names(rows)
    for row in sorted(rows, key=_order(names)):
        run, line = (row["seed"], row["split"]), names[row["id"]]
        models = row["models"].get("unlearned")
        if made.setdefault((line, run), models) != models:
            raise SettingError(
                "row", row["id"], f"repeats {line}, seed {run[0]}, split {run[1]}: give one of them only"
            )
        for role, its in {**HEADS, "unlearned": line}.items():
            known = runs.setdefault(its, {})
            known[run] = _joined(known.get(run, {}), row, role)
        methods[line] = row["method"]
    lines = [Line(name, methods.get(name), its) for name, its in runs.items()]
    return Lines(rows, lines, [*_notes(rows, names), *_of_runs(runs)], title)


def crossed(runs: Iterable[Run]) -> bool:
    """Whether several seeds have several splits. The splits of a seed share its original: they are not independent."""
    its = list(runs)
    return 1 < len({seed for seed, _ in its}) < len(its)


def _of_runs(lines: Mapping[str, Collection[Run]]) -> list[str]:
    """What must be said of the number of runs: where there is no interval, and of what the others are."""
    alone = [name for name, runs in lines.items() if len(runs) == 1]
    which = "" if len(alone) == len(lines) else f" of {', '.join(alone)}"
    said = [f"one run{which}: no interval"] if alone else []
    if any(crossed(runs) for runs in lines.values()):
        said.append("intervals are over seeds, whose runs are averaged first: all splits of a seed share its original")
    if any(len(runs) > 1 and len({seed for seed, _ in runs}) == 1 for runs in lines.values()):
        said.append("splits of one seed: intervals are over forget sets, of this one original")
    return said


def _order(names: Mapping[str, str]) -> Callable[[Row], tuple[bool, str, str]]:
    return lambda row: (row["method"] not in CONTESTANTS, row["method"], names[row["id"]])


def _notes(rows: Sequence[Row], names: Mapping[str, str]) -> list[str]:
    """What the rows' remarks say: a line for each method and kind, with the number of runs and the first's reason."""
    counts = Counter(line for line, _ in {(names[row["id"]], (row["seed"], row["split"])) for row in rows})
    said: dict[tuple[str, str], dict[Run, str]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: (names[row["id"]], row["seed"], row["split"])):
        for kind, reason in (row.get("remarks") or {}).items():
            said[names[row["id"]], kind].setdefault((row["seed"], row["split"]), reason)
    return [
        f"{line}: {TITLES.get(kind, kind)} in {len(reasons)} of {counts[line]} runs ({next(iter(reasons.values()))})"
        for (line, kind), reasons in said.items()
    ]
