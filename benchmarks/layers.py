"""python benchmarks/layers.py: what training only some layers saves, against training all, on ResNet-18 at 32 x 32.

Seconds of a training step (best of several) and the memory that autograd keeps for the backward pass, as shares of
those of `layers=all` in the same run.
"""

import time
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from unlearn.layers import scope
from unlearn.loop import train_mode
from unlearn.session import session
from unlearn.settings import build

BATCH, STEPS = 64, 4
SCOPES = ("all", "first", "intermediate", "last", "intermediate+last", "head")


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Seconds of one forward and backward pass, and bytes kept between the two (a storage counts once)."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nn.functional.cross_entropy(model(images), labels).backward()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return time.perf_counter() - began, sum(size for where, size in kept.items() if where not in parameters)


def main() -> None:
    """Print one table."""
    settings = OmegaConf.load(Path(__file__).parents[1] / "conf" / "model" / "resnet18.yaml")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), build(settings, "model")((3, 32, 32), 10))  # type: ignore[arg-type]
    model.to(memory_format=torch.channels_last)
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    step(model, images, labels)
    measured = {}
    for layers in SCOPES:
        with session(), scope(model, layers):
            train_mode(model)
            results = [step(model, images, labels) for _ in range(STEPS)]
            trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        measured[layers] = (min(seconds for seconds, _ in results), results[0][1], trained)
    print(f"ResNet-18, batch {BATCH} of 3 x 32 x 32, fp32, {torch.get_num_threads()} threads")
    print(f"{'layers':20}{'trained':>12}{'seconds':>10}{'share':>8}{'kept MiB':>10}{'share':>8}")
    seconds_all, kept_all, _ = measured["all"]
    for layers, (seconds, kept, trained) in measured.items():
        shares = f"{seconds:10.3f}{seconds / seconds_all:8.2f}{kept / 2**20:10.1f}{kept / kept_all:8.2f}"
        print(f"{layers:20}{trained:12,}{shares}")


if __name__ == "__main__":
    main()
