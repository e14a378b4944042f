"""Torch's global generators are put back, and no other GPU of the machine is started for it."""

from pathlib import Path

import pytest
import torch

from unlearn.store import Store
from unlearn.streams import Streams, forked


class Cards:
    """Four GPUs that are not there, of which one is in use; `asked` holds those whose generators were read."""

    def __init__(self, patch: pytest.MonkeyPatch, started: bool) -> None:
        self.asked: list[int] = []
        self.put_back: list[int] = []
        patch.setattr(torch.cuda, "device_count", lambda: 4)
        patch.setattr(torch.cuda, "is_initialized", lambda: started)
        patch.setattr(torch.cuda, "current_device", lambda: 2)
        patch.setattr(torch.cuda, "get_rng_state", lambda card: self.asked.append(card))
        patch.setattr(torch.cuda, "set_rng_state", lambda state, card: self.put_back.append(card))
        patch.setattr(torch.random, "_fork_rng_warned_already", False)


@pytest.mark.parametrize(("started", "in_use"), [(True, [2]), (False, [])])
def test_only_the_gpu_in_use_is_touched(
    started: bool, in_use: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = Cards(monkeypatch, started)
    with Streams("a").seeded("b"):
        torch.rand(3)
    assert cards.asked == cards.put_back == in_use
    Store(tmp_path).get("rows", {}, lambda folder: None)
    assert cards.asked == cards.put_back == in_use * 2


def test_the_generator_of_the_cpu_is_put_back() -> None:
    before = torch.get_rng_state()
    with forked():
        torch.rand(3)
    with Streams("a").seeded("b"):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_seeds_the_block_alike_each_time() -> None:
    drawn = []
    for _ in range(2):
        with Streams("a").seeded("b"):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
