"""Properties that many things share; each `assert_` fails with the name of what broke it."""

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from unlearn.data.images import Data, Images, as_model_input
from unlearn.metrics import Metric
from unlearn.session import Session, session

ROOT = Path(__file__).resolve().parents[1]
State = dict[str, bytes]


def stems(group: str) -> list[str]:
    """Names of a configuration group's files, without the lists that only name others (`auditor=full`)."""
    files = sorted((ROOT / "conf" / group).glob("*.yaml"))
    return [file.stem for file in files if set(OmegaConf.load(file)) != {"defaults"}]


def yaml_of(group: str, stem: str) -> dict[str, Any]:
    """What one file of a group says; an auditor's settings stand below its name."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / group / f"{stem}.yaml"))
    return dict(settings[stem] if group == "auditor" else settings)


def assert_keys_are_the_keyword_only_parameters(
    settings: Mapping[str, Any], function: Callable[..., Any], positional: Iterable[str]
) -> None:
    parameters = inspect.signature(function).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert sorted(p.name for p in keywords) == sorted(settings.keys() - {"_target_"})
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == list(positional)
    for parameter in keywords:
        assert parameter.default is parameter.empty, f"{parameter.name} has a default outside the YAML"
        assert parameter.annotation is not parameter.empty, f"{parameter.name} has no type to be checked against"


def state_of(model: nn.Module) -> State:
    """Every parameter and buffer of a model, as bytes, apart from the model."""
    return {name: value.detach().cpu().contiguous().numpy().tobytes() for name, value in model.state_dict().items()}


def changed(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> set[str]:
    """Names under which two states differ."""
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def flags_of(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_like(model: nn.Module, original: nn.Module, images: Images) -> None:
    """Of the original's class and output shape, every number finite, all of it in eval mode."""
    assert type(model) is type(original)
    assert [type(module) for module in model.modules()] == [type(module) for module in original.modules()]
    for name, value in model.state_dict().items():
        assert value.shape == original.state_dict()[name].shape, name
        assert value.isfinite().all(), name
    assert not [name for name, module in model.named_modules() if module.training]
    with torch.no_grad():
        x = as_model_input(images.pixels[:5], torch.device("cpu"))
        assert model(x).shape == original(x).shape
        assert model(x).isfinite().all()


@contextmanager
def random_state_untouched() -> Iterator[None]:
    """The global generators of torch, numpy and Python are left where they were."""
    before = _random_state()
    yield
    assert changed(before, _random_state()) == set()


def _random_state() -> dict[str, bytes]:
    _, keys, position, *_ = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.asarray(keys).tobytes() + bytes([int(position) % 256]),
        "random": repr(random.getstate()).encode(),
    }


@contextmanager
def images_untouched(*images: Images) -> Iterator[None]:
    before = [(part.pixels.clone(), part.labels.clone()) for part in images]
    yield
    for part, (pixels, labels) in zip(images, before, strict=True):
        assert torch.equal(part.pixels, pixels)
        assert torch.equal(part.labels, labels)


def assert_declared(answer: Mapping[str, Any], metrics: Iterable[Metric], *, one_image: bool = False) -> None:
    """Every number and refusal was declared, no array was, and every interval stands whole around its value.

    What is known of one image alone may have no interval.
    """
    plain = {metric.name: metric for metric in metrics}
    ends = {f"{name}{end}" for name, metric in plain.items() if metric.interval for end in ("_low", "_high")}
    measured = {name: value for name, value in answer.items() if isinstance(value, int | float)}
    refused = {name for name, value in answer.items() if isinstance(value, str)}
    arrays = {name for name, value in answer.items() if isinstance(value, np.ndarray)}
    assert answer.keys() == measured.keys() | refused | arrays
    assert refused <= plain.keys()
    assert not arrays & (plain.keys() | ends)
    assert measured.keys() <= plain.keys() | ends
    for name, value in measured.items():
        assert isinstance(value, float | int), name
    for name, metric in plain.items():
        alone = one_image and not {f"{name}_low", f"{name}_high"} & measured.keys()
        if metric.interval and name in measured and not alone:
            assert measured[f"{name}_low"] <= measured[name] <= measured[f"{name}_high"], name


def assert_positions(positions: Tensor, data: Data) -> None:
    """Sorted and distinct positions in the training set, some of them and not all."""
    assert positions.dtype == torch.int64
    assert positions.ndim == 1
    assert 0 < len(positions) < len(data.train)
    assert positions[0] >= 0
    assert positions[-1] < len(data.train)
    assert (positions.diff() > 0).all()


class Killed(BaseException):
    """An end from outside."""


def kill(run: Callable[[], nn.Module], folder: Path, lines: int) -> None:
    """End a run when it shows that many lines of its history; its unfinished work stays in the folder."""
    shown = count(1)

    def show(*_: Any) -> None:
        if next(shown) == lines:
            raise Killed

    with pytest.raises(Killed), session(checkpoint=folder, checkpoint_seconds=0.0, show=show):
        run()


def assert_an_interruption_leaves_no_trace(run: Callable[[], nn.Module], folder: Path, *lines: int) -> Session:
    """Killed at any of these lines, a run goes on to the model, work and history of the undisturbed one, returned."""
    with session() as undisturbed:
        expected = state_of(run())
    for number in lines:
        kill(run, folder / str(number), number)
        with session(checkpoint=folder / str(number), checkpoint_seconds=0.0) as continued:
            assert changed(expected, state_of(run())) == set()
        assert continued.sample_gradients == undisturbed.sample_gradients
        assert _untimed(continued) == _untimed(undisturbed)
    return undisturbed


def _untimed(its: Session) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in its.history]
