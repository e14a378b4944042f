"""The papers' figures: where each comes from, what it may be, and whether a paper's own arithmetic holds."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from laws import ROOT, stems

from unlearn.report.published import (
    PUBLISHED,
    Cell,
    Column,
    Part,
    find,
    gaps,
    in_our_units,
    paper,
    papers,
    reference,
)
from unlearn.report.table import declared
from unlearn.settings import SettingError

PARTS = [part for name in papers() for part in paper(name).parts.values()]
ROWS = [(part, method) for part in PARTS for method in part.rows]
CHECKED = [(part, method) for part, method in ROWS if gaps(part, method)]


def name(row: tuple[Part, str]) -> str:
    return f"{row[0].address}/{row[1]}"


def test_the_papers_are_there() -> None:
    assert papers() == sorted(file.stem for file in (ROOT / "results" / "published").iterdir())
    assert {"amun", "munba", "salun", "sg_unlearn"} <= set(papers())
    assert {f"table{number}" for number in range(1, 12)} <= {part.table for part in PARTS if part.paper == "amun"}


@pytest.mark.parametrize("which", papers())
def test_a_paper_names_its_sources_and_authors(which: str) -> None:
    its = paper(which)
    assert its.sources
    assert its.authors
    assert 2015 < its.year < 2030
    text = (PUBLISHED / f"{which}.yaml").read_text()
    assert text.isascii()
    assert "null" not in text, "what is not known is absent"


def test_recalled_figures_say_that_they_are_unverified() -> None:
    for which in {part.paper for part in PARTS if part.provenance == "recalled"}:
        assert "nverified" in " ".join(paper(which).notes)


def test_what_is_ours_is_a_method_here_and_what_is_not_says_so() -> None:
    methods = set(stems("method"))
    for which in papers():
        for key, method in paper(which).methods.items():
            assert method.ours == (key in methods), f"{which}: {key}"


def test_every_method_and_column_of_a_paper_is_used() -> None:
    for which in papers():
        rows = [row for part in paper(which).parts.values() for row in part.rows]
        assert set(paper(which).methods) == set(rows), which
    for part in PARTS:
        used = {column for cells in part.rows.values() for column in cells}
        if part.provenance != "second_hand":
            assert used == set(part.columns), part.address


def test_metrics_are_ours_and_in_units_that_fit() -> None:
    for part in PARTS:
        for column in part.columns.values():
            assert column.metric is None or column.metric in declared()
        metrics = [column.metric for column in part.columns.values() if column.metric]
        assert len(metrics) == len(set(metrics)), part.address


def test_settings_and_recipes_have_the_keys_of_our_configuration() -> None:
    for part in PARTS:
        for method, its in part.settings.items():
            assert its.keys() <= yaml.safe_load((ROOT / "conf" / "method" / f"{method}.yaml").read_text()).keys()
        train = yaml.safe_load((ROOT / "conf" / "train" / "standard.yaml").read_text())
        dataset = yaml.safe_load((ROOT / "conf" / "dataset" / "cifar10.yaml").read_text())
        keys = {f"train.{key}" for key in train} | {f"dataset.{key}" for key in dataset}
        assert part.recipe.keys() <= keys, part.address


def test_the_same_figure_of_two_tables_is_the_same_but_for_the_one_that_the_notes_name() -> None:
    for first, second in (("table1", "table10"), ("table2", "table11")):
        for part in (part for part in PARTS if (part.paper, part.table) == ("amun", first)):
            other = paper("amun").parts[f"amun/{second}/{part.part}"]
            for column in ("unlearn_acc", "retain_acc", "test_acc"):
                for method in ("retrain", "amun"):
                    cells = [its.rows.get(method, {}).get(column) for its in (part, other)]
                    assert cells[0] == cells[1]
    one, other = (paper("amun").parts[f"amun/{table}/random50"].rows["finetune"] for table in ("table1", "table10"))
    assert [key for key in ("unlearn_acc", "retain_acc", "test_acc") if one[key] != other[key]] == ["retain_acc"]


# Average gaps


@pytest.mark.parametrize("row", CHECKED, ids=name)
def test_the_average_gap_is_that_of_the_other_columns_in_the_form_that_is_declared(row: tuple[Part, str]) -> None:
    part, method = row
    its = gaps(part, method)
    assert its is not None
    assert its.agrees() == (method not in part.unexplained), its


def test_the_gap_of_amun_has_a_sign_with_rmia_and_none_with_the_svc() -> None:
    """Test accuracy above the reference's tells the forms apart: 13 rows with RMIA, all of them signed."""
    apart: dict[str, list[tuple[bool, bool]]] = {"signed": [], "absolute": []}
    for part, method in CHECKED:
        its = gaps(part, method)
        assert its is not None
        assert its.signed <= its.absolute + 1e-9
        if part.table != "table7" and its.absolute - its.signed > 1e-9:
            apart[its.form].append((its.agrees("signed"), its.agrees("absolute")))
    assert apart["signed"] == [(True, False)] * 13
    assert len(apart["absolute"]) > 5
    assert all(absolute for _, absolute in apart["absolute"])


def test_amuns_gap_at_half_of_cifar10_is_larger_without_the_sign() -> None:
    its = gaps(find("amun/table1/random50")[0], "amun")
    assert its is not None
    assert its.printed == 0.33
    assert its.absolute == pytest.approx(0.565)
    assert its.signed == pytest.approx(0.295)
    assert its.expected == pytest.approx(0.333, abs=5e-4)


def test_what_users_reported_is_second_hand() -> None:
    (amun,), (salun,) = find("amun/issue1"), find("salun/issue7")
    assert {amun.provenance, salun.provenance} == {"second_hand"}
    assert amun.rows["amun"]["unlearn_acc"].value == 99.88
    assert [salun.rows["none"][key].value for key in ("train_acc", "validation_acc", "test_acc")] == [
        99.99,
        94.62,
        94.69,
    ]


def test_a_gap_that_lacks_a_column_is_not_recomputed() -> None:
    assert gaps(find("amun/table8/with_retain_random10")[0], "amun_others") is None
    assert gaps(find("munba/table1/random10")[0], "munba") is None
    assert gaps(find("amun/table3/random10")[0], "amun") is None


# Units


def test_figures_are_brought_to_our_units() -> None:
    accuracy = Column(title="UA", unit="percent", metric="forget_accuracy", complement=True)
    cell = in_our_units(Cell(value=5.24, deviation=0.5), accuracy)
    assert cell.value == pytest.approx(0.9476)
    assert cell.deviation == pytest.approx(0.005)
    assert in_our_units(Cell(value=2.0), Column(title="time", unit="minutes", metric="seconds")).value == 120
    assert in_our_units(Cell(value=0.25), Column(title="KS", unit="fraction")).value == 0.25


def test_the_reference_may_stand_in_another_table() -> None:
    part = find("amun/table2/random10")[0]
    assert "retrain" not in part.rows
    assert reference(part)["unlearn_acc"].value == 94.49
    assert reference(find("munba/table1/random10")[0]) == {}


# Refusals


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("nobody/table1", "must be NAME/TABLE, NAME one of amun, "),
        ("amun/table99", "must be one of amun/table1, amun/table2, "),
        ("amun", "must be one of amun/table1, "),
        ("amun/table1/random20", "must be one of amun/table1/random10, amun/table1/random50"),
    ],
)
def test_a_table_that_is_not_there_is_refused_with_those_that_are(address: str, told: str) -> None:
    with pytest.raises(SettingError) as raised:
        find(address)
    assert str(raised.value).startswith(f"--published={address}: {told}")
    assert "\n" not in str(raised.value)


def document() -> dict[str, Any]:
    table = {
        "name": "Table 1",
        "caption": "Any",
        "dataset": "digits",
        "model": "convnet",
        "scenario": "random",
        "columns": {"fa": {"title": "FA", "metric": "forget_accuracy", "unit": "percent"}},
        "parts": {"random10": {"fraction": 0.1, "rows": {"finetune": {"fa": [90, 1]}}}},
    }
    return {
        "title": "Any",
        "authors": ["Any One"],
        "venue": "None",
        "year": 2026,
        "arxiv": "2601.00001",
        "sources": ["a test"],
        "provenance": "paper",
        "methods": {"finetune": {"name": "FT"}},
        "tables": {"table1": table},
    }


def written(folder: Path, its: dict[str, Any]) -> Path:
    (folder / "any.yaml").write_text(yaml.safe_dump(its))
    return folder


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    part = find("any/table1", written(tmp_path, document()))[0]
    assert part.rows["finetune"]["fa"] == Cell(value=90, deviation=1)


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("parts.random10.rows.finetune.fa", [90, -1], "greater than or equal to 0"),
        ("parts.random10.rows.finetune.fa", 101, "is no percent"),
        ("parts.random10.rows.finetune.fa", -1, "is no percent"),
        ("parts.random10.rows.finetune.fa", {"value": 1, "provenance": "computed"}, "of a figure that was read"),
        ("parts.random10.rows.finetune.fa", None, "valid dictionary"),
        ("parts.random10.rows.finetune.nope", 1, "must be one of fa"),
        ("parts.random10.rows.nobody", {"fa": 1}, "must be one of finetune"),
        ("parts.random10.fraction", 10, "less than 1"),
        ("parts.random10.unexplained", {"amun": "why"}, "must be one of finetune"),
        ("columns.fa.metric", "nope", "must be one of "),
        ("columns.fa.unit", "seconds", "is not a unit of forget_accuracy"),
        ("columns.fa.gap", {"form": "absolute", "over": ["ta"]}, "must be one of fa"),
        ("retrain_of", "table2", "must be a table"),
        ("provenance", "hearsay", "recalled"),
        ("anything", 1, "not permitted"),
    ],
)
def test_a_file_that_is_not_as_it_must_be_is_refused(where: str, value: object, told: str, tmp_path: Path) -> None:
    its = document()
    inner = its["tables"]["table1"]
    *path, last = where.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(SettingError) as raised:
        paper("any", written(tmp_path, its))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[1, 2]", "title: x", "a: [", ""])
def test_what_is_no_paper_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_text(text)
    with pytest.raises(SettingError) as raised:
        paper("any", tmp_path)
    assert "any.yaml" in str(raised.value)
