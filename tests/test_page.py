"""The page: its pictures show what the rows say, from the store alone, and what is not there is said to be missing."""

import base64
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import ROOT

from scripts.report import parser, report
from unlearn.lab import Lab
from unlearn.report.kept import Answers, answers, neighbours
from unlearn.report.pictures import (
    _accuracies,
    _true_positives,
    neighbourhoods,
    per_class,
    per_image,
    roc_curves,
    shared_run,
)
from unlearn.report.rows import Lines, read, settings
from unlearn.report.table import COLUMNS, tabled
from unlearn.report.writers import written_html
from unlearn.row import LEGEND, row
from unlearn.settings import SettingError
from unlearn.signals import Signals
from unlearn.store import Store

METHODS = {
    "none": [],
    "retrain": [],
    "finetune": ["method.epochs=1"],
    "amun": ["method.epochs=1", "method.steps=5"],
}
AUDITS = "auditor=[accuracy,mia_svc,loss_attack,gap,cost]"


@pytest.fixture(scope="module")
def store(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with rows of four methods, of which two seeds of the first two."""
    root = tmp_path_factory.mktemp("page") / "store"
    for method, words in METHODS.items():
        for seed in (0, 1) if not words else (0,):
            composed = composing(root, [f"method={method}", f"seed={seed}", "requests=2", AUDITS, *words])
            row(Lab(composed.settings), composed.choices, [f"method={method}", f"seed={seed}"])
    return root


@pytest.fixture(scope="module")
def lines(store: Path) -> Lines:
    (its,) = settings(read([store / "rows"]))
    return its


def test_what_is_drawn_is_what_the_rows_measured(store: Path, lines: Lines) -> None:
    known = answers(lines, Store(store))
    assert list(known) == [line.name for line in lines.lines]
    for line in lines.lines:
        assert known[line.name].keys() == line.runs.keys()
        for run, metrics in line.runs.items():
            its = known[line.name][run]
            assert its.forget.accuracy == pytest.approx(metrics["forget_accuracy"], abs=1e-12)
            assert its.test.accuracy == pytest.approx(metrics["test_accuracy"], abs=1e-12)
    figure = roc_curves(known)
    assert figure is not None
    titles = {title[0]: title[1] for title in (axes.get_title().split("\n") for axes in figure.axes) if title[0]}
    assert list(titles) == ["original", "none", "retrain", "amun", "finetune"]
    for line in lines.lines:
        if line.name in titles:
            area = np.mean([metrics["loss_attack_auc"] for metrics in line.runs.values()])
            assert titles[line.name] == f"AUC {area:.3f}" + (", 2 runs" if len(line.runs) == 2 else "")


def test_a_curve_is_the_best_that_some_threshold_does(store: Path, lines: Lines) -> None:
    its = answers(lines, Store(store))["original"][0, 0]
    grid = np.array([0.003, 0.05, 0.31, 1.0])
    forget, held_out = its.losses
    for rate, found in zip(grid, _true_positives(forget, held_out, grid), strict=True):
        allowed = [limit for limit in (*forget, *held_out, -np.inf) if (held_out <= limit).mean() <= rate]
        assert found == max((forget <= limit).mean() for limit in allowed)
    assert found == 1.0


def test_losses_are_those_of_the_audit(store: Path, lines: Lines) -> None:
    row = next(row for row in lines.rows if row["method"] == "none")
    its = answers(lines, Store(store))["none"][row["seed"], row["split"]]
    assert its.clip == row["config"]["auditor"]["loss_attack"]["clip"]
    low = its._replace(clip=0.01).losses
    assert [part.max() for part in low] == [0.01, 0.01]
    classes = np.isin(its.test.labels, its.forget.labels)
    assert [len(part) for part in low] == [len(its.forget), classes.sum()]


def test_accuracies_of_classes_are_means_over_the_runs_that_have_them() -> None:
    def of(labels: list[int], hits: list[bool]) -> Answers:
        logits = np.array(
            [np.eye(3)[label if hit else (label + 1) % 3] for label, hit in zip(labels, hits, strict=True)]
        )
        its = Signals(logits.astype(np.float32), np.array(labels))
        return Answers(its, its, np.inf)

    runs = {(0, 0): of([0, 0, 1], [True, False, True]), (1, 1): of([0, 2], [True, False])}
    assert _accuracies(runs, "forget", np.array([0, 1, 2])).tolist() == [0.75, 1.0, 0.0]
    alone = {"retrained (reference)": {(0, 0): runs[0, 0]}, "none": {(1, 1): runs[1, 1]}}
    figure = per_class(alone, "forget")  # a class that one model was never asked about has no number
    assert figure is not None
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["0.50", "1.00", "+0.50"]
    assert per_class({"none": runs}, "forget") is None


def test_each_image_lies_where_its_margins_are(store: Path, lines: Lines) -> None:
    known = answers(lines, Store(store))
    assert shared_run(known) == (0, 0)
    figure = per_image(known, (0, 0))
    assert figure is not None
    panel = next(axes for axes in figure.axes if axes.get_title().startswith("finetune"))
    drawn = np.asarray(panel.collections[0].get_offsets())
    across, up = (known[line][0, 0].forget.margin for line in ("retrained (reference)", "finetune"))
    ends = (drawn.min(), drawn.max())
    np.testing.assert_allclose(drawn, np.stack([across, up], 1).clip(*ends))
    same = np.mean(
        known["finetune"][0, 0].forget.logits.argmax(1) == known["retrained (reference)"][0, 0].forget.logits.argmax(1)
    )
    assert panel.get_title().endswith(f"same class {same:.2f}")
    assert per_image(known, (5, 5)) is None
    panels = {axes.get_title().split("\n")[0] for axes in (per_image(known, (1, 1)) or figure).axes}
    assert "finetune" in panels


def test_neighbours_are_of_the_images_that_were_forgotten(
    store: Path, lines: Lines, composing: Callable[..., Any]
) -> None:
    ((line, runs),) = neighbours(lines, Store(store)).items()
    assert line == "amun"
    found = runs[0, 0]
    lab = Lab(composing(store, ["method=amun", "requests=2", AUDITS, *METHODS["amun"]]).settings)
    train = lab.data.train.labels.numpy()
    assert found.labels.tolist() == [*train[lab.requests[0]], *train[lab.requests[1]]]
    with np.load(store / "rows" / next(r["id"] for r in lines.rows if r["method"] == "amun") / LEGEND) as legend:
        assert np.flatnonzero(legend["request"] == 1).tolist() == lab.requests[1].tolist()
    original = lab.signals(lab.original())["train"][lab.forget.numpy()]
    assert found.found.any()
    assert (found.neighbours[found.found] != found.labels[found.found]).all()
    assert (found.norms[found.found] == 0).sum() == (~original.correct).sum()  # what was wrong is its own neighbour
    figure = neighbourhoods(runs)
    assert figure is not None
    assert figure.axes[0].get_title() == f"found for {found.found.mean():.3f} of {len(lab.forget)} images"
    nothing = found._replace(found=np.zeros_like(found.found))
    assert neighbourhoods({(0, 0): nothing}) is None


def test_the_page_has_everything_in_itself_and_is_the_same_again(store: Path, lines: Lines, tmp_path: Path) -> None:
    files = [report(["--store", str(store), "--output", str(tmp_path / name)]) for name in ("one.html", "two.html")]
    text = files[0].read_text()
    assert text == files[1].read_text()
    assert re.findall(r'(?:src|href)="(?!data:image/svg\+xml;base64,|#)', text) == []
    assert written_html(tabled(lines, [*map(metric, COLUMNS)])) in text
    pictures = [base64.b64decode(its) for its in re.findall(r"base64,([^\"]+)", text)]
    assert [its.startswith(b"<?xml") for its in pictures] == [True] * 6
    assert "Not drawn" not in text
    assert "<code>run.py method=amun seed=0</code>" in text


def metric(name: str) -> Any:
    from unlearn.report.rows import chosen

    return chosen([name])[0]


def test_settings_have_a_section_each_and_what_a_store_lacks_is_said(tmp_path: Path) -> None:
    published = ROOT / "results" / "rows"
    words = [
        str(published / "digits_sisa"),
        str(published / "games_resnet20_small"),
        "--output",
        str(tmp_path / "page"),
    ]
    text = report([*words, "--columns", "forget_accuracy"]).read_text()
    assert len(re.findall("<h2 id=", text)) == len(re.findall('<a href="#setting', text)) > 1
    assert text.count("Not drawn") == 4 * len(re.findall("<h2 id=", text))
    assert "<th>model</th>" in text
    assert "Accuracy on the test set" not in text.split("</table>")[0]


@pytest.mark.parametrize("damage", ["signals", "models", "legend"])
def test_what_is_damaged_is_not_drawn(damage: str, store: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(store, tmp_path / "store")
    (its,) = settings(read([broken / "rows"]))
    whole = answers(its, Store(broken))
    if damage == "signals":
        for file in (broken / "signals").glob("*/test.npy"):
            file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif damage == "models":
        shutil.rmtree(broken / "retrained")
    else:
        for file in (broken / "rows").glob(f"*/{LEGEND}"):
            file.unlink()
    found = answers(its, Store(broken))
    assert found.keys() < whole.keys()
    assert "retrained (reference)" not in found
    text = report(["--store", str(broken), "--output", str(tmp_path / "page.html")]).read_text()
    assert "Not drawn" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store", "nowhere"], "--store=nowhere: is not there"),
        ([], "--store=outputs/store: is not there"),
        (["ROWS", "--output", "nowhere/page.html"], "--output=nowhere/page.html: cannot be written"),
        (["ROWS", "--columns", "unknown"], "column=unknown: must be one of"),
        (["ROWS", "--rows", "salun"], "--rows=salun: must be one of"),
        (["ROWS", "--where", "seed=9"], "--where=seed=9: no row has it"),
    ],
)
def test_what_cannot_be_reported_is_one_error(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = str(ROOT / "results" / "rows" / "games_resnet20_small")
    with pytest.raises(SettingError) as refused:
        report([rows if word == "ROWS" else word for word in words])
    assert said in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_help_says_what_is_written_where() -> None:
    assert "report.html" in parser().format_help()
