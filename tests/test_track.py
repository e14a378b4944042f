"""What of a history becomes a curve in the mirror, and what stands in its summary."""

from unlearn.track import curves, once


def epoch(number: int, loss: float) -> dict[str, float]:
    return {"epoch": number, "loss": loss, "seconds": 2.0, "fit": 1}


SEARCH = {"adversarial": 40, "adversarial_failures": 2}


def test_an_epochs_seconds_are_not_called_like_the_total() -> None:
    (line,) = curves([epoch(1, 0.5)])
    assert line == {"epoch": 1, "loss": 0.5, "epoch_seconds": 2.0, "fit": 1}


def test_a_line_without_an_epoch_shifts_none_and_goes_into_the_summary() -> None:
    history = [SEARCH, epoch(1, 0.5), epoch(2, 0.25)]
    assert [(line["epoch"], line["loss"]) for line in curves(history)] == [(1, 0.5), (2, 0.25)]
    assert once(history) == SEARCH


def test_the_next_fits_epochs_follow_those_before_it() -> None:
    lines = [SEARCH, epoch(1, 4.0), epoch(2, 3.0), SEARCH | {"adversarial": 39}, epoch(1, 2.0), epoch(1, 1.0)]
    assert [(line["epoch"], line["loss"]) for line in curves(lines)] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert once(lines)["adversarial"] == 39


def test_a_history_of_nothing_is_no_curve() -> None:
    assert list(curves([])) == []
    assert once([]) == {}
