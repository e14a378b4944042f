"""The search for adversarial images against torchattacks' PGDL2, called for one radius after the other, on digits.

torchattacks cannot go on from where it is in a larger ball, nor drop an image as soon as it is wrong: every radius
starts again, on the images that the last one left right. CPU seconds on one thread, best of three.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchattacks
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from unlearn.attacks import nearest
from unlearn.batches import shuffled
from unlearn.data.images import Data, Images, as_model_input
from unlearn.loop import cross_entropy, fit
from unlearn.models.convnet import convnet
from unlearn.models.normalise import Normalise
from unlearn.settings import build
from unlearn.streams import Streams

CONF = Path(__file__).resolve().parents[1] / "conf"
EPS, STEPS, COUNT, SINGLE = 0.04, 50, 300, 30


def digits() -> Data:
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "digits.yaml"), resolve=False)
    with tempfile.TemporaryDirectory() as root:
        data: Data = build(settings | {"root": root}, "dataset")()
    return data


def trained(data: Data) -> nn.Module:
    streams = Streams("benchmark")
    with streams.seeded("initialisation"):
        net = nn.Sequential(Normalise(1, data.mean, data.std), convnet(data.shape, 10, widths=[16, 32]))
    batches = shuffled(data.train, 64, streams)
    return fit(net, batches, cross_entropy, streams, epochs=30, lr=0.1, momentum=0.9, weight_decay=5e-4)


def theirs(model: nn.Module, images: Images) -> tuple[Tensor, Tensor, int]:
    """torchattacks' PGDL2 radius by radius: the radius at which each image succeeded, its norm, gradients taken."""
    start = as_model_input(images.pixels, torch.device("cpu"))
    here, eps, gradients, radius = start.clone(), torch.zeros(len(images)), 0, EPS
    with torch.no_grad():
        rest = (model(start).argmax(1) == images.labels).nonzero().flatten()
    eps[:] = EPS
    while len(rest):
        attack = torchattacks.PGDL2(model, radius, radius / 10, STEPS, False, 1e-10)
        here[rest], eps[rest] = attack(start[rest], images.labels[rest]), radius
        gradients += STEPS * len(rest)
        with torch.no_grad():
            rest = rest[model(here[rest]).argmax(1) == images.labels[rest]]
        radius *= 2
    return eps, (here - start).flatten(1).norm(dim=1), gradients


def ours(model: nn.Module, images: Images, batch_size: int = 500) -> tuple[Tensor, Tensor, int]:
    found = nearest(model, images, norm="l2", eps_init=EPS, steps=STEPS, batch_size=batch_size)
    return found.eps, found.norms, int(found.steps.sum())


def best(run: Callable[[], tuple[Tensor, Tensor, int]]) -> tuple[float, tuple[Tensor, Tensor, int]]:
    times = []
    for _ in range(3):
        began = time.process_time()
        answer = run()
        times.append(time.process_time() - began)
    return min(times), answer


def main() -> None:
    torch.set_num_threads(1)
    data = digits()
    model, images = trained(data), data.train[torch.arange(COUNT)]
    few = images[torch.arange(SINGLE)]
    runs = [
        (f"ours, {COUNT} together", best(lambda: ours(model, images)), 1.0),
        (f"torchattacks, {COUNT} together", best(lambda: theirs(model, images)), 1.0),
        ("ours, one image at a time *", best(lambda: ours(model, few, 1)), COUNT / SINGLE),
        ("torchattacks, one image at a time *", best(lambda: singly(model, few)), COUNT / SINGLE),
    ]
    (reference, (radii, _, __)) = runs[0][1]
    table = Table(title=f"Nearest adversarial images of {COUNT} digits", caption=f"* measured on {SINGLE} and scaled")
    for head in ("search", "seconds", "ratio", "gradients", "median norm", "same radius as ours"):
        table.add_column(head, justify="left" if head == "search" else "right")
    for name, (seconds, (eps, norms, gradients)), scale in runs:
        same = torch.isclose(eps, radii[: len(eps)]).float().mean()
        cells = (f"{seconds * scale:.2f}", f"{seconds * scale / reference:.1f}", f"{gradients * scale:,.0f}")
        table.add_row(name, *cells, f"{norms.median():.4f}", f"{100 * same:.1f} %")
    Console(width=120).print(table)


def singly(model: nn.Module, images: Images) -> tuple[Tensor, Tensor, int]:
    answers = [theirs(model, images[torch.tensor([row])]) for row in range(len(images))]
    eps, norms, gradients = zip(*answers, strict=True)
    return torch.cat(eps), torch.cat(norms), sum(gradients)


if __name__ == "__main__":
    main()
