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
        if device.index is None:  # which `set_device` insists on
            device = torch.device("cuda", torch.cuda.current_device())
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
    # Older GPUs emulate it, slowly
    has = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has else "fp32"


def use_full_precision() -> None:
    """Make fp32 mean fp32: unless told not to, torch lets GPUs round the factors of convolutions to TF32's 10 bits."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def use_deterministic_algorithms(wanted: bool) -> None:
    """Make torch refuse operations whose result can differ between two runs on the same machine."""
    if wanted:
        # cuBLAS reads it when CUDA starts; later is too late.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False
