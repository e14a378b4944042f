"""Tables of rows: what is averaged with what, how many runs a number stands for, and what is refused."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

from scripts.table import main, table, updated
from unlearn.configuration import composed, jobs
from unlearn.lab import Lab
from unlearn.report.selection import of_jobs
from unlearn.report.table import markdown, read
from unlearn.report.table import table as as_table
from unlearn.row import GROUPS
from unlearn.row import row as made_row
from unlearn.settings import SettingError

COLUMNS = ["forget_accuracy", "loss_attack_passed", "seconds", "sample_gradients"]
ROLES = ("original", "retrained", "unlearned")


def row(method: str = "finetune", seed: int = 0, forget: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    """A row of one method and run; `forget` is the unlearned model's accuracy on the forget set."""
    names = {"dataset": "digits", "model": "convnet", "train": "standard", "scenario": "random", "method": method}
    metrics = {"forget_accuracy": 0.9, "loss_attack_passed": 1.0, "seconds": 2.0, "sample_gradients": 1234.0}
    config: dict[str, Any] = {group: {"_target_": name} for group, name in names.items()}
    config["dataset"]["root"] = f"/anywhere/{seed}"
    document = {
        "schema": 1,
        "id": f"{method}-{seed}",
        **names,
        "seed": seed,
        "split": seed,
        "requests": 1,
        "precision": "fp32",
        "layers": "all",
        "forget": {"count": 130, "sha256": f"of {seed}"},
        "config": config | {"auditor": {"accuracy": {"_target_": "accuracy"}}},
        "models": {"original": [f"o{seed}"], "retrained": [f"r{seed}"], "unlearned": [f"{method}{seed}"]},
        "metrics": {role: dict(metrics) for role in ROLES},
    }
    document["metrics"]["unlearned"]["forget_accuracy"] = forget
    return document | changes


def cells(table: str) -> dict[str, list[str]]:
    """The lines of a table of one setting: a model's name, its cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in lines[2:]}


def written(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, document in enumerate(rows):
        (folder / f"{number}.json").write_text(json.dumps(document))
    return folder


def refusal(rows: Sequence[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    with pytest.raises(SettingError) as raised:
        markdown(rows, columns)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Numbers


def test_a_cell_is_the_mean_with_scipys_t_interval() -> None:
    values = [0.5, 0.625, 0.9]
    rows = [row(seed=seed, forget=value) for seed, value in enumerate(values)]
    cell, *_, runs = cells(markdown(rows, COLUMNS))["finetune"]
    mean = sum(values) / 3
    error = (sum((value - mean) ** 2 for value in values) / 2 / 3) ** 0.5
    low, high = t.interval(0.95, 2, loc=mean, scale=error)
    assert cell == f"{mean:.3f} ± {(high - low) / 2:.3f}"
    assert runs == "3"


def test_one_seed_has_a_number_and_no_interval() -> None:
    assert cells(markdown([row()], COLUMNS))["finetune"] == ["0.500", "1 of 1", "2.00", "1,234", "1"]


def test_verdicts_are_counted_and_counts_have_no_interval() -> None:
    rows = [row(seed=seed) for seed in range(3)]
    rows[1]["metrics"]["unlearned"]["loss_attack_passed"] = 0.0
    assert cells(markdown(rows, COLUMNS))["finetune"][1:4] == ["2 of 3", "2.00 ± 0.00", "1,234"]


def test_a_cell_that_some_runs_lack_says_how_many_it_stands_for() -> None:
    rows = [row(seed=0, forget=0.25), row(seed=1, forget=None), row(seed=2, forget=0.75)]
    half = t.ppf(0.975, 1) * 0.25
    assert cells(markdown(rows, COLUMNS))["finetune"][0] == f"0.500 ± {half:.3f} (n = 2)"
    assert cells(markdown(rows[:2], COLUMNS))["finetune"][0] == "0.250 (n = 1)"
    assert cells(markdown(rows[1:2], COLUMNS))["finetune"][0] == ""


# Lines and tables


def test_lines_are_original_reference_contestants_and_methods() -> None:
    rows = [row(method, seed) for method in ("finetune", "retrain", "amun", "none") for seed in (0, 1)]
    lines = cells(markdown(rows, COLUMNS))
    assert list(lines) == ["original", "retrained (reference)", "none", "retrain", "amun", "finetune"]
    assert {line[-1] for line in lines.values()} == {"2"}


def test_settings_of_a_method_stand_on_lines_of_their_own() -> None:
    rows = [row(seed=seed, id=f"{lr}-{seed}") for lr in (0.1, 0.2) for seed in (0, 1)]
    for document in rows:
        document["config"]["method"] = {"lr": float(document["id"][:3])}
    rows.append(row(id="layers", layers="last"))
    rows[-1]["config"]["method"] = {"lr": 0.1}
    lines = cells(markdown(rows, COLUMNS))
    runs = {line: its[-1] for line, its in lines.items() if line.startswith("finetune")}
    assert runs == {"finetune (lr=0.1)": "2", "finetune (lr=0.2)": "2", "finetune (lr=0.1, layers=last)": "1"}


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"requests": 2}, {"model": "resnet18"}])
def test_other_settings_are_another_table(changes: dict[str, Any]) -> None:
    tables = markdown([row(), row(**changes)], COLUMNS).split("\n\n| model")
    assert len(tables) == 3


def test_other_settings_in_the_configuration_are_another_table_and_places_are_not() -> None:
    other = row(seed=1)
    assert markdown([row(), other], COLUMNS).count("| finetune") == 1
    other["config"]["train"]["epochs"] = 3
    assert markdown([row(), other], COLUMNS).count("| finetune") == 2


def heads(tables: str) -> list[str]:
    return [line for line in tables.splitlines() if line.startswith("digits ·")]


def test_tables_whose_names_coincide_are_told_apart_by_what_differs() -> None:
    rows = [row(), row(), row(precision="bf16"), row(model="resnet18")]
    for document, epochs in zip(rows, (99, 182, 99, 99), strict=True):
        document["config"]["train"] |= {"epochs": epochs, "lr": 0.1}
    names = "digits · convnet · standard · random, 130 images forgotten"
    assert heads(markdown(rows, COLUMNS)) == [
        f"{names} (precision=fp32, train.epochs=99)",
        f"{names} (precision=fp32, train.epochs=182)",
        f"{names} (precision=bf16, train.epochs=99)",
        names.replace("convnet", "resnet18"),
    ]
    lines = csv.DictReader(io.StringIO(as_table(rows, COLUMNS, "csv")))
    assert list(dict.fromkeys(line["setting"] for line in lines)) == [
        "precision=fp32, train.epochs=99", "precision=fp32, train.epochs=182", "precision=bf16, train.epochs=99", "",
    ]  # fmt: skip


def of_user(seed: int, path: str, data: str | None = None, sha256: str | None = None) -> dict[str, Any]:
    """A row of a user's own files, whose configuration has no hashes unless the user gives them."""
    document = row(seed=seed, **({} if data is None else {"data": data}))
    document["config"]["dataset"] |= {"path": path, "sha256": dict.fromkeys(("train_images", "test_images"), sha256)}
    return document


def test_two_data_sets_of_a_user_are_two_tables() -> None:
    first, second = "a" * 64, "b" * 64
    assert markdown([of_user(0, "/one", first), of_user(1, "/moved", first)], COLUMNS).count("| finetune") == 1
    apart = markdown([of_user(0, "/one", first), of_user(1, "/one", second)], COLUMNS)
    names = "digits · convnet · standard · random, 130 images forgotten"
    assert heads(apart) == [f"{names} (data=aaaaaaaaaaaa)", f"{names} (data=bbbbbbbbbbbb)"]
    old = markdown([of_user(0, "/one"), of_user(1, "/two")], COLUMNS)  # rows from before content was in them
    assert heads(old) == [f"{names} (data=/one)", f"{names} (data=/two)"]


def test_the_hashes_of_a_known_data_set_say_what_it_is() -> None:
    rows = [row(seed=0), row(seed=1, data="a" * 64)]
    for document in rows:
        document["config"]["dataset"]["sha256"] = {"train_images": "c" * 64}
    assert markdown(rows, COLUMNS).count("| finetune") == 1
    rows[1]["config"]["dataset"]["sha256"] = {"train_images": "d" * 64}
    assert markdown(rows, COLUMNS).count("| finetune") == 2


def test_a_row_has_the_content_of_its_data(lab: Callable[..., Lab]) -> None:
    made = lab()
    document, _ = made_row(made, {group: group for group in GROUPS}, [])
    assert document["data"] == made.data.content


# Seeds and splits


def of_splits(seeds: int, splits: int) -> list[dict[str, Any]]:
    rows = []
    for seed in range(seeds):
        for split in range(splits):
            its = row(seed=seed, split=split, id=f"{seed}-{split}", forget=0.5 + seed / 10 + split / 100)
            rows.append(its | {"forget": {"count": 130, "sha256": f"of {split}"}})
            its["models"]["retrained"] = [f"r{seed}{split}"]
    return rows


def test_the_splits_of_a_seed_are_averaged_before_the_interval() -> None:
    text = markdown(of_splits(3, 3), COLUMNS)
    half = t.ppf(0.975, 2) * 0.1 / 3**0.5  # of 0.51, 0.61 and 0.71
    assert cells(text)["finetune"][0] == f"0.610 ± {half:.3f}"
    assert cells(text)["finetune"][1] == "9 of 9"
    assert cells(text)["finetune"][-1] == "9"
    assert text.endswith(
        "\n- intervals are over seeds, whose runs are averaged first: all splits of a seed share its original"
    )


def test_several_splits_of_one_seed_are_runs() -> None:
    text = markdown(of_splits(1, 3), COLUMNS)
    assert cells(text)["finetune"][0] == f"0.510 ± {t.ppf(0.975, 2) * 0.01 / 3**0.5:.3f}"
    assert "intervals are over seeds" not in text
    assert "- splits of one seed: intervals are over forget sets, of this one original" in text
    assert "splits of one seed" not in markdown(of_splits(3, 1), COLUMNS)


def test_what_other_auditors_measured_of_the_same_model_is_joined() -> None:
    less, more = row("none"), row("retrain")
    for role in ROLES:
        del less["metrics"][role]["seconds"]
    for rows in ([less, more], [more, less]):
        lines = cells(markdown(rows, COLUMNS))
        assert lines["original"] == ["0.900", "1 of 1", "2.00", "1,234", "1"]
        assert lines["none"][2] == ""


# Refusals


def test_no_rows_and_no_such_column_are_refused(tmp_path: Path) -> None:
    assert refusal([]).startswith("rows=none: at least one")
    assert refusal(read([tmp_path])).startswith("rows=none: at least one")
    assert refusal([row()], ["nope"]).startswith("column=nope: must be one of average_gap")


def test_two_models_of_the_same_run_are_refused() -> None:
    other = row(id="again")
    other["models"]["unlearned"] = ["made otherwise"]
    assert "repeats finetune, seed 0, split 0" in refusal([row(), other])


def test_a_model_that_was_audited_twice_is_one_run(tmp_path: Path) -> None:
    more = row(id="again", remarks={"identical": "the same"})
    more["metrics"]["unlearned"] = {"forget_accuracy": 0.5, "ks_statistic": 0.25}
    first = row(remarks={"identical": "the same"})
    text = markdown([first, more], ["forget_accuracy", "ks_statistic", "sample_gradients"])
    assert cells(text)["finetune"] == ["0.500", "0.250", "1,234", "1"]
    assert "identical to the original in 1 of 1 runs (the same)" in text
    more["metrics"]["unlearned"]["forget_accuracy"] = 0.4
    assert "another forget_accuracy of the unlearned model" in refusal([first, more])


def mixed(**changes: Any) -> list[dict[str, Any]]:
    return [row(), row(seed=1, forget=0.9) | changes]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row("none"), row("amun", models=row(seed=1)["models"])], "another original model"),
        ([row("none"), row("amun", models=row()["models"] | {"retrained": ["r"]})], "another retrained model"),
        ([row("none"), row("amun") | {"forget": {"count": 99, "sha256": "of others"}}], "another forget set"),
        (mixed(config=row()["config"] | {"auditor": {"accuracy": {"clip": 2}}}), "another setting of auditor accuracy"),
        (mixed(forget={"count": 99, "sha256": "of 1"}), "another number of images to forget"),
        ([of_user(0, "/", "a", "c"), of_user(1, "/", "b", "c")], "another data set"),
        ([row("none"), row("amun", metrics={role: {"forget_accuracy": 0.8} for role in ROLES})], "another forget_acc"),
    ],
)
def test_rows_of_other_recipes_are_never_averaged(rows: list[dict[str, Any]], told: str) -> None:
    assert told in refusal(rows)


# Files


def damaged(path: str, *value: object) -> str:
    """A row's text with another value at a dotted path, or with nothing there."""
    document: dict[str, Any] = row()
    inner, (*above, last) = document, path.split(".")
    for key in above:
        inner = inner[key]
    inner.pop(last)
    inner |= dict.fromkeys([last][: len(value)], *value)
    return json.dumps(document)


def test_rows_of_several_folders_and_files_are_read_once_each(tmp_path: Path) -> None:
    one = written(tmp_path / "one", [row(seed=0), row(seed=1)])
    two = written(tmp_path / "two" / "below", [row(seed=1), row(seed=2)])
    rows = read([one, tmp_path / "two", two / "0.json", one])
    assert [document["seed"] for document in rows] == [0, 1, 2]
    assert cells(markdown(rows, COLUMNS))["finetune"][-1] == "3"


def test_rows_are_read_from_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "rows" / "0123456789ab"
    folder.mkdir(parents=True)
    for name, content in (("row", row()), ("recipe", {"dataset": "digits"}), ("done", {"row.json": "sha"})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    assert read([tmp_path / "rows"]) == [row()]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "must be a row file"),
        ("[1, 2]", "must be a row file"),
        ("{}", "must be a row file"),
        ('{"schema": 1}', "has no id"),
        ('{"schema": 2}', "has schema 2; this version reads 1"),
        (json.dumps({key: value for key, value in row().items() if key != "metrics"}), "has no metrics"),
        (damaged("config.train"), "has no config.train"),
        (damaged("config", []), "has no config"),
        (damaged("metrics.unlearned", None), "has no metrics.unlearned"),
        (damaged("metrics.original.seconds", "2.0"), "its metrics.original.seconds is '2.0', which is no number"),
        (damaged("metrics.unlearned.forget_accuracy", float("nan")), "forget_accuracy is nan, which is no number"),
        (damaged("forget.count"), "has no forget.count"),
        (damaged("models.original"), "has no models.original"),
        (damaged("seed", [0]), "its seed is [0]"),
    ],
)
def test_what_is_no_row_is_named(content: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_text(content)
    with pytest.raises(SettingError) as raised:
        read([tmp_path])
    assert str(raised.value).startswith(f"row={file}: ")
    assert told in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"absent\.json: must be a row file"):
        read([tmp_path / "absent.json"])


# Pages


def test_blocks_are_made_anew_and_the_rest_stays(tmp_path: Path) -> None:
    folder = written(tmp_path / "rows", [row()])
    block = f"<!-- table {folder} --columns forget_accuracy -->\n{{}}<!-- end -->"
    page = f"before\n{block}\nbetween \\1\n{block}\nafter <!-- end -->\n"
    table = markdown([row()], ["forget_accuracy"]) + "\n"
    once = updated(page.format("old\n", ""))
    assert once == page.format(table, table)
    assert updated(once) == once
    assert updated("no table\n") == "no table\n"


def test_a_block_without_an_end_takes_no_other_with_it(tmp_path: Path) -> None:
    folder = written(tmp_path / "rows", [row()])
    block = f"<!-- table {folder} -->\n"
    for page in (block, f"{block}text\n{block}old\n<!-- end -->\n", f"<!-- table {folder} --> \n<!-- end -->\n"):
        with pytest.raises(SettingError, match="table block"):
            updated(page)


def test_update_rewrites_files_and_a_fault_leaves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "rows", [row()])
    page = tmp_path / "page.md"
    page.write_text(f"<!-- table {folder} -->\n<!-- end -->\n")
    monkeypatch.setattr("sys.argv", ["table.py", "--update", str(page)])
    main()
    text = page.read_text()
    assert "| finetune | 0.500 |" in text
    (folder / "0.json").write_text("{}")
    with pytest.raises(SystemExit, match="error: row="):
        main()
    assert page.read_text() == text


def test_costs_of_one_model_may_differ_between_stores() -> None:
    rows = [row("none"), row("amun", metrics={role: {"seconds": 3.0, "time_ratio": 0.5} for role in ROLES})]
    rows[0]["metrics"]["original"]["time_ratio"] = 0.25
    assert cells(markdown(rows, ["seconds", "time_ratio"]))["original"] == ["3.00", "0.500", "1"]


# Remarks


def test_a_row_whose_method_diverged_keeps_its_place_and_says_why() -> None:
    bad = row(seed=1, remarks={"diverged": "the loss is nan in epoch 3"})
    bad["metrics"]["unlearned"] = {}
    same = [row("none", seed, remarks={"identical": f"bits of {seed}"}) for seed in (0, 1)]
    text = markdown([row(seed=0, forget=0.25), bad, *same], COLUMNS)
    lines = cells(text)
    assert lines["finetune"][0] == "0.250 (n = 1)"
    assert lines["finetune"][-1] == "2"
    assert text.endswith(
        "\n\n- finetune: diverged in 1 of 2 runs (the loss is nan in epoch 3)"
        "\n- none: identical to the original in 2 of 2 runs (bits of 0)"
    )


def test_rows_without_remarks_have_no_line_below_their_table() -> None:
    rows = [its for seed in (0, 1) for its in (row(seed=seed), row("none", seed, remarks={}))]
    assert markdown(rows, COLUMNS).splitlines()[-1].startswith("| finetune |")


def test_one_run_is_said_below_the_table() -> None:
    assert markdown([row()], COLUMNS).endswith("\n\n- one run: no interval")
    rows = [row("none", 0), row("none", 1), row("amun")]
    assert markdown(rows, COLUMNS).endswith("\n\n- one run of amun: no interval")
    assert as_table(rows, COLUMNS, "markdown", mark_best=True).endswith("\n- nothing is bold: there are not two methods"
                                                                        " to compare")  # fmt: skip
    told = as_table([*rows, row("finetune", 1)], COLUMNS, "markdown", mark_best=True)
    assert told.endswith("\n- nothing is bold: one run does not tell a difference from chance")
    told = as_table([row(m, s) for m in ("amun", "ssd") for s in (0, 1)], COLUMNS, "markdown", mark_best=True)
    assert told.endswith("\n- nothing is bold: no method is significantly better than the second best")


def of_sweep(seed: int, *words: str) -> dict[str, Any]:
    """A row of a job of `sweep=digits_audits`, or with these words of another."""
    document = row("sg_unlearn", seed, split=0)
    config, _ = composed(["sweep=digits_audits", "method=finetune", f"seed={seed}", *words])
    return document | {"config": config, "method": "finetune", "id": f"{seed}{words}", "split": config["split"]}


def test_the_rows_of_a_sweep_are_those_that_its_jobs_make(tmp_path: Path) -> None:
    files = written(tmp_path, [of_sweep(0), of_sweep(1), of_sweep(2, "train.epochs=3"), of_sweep(7), row("none", 0)])
    found = of_jobs(read([files]), (composed(words)[0] for words in jobs(["sweep=digits_audits"])))
    assert sorted(its["seed"] for its in found) == [0, 1]
    assert "| finetune | 0.500" in table([str(files), "--sweep", "digits_audits"])


def test_a_sweep_without_a_row_and_one_that_there_is_not(tmp_path: Path) -> None:
    files = str(written(tmp_path, [row("none", 0)]))
    with pytest.raises(SettingError, match="--sweep=digits_audits: has no row among these"):
        table([files, "--sweep", "digits_audits"])
    with pytest.raises(SettingError, match="nosuch"):
        table([files, "--sweep", "nosuch"])
    with pytest.raises(SettingError, match="--relative=true: is for --published"):
        table([files, "--relative"])
