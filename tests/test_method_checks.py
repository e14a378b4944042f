"""What a method asks of a model is asked before anything is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from laws import random_state_untouched, yaml_of
from torch import nn

from unlearn.lab import Lab
from unlearn.settings import SettingError

DENSE = ["~model.widths", "model._target_=test_method_checks.dense"]
FLAT_KERNELS = ["~model.widths", "model._target_=test_method_checks.flat_kernels"]
NEEDS_ONE = "needs a model with a convolution"


def dense(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """A network without convolutions."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 12), nn.ReLU(), nn.Linear(12, class_count))


def flat_kernels(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """A network of kernels that are their own transpose, or have none of their shape."""
    layers = [nn.Conv2d(shape[0], 3, (1, 3)), nn.Conv2d(3, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, class_count))


def refusal(lab: Callable[..., Lab], *words: str) -> str:
    with pytest.raises(SettingError) as raised:
        lab("train.epochs=1", *words)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["msg", "cfw", "ct"])
@pytest.mark.parametrize("as_a_stage", [False, True])
def test_a_net_without_convolutions_is_refused_at_once(
    name: str, as_a_stage: bool, lab: Callable[..., Lab], tmp_path: Path
) -> None:
    key = "method=ct" if name == "ct" else f"method.weights={yaml_of('method', name)['weights']}"
    stages = ["method=rum", f"method.stages=[{{method: none}},{{method: {name}}}]"]
    chosen = stages if as_a_stage else [f"method={name}"]
    assert refusal(lab, *chosen, *DENSE).startswith(f"{key}: {NEEDS_ONE}")
    assert not (tmp_path / "store" / "originals").exists()


@pytest.mark.parametrize("name", ["msg", "cfw"])
def test_dense_layers_are_enough_for_who_asks_for_all(name: str, lab: Callable[..., Lab]) -> None:
    here = lab(f"method={name}", "method.weights=all", "method.epochs=1", "train.epochs=1", *DENSE)
    assert here.unlearned().json("history.json")[0][{"msg": "drawn_anew", "cfw": "noisy"}[name]] > 0


def test_ct_is_refused_a_net_whose_kernels_have_no_transpose(lab: Callable[..., Lab], tmp_path: Path) -> None:
    assert refusal(lab, "method=ct", *FLAT_KERNELS).startswith(f"method=ct: {NEEDS_ONE} whose kernel is square")
    assert not (tmp_path / "store" / "originals").exists()
    assert lab("method=msg", *FLAT_KERNELS).forget.numel()  # others do with such kernels


def test_the_check_of_a_method_leaves_chance_as_it_was(lab: Callable[..., Lab]) -> None:
    torch.manual_seed(7)
    with random_state_untouched():
        lab("method=ct")


def test_a_model_that_does_not_fit_is_said_before_what_a_method_asks_of_it(lab: Callable[..., Lab]) -> None:
    words = ["model=timm", "model.name=resnet18", "model.weights=nowhere.safetensors"]
    assert refusal(lab, "method=ct", *words).startswith("model.weights=nowhere.safetensors: ")
