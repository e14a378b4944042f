"""Salient entries: ranked over the whole model by the forget set's gradient, exactly as many as asked for."""

import pytest
import torch
from torch import Tensor, nn

from unlearn.data.images import Images
from unlearn.masks import salient
from unlearn.models.convnet import convnet
from unlearn.session import session


@pytest.fixture
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (37, 8, 8, 1), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(10, (37,), generator=generator), ("flip",))


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = convnet((1, 8, 8), 10, widths=[4, 8])
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features)
        return net.train()


def gradients(model: nn.Module, images: Images) -> dict[str, Tensor]:
    """One image at a time: the absolute value of the sum, by the plainest route there is."""
    model.eval()
    totals = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        scores = model(pixels.permute(2, 0, 1)[None].float() / 255)
        model.zero_grad()
        (-scores.log_softmax(1)[0, label]).backward()
        for name, parameter in model.named_parameters():
            totals[name] += parameter.grad
    model.zero_grad()
    return {name: total.abs() for name, total in totals.items()}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_largest_gradients_are_chosen(share: float, model: nn.Module, images: Images) -> None:
    with session() as its:
        chosen = salient(model, images, share, batch_size=10)
    assert its.sample_gradients == 37
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    size = sum(parameter.numel() for parameter in model.parameters())
    assert sum(int(part.sum()) for part in chosen.values()) == round(share * size)
    expected = gradients(model, images)
    if 0 < share < 1:
        inside = torch.cat([expected[name][part] for name, part in chosen.items()])
        outside = torch.cat([expected[name][~part] for name, part in chosen.items()])
        assert inside.min() >= outside.max() - 1e-5


def test_only_trained_parameters_are_ranked(model: nn.Module, images: Images) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ("0.weight", "4.weight"))
    chosen = salient(model, images, 0.5)
    assert set(chosen) == {"0.weight", "4.weight"}
    sizes = sum(part.numel() for part in chosen.values())
    assert sum(int(part.sum()) for part in chosen.values()) == round(0.5 * sizes)
