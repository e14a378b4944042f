"""Tables across the values of one key."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from test_table import cells, row, written

from scripts.table import table
from unlearn.settings import SettingError


def of_layers(layers: str, seed: int, forget: float, method: str = "finetune", **changes: Any) -> dict[str, Any]:
    return row(method, seed, forget, layers=layers, **({"id": f"{method}-{seed}-{layers}"} | changes))


@pytest.fixture
def files(tmp_path: Path) -> str:
    rows = [
        of_layers(layers, seed, forget + seed / 100)
        for layers, forget in (("last", 0.6), ("all", 0.5))
        for seed in (0, 1)
    ]
    rows.append(of_layers("all", 0, 0.9, "none"))
    return str(written(tmp_path, rows))


def test_a_column_for_each_value_and_a_table_for_each_metric(files: str) -> None:
    both = table([files, "--pivot", "layers", "--metrics", "forget_accuracy,seconds"])
    first, second = both.split("\n\nSeconds; ")
    assert first.splitlines()[0].startswith("Accuracy on the forget set; digits")
    assert "| model | layers=all | layers=last |" in first
    lines = cells(first)
    assert list(lines) == ["original", "retrained (reference)", "none", "finetune"]
    assert lines["finetune"] == ["0.505 ± 0.064", "0.605 ± 0.064"]  # half: 12.706 * 0.00707 / sqrt(2)
    assert lines["none"] == ["0.900", ""]
    assert first.endswith("\n\n- all: one run of none: no interval")
    assert cells("\n\n" + second)["finetune"] == ["2.00 ± 0.00", "2.00 ± 0.00"]


def test_values_that_are_numbers_are_in_their_order_and_leave_the_lines_names(tmp_path: Path) -> None:
    rows = []
    for rate in (0.1, 0.01, 1.0):
        its = row("finetune", 0, rate, id=f"{rate}")
        its["config"]["method"] |= {"lr": rate}
        rows.append(its)
    found = table([str(written(tmp_path, rows)), "--pivot", "method.lr", "--metrics", "forget_accuracy"])
    assert "| model | method.lr=0.01 | method.lr=0.1 | method.lr=1.0 |" in found
    assert cells(found)["finetune"] == ["0.010", "0.100", "1.000"]


def test_raw_numbers_have_a_line_a_cell(files: str) -> None:
    lines = list(
        csv.DictReader(io.StringIO(table([files, "--pivot", "layers", "--format", "csv", "--metrics", "seconds"])))
    )
    assert {(line["line"], line["value"]) for line in lines} >= {
        ("finetune", "all"),
        ("finetune", "last"),
        ("none", "all"),
    }
    assert ("none", "last") not in {(line["line"], line["value"]) for line in lines}
    assert all(line["metric"] == "seconds" and float(line["mean"]) == 2.0 for line in lines)


def test_what_cannot_be_set_side_by_side_is_refused(files: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--pivot=nosuch: must be one of dataset"):
        table([files, "--pivot", "nosuch"])
    with pytest.raises(SettingError, match="--pivot=dataset: must tell rows apart; all of them have digits"):
        table([files, "--pivot", "dataset"])
    with pytest.raises(SettingError, match="--pivot=layers: is for tables of ours"):
        table([files, "--pivot", "layers", "--best"])
    for words in ([], [str(written(tmp_path / "empty", []))]):
        with pytest.raises(SettingError, match="rows=none: at least one row file is needed"):
            table([*words, "--pivot", "layers"])
    users = [row("amun", seed, data=f"{seed}" * 64) for seed in (0, 1, 2)]
    for its, size in zip(users, (32, 32, 64), strict=True):
        its["config"]["dataset"] |= {"size": size, "path": "/one"}
    with pytest.raises(SettingError, match=r"rows with 32 are of several settings: data=000000000000; data=1111"):
        table([str(written(tmp_path / "users", users)), "--pivot", "dataset.size"])


def test_each_setting_is_a_table(files: str, tmp_path: Path) -> None:
    other = [of_layers(layers, seed, 0.25, id=f"{layers}{seed}") for layers in ("last", "all") for seed in (0, 1)]
    for its in other:
        its["config"]["train"] |= {"epochs": 7}
    files = str(written(Path(files) / "other", other).parent)
    found = table([files, "--pivot", "layers", "--metrics", "forget_accuracy"])
    names = "Accuracy on the forget set; digits · convnet · standard · random, 130 images forgotten"
    assert [line for line in found.splitlines() if line.startswith("Acc")] == [
        f"{names} (train.epochs=absent)", f"{names} (train.epochs=7)",
    ]  # fmt: skip
    assert cells(found.split("\n\nAcc")[1])["finetune"] == ["0.250 ± 0.000", "0.250 ± 0.000"]
    lines = csv.DictReader(io.StringIO(table([files, "--pivot", "layers", "--format", "csv"])))
    assert {line["setting"] for line in lines} == {"train.epochs=absent", "train.epochs=7"}


def test_a_key_of_the_setting_can_be_the_columns(tmp_path: Path) -> None:
    rows = [row(seed=seed, id=f"{seed}{epochs}") for epochs in (9, 10) for seed in (0, 1)]
    for its in rows:
        its["config"]["train"] |= {"epochs": int(its["id"][1:])}
    folder = str(written(tmp_path / "epochs", rows))
    found = table([folder, "--pivot", "train.epochs", "--metrics", "forget_accuracy"])
    assert "| model | train.epochs=9 | train.epochs=10 |" in found
    assert found.startswith("Accuracy on the forget set; digits · convnet · standard · random, 130 images forgotten\n")
    rows = [row(model=model) | {"forget": {"count": count, "sha256": "x"}} for model, count in (("a", 1), ("b", 2))]
    found = table([str(written(tmp_path / "models", rows)), "--pivot", "model", "--metrics", "forget_accuracy"])
    assert found.startswith("Accuracy on the forget set; digits · standard · random\n")
    assert "| model | model=a | model=b |" in found
