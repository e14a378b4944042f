"""Which device and which precision a word means, also where there is no GPU to ask."""

from typing import Any

import pytest
import torch

from unlearn import hardware
from unlearn.lab import Lab

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with one GPU, as far as torch's own Python says; the numbers that became its current device."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(hardware.torch, "zeros", lambda *size, device: torch.empty(size))
    return chosen


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_every_word_for_a_gpu_is_the_gpu_with_its_number(name: str, gpu: list[int]) -> None:
    assert hardware.choose_device(name) == GPU
    assert gpu == [0]


def test_bf16_is_chosen_where_a_gpu_has_it_and_not_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for its_own in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, own=its_own: own)
        assert hardware.choose_precision("auto", GPU) == ("bf16" if its_own else "fp32")
    assert hardware.choose_precision("auto", torch.device("cpu")) == "fp32"


def test_fp32_is_never_tf32(lab: Any) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    assert isinstance(lab(), Lab)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
