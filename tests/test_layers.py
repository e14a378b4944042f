"""Which layers each scope means on every architecture, and that a scope trains exactly them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import changed, state_of, stems, yaml_of
from torch import nn

from unlearn.lab import Lab
from unlearn.layers import scope, trained_modules, units
from unlearn.session import current, session
from unlearn.settings import SettingError, build


def network(name: str, side: int = 32, **changes: Any) -> nn.Module:
    settings: dict[str, Any] = yaml_of("model", name) | changes
    made: nn.Module = build(settings, "model")((3, side, side), 10)
    return made


def wrapped(net: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), net)


EXPECTED = {
    ("resnet18", "first"): ["conv1", "bn1", "relu", "maxpool", "layer1"],
    ("resnet50", "intermediate"): ["layer2", "layer3"],
    ("resnet18", "last"): ["layer4", "avgpool", "fc"],
    ("resnet18", "intermediate+last"): ["layer2", "layer3", "layer4", "avgpool", "fc"],
    ("resnet20", "intermediate"): ["blocks.3", "blocks.4", "blocks.5"],
    ("fastnet", "last"): ["blocks.2", "head"],
    ("vit_tiny", "intermediate"): ["blocks.4", "blocks.5", "blocks.6", "blocks.7"],
    ("vgg16_bn", "head"): ["pool", "flatten", "head"],
}


@pytest.mark.parametrize(("model", "layers"), EXPECTED)
def test_scopes_are_the_papers_parts(model: str, layers: str) -> None:
    assert trained_modules(network(model), layers) == EXPECTED[model, layers]


@pytest.mark.parametrize("model", stems("model"))
def test_units_hold_every_layer_once_and_scopes_share_nothing(model: str) -> None:
    net = network(model)
    names = [name for unit in units(net) for name in unit]
    assert len(names) == len(set(names))
    loose = {name for name, _ in net.named_parameters() if "." not in name}  # a transformer's position embedding
    covered = {name for name, _ in net.named_parameters() if any(name.startswith(f"{unit}.") for unit in names)}
    assert covered | loose == {name for name, _ in net.named_parameters()}
    parts = [trained(net, layers) for layers in ("first", "last")]
    assert not parts[0] & parts[1]
    assert trained(net, "all") == {name for name, value in net.named_parameters() if value.requires_grad}


CONVNETS = {2: ("3", "7"), 8: ("4", "8"), 28: ("4", "9"), 32: ("4", "9")}  # side: second convolution, linear layer


@pytest.mark.parametrize("side", CONVNETS)
def test_the_head_of_a_convnet_is_its_linear_layer_at_every_size(side: int) -> None:
    net, name = network("convnet", side), CONVNETS[side][1]
    assert isinstance(net.get_submodule(name), nn.Linear)
    assert trained(net, "head") == {f"{name}.weight", f"{name}.bias"}


@pytest.mark.parametrize("side", CONVNETS)
def test_the_first_and_last_layers_of_a_convnet_are_all_of_it_at_every_size(side: int) -> None:
    net = network("convnet", side)
    first, last = trained(net, "first"), trained(net, "last")
    assert not first & last
    assert first | last == trained(net, "all")
    assert "0.weight" in first
    assert last >= trained(net, "head")
    # Up to 4 pixels nothing is pooled, so there is one block, and it is the first
    assert (f"{CONVNETS[side][0]}.weight" in last) == (side > 4)


@pytest.mark.parametrize(("widths", "middle"), [([8], []), ([8, 8], []), ([8, 8, 8], ["4"]), ([8] * 4, ["4", "8"])])
def test_a_convnet_has_a_middle_from_three_blocks_on(widths: list[int], middle: list[str]) -> None:
    net = network("convnet", widths=widths)
    convolutions = [f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    if not middle:
        with pytest.raises(SettingError, match="layers=intermediate"):
            trained_modules(net, "intermediate")
        return
    assert trained(net, "intermediate") & set(convolutions) == {f"{name}.weight" for name in middle}
    parts = [trained(net, layers) for layers in ("first", "intermediate", "last")]
    assert sum(map(len, parts)) == len(parts[0] | parts[1] | parts[2]) == len(trained(net, "all"))


@pytest.mark.parametrize("layers", ["first", "intermediate", "last", "head"])
def test_a_padded_transformer_has_the_parts_of_one_that_fits(layers: str) -> None:
    fitting, padded = network("vit_tiny", 32), network("vit_tiny", 30)
    assert isinstance(padded, nn.Sequential)
    assert trained(padded, layers) == {f"1.{name}" for name in trained(fitting, layers)}


def trained(net: nn.Module, layers: str | list[str]) -> set[str]:
    with session(), scope(wrapped(net), layers):
        return {name for name, value in net.named_parameters() if value.requires_grad}


def test_flags_and_frozen_statistics_come_back_after_the_scope() -> None:
    net = network("resnet18")
    with session():
        with scope(wrapped(net), "last"):
            frozen = current().frozen
            assert {id(module) for module in frozen} == {
                id(module)
                for name, module in net.named_modules()
                if isinstance(module, nn.BatchNorm2d) and not name.startswith("layer4")
            }
            assert not net.conv1.weight.requires_grad
        assert current().frozen == []
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_networks_own_frozen_weights_stay_frozen_in_every_scope() -> None:
    assert not {name for name in trained(network("fastnet"), "all") if name == "stem.weight"}
    assert "stem.bias" in trained(network("fastnet"), "first")


@pytest.mark.parametrize(
    ("model", "last_frozen"),
    [("resnet18", "layer3"), ("resnet20", "blocks.5"), ("vit_micro", "blocks.1"), ("vit_tiny", "blocks.7")],
)
def test_the_backward_pass_ends_at_the_first_trained_layer(model: str, last_frozen: str) -> None:
    net, seen = network(model), []
    net.get_submodule(last_frozen).register_forward_hook(lambda *hooked: seen.append(hooked[2].requires_grad))
    with session(), scope(wrapped(net), "last"):
        flagged = {name for name, value in net.named_parameters() if value.requires_grad}
        net(torch.rand(2, 3, 32, 32)).sum().backward()
    assert seen == [False]
    assert {name for name, value in net.named_parameters() if value.grad is not None} == flagged
    assert not any(name.startswith(f"{last_frozen}.") for name in flagged)


def test_modules_can_be_named_and_unknown_ones_are_refused() -> None:
    net = network("resnet18")
    assert trained(net, ["layer2.0", "fc"]) == {
        name for name, _ in net.named_parameters() if name.startswith(("layer2.0.", "fc."))
    }
    for layers in ("middle", ["layer9"], []):
        with pytest.raises(SettingError, match="layers="):
            trained_modules(net, layers)
    with pytest.raises(SettingError, match="layers=intermediate"):
        trained_modules(network("convnet"), "intermediate")


@pytest.mark.parametrize("model", ["resnet20", "vit_micro"])
@pytest.mark.parametrize("method", ["finetune", "munba", "sg_unlearn", "amun"])
def test_methods_leave_what_is_frozen_bit_identical_statistics_included(
    lab: Callable[..., Lab], model: str, method: str
) -> None:
    words = {
        "sg_unlearn": ["method.per_class=false", "method.compat=[Q1]"],
        "amun": ["method.steps=5", "method.batch_size=256"],
    }
    short = [f"method={method}", "method.epochs=1", *words.get(method, [])]
    here = lab(f"model={model}", "train.epochs=1", "layers=intermediate+last", *short)
    original, after = here.load(here.original()), here.load(here.unlearned())
    inside = tuple(f"1.{name}" for name in trained_modules(original[1], "intermediate+last"))
    moved = changed(state_of(original), state_of(after))
    assert moved
    assert all(name.startswith(inside) for name in moved)
    assert {name for name, _ in after.named_parameters() if name.startswith(inside)} <= moved
