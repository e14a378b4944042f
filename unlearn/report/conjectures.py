"""Does a larger fairness gap go with a more fragile model, and do the last layers suffice? Answers from row files.

The two claims of Tran & Woo (WWW Companion 2025, arXiv:2504.13610) that our rows can test. Points of the first are
models: originals, retrained ones, and what each method made of an original with each choice of layers. The independent
unit is the run, a seed and a split: intervals resample runs, and differences are averaged within a run first.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlearn.metrics import Metric
from unlearn.report.rows import SETTING, Row, check_alike, declared, setting
from unlearn.report.terminal import number
from unlearn.settings import SettingError
from unlearn.statistics import mean, rank_correlation, spearman
from unlearn.streams import Streams

GAPS = ("fairness_gap_mean", "fairness_gap_max", "fairness_gap_last", "fairness_gap_relative")
ROBUST = "robust_accuracy_test_pgd_10_linf_1"
CLEAN = "test_accuracy"
COSTS = ("seconds", "peak_memory_bytes")
ACCURACIES = ("forget_accuracy", "retain_accuracy", "test_accuracy")
ENOUGH = 10  # runs to resample
RECOMMENDED = "intermediate+last"


class Point(NamedTuple):
    """One model: the run that it is of, the method that made it, with all its settings, and what was measured of it."""

    run: tuple[int, int]
    method: str
    settings: str
    layers: str
    metrics: Mapping[str, float | None]


def conjectures(rows: Sequence[Row], gaps: Sequence[str] = GAPS, robust: str = ROBUST) -> str:
    """Both answers as Markdown, for each architecture among the rows.

    Raises `SettingError` for no rows, for a metric that no auditor declares or no row has, and for a single run.
    """
    metrics = declared()
    if not rows:
        raise SettingError("rows", "none", "at least one row file is needed")
    for name in (*gaps, robust):
        if name not in metrics:
            raise SettingError("metric", name, "is declared by no auditor")
    architectures: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        architectures[setting(row)].append(row)
    return "\n\n".join(_of_one(group, gaps, robust, metrics) for group in architectures.values())


def points(rows: Sequence[Row]) -> list[Point]:
    """Every model of the rows of one setting, once.

    A model that its row calls identical to the original is the original; one that diverged has nothing to show.
    """
    found: dict[tuple[object, ...], Point] = {}
    for row in rows:
        run, layers = (row["seed"], row["split"]), str(row.get("layers", "all"))
        made = {role: (role, "", "all") for role in ("original", "retrained")}
        if "identical" not in row.get("remarks", {}):
            made["unlearned"] = (row["method"], json.dumps(row["config"]["method"], sort_keys=True), layers)
        for role, name in made.items():
            key = (role, run, *row["models"].get(role, []))
            measured = {**(found[key].metrics if key in found else {}), **row["metrics"][role]}
            if measured:
                found[key] = Point(run, *name, measured)
    return list(found.values())


def _of_one(rows: Sequence[Row], gaps: Sequence[str], robust: str, metrics: Mapping[str, Metric]) -> str:
    check_alike(rows)
    title = " · ".join(rows[0][group] for group in SETTING)
    made = points(rows)
    runs = {point.run for point in made}
    if len(runs) < 2:
        raise SettingError("rows", title, "must be of two runs (seeds or splits) at least, and are of one")
    for name in (*gaps, robust, CLEAN):
        if all(point.metrics.get(name) is None for point in made):
            known = {key for point in made for key in point.metrics if key in metrics}
            has = sorted(key for key in known if key.startswith(name.split("_")[0]))
            raise SettingError("metric", name, f"is in no row of {title}; they have {', '.join(has) or 'none like it'}")
    return "\n\n".join(
        [f"{title}, {len(runs)} runs", _gaps(made, gaps, robust, metrics), _layers(made, robust, metrics)]
    )


# Does a larger gap go with a more fragile model?


def _gaps(made: Sequence[Point], gaps: Sequence[str], robust: str, metrics: Mapping[str, Metric]) -> str:
    lines = [
        f"Spearman's rho with {metrics[robust].title[0].lower()}{metrics[robust].title[1:]}; [95 % interval over runs]",
        "",
        "| gap | rho | given test accuracy | runs with rho < 0 | larger gap, more fragile | models |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for gap in gaps:
        used = [point for point in made if all(point.metrics.get(name) is not None for name in (gap, robust, CLEAN))]
        gapped, held, clean = (np.array([p.metrics[name] for p in used], dtype=float) for name in (gap, robust, CLEAN))
        runs = np.unique([point.run for point in used], axis=0, return_inverse=True)[1].reshape(-1)
        whole = _correlation(gapped, held, (), runs, gap)
        partial = _correlation(gapped, held, (clean,), runs, gap)
        alone = [spearman(gapped[runs == run], held[runs == run]) for run in np.unique(runs)]
        below = f"{sum(rho < 0 for rho in alone)} of {len(alone)}"
        said = _agreement(whole, partial) if len(alone) >= ENOUGH else "undecided"
        cells = [metrics[gap].title, _with_interval(whole), _with_interval(partial), below, said]
        lines.append(f"| {' | '.join(cells)} | {len(used)} |")
    if len(np.unique([point.run for point in made], axis=0)) < ENOUGH:
        lines += ["", f"Intervals from fewer than {ENOUGH} runs are too narrow; only the signs of single runs remain."]
    return "\n".join(lines)


def _correlation(
    gap: NDArray[np.float64],
    held: NDArray[np.float64],
    controls: Sequence[NDArray[np.float64]],
    runs: NDArray[np.int64],
    name: str,
) -> dict[str, float]:
    generator = np.random.default_rng(Streams("conjectures").seed(name, len(controls)))
    return rank_correlation(gap, held, generator, "rho", controls, runs)


def _with_interval(rho: Mapping[str, float]) -> str:
    if not np.isfinite(rho["rho"]):
        return "not defined"
    ends = f" [{rho['rho_low']:.2f}, {rho['rho_high']:.2f}]" if "rho_low" in rho else ""
    return f"{rho['rho']:.2f}{ends}"


def _agreement(whole: Mapping[str, float], partial: Mapping[str, float]) -> str:
    """Whether the sign is the conjecture's: by the partial correlation, where accuracy does not explain it."""

    def sign(rho: Mapping[str, float]) -> str:
        if rho.get("rho_high", 0.0) < 0:
            return "yes"
        return "no" if rho.get("rho_low", 0.0) > 0 else "undecided"

    return f"{sign(whole)}; given accuracy: {sign(partial)}"


# Do the intermediate and last layers suffice?


def _layers(made: Sequence[Point], robust: str, metrics: Mapping[str, Metric]) -> str:
    columns = [name for name in (*ACCURACIES, robust, *COSTS) if any(name in point.metrics for point in made)]
    whole = {point[:3]: point for point in made if point.layers == "all"}
    pairs = [(point, whole[point[:3]]) for point in made if point.layers != "all" and point[:3] in whole]
    scopes = sorted({point.layers for point, _ in pairs}, key=lambda scope: (scope != RECOMMENDED, scope))
    if not pairs:
        return "No method has rows both with all layers and with some, so layers cannot be compared."
    lines = [
        "A method limited to some layers minus the same method with all: mean over runs ± half its 95 % interval",
        "",
        f"| layers | methods | {' | '.join(metrics[column].title for column in columns)} | runs |",
        f"|---|---|{'---:|' * (len(columns) + 1)}",
    ]
    for scope in scopes:
        of_scope = [pair for pair in pairs if pair[0].layers == scope]
        methods = sorted({point.method for point, _ in of_scope})
        for method in [None, *(methods if scope == RECOMMENDED else [])]:
            chosen = [pair for pair in of_scope if method in (None, pair[0].method)]
            cells = [_difference(chosen, column, metrics[column]) for column in columns]
            runs = len({point.run for point, _ in chosen})
            lines.append(f"| {scope} | {method or f'mean of {len(methods)}'} | {' | '.join(cells)} | {runs} |")
    return "\n".join(lines)


def _difference(pairs: Sequence[tuple[Point, Point]], column: str, metric: Metric) -> str:
    of_runs: dict[tuple[int, int], list[float]] = defaultdict(list)
    for part, whole in pairs:
        one, other = part.metrics.get(column), whole.metrics.get(column)
        if one is not None and other is not None:
            of_runs[part.run].append(one - other)
    if not of_runs:
        return ""
    known = mean(np.array([np.mean(its) for its in of_runs.values()]), "x")
    sign = "+" if known["x"] > 0 else ""
    half = f" ± {number(known['x_high'] - known['x'], metric)}" if "x_high" in known else ""
    return f"{sign}{number(known['x'], metric)}{half}"
