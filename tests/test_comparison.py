"""Our rows beside a paper's figures: what is compared with what, and what is said of the set-ups."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from test_table import row, written

from scripts.table import table as printed
from unlearn.report.comparison import HEAD, Comparison, compare, raw, tabled
from unlearn.settings import SettingError

OVER = ["forget_accuracy", "retain_accuracy", "test_accuracy", "mia_svc_confidence"]


def ours(method: str = "amun", seed: int = 0, forget: float = 0.95, **changes: Any) -> dict[str, Any]:
    """A row in AMUN's setting; only the unlearned model's accuracy on the forget set is given."""
    document = row(method, seed, forget, dataset="cifar10", model="resnet18")
    document["config"]["scenario"] |= {"fraction": 0.1}
    document["config"]["train"] |= {"epochs": 182, "batch_size": 128}
    document["config"]["auditor"] |= {"gap": {"metrics": OVER}}
    for its in document["metrics"].values():
        its |= {"average_gap": 0.01, "test_accuracy": 0.94}
    document["metrics"]["retrained"]["forget_accuracy"] = 0.945
    return document | changes


def one(rows: list[dict[str, Any]], address: str, columns: list[str] | None = None) -> Comparison:
    found = compare(rows, address, columns)
    assert len(found) == 1
    return found[0]


def test_the_part_of_our_share_stands_beside_our_rows() -> None:
    its = one([ours(seed=seed, forget=0.94 + seed / 100) for seed in range(3)], "amun/table10")
    assert its.part.address == "amun/table10/random10"
    cell = next(cell for cell in its.cells if (cell.line, cell.metric.name) == ("amun", "forget_accuracy"))
    assert cell.ours.n == 3
    assert cell.ours.mean == pytest.approx(0.95)
    assert cell.theirs.value == pytest.approx(0.9545)
    assert cell.difference == pytest.approx(-0.0045)
    assert cell.matches is True  # within our interval


def test_their_reference_stands_beside_ours_and_contestants_beside_nothing() -> None:
    rows = [ours(), ours("retrain"), ours("none"), ours("unsir")]
    for address in ("amun/table10", "amun/table2/random10"):
        cells = one(rows, address, ["forget_accuracy", "test_accuracy"]).cells
        assert list(dict.fromkeys(cell.line for cell in cells)) == [
            *("retrained (reference)", "none", "retrain", "amun"),
        ]
        assert {cell.line for cell in cells if cell.theirs is None} == {"none", "retrain"}
        assert [cell.metric.name for cell in cells if cell.line == "none"] == ["forget_accuracy", "test_accuracy"]


@pytest.mark.parametrize(("words", "figure"), [([], "95.00"), (["--relative"], "+0.50")])
def test_contestants_stand_beside_empty_cells_and_are_not_counted(
    words: list[str], figure: str, tmp_path: Path
) -> None:
    folder = str(written(tmp_path, [ours(method) for method in ("amun", "none", "retrain")]))
    given = [folder, "--published", "amun/table10", "--metrics", "forget_accuracy", *words]
    text = printed(given)
    assert f"| none | Accuracy on the forget set (%) | {figure} | 1 |  |  |  |" in text
    assert f"of {1 if words else 2} cells match" in text
    lines = list(csv.DictReader(io.StringIO(printed([*given, "--format", "csv"]))))
    assert [line["theirs"] for line in lines if line["line"] in ("none", "retrain")] == ["", ""]


def test_a_cell_outside_both_intervals_is_marked_and_matches_are_counted() -> None:
    its = one([ours(forget=0.5)], "amun/table10", ["forget_accuracy", "test_accuracy"])
    assert {cell.metric.name for cell in its.cells} == {"forget_accuracy", "test_accuracy"}
    matches = {(cell.line, cell.metric.name): cell.matches for cell in its.cells}
    assert matches["amun", "forget_accuracy"] is False
    assert matches["retrained (reference)", "forget_accuracy"] is True  # 94.5 and 94.49 +- 0.20
    assert its.counted == "1 of 4 cells match: one interval holds the other's mean"
    lines = tabled(its).lines
    assert ["amun", "Accuracy on the forget set (%)", "50.00", "1", "95.45 ± 0.19", "-45.45", "outside both"] in [
        [cell.text for cell in line] for line in lines
    ]


def test_what_has_no_interval_is_not_judged() -> None:
    its = one([ours("salun")], "salun/random10", ["forget_accuracy"])
    assert [cell.matches for cell in its.cells] == [None, None]
    assert its.cells[-1].theirs.value == pytest.approx(0.9715)  # UA is a complement
    assert its.counted == "0 of 0 cells match: one interval holds the other's mean; 2 not judged"
    assert {"theirs: recalled, unverified", "one run: no interval"} <= set(tabled(its).notes)


def test_average_gaps_are_compared_where_they_are_over_the_same_metrics() -> None:
    gap = {cell.line: cell for cell in one([ours()], "amun/table10").cells if cell.metric.name == "average_gap"}
    assert list(gap) == ["amun"]  # the reference's is nought by definition
    assert gap["amun"].theirs.value == pytest.approx(0.0059)
    other = one([ours()], "amun/table1")
    assert "average_gap" not in {cell.metric.name for cell in other.cells}
    assert any(note.startswith("Avg. Gap is not compared: theirs is over forget_accuracy, ") for note in other.notes)


def test_p_values_and_the_cost_of_the_original_are_not_compared() -> None:
    document = ours("random_label")
    for its in document["metrics"].values():
        its |= {"ks_pvalue": 0.0, "wasserstein": 0.1}
    cells = one([document], "sg_unlearn/notebook_cifar10").cells
    assert "ks_pvalue" not in {cell.metric.name for cell in cells}
    assert [cell.line for cell in cells if cell.metric.name == "wasserstein"] == [
        *("original", "retrained (reference)", "random_label"),
    ]
    assert [cell.line for cell in cells if cell.metric.name == "seconds"] == ["retrained (reference)", "random_label"]


def test_a_gap_with_a_sign_is_compared_without_it() -> None:
    document = ours()
    document["config"]["auditor"]["gap"]["metrics"] = [*OVER[:3], "rmia_auc"]
    document["config"]["scenario"]["fraction"] = 0.5
    gap = [cell for cell in one([document], "amun/table1").cells if cell.metric.name == "average_gap"]
    theirs = {cell.line: cell.theirs for cell in gap}
    assert theirs["amun"] is not None
    assert theirs["amun"].value == pytest.approx(0.00565)
    assert theirs["amun"].deviation is None
    its = one([document], "amun/table1")
    note = "amun, Avg. Gap: theirs recomputed without the sign; printed 0.33 ± 0.03, signed 0.29"
    assert [said for said in its.notes if "recomputed" in said] == [note]
    provenance = {line[9]: line[HEAD.index("provenance")] for line in raw(its) if line[8] == "amun"}
    assert provenance == {"forget_accuracy": "paper", "test_accuracy": "paper", "average_gap": "computed"}


def test_what_differs_in_the_set_up_is_listed() -> None:
    document = ours(model="fastnet", requests=3)
    document["config"]["method"]["retain"] = True
    notes = one([document], "amun/table2/random50").notes
    for note in (
        "model: ours fastnet, theirs resnet18",
        "fraction: ours 0.1, theirs 0.5",
        "requests: ours 3, theirs 1",
        "runs: ours 1, theirs 27 (three models, each with three forget sets, each three times)",
        "train.epochs: ours 182, theirs 200",
        "method amun: retain is True in ours, False in theirs",
    ):
        assert note in notes
    assert not any(note.startswith(("dataset:", "scenario:", "train.batch_size")) for note in notes)


def test_their_training_is_said_to_be_unknown_unless_the_recipe_has_it() -> None:
    assert "train: ours standard, theirs not said" in one([ours("salun")], "munba/table1/random10").notes
    assert not any(note.startswith("train: ") for note in one([ours()], "amun/table10").notes)


def test_what_is_said_of_the_whole_paper_stands_below_the_table() -> None:
    notes = tabled(one([ours("salun")], "munba/table1/random10")).notes
    assert (
        "The paper's text has not been read; a reader noted that figures changed between its versions on arXiv."
        in notes
    )
    notes = tabled(one([ours()], "amun/table10")).notes
    assert not any("13 of 13" in note for note in notes)
    assert "more of the paper in results/published/amun.yaml" in notes


def test_the_reason_is_said_where_nothing_is_left() -> None:
    with pytest.raises(SettingError, match=r"; Avg\. Gap is not compared: theirs is over forget_accuracy, "):
        compare([ours()], "amun/table1", ["average_gap"])


def test_all_formats_and_the_raw_numbers(tmp_path: Path) -> None:
    folder = str(written(tmp_path, [ours(seed=seed) for seed in (0, 1)]))
    words = [folder, "--published", "amun/table10", "--metrics", "forget_accuracy"]
    assert "| amun | FA (%) | 95.00 ± 0.00 | 2 | 95.45 ± 0.19 | -0.45 | outside both |" in printed(
        [*words, "--abbreviations"]
    )
    assert r"\begin{tabular}{llrrrrr}" in printed([*words, "--format", "latex"])
    assert "<td>amun</td>" in printed([*words, "--format", "html"])
    lines = list(csv.DictReader(io.StringIO(printed([*words, "--format", "csv"]))))
    assert [line["line"] for line in lines] == ["retrained (reference)", "amun"]
    assert float(lines[1]["ours"]) == 0.95
    assert float(lines[1]["theirs"]) == pytest.approx(0.9545)
    assert [lines[1][key] for key in ("ours_n", "match", "published", "provenance")] == [
        "2",
        "no",
        "amun/table10/random10",
        "paper",
    ]


@pytest.mark.parametrize(
    ("document", "address", "told"),
    [
        (ours(), "amun/table8", "must be one of amun/table8/with_retain_random10, "),
        (ours(config=row()["config"]), "amun/table1", "must be one of amun/table1/random10, amun/table1/random50"),
        (ours("unsir"), "munba/table1/random10", "has no cell that our rows have, too; its methods are salun, "),
        (ours(), "munba/replication_noisy_labels", "has no cell that our rows have, too; none of its methods is ours"),
        (ours(), "nobody/table1", "must be NAME/TABLE"),
    ],
)
def test_what_cannot_be_compared_is_refused(document: dict[str, Any], address: str, told: str) -> None:
    with pytest.raises(SettingError) as raised:
        compare([document], address)
    assert str(raised.value).partition(": ")[2].startswith(told)
    assert "\n" not in str(raised.value)


def test_relative_figures_are_distances_to_each_sides_own_retrained_model() -> None:
    rows = [ours(seed=seed, forget=0.94 + seed / 100) for seed in range(3)]
    (its,) = compare(rows, "amun/table10", relative=True)
    assert {cell.line for cell in its.cells} == {"amun"}  # the reference's distance is nought by definition
    cell = next(cell for cell in its.cells if cell.metric.name == "forget_accuracy")
    assert cell.ours.mean == pytest.approx(0.95 - 0.945)
    assert cell.ours.n == 3
    theirs = ((0.9545, 0.0019), (0.9449, 0.0020))  # AMUN and Retrain in table 10
    assert cell.theirs.value == pytest.approx(theirs[0][0] - theirs[1][0])
    assert cell.theirs.deviation == pytest.approx((theirs[0][1] ** 2 + theirs[1][1] ** 2) ** 0.5)
    shown = tabled(its)
    assert "every figure is the distance to its own retrained model" in shown.notes
    assert ["amun", "Accuracy on the forget set (%)", "+0.50 ± 2.48", "3", "+0.96 ± 0.28", "-0.46", ""] in [
        [cell.text for cell in line] for line in shown.lines
    ]


def test_a_table_without_a_retrained_model_has_no_distances() -> None:
    with pytest.raises(SettingError, match="--relative=munba/table1/random10: has no retrained model"):
        compare([ours("munba")], "munba/table1/random10", relative=True)


def test_the_order_of_methods_is_compared_from_four_methods_on() -> None:
    methods = {"amun": 0.91, "finetune": 0.92, "random_label": 0.93, "gradient_ascent": 0.95, "boundary_shrink": 0.94}
    rows = [ours(method, forget=forget) for method, forget in methods.items()]
    # Table 10 at 10 %: 95.45, 95.16, 99.22, 98.94, 99.14: ranks 2, 1, 5, 3, 4 beside ours 1, 2, 3, 5, 4
    said = one(rows, "amun/table10", ["forget_accuracy"]).orders
    assert said == ["Accuracy on the forget set: the order of 5 methods correlates at +0.50 (Spearman)"]
    assert one(rows[:3], "amun/table10", ["forget_accuracy"]).orders == []
