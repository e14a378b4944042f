"""Training again, step by step: the log that a training did not keep.

Training is deterministic, so what each of its steps did to the weights can be found out by going through it a second
time, and no log is kept. A log of all steps would have cost the training one copy of the parameters a step, 32 000
copies for 182 epochs of CIFAR-10, and no work at all; the replay costs the work of a training and one copy. It is
charged to the session that asks for it, as the work it is, though with a log in hand it would be free. An interrupted
replay begins again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn.checks import name_of
from unlearn.data.images import Images
from unlearn.request import Report
from unlearn.session import apart, current, session
from unlearn.settings import SettingError
from unlearn.streams import Streams

if TYPE_CHECKING:
    from unlearn.lab import Lab

TOLERANCE = 1e-4  # in any parameter; two trainings that add up in other orders are farther apart after a few epochs


def replay(lab: Lab, forget: Tensor, seed: str | int | None, report: Report) -> nn.Module:
    """Train the original of `seed` again, `report` each step, and give the stored original; see `request.Replay`.

    `forget` holds positions in the training set. The history of the session in force is told the number of steps, how
    many had a forgotten image, and how far the end is from the original, in its farthest parameter. Raises
    `SettingError` if that is above `TOLERANCE`, or if the training walks over other images than the training set.
    """
    original, images = lab.load(lab.original(seed)), lab.data.train
    streams = Streams("original", lab.seed if seed is None else seed)
    model = lab.training.initialised(streams)
    forgotten = torch.zeros(len(images), dtype=torch.bool, device=images.labels.device)
    forgotten[forget] = True
    drawn: list[tuple[Tensor, dict[str, Tensor]]] = []
    steps: list[bool] = []

    def before(walked: Images, positions: Tensor) -> None:
        if walked is not images:
            raise refusal("needs a training that walks over the training set as it is")
        drawn.append((forgotten[positions], {name: value.detach().clone() for name, value in trained(model).items()}))

    def after() -> None:
        its, start = drawn.pop()
        steps.append(bool(its.any()))
        report(its, {name: value.detach() - start[name] for name, value in trained(model).items()})

    def refusal(what: str) -> SettingError:
        return SettingError("method", name_of(lab, "method"), what)

    settings: dict[str, Any] = {"precision": lab.precision, "show": lab.show, "drawn": before, "stepped": after}
    with apart(), session(label=f"{current().label}, replay", **settings) as done:
        end = lab.training.train(model, images, streams)
        seconds = done.seconds(lab.device)
    current().charge({"seconds": seconds, "sample_gradients": done.sample_gradients})
    distance = farthest(end, original)
    line = {"replayed_steps": len(steps), "forgotten_steps": sum(steps), "replay_distance": distance}
    current().history.append(line)
    if not distance <= TOLERANCE:
        there = f"ends {distance:.2g} from the stored one, more than {TOLERANCE:g}"
        cause = "another machine, number of threads or version of torch?"
        raise refusal(f"needs the original's training to repeat itself, and here it {there} ({cause})")
    return original


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a training moves, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def farthest(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two models in any parameter."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((its - others).detach().abs().max()) for its, others in pairs)
