"""Which device and which precision, from `auto` or a name."""

import os
import re

import torch

from unlearn.settings import SettingError, check


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU when there is one, and a GPU becomes torch's current device.

    Raises `SettingError` for a device this machine lacks, or of a kind that nothing is trained on.
    """
    found = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    refused = SettingError("device", name, f"not on this machine; allowed: auto, {', '.join(found)}")
    if check(str, "device", name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise refused
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise refused from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # whose generators `streams.forked` keeps
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere.

    A CPU's bf16 must be asked for, so that the same command means the same numbers on every CPU.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise SettingError("precision", name, "must be auto, fp32 or bf16")
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def use_deterministic_algorithms(wanted: bool) -> None:
    """Make torch refuse operations whose result can differ between two runs on the same machine."""
    if wanted:
        # cuBLAS reads it when CUDA starts; later is too late.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False
