"""Tables in other formats, with the papers' abbreviations, with the best in bold, and of some rows only."""

import csv
import html.parser
import io
import re
from pathlib import Path
from typing import Any

import pytest
from laws import ROOT
from scipy.stats import ttest_ind, ttest_rel
from test_table import row, written

from scripts.table import table as printed
from unlearn.metrics import Metric
from unlearn.report.abbreviations import ABBREVIATIONS, COMPLEMENTS
from unlearn.report.cells import best, difference_pvalue
from unlearn.report.rows import Line, declared
from unlearn.report.selection import where
from unlearn.report.table import markdown, table
from unlearn.report.writers import Cell, Table, latex, written_html, written_latex
from unlearn.settings import SettingError

COLUMNS = ["forget_accuracy", "loss_attack_passed", "sample_gradients"]
ODD = Table("a_b & 100 % < 1", ["model", "x|y"], 1, [[Cell("[1]"), Cell("0.5 ± 0.1", True)]], ["#1: {~^\\$}"])


def refusal(words: list[str]) -> str:
    with pytest.raises(SettingError) as raised:
        printed(words)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = {"finetune": (0.5, 0.6), "amun": (0.8, 0.95), "none": (0.9, 0.9)}
    return written(tmp_path, [row(method, seed, its[seed]) for method, its in values.items() for seed in (0, 1)])


# Formats


def test_markdown_is_what_it_was(folder: Path) -> None:
    rows = [row(seed=seed) for seed in (0, 1)]
    assert table(rows, COLUMNS, "markdown") == markdown(rows, COLUMNS)
    assert printed([str(folder)]).startswith("digits · convnet · standard · random, 130 images forgotten\n\n| model |")


def test_latex_is_escaped_and_has_the_rules_of_booktabs() -> None:
    text = written_latex(ODD)
    assert r"\caption{a\_b \& 100 \% \textless{} 1}" in text
    assert r"model & x\textbar{}y \\" in text
    assert r"{}[1] & \textbf{0.5 $\pm$ 0.1} \\" in text
    assert r"\#1: \{\textasciitilde{}\textasciicircum{}\textbackslash{}\$\}" in text
    rules = [line for line in text.splitlines() if line.endswith("rule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\begin{tabular}{lr}" in text


def test_nothing_of_latex_is_left_unescaped(folder: Path) -> None:
    text = printed([str(folder), "--format", "latex", "--abbreviations", "--best"])
    assert text.isascii()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    lines = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len({line.count("&") for line in lines}) == 1
    assert all(line.endswith(r" \\") for line in lines)
    assert not re.search(r"(?<!\\)[%#_]", latex("50 % of #1_2"))


def test_csv_has_raw_numbers_with_their_interval(folder: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(printed([str(folder), "--format", "csv", "--columns", COLUMNS[0]]))))
    line = next(line for line in lines if line["line"] == "finetune")
    assert float(line["forget_accuracy"]) == pytest.approx(0.55)
    assert float(line["forget_accuracy_low"]) + float(line["forget_accuracy_high"]) == pytest.approx(1.1)
    assert (line["forget_accuracy_n"], line["runs"], line["dataset"], line["forgotten"]) == ("2", "2", "digits", "130")


def test_csv_of_one_run_has_no_interval_and_one_head_for_all_settings() -> None:
    text = table([row(), row(model="resnet18", forget=None)], COLUMNS, "csv")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["model"] for line in lines] == ["convnet"] * 3 + ["resnet18"] * 3
    assert [lines[2][f"forget_accuracy{end}"] for end in ("", "_low", "_high", "_n")] == ["0.5", "", "", "1"]
    assert [lines[5][f"forget_accuracy{end}"] for end in ("", "_n")] == ["", "0"]


class Tags(html.parser.HTMLParser):
    """Collects the tags that are open and the text of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]][-1] += data


def test_html_is_closed_and_escaped() -> None:
    tags = Tags()
    tags.feed(written_html(ODD))
    assert tags.open == []
    assert tags.text["caption"] == [ODD.title]
    assert tags.text["th"] == list(ODD.head)
    assert tags.text["td"] == ["[1]", ""]
    assert tags.text["strong"] == ["0.5 ± 0.1"]
    assert tags.text["li"] == list(ODD.notes)
    assert "<td>&lt;b&gt;</td>" in written_html(Table("", ["a"], 1, [[Cell("<b>")]]))


# Abbreviations


def test_columns_are_headed_as_papers_do_with_a_legend(folder: Path) -> None:
    text = printed([str(folder), "--abbreviations", "--metrics", "forget_accuracy,loss_attack_passed"])
    assert "| model | FA | Loss attack: not told from retrained | runs |" in text
    assert text.endswith("\n\n- FA: Accuracy on the forget set (UA = 1 - FA)")


def test_the_glossary_has_the_same_abbreviations() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line[:3] == "| `"]
    glossary = {name.strip("`"): papers for _, names, papers, *_ in lines for name in names.split(", ")}
    for metric, short in ABBREVIATIONS.items():
        assert metric in declared()
        assert short in re.split(r"[,;]\s*", glossary[metric]), metric
    for metric, short in COMPLEMENTS.items():
        assert f"{short} = 1 − {ABBREVIATIONS[metric]}" in glossary[metric].split("; ")  # noqa: RUF001
    assert len(set(ABBREVIATIONS.values())) == len(ABBREVIATIONS)


# The best


def line(name: str, values: list[float | None], first: int = 0, metric: str = "x") -> Line:
    runs = {(seed, seed): {metric: value} for seed, value in enumerate(values, first)}
    return Line(name, None if name.endswith("(reference)") or name == "original" else name, runs)


def metric(better: Any, unit: Any = "fraction") -> Metric:
    return Metric("x", "X", unit, better, "nobody")


REFERENCE = line("retrained (reference)", [0.5, 0.6, 0.7])
FIRST, SECOND = line("a", [0.52, 0.61, 0.72]), line("b", [0.64, 0.73, 0.85])


@pytest.mark.parametrize(("better", "name"), [("higher", "b"), ("lower", "a"), ("reference", "a")])
def test_the_best_is_in_the_direction_of_its_metric(better: str, name: str) -> None:
    assert best([REFERENCE, FIRST, SECOND], metric(better)) == name
    assert best([SECOND, FIRST, REFERENCE], metric(better)) == name


def test_a_best_that_chance_explains_is_not_marked() -> None:
    lines = [line("a", [0.50, 0.61, 0.72]), line("b", [0.55, 0.60, 0.71])]
    assert best(lines, metric("higher")) is None
    assert best([line("a", [0.5]), line("b", [0.9])], metric("higher")) is None
    assert best([line("a", [0.5, 0.5]), line("b", [0.5, 0.5])], metric("higher")) is None
    assert best([FIRST], metric("higher")) is None


def test_the_second_best_counts_and_not_the_worst() -> None:
    assert best([FIRST, SECOND, line("c", [0.64, 0.74, 0.84])], metric("higher")) is None


def test_controls_and_lines_that_lack_runs_do_not_compete() -> None:
    none = line("none", [0.9, 0.95, 0.99])
    assert best([none, line("original", [1, 1, 1]), FIRST, SECOND], metric("higher")) == "b"
    assert best([FIRST, line("b", [0.64, None, 0.85])], metric("higher")) is None
    assert best([FIRST, SECOND], metric("higher", "verdict")) is None
    assert best([FIRST, SECOND], metric("reference")) is None  # nothing to be near to


def test_the_test_is_paired_over_shared_runs_and_welchs_otherwise() -> None:
    first, second = [0.52, 0.61, 0.72], [0.64, 0.73, 0.85]

    def runs(values: list[float], start: int) -> dict[tuple[int, int], float]:
        return {(seed, 0): value for seed, value in enumerate(values, start)}

    paired = difference_pvalue(runs(first, 0), runs(second, 0))
    assert paired == pytest.approx(ttest_rel(first, second).pvalue)
    splits = [{(seed, split): its[seed] + split for seed in range(3) for split in (0, 1)} for its in (first, second)]
    assert difference_pvalue(*splits) == pytest.approx(paired)  # by their seeds' means
    apart = difference_pvalue(runs(first, 0), runs(second, 9))
    assert apart == pytest.approx(ttest_ind(first, second, equal_var=False).pvalue)
    assert difference_pvalue(runs(first, 0), runs(second[:1], 9)) is None
    assert difference_pvalue(runs([1, 1], 0), runs([2, 2], 0)) == 0


def test_bold_in_a_table(folder: Path) -> None:
    text = printed([str(folder), "--best", "--columns", "forget_accuracy", "--format", "html"])
    assert "<strong>" not in text  # 0.4 and 0.3 away beside 0.1 and 0.05: p is 0.06
    rows = [row(method, seed, at + seed / 1000) for method, at in (("a", 0.5), ("b", 0.8)) for seed in (0, 1, 2)]
    assert "| b | **0.801 ± 0.002** | 3 |" in table(rows, COLUMNS[:1], "markdown", mark_best=True)
    assert "**" not in markdown(rows, COLUMNS[:1])


# Some rows


def test_rows_of_some_methods_and_values(folder: Path) -> None:
    assert "| amun |" not in printed([str(folder), "--rows", "finetune,none"])
    assert "| finetune | 0.600 |" in printed([str(folder), "--where", "seed=1", "--where", "dataset=digits"])
    assert printed([str(folder), "--where", "dataset._target_=digits"]) == printed([str(folder)])


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("method.lr=0.0001", True),
        ("method.lr=1e-4", True),
        ("method.lr=small", False),
        ("method.retain=true", True),
        ("method.retain=1", False),
        ("method.clip=null", True),
        ("train.milestones=[91, 136]", True),
        ("train.milestones=[91", False),
        ("method=finetune", True),
        ("layers=all", True),
        ("split=0", True),
        ("split=true", False),
    ],
)
def test_values_are_written_as_in_a_yaml(condition: str, kept: bool) -> None:
    document = row()
    document["config"]["method"] = {"lr": 1e-4, "retain": True, "clip": None}
    document["config"]["train"] = {"milestones": [91, 136]}
    if kept:
        assert where([document], condition) == [document]
    else:
        with pytest.raises(SettingError, match=r"^--where=.*: no row has it; "):
            where([document], condition)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rows", "nope"], "--rows=nope: must be one of amun, finetune, none"),
        (["--where", "nope=1"], "--where=nope: must be one of dataset, "),
        (["--where", "seed"], "--where=seed: must be key=value"),
        (["--where", "seed=7"], "--where=seed=7: no row has it; seed is 0, 1"),
        (["--where", "seed=7", "--rows", "amun"], "--where=seed=7: no row has it"),
        (["--metrics", "nope"], "column=nope: must be one of average_gap"),
        (["--best", "--format", "csv"], "--best=true: is for tables"),
        (["--published", ""], "--published='': must be NAME/TABLE, NAME one of amun, "),
        (["--published", "amun/table99"], "--published=amun/table99: must be one of amun/table1"),
        (["--published", "amun/table1", "--metrics", "nope"], "column=nope: must be one of"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line(words: list[str], told: str, folder: Path) -> None:
    assert refusal([str(folder), *words]).startswith(told)


@pytest.mark.parametrize(
    "words", [[], ["--where", "seed=1"], ["--rows", "amun"], ["--published", "amun/table1"], ["--pivot", "layers"]]
)
def test_no_rows_are_refused_whatever_is_asked_of_them(words: list[str]) -> None:
    assert refusal(words) == "rows=none: at least one row file is needed"
