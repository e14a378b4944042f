"""The picture of utility, forgetting and cost: what is in it, and that it is the same each time."""

from pathlib import Path

import numpy as np
import pytest
from laws import ROOT
from scipy.stats import t
from test_table import row, written

from scripts.table import parser, table
from unlearn.metrics import Metric
from unlearn.report.plot import FORMATS, floor, marks, trade_off
from unlearn.report.rows import chosen, read, settings
from unlearn.settings import SettingError

ROWS = ROOT / "results" / "rows" / "cifar10_fastnet"
AUC, UTILITY, COST = ("loss_attack_auc", "test_accuracy", "sample_gradients")


def test_every_line_of_the_table_is_a_mark_with_a_name() -> None:
    rows = read([ROWS])
    (its,) = settings(rows)
    found = marks(its, chosen([AUC, UTILITY, COST]))
    assert [mark.name for mark in found] == [line.name for line in its.lines]
    amun = next(mark for mark in found if mark.name == "amun")
    assert amun.x.mean == pytest.approx(
        np.mean([r["metrics"]["unlearned"][AUC] for r in rows if r["method"] == "amun"])
    )
    assert amun.cost == pytest.approx(247_992 / 405_000, rel=1e-5)  # of retraining's, as the table in the README has it
    (axes,) = trade_off(rows).axes
    names = {text.get_text() for text in axes.texts}
    assert {"original", "retrained", *(mark.name for mark in found if mark.method)} <= names
    assert axes.get_xlabel().startswith("Loss attack: AUC")
    low, high = axes.get_xlim()
    assert low < min(mark.x.mean for mark in found) < max(mark.x.mean for mark in found) < high


def noisy(seed: int, again: float | None) -> list[dict[str, object]]:
    """A row of `none` and, where there is one, of a second retrained model that is `again` off the first."""
    rows = [row("none", seed, 0.9)] + ([] if again is None else [row("retrain", seed, 0.5 + again)])
    for its in rows:
        its["metrics"]["retrained"]["forget_accuracy"] = 0.5
    return rows


def metric_and_lines(folder: Path, apart: list[float | None]) -> tuple[object, Metric]:
    rows = [its for seed, again in enumerate(apart) for its in noisy(seed, again)]
    (its,) = settings(read([written(folder, rows)]))
    return its, chosen(["forget_accuracy"])[0]


def test_the_noise_floor_is_that_of_independent_retrained_models(tmp_path: Path) -> None:
    its, metric = metric_and_lines(tmp_path, [0.02, -0.01, 0.03])
    found = floor(its, metric)
    assert found is not None
    squares = (0.02**2 + 0.01**2 + 0.03**2) / 3
    assert found.half == pytest.approx(t.ppf(0.975, 3) * (squares / 3) ** 0.5)
    assert found.source == "3 independent retrained models"


def test_the_noise_floor_is_over_seeds_where_they_are_crossed_with_splits(tmp_path: Path) -> None:
    rows = []
    for seed, again in enumerate((0.02, -0.01)):
        for split in (0, 1):
            for its in noisy(seed, again + split / 100):
                its |= {
                    "split": split,
                    "forget": {"count": 130, "sha256": f"{split}"},
                    "id": f"{its['method']}{seed}{split}",
                }
                rows.append(its)
    (lines,) = settings(read([written(tmp_path, rows)]))
    found = floor(lines, chosen(["forget_accuracy"])[0])
    assert found is not None
    assert found.half == pytest.approx(t.ppf(0.975, 2) * ((0.025**2 + 0.005**2) / 2 / 2) ** 0.5)
    assert found.source == "4 independent retrained models"


def test_without_them_it_is_the_references_own_interval_and_of_one_run_there_is_none(tmp_path: Path) -> None:
    found = floor(*metric_and_lines(tmp_path / "two", [None, None]))
    assert found is not None
    assert found == (0.0, "the interval of 2 references")
    assert floor(*metric_and_lines(tmp_path / "one", [0.1])) is None


def test_the_help_names_the_endings() -> None:
    assert all(suffix in parser().format_help() for suffix in FORMATS)


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        said = table([str(ROWS), "--plot", str(tmp_path / name), "--rows", "none,finetune,amun"])
        files = [tmp_path / f"{name}.png", tmp_path / f"{name}.pdf"]
        assert said.splitlines() == [str(file) for file in files]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"\x89PNG")
    assert contents[0][1].startswith(b"%PDF")
    table([str(ROWS), "--plot", str(tmp_path / "three.png"), "--rows", "none,amun"])
    assert (tmp_path / "three.png").read_bytes() != contents[0][0]
    assert not (tmp_path / "three.pdf").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plot", "x.jpg"], "--plot=x.jpg: must end in .png, .pdf, .svg"),
        (["--plot", "/nowhere/x.png"], "--plot=/nowhere/x.png: cannot be written"),
        (["--plot", "x.png", "--metrics", "test_accuracy"], "must be forgetting,utility or forgetting,utility,cost"),
        (["--plot", "x.png", "--metrics", "loss_attack_passed,test_accuracy"], "is a verdict"),
        (["--plot", "x.png", "--metrics", "rmia_auc,test_accuracy"], "--metrics=rmia_auc: is in no row"),
        (["--plot", "x.png", "--best"], "--best=true: is for tables, not for --plot"),
    ],
)
def test_what_cannot_be_drawn_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(SettingError) as refused:
        table([str(ROWS), *words])
    assert said in str(refused.value)
