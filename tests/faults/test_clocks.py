"""Clocks that jump: by hours, forward and back, while something runs and between two runs."""

import datetime
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_lab import unclocked

from unlearn import row as rows
from unlearn.lab import Lab
from unlearn.row import row

WORDS = ["train.epochs=2", "method.epochs=2", "auditor=[accuracy]", "objective=test_accuracy"]
HOUR = 3600.0


class Datetime(datetime.datetime):
    """What the row takes the day from, on a clock that `time.time` shows."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Datetime":
        return cls.fromtimestamp(time.time(), tz)


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[float]], None]:
    """`jumping(offsets)`: every look at the clock of the day is off by the next of these seconds."""
    true = time.time

    def jump(offsets: Iterator[float]) -> None:
        monkeypatch.setattr(time, "time", lambda: true() + next(offsets))
        monkeypatch.setattr(rows.datetime, "datetime", Datetime)

    return jump


def test_a_clock_that_jumps_while_a_row_is_made_changes_nothing_but_its_date(
    composing: Callable[..., Any], jumping: Callable[[Iterator[float]], None], tmp_path: Path
) -> None:
    calm, choices = composing(tmp_path / "calm", WORDS)
    undisturbed, _ = row(Lab(calm), choices, [])
    jumping(itertools.cycle([HOUR, -HOUR, 0.0, 40 * 365 * 24 * HOUR, -40 * 365 * 24 * HOUR]))
    settings, _ = composing(tmp_path / "jumping", WORDS)
    document, _ = row(Lab(settings), choices, [])
    assert unclocked(document) == unclocked(undisturbed)
    assert document["id"] == undisturbed["id"]
    for role, cost in document["cost"].items():  # measured on a clock that cannot be set
        assert 0 <= cost["seconds"] < HOUR, role
    lines = [line for file in (tmp_path / "jumping").glob("*/*/history.json") for line in json.loads(file.read_text())]
    assert len(lines) == 6
    assert all(0 <= line["seconds"] < HOUR for line in lines)


@pytest.mark.parametrize("offset", [-HOUR, HOUR, -30 * 365 * 24 * HOUR])
def test_a_row_is_the_same_whatever_day_the_clock_and_the_files_show(
    offset: float, composing: Callable[..., Any], jumping: Callable[[Iterator[float]], None], tmp_path: Path
) -> None:
    settings, choices = composing(tmp_path / "store", WORDS)
    document, file = row(Lab(settings), choices, [])
    jumping(itertools.repeat(offset))
    for each in (tmp_path / "store").rglob("*"):
        os.utime(each, (time.time() + offset, time.time() + offset))
    trained: list[str] = []
    again, same = row(Lab(settings, lambda label, *rest: trained.append(label)), choices, [])
    assert (again, same, trained) == (document, file, [])
    other, _ = composing(tmp_path / "other", WORDS)
    elsewhere, _ = row(Lab(other), choices, [])
    assert elsewhere["id"] == document["id"]
    assert elsewhere["created"] != document["created"]
    days = [datetime.datetime.fromisoformat(its["created"]) for its in (document, elsewhere)]
    assert abs((days[1] - days[0]).total_seconds() - offset) < HOUR / 2
