"""The conjectures of fairness and robustness, on made-up rows whose answers are known."""

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr, t

from scripts.conjectures import answers, main
from unlearn.lab import Lab
from unlearn.report.conjectures import GAPS, ROBUST, conjectures, points
from unlearn.row import row as row_of
from unlearn.settings import SettingError
from unlearn.statistics import rank_correlation, spearman

METHODS = ("finetune", "scrub", "salun", "random_label")
SCOPES = ("all", "intermediate+last", "first")


def measured(gap: float, robust: float, clean: float = 0.9, **others: float) -> dict[str, float]:
    gaps = dict(zip(GAPS, (gap, 2 * gap, -gap, 1.0), strict=True))  # the last two turned and constant
    costs = {"seconds": 10.0, "peak_memory_bytes": 2.0**30}
    accuracies = {"forget_accuracy": 0.8, "retain_accuracy": 0.95, "test_accuracy": clean}
    return gaps | {ROBUST: robust} | costs | accuracies | others


def row(method: str, seed: int, layers: str, metrics: dict[str, Any], **changes: Any) -> dict[str, Any]:
    names = {"dataset": "digits", "model": "resnet20", "train": "fast", "scenario": "random", "method": method}
    return {
        "schema": 1,
        "id": f"{method}-{seed}-{layers}",
        **names,
        "seed": seed,
        "split": seed,
        "requests": 1,
        "precision": "fp32",
        "layers": layers,
        "forget": {"count": 130, "sha256": f"of {seed}"},
        "config": {group: {"_target_": name} for group, name in names.items()} | {"auditor": {}},
        "remarks": {},
        "models": {"original": [f"o{seed}"], "retrained": [f"r{seed}"], "unlearned": [f"{method}{seed}{layers}"]},
        "metrics": {
            "original": measured(0.1 + seed / 100, 0.60 - seed / 100),
            "retrained": measured(0.2 + seed / 100, 0.59 - seed / 100),
            "unlearned": metrics,
        },
    } | changes


def falling(seeds: Sequence[int] = (0, 1, 2), sign: float = -1.0) -> list[dict[str, Any]]:
    """Within each run and between runs, robustness falls as the gap grows."""
    return [
        row(method, seed, layers, measured(gap := 0.3 + m / 10 + s / 37 + seed / 100, 0.5 + sign * gap / 5))
        for m, method in enumerate(METHODS)
        for s, layers in enumerate(SCOPES)
        for seed in seeds
    ]


def asked(rows: Sequence[dict[str, Any]]) -> str:
    """The answers on one gap, which is quicker."""
    return conjectures(rows, GAPS[:1])


def cells(text: str, beginning: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {beginning} |")]
    assert len(lines) == 1, text
    return [cell.strip() for cell in lines[0].strip("|").split("|")][1:]


MEAN, LARGEST, LAST, RELATIVE = (
    "Fairness gap: mean over norm layers",
    "Fairness gap: the largest of a norm layer",
    "Fairness gap: last norm layer",
    "Fairness gap: share of the classes' mean spread, mean over norm layers",
)


# Correlations


def test_a_planted_correlation_is_found_with_its_sign() -> None:
    text = conjectures(falling(range(10)))
    models = str(10 * (2 + len(METHODS) * len(SCOPES)))
    assert cells(text, MEAN) == [
        "-1.00 [-1.00, -1.00]",
        "-1.00 [-1.00, -1.00]",
        "10 of 10",
        "yes; given accuracy: yes",
        models,
    ]
    assert cells(text, LARGEST)[0] == "-1.00 [-1.00, -1.00]"
    assert cells(text, LAST)[::3] == ["1.00 [1.00, 1.00]", "no; given accuracy: no"]
    assert cells(text, RELATIVE)[:4] == [
        "not defined",
        "not defined",
        "0 of 10",
        "undecided; given accuracy: undecided",
    ]
    assert "digits · resnet20 · fast · random, 10 runs" in text
    assert "too narrow" not in text


def test_few_runs_decide_nothing() -> None:
    text = asked(falling(range(9)))
    assert cells(text, MEAN)[:4] == ["-1.00 [-1.00, -1.00]", "-1.00 [-1.00, -1.00]", "9 of 9", "undecided"]
    assert "Intervals from fewer than 10 runs are too narrow" in text


def test_the_numbers_are_scipys() -> None:
    draw = np.random.default_rng(0)
    rows = [row(method, seed, "all", measured(*draw.uniform(0, 1, 3))) for method in METHODS for seed in range(4)]
    every = points(rows)
    gap, robust, clean = (np.array([p.metrics[name] for p in every]) for name in (GAPS[0], ROBUST, "test_accuracy"))
    ranks = np.corrcoef([rankdata(values) for values in (gap, robust, clean)])
    xy, xz, yz = ranks[0, 1], ranks[0, 2], ranks[1, 2]
    partial = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    rho, given, below, *_ = cells(asked(rows), MEAN)
    assert rho.split()[0] == f"{spearmanr(gap, robust).statistic:.2f}"
    assert given.split()[0] == f"{partial:.2f}"
    alone = [
        spearmanr(*np.array([(p.metrics[GAPS[0]], p.metrics[ROBUST]) for p in every if p.run[0] == seed]).T).statistic
        for seed in range(4)
    ]
    assert below == f"{sum(rho < 0 for rho in alone)} of 4"


def test_a_correlation_that_damage_explains_is_gone_given_accuracy() -> None:
    # Both follow accuracy, each with noise of its own
    draw, rows = np.random.default_rng(1), []
    for seed in range(12):
        for method in METHODS:
            clean = draw.uniform(0.2, 0.9)
            rows.append(
                row(
                    method,
                    seed,
                    "all",
                    measured(1 - clean + draw.normal(0, 0.05), clean / 2 + draw.normal(0, 0.03), clean),
                )
            )
    for its in rows:
        for role in ("original", "retrained"):
            its["metrics"][role] = {}
    assert cells(asked(rows), MEAN)[3] == "yes; given accuracy: undecided"


def test_every_model_is_one_point() -> None:
    rows = falling((0, 1))
    copy = row("none", 0, "all", measured(0.1, 0.6), remarks={"identical": "every weight"})
    ruined = row("scrub", 1, "head", {}, models={"original": ["o1"], "retrained": ["r1"]})
    assert len(points([*rows, copy, ruined])) == len(points(rows)) == 2 * (2 + 12)
    independent = row("retrain", 0, "all", measured(0.1, 0.6))
    assert len(points([*rows, independent])) == len(points(rows)) + 1
    # Two rows of one model with other auditors
    parts = [row("amun", 0, "all", {name: 0.5}, id=name) for name in ("test_accuracy", ROBUST)]
    (joined,) = [point for point in points(parts) if point.method == "amun"]
    assert joined.metrics == {"test_accuracy": 0.5, ROBUST: 0.5}


def test_models_that_lack_a_number_are_left_out_and_counted() -> None:
    rows = falling()
    del rows[0]["metrics"]["unlearned"][ROBUST]
    rows[1]["metrics"]["unlearned"][GAPS[0]] = None
    assert [cells(conjectures(rows, GAPS[:2]), name)[-1] for name in (MEAN, LARGEST)] == ["40", "41"]


def test_architectures_stand_apart() -> None:
    other = falling(range(10), sign=1.0)
    for its in other:
        its["model"] = "vit_micro"
        its["config"] = its["config"] | {"model": {"_target_": "vit_micro"}}
    first, second = asked([*falling(), *other]).split("digits · vit_micro")
    assert cells(first, MEAN)[0].startswith("-1.00")
    assert cells(second, MEAN)[3].startswith("no")  # but for the originals and the retrained


# The bootstrap over runs


def test_whole_runs_are_resampled() -> None:
    # Ten runs of twenty points each that say all the same: as many points as make the plain interval narrow
    draw = np.random.default_rng(2)
    centres = draw.normal(0, 1, (10, 2))
    first, second = (centres[:, [side]] + draw.normal(0, 0.01, (10, 20)) for side in (0, 1))
    clusters = np.repeat([f"run {number}" for number in range(10)], 20)
    flat = (first.ravel(), second.ravel(), np.random.default_rng(0))
    alone, together = rank_correlation(*flat, "x"), rank_correlation(*flat, "x", clusters=clusters)
    assert alone["x"] == together["x"] == pytest.approx(spearman(*flat[:2]))
    assert together["x_high"] - together["x_low"] > 3 * (alone["x_high"] - alone["x_low"])


def test_runs_of_one_point_each_are_points() -> None:
    draw = np.random.default_rng(3)
    first, second, control = draw.normal(0, 1, (3, 15))
    plain, clustered = (
        rank_correlation(first, second, np.random.default_rng(0), "x", [control], clusters)
        for clusters in (None, np.arange(15))
    )
    assert plain == clustered


# Layers


def test_layers_are_compared_with_all_within_a_method_and_a_run() -> None:
    rows = []
    for seed in range(3):
        for method, level in (("finetune", 0.9), ("scrub", 0.7)):
            lost = (0.01 if method == "finetune" else 0.03) + seed / 100
            rows.append(row(method, seed, "all", measured(0.1, 0.5, level, seconds=10.0)))
            limited = measured(0.1, 0.4, level - lost, seconds=6.0 - seed, peak_memory_bytes=2.0**29)
            rows.append(row(method, seed, "intermediate+last", limited))
    lines = [line.split("|") for line in asked(rows).splitlines() if line.startswith("| intermediate+last")]
    values = {line[2].strip(): [cell.strip() for cell in line[3:-1]] for line in lines}
    half = t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert values["mean of 2"] == [
        "0.000 ± 0.000", "0.000 ± 0.000", f"-0.030 ± {half:.3f}", "-0.100 ± 0.000", f"-5.00 ± {100 * half:.2f}",
        "-512 MiB ± 0 MiB", "3",
    ]  # fmt: skip
    assert values["finetune"][2] == f"-0.020 ± {half:.3f}"
    assert values["scrub"][2] == f"-0.040 ± {half:.3f}"


def test_settings_of_a_method_are_compared_with_their_own_and_what_has_no_partner_is_not() -> None:
    rows = [
        row("finetune", seed, layers, measured(0.1, 0.5 + lr + (layers == "last") / 10), id=f"{seed}{layers}{lr}")
        for seed in (0, 1) for layers in ("all", "last") for lr in (0.1, 0.2)
    ]  # fmt: skip
    for its in rows:
        its["config"] = its["config"] | {"method": {"lr": float(its["id"][-3:])}}
        its["models"] = its["models"] | {"unlearned": [its["id"]]}
    rows.append(row("scrub", 0, "last", measured(0.1, 0.9)))
    assert cells(asked(rows), "last")[:1] + cells(asked(rows), "last")[4:5] == [
        "mean of 1",
        "+0.100 ± 0.000",
    ]
    without = [its for its in rows if its["layers"] == "all"]
    assert "layers cannot be compared" in asked(without)


# Refusals


def refusal(rows: Sequence[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(SettingError) as raised:
        conjectures(rows, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_answered_is_refused_in_one_line() -> None:
    assert refusal([]) == "rows=none: at least one row file is needed"
    assert "must be of two runs (seeds or splits) at least, and are of one" in refusal(falling((1,)))
    assert refusal(falling(), gaps=["nope"]) == "metric=nope: is declared by no auditor"
    lacking = falling()
    for its in lacking:
        for metrics in its["metrics"].values():
            del metrics[GAPS[1]]
    assert "they have fairness_gap_last, fairness_gap_mean, fairness_gap_relative" in refusal(lacking)
    assert f"metric={GAPS[1]}: is in no row of digits" in refusal(lacking)
    assert "accuracy on the retained training set" in conjectures(lacking, GAPS[:1], "retain_accuracy")


def test_rows_that_do_not_belong_together_are_refused() -> None:
    rows = falling()
    rows[0]["models"]["original"] = ["another"]
    assert "another original model" in refusal(rows)


# The sweep whose rows they are for


@pytest.mark.parametrize("model", ["resnet", "vit"])
def test_methods_of_the_sweep_are_limited_to_layers_and_the_second_command_has_no_limit(
    model: str, lab: Callable[..., Lab]
) -> None:
    words = ("sweep=fairness_robustness_small", f"experiment=fairness_digits_{model}", "seed=1")
    opened = lab(*words, "method=salun", "layers=intermediate+last")
    assert (opened.layers, opened.split) == ("intermediate+last", 1)
    assert {"fairness_gap", "robustness"} < set(opened.auditors)
    assert lab(*words, "method=retrain", "layers=all").method.func.__name__ == "retrain"
    with pytest.raises(SettingError, match="layers=head: must be all"):
        lab(*words, "method=retrain", "layers=head")


def test_rows_of_the_program_are_answered_from(compose: Callable[[list[str]], Any]) -> None:
    rows = []
    quick = ["method.epochs=1", "train.epochs=1", "auditor=[accuracy,cost,fairness_gap]", "objective=test_accuracy"]
    for seed, layers in product((0, 1), ("all", "last")):
        words = [*quick, f"seed={seed}", f"split={seed}", f"layers={layers}"]
        settings, choices = compose(words)
        rows.append(row_of(Lab(settings), choices, words)[0])
    text = conjectures(rows, GAPS[:1], "validation_accuracy")
    assert cells(text, MEAN)[-1] == "8"
    assert cells(text, "last")[-1] == "2"


# The command


def test_a_block_of_a_page_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, its in enumerate(falling()):
        (folder / f"{number}.json").write_text(json.dumps(its))
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- conjectures {folder} --gaps {GAPS[0]} -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr("sys.argv", ["conjectures.py", "--update", str(page)])
    main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert answers([str(folder), "--gaps", GAPS[0]]) in text
    assert LARGEST not in text
    monkeypatch.setattr("sys.argv", ["conjectures.py", str(tmp_path / "absent.json")])
    with pytest.raises(SystemExit, match="error: row="):
        main()


def test_the_answers_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, its in enumerate(falling()):
        (tmp_path / f"{number}.json").write_text(json.dumps(its))
    monkeypatch.setattr("sys.argv", ["conjectures.py", str(tmp_path), "--gaps", GAPS[0]])
    main()
    assert capsys.readouterr().out == asked(falling()) + "\n"
    monkeypatch.setattr("sys.argv", ["conjectures.py"])
    with pytest.raises(SystemExit, match="error: rows=none"):
        main()
