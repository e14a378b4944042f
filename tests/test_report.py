"""The table at the end of a run: what its cells say, and what is left out."""

from typing import Any, Literal

import pytest

from unlearn.metrics import Metric
from unlearn.report.terminal import Progressing, difference, number, show, written

Unit = Literal["fraction", "number", "seconds", "bytes", "count", "verdict"]


def metric(unit: Unit = "fraction", name: str = "share", *, interval: bool = False) -> Metric:
    return Metric(name, f"The {name}", unit, "reference", "nobody", interval)


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("fraction", 0.98765, "0.988"),
        ("fraction", 1.0, "1.000"),
        ("number", -0.0004, "-0.000"),
        ("number", 12.3456, "12.346"),
        ("seconds", 0.129, "0.13"),
        ("seconds", 3600.0, "3600.00"),
        ("count", 1234567, "1,234,567"),
        ("count", 999, "999"),
        ("bytes", 3 * 2**20, "3 MiB"),
        ("bytes", 2**30, "1024 MiB"),
        ("verdict", 1.0, "yes"),
        ("verdict", 0.0, "no"),
    ],
)
def test_a_number_is_written_in_its_unit(unit: Unit, value: float, text: str) -> None:
    assert number(value, metric(unit)) == text


def test_a_value_is_written_with_its_interval() -> None:
    values = {"share": 0.5, "share_low": 0.25, "share_high": 0.8125}
    assert written(values, metric(interval=True)) == "0.500 [0.250, 0.812]"


@pytest.mark.parametrize(
    "values", [{"share": 0.5}, {"share": 0.5, "share_low": None, "share_high": None}, {"share": 0.5, "share_low": 0.1}]
)
def test_a_value_without_an_interval_is_written_alone(values: dict[str, Any]) -> None:
    assert written(values, metric()) == "0.500"


@pytest.mark.parametrize("values", [{}, {"share": None}, {"other": 1.0}])
def test_a_missing_value_is_an_empty_cell(values: dict[str, Any]) -> None:
    assert written(values, metric()) == ""


def test_nought_is_a_value() -> None:
    assert written({"share": 0.0}, metric()) == "0.000"
    assert difference(0.0, 0.0, metric()) == "+0.000"


@pytest.mark.parametrize(
    ("value", "reference", "text"),
    [(0.5, 0.25, "+0.250"), (0.25, 0.5, "-0.250"), (None, 0.5, ""), (0.5, None, ""), (None, None, "")],
)
def test_a_difference_has_a_sign(value: float | None, reference: float | None, text: str) -> None:
    assert difference(value, reference, metric()) == text


@pytest.mark.parametrize("unit", ["seconds", "bytes", "count", "verdict"])
def test_what_has_no_meaning_as_a_gap_has_none(unit: Unit) -> None:
    assert difference(3.0, 1.0, metric(unit)) == ""


def row(**metrics: dict[str, Any]) -> dict[str, Any]:
    names = {"dataset": "digits", "model": "convnet", "train": "standard", "scenario": "random", "method": "finetune"}
    roles = {"original": {}, "retrained": {}, "unlearned": {}}
    return names | {"seed": 3, "split": 4, "forget": {"count": 130}, "metrics": roles | metrics}


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The table's lines, each as its cells."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_the_table_sets_three_models_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    document = row(original={"share": 1.0}, retrained={"share": 0.75}, unlearned={"share": 0.5})
    show(document, {"share": ("accuracy", metric())})
    assert lines_of(capsys) == [["The share", "1.000", "0.750", "0.500", "-0.250"]]


def test_the_title_says_which_run_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show(row(original={"share": 1.0}), {"share": ("accuracy", metric())})
    title = capsys.readouterr().out.partition("┏")[0]
    assert (
        " ".join(title.split())
        == "digits · convnet · standard · random · finetune · seed 3 · split 4 · 130 images forgotten"
    )


def test_a_metric_that_nobody_has_takes_no_line_and_one_that_some_have_does(capsys: pytest.CaptureFixture[str]) -> None:
    document = row(original={"absent": None, "partly": 0.5}, unlearned={"partly": 0.25})
    metrics = {name: ("accuracy", metric(name=name)) for name in ("absent", "never", "partly")}
    show(document, metrics)
    assert lines_of(capsys) == [["The partly", "0.500", "", "0.250", ""]]


def test_noughts_take_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    nought = {"share": 0.0}
    show(row(original=nought, retrained=nought, unlearned=nought), {"share": ("accuracy", metric())})
    assert lines_of(capsys) == [["The share", "0.000", "0.000", "0.000", "+0.000"]]


def test_intervals_fit_their_cells(capsys: pytest.CaptureFixture[str]) -> None:
    share = metric(interval=True)
    values = {"share": 0.1234, "share_low": -0.1, "share_high": 0.9}
    show(row(original=values, retrained=values, unlearned=values), {"share": ("accuracy", share)})
    cell = "0.123 [-0.100, 0.900]"
    assert lines_of(capsys) == [["The share", cell, cell, cell, "+0.000"]]


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": number, "loss": 0.25, "seconds": 1.5}


def test_away_from_a_terminal_progress_is_plain_lines_and_the_last_epoch_is_always_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progressing(seconds_between_lines=1e6)
    progress.last = float("inf")  # the next line is never due
    for count in (1, 2, 3):
        progress("originals", epoch(count), 3)
    progress.close()
    captured = capsys.readouterr()
    assert captured.err == "originals: epoch 3/3, loss 0.2500, 1.5 s\n"
    assert captured.out == ""


def test_every_line_is_printed_when_all_are_due(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progressing(seconds_between_lines=0.0)
    for count in (1, 2, 3):
        progress("originals", epoch(count), 3)
    assert len(capsys.readouterr().err.splitlines()) == 3
