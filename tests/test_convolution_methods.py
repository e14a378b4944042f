"""Methods that change kernels and fine-tune: MSG, CFW and CT, from the NeurIPS 2023 competition."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_an_interruption_leaves_no_trace, changed, flags_of, state_of, yaml_of
from problems import Problem, batch_of, few_of
from scipy.stats import kstest, norm
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from unlearn.batches import shuffled
from unlearn.data.images import Images
from unlearn.lab import Lab
from unlearn.layers import scope
from unlearn.methods.cfw import balanced
from unlearn.methods.msg import contrast, up_and_down
from unlearn.models.vit_tiny import vit_tiny
from unlearn.request import Request
from unlearn.schedules import cosine_by_epoch
from unlearn.session import session
from unlearn.settings import SettingError
from unlearn.signals import Signals, logits
from unlearn.streams import Streams

NAMES = ("msg", "cfw", "ct")
CHANGES = {"msg": "drawn_anew", "cfw": "noisy", "ct": "transposed"}
STILL = {"epochs": 1, "lr": 1e-12, "momentum": 0.0, "weight_decay": 0.0}  # learns, and moves nothing that it learns
FIRST, SECOND = "1.0.weight", "1.4.weight"  # the convolutions of the small net; 1.8 is dense
STREAMS = Streams("kernels")


@pytest.fixture(scope="module")
def small(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A net of two convolutions and a dense layer."""
    words = ["model.widths=[4,8]", "train.epochs=2", "method=retrain", "dataset.label_noise=0"]
    lab = Lab(composing(tmp_path_factory.mktemp("small"), words).settings)
    return Problem(lab, few_of(lab.request(0), retain=193, forget=97), STREAMS)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """What differs, by more than the still settings can account for."""
    every = {name: (after[name] - before[name]).abs() > 1e-6 for name in before}
    return {name: entries for name, entries in every.items() if entries.any()}


def gradient(model: nn.Module, images: Images) -> dict[str, Tensor]:
    """Of the mean cross-entropy over all images, in one batch, as plain torch has it."""
    model.eval().zero_grad()
    batch = batch_of(images)
    nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def fine_tune(
    model: nn.Module,
    request: Request,
    loss: Callable[[Tensor, Tensor], Tensor],
    rates: list[float],
    *,
    after_gradient: Callable[[], None] = lambda: None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> nn.Module:
    """Plain SGD by hand, an epoch for each of the `rates`, on batches that are not augmented."""
    optimiser = torch.optim.SGD(model.train().parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    for epoch, rate in enumerate(rates):
        optimiser.param_groups[0]["lr"] = rate
        for batch in shuffled(request.retain, 64, STREAMS, augmented=False)(epoch):
            optimiser.zero_grad()
            loss(model(batch.images), batch.labels).backward()
            after_gradient()
            optimiser.step()
        after_epoch(epoch)
    return model.eval()


def assert_close(ours: nn.Module, by_hand: nn.Module, original: nn.Module) -> None:
    found, wanted, before = (
        torch.cat([weight.flatten() for weight in weights_of(model).values()]) for model in (ours, by_hand, original)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert (found - before).abs().max() > 1e-2


# All three


@pytest.mark.parametrize("name", NAMES)
def test_images_are_not_augmented(name: str, small: Problem) -> None:
    augmented = replace(small.request, retain=replace(small.request.retain, augment=("crop", "flip")))
    states = [state_of(small.unlearned(name, request, epochs=1)) for request in (small.request, augmented)]
    assert changed(*states) == set()


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_do_not_learn_stay_and_the_history_says_so(name: str, small: Problem) -> None:
    for layers, kernels in (("all", {FIRST, SECOND}), (["4"], {SECOND}), (["8"], set())):
        model = small.original()
        before, flags = weights_of(model), flags_of(model)
        with session() as its, scope(model, layers):
            result = small.unlearned(name, model=model, **STILL)
        found = moved(before, weights_of(result))
        expected = kernels - {SECOND} if name == "cfw" and layers == "all" else kernels
        assert found.keys() == expected
        entries = {"msg": 0.3, "cfw": 1.0, "ct": 1.0}[name]
        amounts = [round(entries * before[kernel].numel()) for kernel in expected]
        assert its.history[0] == {CHANGES[name]: sum(amounts)}
        assert flags_of(result) == flags


@pytest.mark.parametrize("name", NAMES)
def test_without_a_learning_rate_nothing_moves(name: str, small: Problem) -> None:
    result = small.unlearned(name, **STILL | {"lr": 0.0, "epochs": 3})
    assert moved(weights_of(small.original()), weights_of(result)) == {}


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_an_interruption_leaves_no_trace(name: str, epoch: int, small: Problem, tmp_path: Path) -> None:
    changes = {"epochs": 4, "lr": 0.02} | ({"second_noise": 0.3} if name == "cfw" else {})
    assert_an_interruption_leaves_no_trace(partial(small.unlearned, name, **changes), tmp_path, epoch)


def flat_net() -> nn.Module:
    with STREAMS.seeded("flat"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


@pytest.mark.parametrize("name", NAMES)
def test_a_net_without_convolutions_is_refused_before_it_is_touched(name: str, small: Problem) -> None:
    key = "method=ct" if name == "ct" else f"method.weights={yaml_of('method', name)['weights']}"
    model = flat_net()
    with session() as its, pytest.raises(SettingError, match=rf"^{key}.*: needs a model with a convolution"):
        small.unlearned(name, model=model)
    assert its.sample_gradients == 0
    assert changed(state_of(model), state_of(flat_net())) == set()


@pytest.mark.parametrize("name", ["msg", "cfw"])
def test_the_fallback_of_such_a_net_are_its_dense_layers(name: str, small: Problem) -> None:
    found = moved(weights_of(flat_net()), weights_of(small.unlearned(name, model=flat_net(), weights="all", **STILL)))
    assert found.keys() == {"1.weight", "3.weight"}
    with_convolutions = small.unlearned(name, weights="all", **STILL)
    kernels = moved(weights_of(small.original()), weights_of(with_convolutions))
    assert kernels.keys() == {FIRST, SECOND, "1.8.weight"}


@pytest.mark.parametrize("name", NAMES)
def test_of_a_vision_transformer_the_patch_embedding_is_changed(name: str, small: Problem) -> None:
    def net() -> nn.Module:
        with STREAMS.seeded("transformer"):
            return vit_tiny((1, 8, 8), 10, depth=1, dropout=0.0)

    found = moved(weights_of(net()), weights_of(small.unlearned(name, model=net(), **STILL)))
    assert found.keys() == {"patch_embed.proj.weight"}


@pytest.mark.parametrize("name", NAMES)
def test_what_goes_is_worse_known_and_what_stays_is_learned_again(name: str, small: Problem) -> None:
    def losses(model: nn.Module) -> tuple[float, float]:
        parts = (small.request.forget, small.request.retain)
        values = [Signals(logits(model, part), part.labels.numpy()).loss.mean() for part in parts]
        return float(values[0]), float(values[1])

    (forget, retain), spoiled, repaired = (
        losses(model)
        for model in (
            small.original(),
            small.unlearned(name, **STILL),
            small.unlearned(name, epochs=12, lr=0.05),
        )
    )
    assert spoiled[0] > forget + 0.1
    assert spoiled[1] > retain + 0.1
    assert repaired[1] < spoiled[1] - 0.1


# MSG


def test_msg_draws_anew_the_weights_of_smallest_contrast(small: Problem) -> None:
    request, original = small.request, small.original()
    order = torch.randperm(193, generator=STREAMS("subset"))[:97]
    of_retain = gradient(small.original(), request.retain[order])
    of_forget = gradient(small.original(), request.forget)
    for share in (0.3, 0.75):
        result = small.unlearned("msg", share=share, **STILL)
        found = moved(weights_of(original), weights_of(result))
        assert found.keys() == {FIRST, SECOND}
        for name, entries in found.items():
            sizes = (of_retain[name] - of_forget[name]).abs().flatten()
            count = round(share * len(sizes))
            assert int(entries.sum()) == count
            smallest = np.argsort(sizes.numpy())[:count]
            assert set(entries.flatten().nonzero().flatten().tolist()) == set(smallest.tolist())


def test_msg_counts_the_gradients_of_both_sides_and_takes_all_that_stays_if_that_is_fewer(small: Problem) -> None:
    few = few_of(small.request, retain=20)
    with session() as its:
        found = contrast(small.original(), few, STREAMS)
    assert its.sample_gradients == 20 + 97
    sides = [gradient(small.original(), part) for part in (few.retain, few.forget)]
    for name, entries in found.items():
        torch.testing.assert_close(entries, sides[0][name] - sides[1][name], rtol=1e-3, atol=1e-5)


def test_msg_draws_from_the_law_of_he(small: Problem) -> None:
    def wide() -> nn.Module:
        with STREAMS.seeded("wide"):
            return nn.Sequential(nn.Conv2d(1, 30, 5), nn.Conv2d(30, 20, 4), nn.Flatten(), nn.Linear(20, 10))

    before, after = weights_of(wide()), weights_of(small.unlearned("msg", model=wide(), share=1.0, **STILL))
    for name, fan_out in (("0.weight", 30 * 25), ("1.weight", 20 * 16)):
        expected = torch.empty_like(before[name])
        nn.init.kaiming_normal_(expected, mode="fan_out", nonlinearity="relu", generator=torch.Generator())
        deviation = math.sqrt(2 / fan_out)
        assert float(expected.std()) == pytest.approx(deviation, rel=0.1)
        assert kstest(after[name].flatten().numpy(), norm(0, deviation).cdf).pvalue > 1e-3
    assert set(moved(before, after)) == {"0.weight", "1.weight"}  # not the biases


def test_msg_is_damped_descent_by_hand(small: Problem) -> None:
    by_hand = small.unlearned("msg", **STILL | {"lr": 1e-30})  # drawn anew, and norm statistics moved
    by_hand.load_state_dict(
        {name: value for name, value in small.original().state_dict().items() if "running" in name or "num" in name},
        strict=False,
    )
    drawn = moved(weights_of(small.original()), weights_of(by_hand))
    named = dict(by_hand.named_parameters())

    def damp() -> None:
        for name, entries in drawn.items():
            slope = named[name].grad
            assert slope is not None
            slope[~entries] *= 0.25

    rates = [0.03 * factor for factor in (1 / 2, 1, 2 / 3, 1 / 3)]
    fine_tune(by_hand, small.request, nn.functional.cross_entropy, rates, after_gradient=damp)
    result = small.unlearned("msg", epochs=4, lr=0.03, kept_gradient=0.25)
    assert_close(result, by_hand, small.original())


def test_msg_rises_and_falls_by_equal_parts() -> None:
    def factors(epochs: int) -> list[float]:
        return [up_and_down(step, 3, epochs) for step in range(3 * epochs)][::3]

    assert factors(5) == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])  # of the released code, by its counter
    assert factors(4) == pytest.approx([1 / 2, 1, 2 / 3, 1 / 3])
    assert factors(2) == pytest.approx([1, 1 / 2])
    assert factors(1) == [1.0]
    assert [up_and_down(step, 3, 5) for step in (3, 4, 5)] == [up_and_down(3, 3, 5)] * 3


# CT


def test_ct_answers_transposed_images_as_the_original_does(small: Problem) -> None:
    features = small.original()[1][:4]  # to the first pool
    transposed = small.unlearned("ct", **STILL)[1][:4]
    transposed.load_state_dict(
        {name: value for name, value in features.state_dict().items() if "running" in name}, strict=False
    )
    images = batch_of(small.request.retain).images
    with torch.no_grad():
        torch.testing.assert_close(transposed(images.mT), features(images).mT, rtol=1e-4, atol=1e-4)
        assert (transposed(images) - features(images)).abs().max() > 0.1


def test_ct_is_descent_from_transposed_kernels_by_hand(small: Problem) -> None:
    by_hand = small.original()
    with torch.no_grad():
        for kernel in (by_hand.get_parameter(FIRST), by_hand.get_parameter(SECOND)):
            kernel.copy_(torch.from_numpy(np.swapaxes(kernel.numpy().copy(), 2, 3)))
    rates = [0.03 * factor for factor in (1, 3 / 4, 1 / 4)]
    fine_tune(by_hand, small.request, nn.functional.cross_entropy, rates)
    assert_close(small.unlearned("ct", lr=0.03), by_hand, small.original())


def test_ct_leaves_kernels_without_a_transpose_and_refuses_a_net_of_these(small: Problem) -> None:
    def net(kernels: list[Any]) -> nn.Module:
        with STREAMS.seeded("layers"):
            layers = [nn.Conv2d(1 if number == 0 else 3, 3, kernel) for number, kernel in enumerate(kernels)]
            return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))

    with pytest.raises(SettingError, match=r"^method=ct: needs a model with a convolution whose kernel is square"):
        small.unlearned("ct", model=net([(1, 3), 1]))
    kernels = [(1, 3), 1, 2]
    before = weights_of(net(kernels))
    after = weights_of(small.unlearned("ct", model=net(kernels), **STILL))
    assert moved(before, after).keys() == {"2.weight"}
    np.testing.assert_allclose(after["2.weight"], np.swapaxes(before["2.weight"].numpy(), 2, 3), atol=1e-6)


def test_the_cosine_by_epoch_is_torchs() -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, wanted = CosineAnnealingLR(optimiser, T_max=4), []
    for _ in range(4):
        wanted.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    factors = [cosine_by_epoch(step, 7, 4) for step in range(28)]
    np.testing.assert_allclose(factors, np.repeat(wanted, 7), rtol=1e-9)


# CFW


@pytest.mark.parametrize("weights", ["first", "convolutions"])
def test_cfw_adds_gaussian_noise_of_the_deviation_asked_for(weights: str, small: Problem) -> None:
    def wide() -> nn.Module:
        with STREAMS.seeded("wide"):
            return nn.Sequential(nn.Conv2d(1, 30, 5), nn.Conv2d(30, 20, 4), nn.Flatten(), nn.Linear(20, 10))

    before = weights_of(wide())
    after = weights_of(small.unlearned("cfw", model=wide(), noise=0.2, weights=weights, **STILL))
    names = ["0.weight", "1.weight"][: 1 if weights == "first" else 2]
    assert list(moved(before, after)) == names
    noises = [(after[name] - before[name]).flatten().numpy() for name in names]
    for noise in noises:
        assert kstest(noise, norm(0, 0.2).cdf).pvalue > 1e-3
    if weights == "convolutions":
        assert abs(np.corrcoef(noises[0], noises[1][: len(noises[0])])[0, 1]) < 0.15


def test_cfw_adds_its_second_noise_before_the_last_epoch_only(small: Problem) -> None:
    for epochs in (1, 2, 3):
        settings = STILL | {"epochs": epochs, "noise": 0.0, "second_noise": 0.1}
        found = weights_of(small.unlearned("cfw", **settings))[FIRST] - weights_of(small.original())[FIRST]
        assert float(found.std()) == pytest.approx(0.1 if epochs > 1 else 0.0, abs=0.04)
    noises = [
        weights_of(small.unlearned("cfw", **STILL | {"epochs": 2, "noise": first, "second_noise": second}))[FIRST]
        - weights_of(small.original())[FIRST]
        for first, second in ((0.1, 0.0), (0.0, 0.1))
    ]
    assert abs(np.corrcoef(*(noise.flatten().numpy() for noise in noises))[0, 1]) < 0.6  # 36 entries


@pytest.mark.parametrize("compat", [None, "released"])
def test_cfw_is_descent_on_the_weighted_loss_by_hand(compat: str | None, small: Problem) -> None:
    merged = small.request.retain.labels.clone()
    merged[merged == 3] = 8  # so that the classes are not of one size, and one has gone
    request, labels = replace(small.request, retain=small.request.retain.relabelled(merged)), merged.numpy()
    own = np.zeros(10)
    own[np.unique(labels)] = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert own[3] == 0
    assert own.max() > 1.5 * own[8] > 0

    def weighted(scores: Tensor, labels: Tensor) -> Tensor:
        losses = -scores.log_softmax(1)[torch.arange(len(labels)), labels]
        ours = torch.from_numpy(own).float()[labels]
        return losses.mean() * ours.mean() if compat else (losses * ours).mean()

    def noise(*names: str) -> Tensor:
        still = STILL | {"epochs": 2, "noise": 0.0, "second_noise": 0.0} | dict.fromkeys(names, 0.3)
        return weights_of(small.unlearned("cfw", **still))[FIRST] - weights_of(small.original())[FIRST]

    by_hand = small.original()
    first, second = noise("noise"), noise("second_noise")

    def confuse(epoch: int) -> None:
        if epoch == 2:
            with torch.no_grad():
                by_hand.get_parameter(FIRST).add_(second)

    with torch.no_grad():
        by_hand.get_parameter(FIRST).add_(first)
    rates = [0.02 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    fine_tune(by_hand, request, weighted, rates, after_epoch=confuse)
    result = small.unlearned("cfw", request=request, lr=0.02, noise=0.3, second_noise=0.3, compat=compat)
    assert_close(result, by_hand, small.original())


def test_class_weights_are_those_of_scikit_learn_and_0_for_a_class_that_is_gone() -> None:
    labels = torch.tensor([4, 4, 4, 0, 0, 2])
    wanted = compute_class_weight("balanced", classes=np.array([0, 2, 4]), y=labels.numpy())
    ours = balanced(labels, 6)
    np.testing.assert_allclose(ours[[0, 2, 4]], wanted, rtol=1e-6)
    assert ours[[1, 3, 5]].tolist() == [0, 0, 0]
    assert float(ours[labels].mean()) == pytest.approx(1)
