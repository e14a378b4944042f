"""python benchmarks/layers.py: what training only some layers saves, against training all, at 32 x 32.

Processor seconds of a training step (best of several), the memory that autograd keeps for the backward pass, and by
how much a step raises the process's peak memory; each also as a share of that of `layers=all` in the same run.
"""

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import OmegaConf
from torch import nn

from unlearn.layers import SCOPES, scope
from unlearn.loop import train_mode
from unlearn.session import peak_memory_bytes, reset_peak_memory, session
from unlearn.settings import build

BATCH, STEPS = 64, 4
CPU = torch.device("cpu")


class Step(NamedTuple):
    """What one forward and backward pass took."""

    seconds: float
    kept: float
    peak: float


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    """Seconds, bytes kept between the two passes (a storage counts once), and bytes that the peak rose."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for parameter in model.parameters():
        parameter.grad = None
    reset_peak_memory(CPU)
    before, began = peak_memory_bytes(CPU) or 0, time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nn.functional.cross_entropy(model(images), labels).backward()
    seconds, peak = time.process_time() - began, (peak_memory_bytes(CPU) or 0) - before
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return Step(seconds, sum(size for where, size in kept.items() if where not in parameters), peak)


def compare(name: str) -> None:
    """Print the table of one architecture."""
    settings = OmegaConf.load(Path(__file__).parents[1] / "conf" / "model" / f"{name}.yaml")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), build(settings, "model")((3, 32, 32), 10))  # type: ignore[arg-type]
    model.to(memory_format=torch.channels_last)
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    step(model, images, labels)
    print(f"\n{name}, batch {BATCH} of 3 x 32 x 32, fp32, {torch.get_num_threads()} threads")
    print(
        f"{'layers':20}{'trained':>12}"
        + "".join(f"{head:>10}{'share':>7}" for head in ("seconds", "kept MiB", "peak MiB"))
    )
    whole = Step(1, 1, 1)
    for layers in SCOPES:
        with session(), scope(model, layers):
            train_mode(model)
            results = [step(model, images, labels) for _ in range(STEPS)]
            trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        least = Step(*(min(values) for values in zip(*results, strict=True)))
        whole = least if layers == "all" else whole
        cells = (least.seconds, least.kept / 2**20, least.peak / 2**20)
        shares = (its / most for its, most in zip(least, whole, strict=True))
        print(
            f"{layers:20}{trained:12,}"
            + "".join(f"{its:10.3f}{share:7.2f}" for its, share in zip(cells, shares, strict=True))
        )


if __name__ == "__main__":
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # or glibc keeps what is freed, and no peak is seen twice
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        os.execv(sys.executable, [sys.executable, __file__])
    for architecture in ("resnet18", "vit_tiny"):
        compare(architecture)
