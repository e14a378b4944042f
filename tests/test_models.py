"""Every model takes every image, trains, saves, and has the size that its paper says."""

import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision import models

from unlearn.models.normalise import Normalise
from unlearn.models.timm import timm
from unlearn.models.vgg16_bn import SevenBySeven, vgg16_bn
from unlearn.models.vision_transformer import patch_side
from unlearn.models.vit_tiny import vit_tiny
from unlearn.settings import SettingError, build, keyword_only

Shape = tuple[int, int, int]
FOLDER = Path(__file__).parents[1] / "conf" / "model"
MODELS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SHAPES: list[Shape] = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 64, 64)]
SLOW = {"resnet18", "resnet18_no_norm", "resnet50", "vgg16_bn", "vgg19_bn", "vit_small"}
CASES = [(model, shape) for model in MODELS for shape in (SHAPES[:2] if model in SLOW else SHAPES)]
SMALLEST = {
    "convnet": 2,
    "fastnet": 3,
    "resnet18": 8,
    "resnet18_no_norm": 8,
    "resnet20": 4,
    "resnet50": 8,
    "vgg16_bn": 2,
    "vgg19_bn": 2,
    "vit_micro": 4,
    "vit_small": 4,
    "vit_tiny": 4,
}


def make(model: str, shape: Shape = (3, 32, 32), class_count: int = 7, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = build(OmegaConf.load(FOLDER / f"{model}.yaml"), "model")(shape, class_count)
    return network


def images(shape: Shape, count: int = 2) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("model", "shape"), CASES)
def test_every_model_trains_on_every_shape(model: str, shape: Shape) -> None:
    network = make(model, shape)
    assert network.training
    scores = network(images(shape))
    assert scores.shape == (2, 7)
    assert scores.isfinite().all()
    nn.functional.cross_entropy(scores, torch.tensor([0, 6])).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("model", MODELS)
def test_channels_last_gives_the_same_scores(model: str) -> None:
    network, x = make(model).eval(), images((3, 32, 32))
    plain = network(x)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x.to(memory_format=torch.channels_last)), plain, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_saved_weights_give_identical_scores(model: str, tmp_path: Path) -> None:
    network, x = make(model).to(memory_format=torch.channels_last), images((3, 32, 32))
    network(x)  # moves the statistics of batch norm away from their first values
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "model.safetensors"
    )
    other = make(model, seed=1)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    network = network.to(memory_format=torch.contiguous_format)
    assert torch.equal(network.eval()(x), other.eval()(x))


@pytest.mark.parametrize("model", MODELS)
def test_initial_weights_depend_on_the_seed_alone(model: str) -> None:
    first, second, other = (make(model, (1, 8, 8), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("model", MODELS)
def test_yaml_keys_are_the_keyword_only_parameters(model: str) -> None:
    settings = OmegaConf.load(FOLDER / f"{model}.yaml")
    function = build(settings, "model").func
    assert keyword_only(function) == [key for key in settings if key != "_target_"]
    assert function.__name__ == model
    parameters = inspect.signature(function).parameters.values()
    assert all(p.default is p.empty for p in parameters)
    assert [p.name for p in parameters][:2] == ["shape", "class_count"]


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("fastnet", 1_088_888),
        ("resnet18", 11_173_962),  # Unlearn-Sparse, SalUn and AMUN train this one
        ("resnet18_no_norm", 11_164_362),  # less the gains and biases of 4,800 channels
        ("resnet20", 269_722),  # 0.27 M in Table 6 of the paper
        ("resnet50", 23_520_842),
        ("vgg16_bn", 14_728_266),
        ("vgg19_bn", 20_040_522),
    ],
)
def test_parameter_counts_on_cifar(model: str, parameters: int) -> None:
    assert size(make(model, class_count=10)) == parameters


def test_the_head_of_vgg19_takes_2048_numbers_on_tiny_imagenet() -> None:
    with torch.device("meta"):
        head = make("vgg19_bn", (3, 64, 64), 200).get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (2048, 200)


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "vgg16_bn"])
def test_larger_images_get_the_network_of_torchvision(model: str) -> None:
    with torch.device("meta"):
        network = make(model, (3, 96, 70), class_count=1000)
        assert network(torch.empty(2, 3, 96, 70)).shape == (2, 1000)
        assert size(network) == size(models.get_model(model))


@pytest.mark.parametrize(("model", "smallest"), SMALLEST.items())
def test_too_small_images_are_refused(model: str, smallest: int) -> None:
    shape = (1, smallest, smallest + 1)
    assert make(model, shape)(images(shape)).isfinite().all()
    with pytest.raises(SettingError, match=rf"^model={model}: .* from {smallest} x {smallest} .* {smallest - 1} x 9$"):
        make(model, (1, smallest - 1, 9))


def test_convnet_memorises_the_digits() -> None:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels[:1300], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels[:1300])
    network = make("convnet", (1, 8, 8), class_count=10)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(15):
        for batch in torch.randperm(len(y)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimiser.step()
    assert torch.equal(network.eval()(x).argmax(1), y)


def test_vgg_leaves_out_the_pools_that_would_find_one_pixel() -> None:
    for side, pools in ((2, 1), (8, 3), (28, 4), (31, 4), (32, 5), (64, 5)):
        network = vgg16_bn((1, side, side), 2)
        assert sum(isinstance(module, nn.MaxPool2d) for module in network.modules()) == pools


@pytest.mark.parametrize(("height", "width"), [(2, 3), (7, 7), (9, 12)])
def test_seven_by_seven_is_adaptive_average_pooling(height: int, width: int) -> None:
    x = images((4, height, width))
    torch.testing.assert_close(SevenBySeven(height, width)(x), nn.functional.adaptive_avg_pool2d(x, 7))


def test_patches_follow_the_image() -> None:
    sides = {side: patch_side(side, side) for side in (8, 28, 32, 64, 224, 384)}
    assert sides == {8: 2, 28: 4, 32: 4, 64: 8, 224: 16, 384: 16}
    assert patch_side(224, 28) == 4


def test_undivided_images_are_padded_for_patches() -> None:
    network = vit_tiny((3, 33, 46), 5, depth=1, dropout=0.1)
    assert network(images((3, 33, 46))).shape == (2, 5)


def test_timm_names_the_closest_models() -> None:
    for name in ("resnet81", "hf-hub:timm/resnet18", "resnet18.no_such_tag"):
        with pytest.raises(SettingError, match=r"^model\.name=.* resnet18"):
            timm((3, 32, 32), 10, name=name, weights=None)


def test_timm_refuses_images_that_a_model_cannot_take() -> None:
    with pytest.raises(SettingError, match=r"^model\.name=test_vit: .* 1 x 8 x 8"):
        timm((1, 8, 8), 10, name="test_vit", weights=None)


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_vit.r160_in1k"])
def test_timm_loads_local_weights(name: str, tmp_path: Path) -> None:
    path, x = tmp_path / "model.safetensors", images((3, 32, 32))
    network = timm((3, 32, 32), 10, name=name, weights=None)
    save_file(network.state_dict(), path)
    same = timm((3, 32, 32), 10, name=name, weights=path)
    assert same.training
    assert torch.equal(same.eval()(x), network.eval()(x))

    torch.manual_seed(0)
    other = timm((3, 32, 32), 5, name=name, weights=path)
    before, after = network.state_dict(), other.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed in ({"fc.weight", "fc.bias"}, {"head.weight", "head.bias"})
    assert other(x).shape == (2, 5)

    # Another number of channels and, for the transformer's position embedding, another size
    assert timm((1, 64, 64), 5, name=name, weights=path)(images((1, 64, 64))).isfinite().all()


def test_timm_refuses_files_that_do_not_fit(tmp_path: Path) -> None:
    weights = {
        "missing": tmp_path / "missing.safetensors",
        "pickle": tmp_path / "pickle.pt",
        "empty": tmp_path / "empty.safetensors",
        "other": tmp_path / "other.safetensors",
    }
    torch.save({}, weights["pickle"])
    save_file({}, weights["empty"])
    save_file({"fc.bias": torch.zeros(3), "stem.weight": torch.zeros(3)}, weights["other"])
    for path in weights.values():
        with pytest.raises(SettingError, match=r"^model\.weights=\S+: must be a safetensors file of .* test_resnet"):
            timm((3, 32, 32), 10, name="test_resnet", weights=path)


def test_normalise_gives_zero_mean_and_unit_spread() -> None:
    x = torch.rand(64, 3, 8, 8) * torch.tensor([1.0, 0.5, 0.25]).reshape(3, 1, 1)
    layer = Normalise(3, x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).tolist())
    torch.testing.assert_close(layer(x).mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(x).std((0, 2, 3)), torch.ones(3))
    assert set(layer.state_dict()) == {"mean", "std"}


def test_normalise_broadcasts_one_number_and_refuses_another_count(tmp_path: Path) -> None:
    layer = Normalise(3, [0.5], [0.25])
    assert layer.mean.shape == layer.std.shape == (1, 3, 1, 1)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    with pytest.raises(SettingError, match=r"^dataset\.std=\[0\.2, 0\.2\]: .* 3 channels"):
        Normalise(3, [0.5], [0.2, 0.2])
