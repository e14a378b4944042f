"""What a method asks of a model is asked before anything is trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import random_state_untouched, yaml_of
from torch import nn

from unlearn.checks import check_method
from unlearn.displacement import check_others
from unlearn.lab import Lab
from unlearn.settings import SettingError

DENSE = ["~model.widths", "model._target_=test_method_checks.dense"]
FLAT_FEATURES = ["~model.widths", "model._target_=test_method_checks.flat_features"]
FLAT_KERNELS = ["~model.widths", "model._target_=test_method_checks.flat_kernels"]
NEEDS_ONE = "needs a model with a convolution"


def dense(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """A network without convolutions."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 12), nn.ReLU(), nn.Linear(12, class_count))


def flat_kernels(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """A network of kernels that are their own transpose, or have none of their shape."""
    layers = [nn.Conv2d(shape[0], 3, (1, 3)), nn.Conv2d(3, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, class_count))


def flat_features(shape: tuple[int, int, int], class_count: int) -> nn.Module:
    """A network whose classifier is a convolution."""
    return nn.Sequential(nn.Conv2d(shape[0], class_count, shape[1:]), nn.Flatten())


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


@pytest.mark.parametrize(("name", "key"), [("msg", "drawn_anew"), ("cfw", "noisy"), ("ct", "transposed")])
def test_what_was_not_done_without_a_learning_rate_is_not_told(name: str, key: str, lab: Callable[..., Lab]) -> None:
    for rate, done in (("0", False), ("0.01", True)):
        here = lab(f"method={name}", f"method.lr={rate}", "method.epochs=1", "train.epochs=1")
        assert (here.unlearned().json("history.json")[0][key] > 0) is done


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=cf_k", "method.k=99"), "method.k=99: must be at most "),
        (("method=cf_k", "method.k=1", "layers=first"), "method.k=1: leaves nothing to train"),
        (("method=eu_k", "method.k=99"), "method.k=99: must be at most "),
        (("method=scissorhands", "method.modules=[nowhere]"), "method.modules=nowhere: must be names of this model's"),
        (("method=prmq", "layers=[norm]", "model=resnet20"), "method=prmq: prunes convolutions and dense layers"),
        *((("method=" + name, *FLAT_FEATURES), f"method={name}: needs") for name in ("duck", "scar", "cola")),
        (
            ("method=boundary_expand", *FLAT_FEATURES),
            "method=boundary_expand: needs a model whose last layer is linear",
        ),
        (
            ("method=scar", "method.surrogate=SMALLER.npz"),
            "method.surrogate=SMALLER.npz: must hold images of 8 x 8 x 1",
        ),
        (("layers=[relu]", "model=resnet20"), "layers=['relu']: has no parameters that could change"),
    ],
)
def test_what_cannot_work_is_refused_before_the_original_is_trained(
    words: tuple[str, ...], said: str, lab: Callable[..., Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("SMALLER.npz", images=np.zeros((4, 7, 8, 1), np.uint8))
    assert refusal(lab, *words).startswith(said)
    assert not (tmp_path / "store" / "originals").exists()


def test_to_rewind_by_there_must_be_validation_images_of_what_is_forgotten(lab: Callable[..., Lab]) -> None:
    here = lab("scenario=class_wise", "method=scrub", "method.rewind=true")
    check_method(here)
    others = here.data.validation[(here.data.validation.labels != 0).nonzero().flatten()]
    here.data = replace(here.data, validation=others)
    with pytest.raises(SettingError, match=r"method\.rewind=True: needs a validation image of a class"):
        check_method(here)


@pytest.mark.parametrize("name", ["duck", "scar"])
def test_the_only_class_that_stays_is_no_target_for_its_own_images(name: str, lab: Callable[..., Lab]) -> None:
    here = lab()
    labels = here.data.train.labels
    here.requests = [
        torch.cat([(labels != 9).nonzero().flatten(), (labels == 9).nonzero().flatten()[:1]]).sort().values
    ]
    with pytest.raises(SettingError, match=f"method={name}: finds no retained class"):
        check_others(name, here)
    here.requests = [(labels != 9).nonzero().flatten()]
    check_others(name, here)


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
