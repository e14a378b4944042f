"""The search for adversarial images: against torchattacks, a loop without its shortcuts, and known distances."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from laws import changed, flags_of, images_untouched, random_state_untouched, state_of
from omegaconf import OmegaConf
from torch import Tensor, nn

from unlearn import attacks
from unlearn.attacks import Adversarial, Norm, doublings, evaluating, nearest
from unlearn.batches import shuffled
from unlearn.data.images import Data, Images, as_model_input
from unlearn.loop import cross_entropy, fit
from unlearn.models.convnet import convnet
from unlearn.models.normalise import Normalise
from unlearn.session import session
from unlearn.settings import build
from unlearn.streams import Streams

CPU = torch.device("cpu")
CONF = Path(__file__).resolve().parents[1] / "conf"
NORMS: list[Norm] = ["l2", "linf"]
FIRST = {"l2": 0.04, "linf": 0.01}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "digits.yaml"), resolve=False)
    digits: Data = build(settings | {"root": str(tmp_path_factory.mktemp("data"))}, "dataset")()
    return digits


@pytest.fixture(scope="module")
def model(data: Data) -> nn.Sequential:
    """A small net that knows most of the training set, the noisy labels among it not."""
    with Streams("attacks").seeded("initialisation"):
        net = nn.Sequential(Normalise(1, data.mean, data.std), convnet(data.shape, 10, widths=[8, 16]))
    batches = shuffled(data.train, 64, Streams("attacks"))
    fit(net, batches, cross_entropy, Streams("attacks"), epochs=8, lr=0.1, momentum=0.9, weight_decay=5e-4)
    return net


@pytest.fixture(scope="module")
def images(data: Data) -> Images:
    return data.train[torch.arange(150)]


@pytest.fixture(scope="module")
def found(model: nn.Sequential, images: Images) -> dict[Norm, Adversarial]:
    return {norm: nearest(model, images, norm=norm, eps_init=FIRST[norm], steps=50) for norm in NORMS}


def lengths(difference: Tensor, norm: Norm) -> Tensor:
    flat = difference.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()


def predictions(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model.eval()(pixels).argmax(1)
    return answer


# What every answer keeps


@pytest.mark.parametrize("norm", NORMS)
def test_every_label_is_a_wrong_prediction_in_its_ball_and_in_range(
    norm: Norm, model: nn.Sequential, images: Images, found: dict[Norm, Adversarial]
) -> None:
    start, searched = as_model_input(images.pixels, CPU), found[norm]
    assert searched.failures == 0
    assert searched.found.all()
    assert len(searched) == len(images)
    assert searched.images.shape == start.shape
    assert searched.images.dtype == torch.float32
    assert torch.equal(searched.labels, predictions(model, searched.images))
    assert (searched.labels != images.labels).all()
    assert searched.images.min() >= 0
    assert searched.images.max() <= 1
    torch.testing.assert_close(searched.norms.double(), lengths(searched.images - start, norm), rtol=1e-5, atol=1e-6)
    assert (searched.norms <= searched.eps * (1 + 1e-5)).all()
    radii = torch.log2(searched.eps / FIRST[norm])
    torch.testing.assert_close(radii, radii.round(), atol=1e-5, rtol=0)
    assert len(radii.round().unique()) > 2
    assert torch.equal(radii.round().long(), (searched.steps - 1).clamp(min=0) // 50)


@pytest.mark.parametrize("norm", NORMS)
def test_what_was_wrong_to_begin_with_is_its_own(
    norm: Norm, model: nn.Sequential, images: Images, found: dict[Norm, Adversarial]
) -> None:
    start, searched = as_model_input(images.pixels, CPU), found[norm]
    clean = predictions(model, start)
    wrong = clean != images.labels
    assert 0 < wrong.sum() < len(images)
    assert torch.equal(searched.steps == 0, wrong)
    assert torch.equal(searched.images[wrong], start[wrong])
    assert torch.equal(searched.labels[wrong], clean[wrong])
    assert (searched.norms[wrong] == 0).all()
    assert (searched.eps[wrong] == torch.tensor(FIRST[norm])).all()


def test_nothing_but_the_count_of_gradients_is_changed(model: nn.Sequential, images: Images) -> None:
    model = deepcopy(model)
    model.get_submodule("1.0").train()  # modes that differ from module to module
    next(model[1].parameters()).requires_grad_(False)
    state, flags, modes = state_of(model), flags_of(model), [module.training for module in model.modules()]
    torch.manual_seed(7)
    with session() as its, random_state_untouched(), images_untouched(images), torch.no_grad():
        searched = nearest(model, images, norm="l2", eps_init=0.04, steps=50)
    assert changed(state, state_of(model)) == set()
    assert flags_of(model) == flags
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not searched.images.requires_grad
    assert its.sample_gradients == int(searched.steps.sum()) > 0


def test_modes_come_back_when_the_block_fails(model: nn.Sequential) -> None:
    model = deepcopy(model)
    model.get_submodule("1.1").train()

    def fails() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [module for module in model.modules() if module.training] == [model.get_submodule("1.1")]


def test_no_images_give_no_images(model: nn.Sequential, images: Images) -> None:
    searched = nearest(model, images[torch.arange(0)], norm="l2", eps_init=0.04, steps=50)
    assert searched.images.shape == (0, 1, 8, 8)
    assert len(searched) == searched.failures == 0


# The same without the shortcuts


def one_by_one(
    model: nn.Sequential, images: Images, norm: Norm, eps_init: float, steps: int
) -> list[tuple[Tensor, int]]:
    """Algorithm 1 of AMUN for one image at a time, on cross-entropy: (the image found, gradients taken)."""
    answers = []
    for start, label in zip(as_model_input(images.pixels, CPU), images.labels, strict=True):
        here, eps, taken = start.clone(), eps_init, 0
        while (scores := model(x := here[None].clone().requires_grad_())).argmax() == label:
            if taken and taken % steps == 0:
                eps *= 2
            (slope,) = torch.autograd.grad(nn.functional.cross_entropy(scores, label[None]), x)
            taken += 1
            if norm == "linf":
                change = (here + eps / 10 * slope[0].sign() - start).clamp(-eps, eps)
            else:
                change = here + eps / 10 * slope[0] / (slope.norm() + 1e-10) - start
                change = change * min(1.0, eps / change.norm().item())
            here = (start + change).clamp(0, 1)
        answers.append((here, taken))
    return answers


@pytest.mark.parametrize("norm", NORMS)
def test_search_equals_a_loop_over_single_images(
    norm: Norm, model: nn.Sequential, images: Images, found: dict[Norm, Adversarial]
) -> None:
    some = torch.arange(25)
    by_hand = one_by_one(model, images[some], norm, FIRST[norm], 50)
    assert found[norm].steps[some].tolist() == [taken for _, taken in by_hand]
    torch.testing.assert_close(found[norm].images[some], torch.stack([its for its, _ in by_hand]), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("batch_size", "count"), [(7, 40), (64, 150), (150, 150)])
@pytest.mark.parametrize("norm", NORMS)
def test_size_of_the_batches_changes_nothing(
    norm: Norm, batch_size: int, count: int, model: nn.Sequential, images: Images, found: dict[Norm, Adversarial]
) -> None:
    some = images[torch.arange(count)]
    again = nearest(model, some, norm=norm, eps_init=FIRST[norm], steps=50, batch_size=batch_size)
    assert torch.equal(again.labels, found[norm].labels[:count])
    assert torch.equal(again.steps, found[norm].steps[:count])
    torch.testing.assert_close(again.images, found[norm].images[:count], rtol=0, atol=1e-5)


def test_same_search_gives_the_same_bits(model: nn.Sequential, images: Images, found: dict[Norm, Adversarial]) -> None:
    again = nearest(model, images, norm="l2", eps_init=0.04, steps=50)
    assert all(torch.equal(getattr(again, name), getattr(found["l2"], name)) for name in ("images", "labels", "norms"))


def test_search_makes_all_tensors_where_the_images_are(
    model: nn.Sequential, images: Images, found: dict[Norm, Adversarial]
) -> None:
    with torch.device("meta"):  # where a tensor without a device of its own would be
        there = nearest(model, images, norm="l2", eps_init=FIRST["l2"], steps=50)
    assert torch.equal(there.images, found["l2"].images)


@pytest.mark.parametrize("batch_size", [16, 500])
def test_no_image_is_in_the_model_once_it_is_done(batch_size: int, model: nn.Sequential, images: Images) -> None:
    images = images[torch.arange(80)]
    seen: list[int] = []
    handle = model.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    searched = nearest(model, images, norm="l2", eps_init=0.04, steps=50, batch_size=batch_size)
    handle.remove()
    assert max(seen) <= batch_size
    assert sum(seen) == int(searched.steps.sum()) + len(images)  # a forward a step, and one that finds it wrong
    if batch_size == 16:  # full until no image is waiting
        assert seen[: len(seen) // 2] == [16] * (len(seen) // 2)


# torchattacks


@pytest.mark.parametrize("norm", NORMS)
def test_steps_within_one_ball_are_those_of_torchattacks(
    norm: Norm, model: nn.Sequential, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps, limit = {"l2": 0.3, "linf": 0.05}[norm], 15
    monkeypatch.setattr(attacks, "doublings", lambda *_: 0)
    searched = nearest(model, images, norm=norm, eps_init=eps, steps=limit)
    assert searched.failures > 20  # so many are compared after all steps, the others after as many as they took
    start = as_model_input(images.pixels, CPU)
    for taken in searched.steps[searched.steps > 0].unique().tolist():
        their = {
            "l2": lambda taken=taken: torchattacks.PGDL2(model, eps, eps / 10, taken, False, 1e-10),
            "linf": lambda taken=taken: torchattacks.PGD(model, eps, eps / 10, taken, False),
        }[norm]()
        chosen = searched.steps == taken
        theirs = their(start[chosen], images.labels[chosen])
        torch.testing.assert_close(searched.images[chosen], theirs, rtol=0, atol=1e-5)
    assert len(searched.steps.unique()) > 5


def test_images_that_float32_is_certain_of_are_found_all_the_same(
    model: nn.Sequential, images: Images, found: dict[Norm, Adversarial]
) -> None:
    model = deepcopy(model)
    with torch.no_grad():
        for parameter in list(model.modules())[-1].parameters():
            parameter.mul_(300)
    right = found["l2"].steps > 0
    start, labels = as_model_input(images.pixels, CPU)[right], images.labels[right]
    stuck = (torchattacks.PGDL2(model, 0.2, 0.02, 20, False)(start, labels) == start).flatten(1).all(1)
    assert stuck.float().mean() > 0.5  # the gradient of cross-entropy is exactly zero
    searched = nearest(model, images[right], norm="l2", eps_init=0.04, steps=50)
    assert searched.failures == 0
    assert searched.norms.median() == pytest.approx(float(found["l2"].norms[right].median()), rel=0.2)


# Distances that are known


class Linear(nn.Module):
    """Scores that are linear in the pixels, so that the distance to every other class has a formula."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 48, generator=generator))
        self.bias = nn.Parameter(-self.weight.detach().sum(1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def grey(count: int, seed: int, spread: int = 12) -> Tensor:
    """Pixels far from black and white, where no clamping is felt."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(128 - spread, 128 + spread, (count, 4, 4, 3), generator=generator, dtype=torch.uint8)


def distances(model: Linear, images: Images, norm: Norm) -> Tensor:
    scores = model(as_model_input(images.pixels, CPU)).detach().double()
    apart = model.weight.detach().double()[:, None] - model.weight.detach().double()
    dual = apart.norm(dim=2) if norm == "l2" else apart.abs().sum(2)
    rows = torch.arange(len(images))
    gaps = (scores[rows, images.labels][:, None] - scores) / dual[images.labels]
    gaps[rows, images.labels] = torch.inf
    return gaps.amin(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 10])
def test_norms_are_the_exact_distances_up_to_what_the_schedule_allows(norm: Norm, classes: int) -> None:
    model, eps_init = Linear(classes, 0), {"l2": 0.01, "linf": 0.001}[norm]
    pixels = grey(200, 1)
    images = Images(pixels, predictions(model, as_model_input(pixels, CPU)))
    exact = distances(model, images, norm)
    searched = nearest(model, images, norm=norm, eps_init=eps_init, steps=50)
    ratio = searched.norms.double() / exact
    assert searched.failures == 0
    assert ratio.min() > 1 - 1e-4
    if classes == 2:  # the gradient shows straight at the boundary
        radii = eps_init * 2 ** torch.log2(exact / eps_init).ceil().clamp(min=0)
        torch.testing.assert_close(searched.eps.double(), radii)
        # The ball before was too small, so eps < 2 d, and the last step is a tenth of eps
        assert (searched.norms <= torch.maximum(1.2 * exact, exact + eps_init / 10) + 1e-5).all()
    else:  # it shows at the class with the highest score, which need not be the nearest
        assert ratio.median() < 1.5
        assert (searched.norms <= 4 * exact.clamp(min=eps_init / 10)).all()
    assert len(searched.eps.unique()) > 3


def test_what_no_image_flips_is_a_failure_and_counted() -> None:
    model = Linear(2, 0)
    with torch.no_grad():
        model.bias.add_(torch.tensor([1e4, 0.0]))
    images = Images(grey(6, 0), torch.tensor([0, 1, 0, 0, 1, 0]))
    limit = 5 * (1 + doublings((4, 4, 3), "l2", 1.0))
    with session() as its:
        searched = nearest(model, images, norm="l2", eps_init=1.0, steps=5)
    assert searched.failures == 4
    assert searched.found.tolist() == [False, True, False, False, True, False]
    assert searched.labels.tolist() == [0] * 6
    assert searched.steps.tolist() == [limit, 0, limit, limit, 0, limit]
    assert its.sample_gradients == 4 * limit
    assert searched.eps[0] >= math.sqrt(48) > searched.eps[0] / 2


@pytest.mark.parametrize(("norm", "diameter"), [("l2", math.sqrt(3072)), ("linf", 1.0)])
@pytest.mark.parametrize("eps_init", [1e-3, 0.04, 0.25, 1.0, 100.0])
def test_last_ball_is_the_first_that_holds_every_image(norm: Norm, diameter: float, eps_init: float) -> None:
    count = doublings((3, 32, 32), norm, eps_init)
    assert eps_init * 2**count >= diameter
    assert count == 0 or eps_init * 2 ** (count - 1) < diameter


def test_smaller_first_balls_find_nearer_images(model: nn.Sequential, images: Images) -> None:
    images = images[torch.arange(50)]
    searches = [nearest(model, images, norm="l2", eps_init=eps, steps=50) for eps in (0.02, 0.64, 5.12)]
    means = [float(searched.norms.mean()) for searched in searches]
    assert means == sorted(means)
    assert np.isfinite(means).all()
