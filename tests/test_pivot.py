"""Tables across the values of one key."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from test_table import cells, row, written

from scripts.table import table
from unlearn.settings import SettingError


def of_layers(layers: str, seed: int, forget: float, method: str = "finetune") -> dict[str, Any]:
    return row(method, seed, forget, layers=layers, id=f"{method}-{seed}-{layers}")


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
    other = of_layers("last", 5, 0.5)
    other["config"]["train"] |= {"epochs": 7}
    mixed = str(written(tmp_path / "mixed", [of_layers("last", 0, 0.5), of_layers("all", 0, 0.5), other]))
    with pytest.raises(SettingError, match="rows with last are of several settings"):
        table([mixed, "--pivot", "layers"])
