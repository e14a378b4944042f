"""Clipped operator norms: against dense matrices, after trainings, and over interruptions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import changed, random_state_untouched, state_of, yaml_of
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from unlearn.data.images import Images
from unlearn.lab import Lab
from unlearn.loop import DivergedError
from unlearn.models.convnet import convnet
from unlearn.models.fastnet import fastnet
from unlearn.models.normalise import Normalise
from unlearn.models.resnet18_no_norm import resnet18_no_norm
from unlearn.session import session
from unlearn.settings import SettingError, build
from unlearn.spectral_clip import clip_layers, leading, operator_norm, placed_layers
from unlearn.streams import Streams

Case = tuple[nn.Conv2d | nn.Linear, tuple[int, ...]]
QUICK = {"epochs": 2, "batch_size": 64, "every": 7, "milestones": [1], "iterations": 15}


def cases() -> list[Case]:
    with Streams("layers").seeded():
        return [
            (nn.Conv2d(1, 6, 3, padding=1), (1, 8, 8)),
            (nn.Conv2d(3, 4, 3), (3, 5, 7)),
            (nn.Conv2d(4, 7, 3, stride=2, padding=1, bias=False), (4, 8, 6)),
            (nn.Conv2d(4, 7, 1, stride=2), (4, 5, 5)),
            (nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 6, 6)),
            (nn.Conv2d(2, 3, (5, 1), padding="same", padding_mode="circular"), (2, 6, 4)),
            (nn.Conv2d(5, 5, 3, padding=1), (5, 1, 1)),
            (nn.Linear(20, 7), (20,)),
            (nn.Linear(5, 30, bias=False), (5,)),
        ]


@torch.no_grad()
def matrix(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> Tensor:
    """The layer's linear map as a matrix, one column an input."""
    columns = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
    return (layer(columns) - layer(torch.zeros_like(columns))).flatten(1).T.double()


def exact_norm(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> float:
    return torch.linalg.matrix_norm(matrix(layer, shape), 2).item()


def digits(count: int = 400) -> Images:
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels[:count].reshape(-1, 8, 8, 1) * 15).astype(np.uint8)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels[:count]).long())


def small(net: Callable[[], nn.Module]) -> nn.Module:
    with Streams("model").seeded():
        return nn.Sequential(Normalise(1, [0.3], [0.4]), net())


def tiny_convnet() -> nn.Module:
    return small(lambda: convnet((1, 8, 8), 10, widths=[8, 16]))


def plain_net() -> nn.Module:
    """Two convolutions and a head without batch norm, whose norms grow beyond 1 in a training."""

    def net() -> nn.Module:
        last = [nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)]
        convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, padding=1)]
        return nn.Sequential(*convolutions, *last)

    return small(net)


def trained(model: nn.Module, images: Images | None = None, **changes: Any) -> nn.Module:
    train = build(yaml_of("train", "spectral_clip") | QUICK | changes, "train")
    result: nn.Module = train(model, images or digits(), Streams("training"))
    return result


def exact_norms(model: nn.Module) -> list[float]:
    return [exact_norm(layer, shape) for layer, shape in placed_layers(model, torch.zeros(1, 1, 8, 8))]


# Norms


@pytest.mark.parametrize("number", range(len(cases())))
def test_singular_values_are_those_of_the_dense_matrix(number: int) -> None:
    layer, shape = cases()[number]
    wanted = torch.linalg.svdvals(matrix(layer, shape))
    found = leading(layer, shape, Streams("start")(), 60)
    assert operator_norm(layer, shape, Streams("start")(), 60) == pytest.approx(wanted[0].item(), rel=1e-5)
    assert all(found.values <= wanted[: len(found.values)] * (1 + 1e-5))
    left = matrix(layer, shape).float() @ found.right[0]
    torch.testing.assert_close(left, found.values[0] * found.left[0], rtol=1e-4, atol=1e-5)
    # At too few applications the value is too small, and never too large
    assert operator_norm(layer, shape, Streams("start")(), 2) <= wanted[0].item() * (1 + 1e-6)


def test_the_norm_is_the_maps_and_not_the_kernels() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    assert operator_norm(layer, (1, 1, 1), Streams("start")(), 10) == pytest.approx(1)  # one tap meets the one pixel
    assert 8.9 < operator_norm(layer, (1, 40, 40), Streams("start")(), 60) < 9  # sums of nine, but at the edge
    assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(3)


def test_a_layer_of_zeros_has_norm_zero_and_stays() -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    assert operator_norm(layer, (4,), Streams("start")(), 10) == 0
    clip_layers([(layer, (4,))], 1.0, Streams("clip"), iterations=10, deflations=1)
    assert not layer.weight.any()


# Clips


@pytest.mark.parametrize("deflations", [0, 1, 4])
@pytest.mark.parametrize("bound", [0.3, 1.0])
def test_clipped_layers_have_the_norm_asked_for(deflations: int, bound: float) -> None:
    layers = cases()
    for layer, _ in layers:
        layer.weight.data.mul_(4)
    biases = [None if layer.bias is None else layer.bias.clone() for layer, _ in layers]
    with random_state_untouched():
        clip_layers(layers, bound, Streams("clip"), iterations=60, deflations=deflations)
    for (layer, shape), bias in zip(layers, biases, strict=True):
        norm = exact_norm(layer, shape)
        assert norm <= bound * (1 + 1e-4)
        if not deflations:
            assert norm >= bound * (1 - 1e-4)
        assert bias is None or torch.equal(layer.bias, bias)
    before = [state_of(layer) for layer, _ in layers]
    clip_layers(layers, bound, Streams("again"), iterations=60, deflations=deflations)
    assert [state_of(layer) for layer, _ in layers] == before  # norms within the bound are left alone


def test_a_dense_layers_spectrum_is_clipped_exactly() -> None:
    layer = nn.Linear(12, 9)
    left, values, right = torch.linalg.svd(torch.randn(9, 12, generator=Streams("weight")()), full_matrices=False)
    layer.weight.data = left @ values.diag() @ right
    bound = values[4].item()
    clip_layers([(layer, (12,))], bound, Streams("clip"), iterations=30, deflations=1)
    torch.testing.assert_close(layer.weight.data, left @ values.clamp(max=bound).diag() @ right, rtol=1e-4, atol=1e-5)


def test_deflation_takes_less_from_a_convolution_than_a_division() -> None:
    left = []
    for deflations in (0, 3):
        (layer, shape) = cases()[2]
        layer.weight.data.mul_(3)
        before = torch.linalg.svdvals(matrix(layer, shape))
        clip_layers([(layer, shape)], 1.0, Streams("clip"), iterations=60, deflations=deflations)
        left.append((torch.linalg.svdvals(matrix(layer, shape)) / before)[len(before) // 2].item())
    assert left[1] > 1.2 * left[0]


def test_layers_are_found_with_the_shapes_they_get() -> None:
    model = small(lambda: resnet18_no_norm((1, 16, 16), 10, scale=1.0))
    before = state_of(model)
    layers = placed_layers(model, torch.zeros(1, 1, 16, 16))
    assert changed(before, state_of(model)) == set()
    assert len(layers) == 21  # 17 convolutions of 3 x 3, three shortcuts, one head
    assert [shape for _, shape in layers][:2] == [(1, 16, 16), (64, 16, 16)]
    assert [shape for _, shape in layers][-2:] == [(512, 2, 2), (512,)]
    twice = nn.Conv2d(1, 1, 3, padding=1)
    found = placed_layers(nn.Sequential(twice, nn.MaxPool2d(2), twice), torch.zeros(1, 1, 8, 8))
    assert [shape for _, shape in found] == [(1, 8, 8), (1, 4, 4)]


# Trainings


@pytest.mark.parametrize("net", [tiny_convnet, plain_net])
def test_after_a_training_every_norm_is_within_the_bound(net: Callable[[], nn.Module]) -> None:
    model = trained(net(), every=10**6)  # only the last clip
    assert max(exact_norms(model)) <= 1 + 1e-3
    assert max(exact_norms(model)) >= 1 - 1e-3
    assert not any(module.training for module in model.modules())
    clipped = trained(net(), bound=0.5)
    assert max(exact_norms(clipped)) <= 0.5 * (1 + 1e-3)


def test_a_bound_that_is_never_met_changes_nothing() -> None:
    free, supervised = trained(plain_net(), bound=1e6), yaml_of("train", "standard") | {"batch_size": 64}
    plain = build(supervised | {"epochs": 2, "milestones": [1]}, "train")(plain_net(), digits(), Streams("training"))
    assert changed(state_of(free), state_of(plain)) == set()
    assert max(exact_norms(plain)) > 1


def test_clips_come_after_every_so_many_steps_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "unlearn.spectral_clip.clip_layers", lambda layers, bound, streams, **_: names.append(streams.root[1:])
    )
    trained(plain_net())  # 2 x 7 steps
    assert names == [("clip", 6), ("clip", 13), ("last clip",)]


def test_a_training_that_was_interrupted_ends_bit_for_bit_as_it_would_have(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def show(label: str, line: dict[str, Any], epochs: int) -> None:
        if line["epoch"] == 2:
            raise Killed

    settings = {"epochs": 3, "every": 4}
    undisturbed = trained(plain_net(), **settings)
    checkpoint = {"checkpoint": tmp_path, "checkpoint_seconds": 0.0}
    with session(show=show, **checkpoint), pytest.raises(Killed):
        trained(plain_net(), **settings)
    with session(**checkpoint) as its:
        resumed = trained(plain_net(), **settings)
    assert [line["epoch"] for line in its.history] == [1, 2, 3]
    assert changed(state_of(resumed), state_of(undisturbed)) == set()
    with session(**checkpoint):  # killed in the last clip, after the last epoch
        resumed = trained(plain_net(), **settings)
    assert changed(state_of(resumed), state_of(undisturbed)) == set()


def test_layers_that_are_not_clipped_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(tiny_convnet(), epochs=1)
    assert capsys.readouterr().err == "spectral_clip: not clipped: 2 BatchNorm2d\n"
    scaling = [norm.weight / (norm.running_var + norm.eps).sqrt() for norm in model[1] if hasattr(norm, "running_var")]
    assert max(its.max().item() for its in scaling) > 1  # as the module says, batch norm scales as it likes
    trained(plain_net(), epochs=1)
    assert capsys.readouterr().err == ""
    whitened = small(lambda: fastnet((1, 8, 8), 10, widths=[4, 8], scale=0.1))
    fixed = whitened[1].stem
    trained(whitened, epochs=1)
    assert capsys.readouterr().err == "spectral_clip: not clipped: 1 Conv2d, 4 BatchNorm2d\n"
    assert exact_norm(fixed, (1, 8, 8)) > 1


def test_a_training_that_diverges_is_the_loops_to_end() -> None:
    with pytest.raises(DivergedError):
        trained(plain_net(), lr=1e30, every=1)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"every": 0}, "every"),
        ({"bound": 0}, "bound"),
        ({"bound": None}, "bound"),
        ({"deflations": -1}, "deflations"),
        ({"iterations": 9}, "iterations"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
    ],
)
def test_bad_settings_are_refused_before_a_training(changes: dict[str, Any], key: str) -> None:
    model = plain_net()
    before = state_of(model)
    with pytest.raises(SettingError, match=rf"^train\.{key}="):
        trained(model, **changes)
    assert changed(before, state_of(model)) == set()


def test_originals_and_references_of_a_run_are_clipped(lab: Callable[..., Lab]) -> None:
    made = lab("train=spectral_clip", "train.epochs=2")
    for stored in (made.original(), made.retrained()):
        assert max(exact_norms(made.load(stored))) <= 1 + 1e-3


# The model without batch norm


def test_scaled_features_are_the_released_codes_halved_blocks() -> None:
    class Halved(nn.Module):
        def __init__(self, block: BasicBlock) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            shortcut = self.block.downsample(x)
            out: Tensor = self.block.conv2(self.block.conv1(x).relu()) + shortcut
            return (out / 2).relu()

    with Streams("model").seeded():
        scaled = resnet18_no_norm((3, 16, 16), 5, scale=0.125)
    with Streams("model").seeded():
        halved = resnet18_no_norm((3, 16, 16), 5, scale=1.0)
    for stage in (halved.layer2, halved.layer3, halved.layer4):
        stage[0] = Halved(stage[0])
    x = torch.randn(2, 3, 16, 16, generator=Streams("x")())
    torch.testing.assert_close(scaled(x), halved(x))


def test_the_model_starts_within_the_bound_and_with_scores_that_tell_images_apart() -> None:
    with Streams("model").seeded():
        network = resnet18_no_norm((1, 8, 8), 10, scale=1.0)
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    layers = placed_layers(network, torch.zeros(1, 1, 8, 8))
    norms = [operator_norm(layer, shape, Streams("start")(), 20) for layer, shape in layers]
    assert min(norms) > 0.2
    assert max(norms) < 2.5
    x = torch.randn(64, 1, 8, 8, generator=Streams("x")())
    assert network(x).std(0).min() > 0.001
