"""Methods that work on features: the head of every model, and DUCK, SCAR and COLA."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_an_interruption_leaves_no_trace, changed, flags_of, state_of, stems, yaml_of
from numpy.typing import NDArray
from problems import CPU, Problem, cut, keys
from scipy.spatial.distance import cosine
from scipy.special import log_softmax
from torch import Tensor, nn

from unlearn.batches import Batches, paired
from unlearn.class_statistics import distances, power, statistics
from unlearn.data.images import Images, as_model_input
from unlearn.displacement import ENOUGH, nearest_other, repeated, until_forgotten, wholly_forgotten
from unlearn.head import classifier, features_of, head_of, last_linear, observed
from unlearn.lab import Lab
from unlearn.layers import scope
from unlearn.methods.cola import supervised_contrast
from unlearn.methods.scar import distilled
from unlearn.request import Request
from unlearn.session import session
from unlearn.settings import SettingError, build
from unlearn.signals import accuracy, logits
from unlearn.streams import Streams
from unlearn.surrogates import patchwork

Array = NDArray[Any]
FORGET, RETAIN, CLASSES = 97, 257, 10


@pytest.fixture(scope="module")
def problem(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    lab = Lab(composing(tmp_path_factory.mktemp("features"), ["train.epochs=12"]).settings)
    request = cut(lab, torch.arange(FORGET), torch.arange(FORGET, FORGET + RETAIN))
    return Problem(lab, request, Streams("features", 0), {"batch_size": 32})


def pixels_of(images: Tensor) -> Images:
    """Float images as the data set has them."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))


def network(name: str, side: int, **changes: Any) -> nn.Module:
    with Streams("features").seeded(name):
        settings: dict[str, Any] = yaml_of("model", name) | changes
        made: nn.Module = build(settings, "model")((3, side, side), CLASSES)
        return made


def some_images(count: int, side: int) -> Images:
    pixels = torch.randint(256, (count, side, side, 3), generator=Streams("features")("pixels"), dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % CLASSES)


# The head


# A transformer pads 9 x 9 in a layer of its own
@pytest.mark.parametrize(("name", "side"), [*((name, 8) for name in stems("model")), ("vit_tiny", 9)])
def test_the_head_turns_features_into_scores_on_every_model(name: str, side: int) -> None:
    model, images = network(name, side).train(), some_images(5, side)
    flags = flags_of(model)
    head = head_of("duck", model, images, CLASSES)
    assert all(module.training for module in model.modules())
    assert flags_of(model) == flags
    name, layer = last_linear("duck", model, images, CLASSES)
    assert head == name
    assert model.get_submodule(head) is layer
    assert classifier(model, CLASSES) == {f"{head}.{parameter}" for parameter, _ in layer.named_parameters()}

    found = features_of(model, head, images, batch_size=2)
    assert all(module.training for module in model.modules())
    assert found.shape == (5, layer.in_features)
    assert not found.requires_grad
    inputs = as_model_input(images.pixels, CPU)
    with torch.no_grad():
        plain = model.eval()(inputs)
        features, scores = observed(model, head, inputs)
        assert torch.equal(scores, plain)
        torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(features) * getattr(model, "scale", 1), plain)
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks


def test_gradients_flow_through_features() -> None:
    model, images = network("convnet", 8), some_images(4, 8)
    head = head_of("duck", model, images, CLASSES)
    observed(model, head, as_model_input(images.pixels, CPU)).features.sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == classifier(model, CLASSES)


class Tokens(nn.Module):
    """Classifies every pixel and takes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x.flatten(2).transpose(1, 2)).mean(1)
        return scores


def test_a_head_on_more_than_a_vector_an_image_is_refused_where_features_are_used() -> None:
    model, images = Tokens(), some_images(2, 8)
    assert last_linear("duck", model, images, CLASSES) == ("head", model.head)
    with pytest.raises(SettingError, match=r"^method=duck: needs one vector of features an image, .* has 64 x 3$"):
        head_of("duck", model, images, CLASSES)
    for wrong in (nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())):
        with pytest.raises(SettingError, match=r"^method=cola: needs a model whose last layer is linear, to 10$"):
            head_of("cola", wrong, images, CLASSES)


# What moves to where


def test_a_class_is_wholly_forgotten_if_no_image_of_it_is_retained(problem: Problem) -> None:
    train = problem.lab.data.train
    assert wholly_forgotten(problem.request).tolist() == []
    assert wholly_forgotten(problem.whole([3, 7])).tolist() == [3, 7]
    mixed = replace(problem.whole([3]), forget=train[torch.arange(20)].joined(problem.whole([3]).forget))
    mixed = replace(mixed, retain=train[torch.arange(20, 200)][train.labels[20:200] != 3])
    assert wholly_forgotten(mixed).tolist() == [3]


def test_the_nearest_other_class_is_never_ones_own_nor_one_without_a_distance() -> None:
    distances = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.5, torch.inf, 0.9]])
    assert nearest_other("duck", distances, torch.tensor([0, 1, 2])).tolist() == [1, 2, 0]
    with pytest.raises(SettingError, match=r"^method=duck: finds no retained class"):
        nearest_other("duck", distances[2:].fill_(torch.inf), torch.tensor([1]))


def test_a_batch_repeated_meets_others_each_time() -> None:
    letters = Batches(2, lambda epoch: iter(f"{letter}{epoch}" for letter in "ab"))
    numbers = Batches(3, lambda turn: iter(f"{number}/{turn}" for number in "123"))
    batches = paired(repeated(letters, 2), numbers)
    assert batches.steps == 4
    assert list(batches(0)) == [("a0", "1/0"), ("a0", "2/0"), ("b0", "3/0"), ("b0", "1/1")]
    assert list(batches(1)) == [("a1", "1/2"), ("a1", "2/2"), ("b1", "3/2"), ("b1", "1/3")]


@pytest.mark.parametrize("retained", [range(CLASSES), range(0, CLASSES, 2), [CLASSES]])
def test_forgotten_is_what_is_answered_as_images_never_seen_are(retained: Sequence[int], problem: Problem) -> None:
    original, request = problem.original(), problem.request
    seen = accuracy(original, request.validation)
    assert 0.5 < seen < 1
    answered = torch.from_numpy(logits(original, request.forget).argmax(1))
    outcomes = set()
    for right in (0, 1, 2, 3, *range(5, FORGET, 5), FORGET):
        labels = torch.where(torch.arange(FORGET) < right, answered, (answered + 1) % CLASSES)
        kept = torch.tensor(retained)[torch.arange(RETAIN) % len(retained)]
        its = replace(request, forget=request.forget.relabelled(labels), retain=request.retain.relabelled(kept))
        share = np.isin(labels.numpy(), list(retained)).mean()
        ended = until_forgotten(original, its)(problem.original())
        assert ended == (right / FORGET < max(share * seen, 0.01)), right
        outcomes.add(ended)
    assert outcomes == {True, False}


# DUCK


def penultimate(model: nn.Module, images: Images) -> Array:
    """What enters the classifier of a convnet, layer by layer."""
    x = as_model_input(images.pixels, CPU)
    with torch.no_grad():
        for layer in [model.eval()[0], *model[1][:8]]:
            x = layer(x)
    result: Array = x.double().numpy()
    return result


def cosine_targets(model: nn.Module, request: Request) -> tuple[Array, Array]:
    """By hand: each class's mean, nan for none; and where each forgotten image goes."""
    kept, features = penultimate(model, request.retain), penultimate(model, request.forget)
    labels = request.retain.labels.numpy()
    means = np.stack(
        [kept[labels == c].mean(0) if (labels == c).any() else np.full(kept.shape[1], np.nan) for c in range(CLASSES)]
    )
    targets = []
    for row, own in zip(features, request.forget.labels.tolist(), strict=True):
        far = {c: cosine(row, means[c]) for c in range(CLASSES) if c != own and not np.isnan(means[c]).any()}
        targets.append(min(far, key=far.__getitem__))
    return means, np.array(targets)


@pytest.mark.parametrize("whole", [False, True])
def test_ducks_loss_is_the_distance_from_the_nearest_other_centre_and_cross_entropy(
    whole: bool, problem: Problem
) -> None:
    request = problem.whole([3], RETAIN) if whole else problem.request
    weights = {"forget_weight": 0.7, "retain_weight": 0.3, "temperature": 2.5, "label_smoothing": 0.1}
    [given] = problem.handed("duck", request, **weights)
    means, targets = cosine_targets(problem.original(), request)
    assert len(set(targets.tolist())) > 1
    assert np.isnan(means).any(1).nonzero()[0].tolist() == ([3] if whole else [])

    student, batches = problem.student().eval(), list(given["batches"](0))
    goes = dict(zip(keys(request.forget), targets.tolist(), strict=True))
    assert [len(forget.labels) for forget, _ in batches][:3] == [32, 32, 32]
    for forget, retain in (batches[0], batches[-1]):
        aims = [goes[key] for key in keys(forget.images)]
        assert forget.labels.tolist() == aims
        features = penultimate(student, pixels_of(forget.images))
        away = np.mean([cosine(row, means[c]) for row, c in zip(features, aims, strict=True)])
        scores = log_softmax(student(retain.images).detach().double().numpy() / 2.5, axis=1)
        right = scores[np.arange(len(scores)), retain.labels.numpy()]
        fitted = -(0.9 * right + 0.1 * scores.mean(1)).mean()
        assert min(away, fitted) > 1e-2
        assert given["loss"](student, (forget, retain)).item() == pytest.approx(0.7 * away + 0.3 * fitted, rel=1e-4)


def test_duck_shows_each_forgotten_batch_so_many_retained_ones(problem: Problem) -> None:
    [given] = problem.handed("duck", retain_batches=3)
    batches = given["batches"]
    seen = list(batches(0))
    assert batches.steps == len(seen) == 3 * 3  # 97 images in batches of 32, 32 and 33
    for start in (0, 3, 6):
        same = [forget.images for forget, _ in seen[start : start + 3]]
        assert all(torch.equal(same[0], other) for other in same)
    others = [key for _, retain in seen[:8] for key in keys(retain.images)]
    assert sorted(others) == sorted(keys(problem.request.retain))  # one whole pass
    firsts = [next(batches(epoch))[0].images for epoch in (0, 1, 0)]
    assert torch.equal(firsts[0], firsts[2])
    assert not torch.equal(firsts[0], firsts[1])


@pytest.mark.parametrize("name", ["duck", "scar"])
def test_adam_takes_the_steps_with_the_rate_asked_for(name: str, problem: Problem) -> None:
    [given] = problem.handed(name, epochs=7, lr=0.02, momentum=0.8, weight_decay=0.3, early_stop=False)
    settings = {key: given[key] for key in ("epochs", "optimiser", "lr", "momentum", "weight_decay", "until")}
    assert settings == {
        "epochs": 7,
        "optimiser": "adam",
        "lr": 0.02,
        "momentum": 0.8,
        "weight_decay": 0.3,
        "until": None,
    }
    assert problem.handed(name)[0]["until"] is not None


def test_ducks_rate_decays_at_milestones(problem: Problem) -> None:
    with session() as its:
        problem.unlearned(
            "duck", epochs=3, lr=1e-4, milestones=[1, 2], lr_decay=0.1, retain_batches=1, early_stop=False
        )
    assert [line["lr"] for line in its.history] == pytest.approx([1e-4, 1e-5, 1e-6])
    # 97 forgotten, and of the 257 retained the first three batches
    assert its.sample_gradients == 3 * (FORGET + 96)


FAST = {
    "duck": {"epochs": 20, "lr": 0.002},
    "scar": {"epochs": 40, "lr": 0.002, "surrogate_images": 300},
}


@pytest.mark.parametrize("name", FAST)
def test_a_class_is_forgotten_and_the_others_stay(name: str, problem: Problem) -> None:
    request, original = problem.whole([3], RETAIN), problem.original()
    assert accuracy(original, request.forget) > 0.9
    result = problem.unlearned(name, request, **FAST[name])
    assert accuracy(result, request.forget) < ENOUGH
    assert accuracy(result, request.retain) > 0.8 * accuracy(original, request.retain)
    # Forgotten images have gone nearer to where they were sent
    means, targets = cosine_targets(original, request)
    before, after = (penultimate(model, request.forget) for model in (original, result))
    far = [np.mean([cosine(row, means[c]) for row, c in zip(x, targets, strict=True)]) for x in (before, after)]
    assert far[1] < far[0]


@pytest.mark.parametrize(("name", "whole"), [("duck", True), ("scar", True), ("duck", False)])
def test_it_stops_after_the_epoch_in_which_the_forget_set_is_like_unseen_images(
    name: str, whole: bool, problem: Problem
) -> None:
    request, original = problem.whole([3], RETAIN) if whole else problem.request, problem.original()
    target = ENOUGH if whole else accuracy(original, request.validation)
    settings = FAST[name] | ({} if whole else {"forget_weight": 5.0})
    with session() as its:
        stopped = problem.unlearned(name, request, **settings)
    epochs = len(its.history)
    assert 1 < epochs < settings["epochs"]
    before, then = (
        problem.unlearned(name, request, **settings | {"epochs": count, "early_stop": False})
        for count in (epochs - 1, epochs)
    )
    assert accuracy(before, request.forget) >= target > accuracy(then, request.forget)
    assert changed(state_of(stopped), state_of(then)) == set()


@pytest.mark.parametrize("name", ["duck", "scar"])
def test_without_another_class_to_go_to_it_is_refused(name: str, problem: Problem) -> None:
    train = problem.lab.data.train
    threes = (train.labels == 3).nonzero().flatten()
    request = replace(problem.request, forget=train[threes[:5]], retain=train[threes[5:]])
    with pytest.raises(SettingError, match=rf"^method={name}: finds no retained class for a forgotten image to go to"):
        problem.unlearned(name, request)


# SCAR


def by_hand(features: Array, tukey: float, gamma1: float, gamma2: float) -> tuple[Array, Array]:
    """A class's mean direction and inverse correlation, entry by entry."""
    x = np.sign(features) * np.maximum(np.abs(features), 1e-8) ** tukey
    count, size = x.shape
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / (count - 1)
    for _ in range(2):
        on = np.mean([covariance[i, i] for i in range(size)])
        off = np.mean([covariance[i, j] for i in range(size) for j in range(size) if i != j])
        covariance = covariance + np.where(np.eye(size, dtype=bool), gamma1 * on, gamma2 * off)
    scale = np.sqrt(np.diag(covariance))
    return mean / np.linalg.norm(mean), covariance / np.outer(scale, scale)


def mahalanobis(rows: Array, mean: Array, inverse: Array, tukey: float) -> Array:
    x = np.sign(rows) * np.maximum(np.abs(rows), 1e-8) ** tukey
    x = x / np.linalg.norm(x, axis=1, keepdims=True) - mean
    return np.array([row @ inverse @ row for row in x])


@pytest.mark.parametrize(("tukey", "gamma1", "gamma2"), [(0.5, 3.0, 3.0), (1.0, 1.0, 0.5), (0.5, 2.0, 0.0)])
def test_statistics_and_distances_are_those_of_the_formula(tukey: float, gamma1: float, gamma2: float) -> None:
    generator = np.random.default_rng(0)
    mix = generator.normal(size=(12, 12))
    features = generator.normal(size=(60, 12)) @ mix + generator.normal(size=12)  # of both signs
    labels = generator.integers(3, size=60)
    known = statistics(torch.tensor(features), torch.tensor(labels), tukey, gamma1, gamma2)
    assert sorted(known) == [0, 1, 2]
    for label, its in known.items():
        mean, shape = by_hand(features[labels == label], tukey, gamma1, gamma2)
        assert np.allclose(its.mean, mean, atol=1e-6)
        expected = mahalanobis(features, mean, np.linalg.inv(shape), tukey)
        np.testing.assert_allclose(distances(torch.tensor(features).float(), its, tukey), expected, rtol=2e-4)


def test_a_singular_covariance_has_a_pseudo_inverse_and_unvarying_features_no_part_in_it() -> None:
    generator = np.random.default_rng(1)
    features = generator.random((5, 9)) + 0.5  # of rank 4, and not shrunk
    features[:, 2] = 0.7
    [its] = statistics(torch.tensor(features), torch.zeros(5, dtype=torch.int64), 1.0, 0.0, 0.0).values()
    rest = np.delete(np.arange(9), 2)
    inverse = np.zeros((9, 9))
    inverse[np.ix_(rest, rest)] = np.linalg.pinv(np.corrcoef(features[:, rest].T), rcond=1e-12)
    assert its.factor.shape == (9, 4)
    product = (its.factor @ its.factor.T).numpy()
    np.testing.assert_allclose(product, inverse, atol=1e-4 * abs(inverse).max())
    # With a gamma2 over gamma1 the shrunk matrix has negative directions; lengths stay lengths
    features = generator.random((5, 9))
    indefinite = np.linalg.eigvalsh(by_hand(features, 1.0, 0.0, 9.0)[1])
    [its] = statistics(torch.tensor(features), torch.zeros(5, dtype=torch.int64), 1.0, 0.0, 9.0).values()
    assert indefinite.min() < -0.1
    assert its.factor.isfinite().all()
    assert (distances(torch.tensor(features).float(), its, 1.0) >= 0).all()


def test_the_default_shrinkage_leaves_no_negative_direction_even_with_features_that_are_always_zero() -> None:
    generator = np.random.default_rng(2)
    for dead in (0, 15):
        features = generator.random((200, 1)) * np.ones((1, 20)) + 0.1 * generator.random((200, 20))  # all alike
        features[:, :dead] = 0
        [its] = statistics(torch.tensor(features), torch.zeros(200, dtype=torch.int64), 0.5, 3.0, 3.0).values()
        assert its.factor.shape == (20, 20)
        covariance = np.cov((np.abs(features).clip(1e-8) ** 0.5 * np.sign(features)).T)
        off = covariance[~np.eye(20, dtype=bool)]
        released = covariance + 3 * np.where(np.eye(20, dtype=bool), covariance.diagonal().mean(), off[off != 0].mean())
        assert (np.linalg.eigvalsh(released).min() < 0) == bool(dead)  # the mean without zeros


def test_classes_of_one_image_or_without_spread_have_no_statistics() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 5.0], [0.1, 0.7], [0.1, 0.7], [0.1, 0.7], [0.0, 0.0]])
    known = statistics(features, torch.tensor([0, 1, 1, 2, 2, 2, 4]), 0.5, 3.0, 3.0)
    assert list(known) == [1]


def test_the_power_keeps_signs_and_has_a_slope_everywhere() -> None:
    x = torch.tensor([-4.0, 0.0, 9.0, 1e-12], requires_grad=True)
    y = power(x, 0.5)
    assert y[:3].tolist() == [-2.0, 0.0, 3.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0.25, 0.0, 1 / 6, 0.0])


@pytest.mark.parametrize("whole", [False, True])
def test_scars_loss_is_the_distance_from_its_target_and_the_divergence_on_surrogates(
    whole: bool, problem: Problem
) -> None:
    request, original = (problem.whole([3], RETAIN) if whole else problem.request), problem.original()
    shape = {"tukey": 0.7, "gamma1": 2.0, "gamma2": 1.0}
    settings = shape | {"forget_weight": 0.02, "distil_weight": 0.3, "temperature": 2.0, "surrogate_images": 90}
    [given] = problem.handed("scar", request, surrogate_batches=2, **settings)
    kept, labels = penultimate(original, request.retain), request.retain.labels.numpy()
    spread = {c: by_hand(kept[labels == c], **shape) for c in sorted(set(labels.tolist()))}
    spread = {c: (mean, np.linalg.inv(matrix)) for c, (mean, matrix) in spread.items()}
    assert len(spread) == CLASSES - whole
    rows = penultimate(original, request.forget)
    far = np.stack(
        [mahalanobis(rows, *spread[c], 0.7) if c in spread else np.full(len(rows), np.inf) for c in range(CLASSES)]
    )
    far[request.forget.labels.numpy(), np.arange(len(rows))] = np.inf
    goes = dict(zip(keys(request.forget), far.argmin(0).tolist(), strict=True))
    assert len(set(goes.values())) > 1

    student, batches = problem.student().eval(), list(given["batches"](0))
    assert torch.equal(batches[0][0].images, batches[1][0].images)
    assert not torch.equal(batches[0][1].images, batches[1][1].images)
    dropped = 0
    for forget, others in batches[:3]:
        aims = [goes[key] for key in keys(forget.images)]
        assert forget.labels.tolist() == aims
        features = penultimate(student, pixels_of(forget.images))
        away = np.mean([mahalanobis(row[None], *spread[c], 0.7) for row, c in zip(features, aims, strict=True)])
        teacher, ours = (model(others.images).detach().double().numpy() for model in (original, student))
        stay = teacher.argmax(1) != 3 if whole else np.full(len(teacher), True)
        dropped += int((~stay).sum())
        teacher = teacher[stay]
        if whole:
            teacher[:, 3] = teacher.min()
        its, ours = log_softmax(teacher / 2, axis=1), log_softmax(ours[stay] / 2, axis=1)
        kept_loss = (np.exp(its) * (its - ours)).sum(1).mean()
        assert min(away, kept_loss) > 1e-3
        assert given["loss"](student, (forget, others)).item() == pytest.approx(0.02 * away + 0.3 * kept_loss, rel=1e-3)
    assert (dropped > 0) == whole


def test_surrogates_that_all_belong_to_a_forgotten_class_teach_nothing(problem: Problem) -> None:
    model, request = problem.original(), problem.whole([3])
    inputs = as_model_input(request.forget.pixels, CPU)
    threes = inputs[torch.from_numpy(logits(model, request.forget).argmax(1) == 3)]
    loss = distilled(problem.student(), model, threes, torch.tensor([3]), 1.0)
    assert loss.item() == 0
    loss.backward()
    several = distilled(problem.student(), model, inputs, torch.arange(2, CLASSES), 1.0)
    assert several.isfinite()


def test_scar_never_trains_on_retained_images(problem: Problem) -> None:
    """Statistics are all that it takes: the same images in another order and, augmented or not, are the same to it."""
    request = problem.request
    order = torch.randperm(RETAIN, generator=Streams("test")("order"))
    other = replace(request, retain=replace(request.retain[order], augment=("flip",)))
    given = {"epochs": 2, "surrogate_images": 100}
    first, second = (problem.unlearned("scar", its, **given) for its in (request, other))
    for ours, its in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-3, atol=1e-4)
    with session() as counted:
        problem.unlearned("scar", request, **given, early_stop=False, surrogate_batches=1)
    assert counted.sample_gradients == 2 * (FORGET + 3 * 32)


# Surrogates


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "images.npz", **arrays)
    return str(folder / "images.npz")


@pytest.mark.parametrize("channel", [True, False])
def test_surrogates_come_from_a_file(channel: bool, problem: Problem, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(70, 8, 8, 1), dtype=np.uint8)
    file = saved(tmp_path, images=images if channel else images[..., 0], labels=np.arange(70))
    [given] = problem.handed("scar", surrogate=file, surrogate_images=3)
    shown = {key for _, others in given["batches"](0) for key in keys(others.images)}
    assert shown == set(keys(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255))
    results = [state_of(problem.unlearned("scar", epochs=1, surrogate=its)) for its in (file, file, None)]
    assert changed(results[0], results[1]) == set()
    assert changed(results[0], results[2])


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.touch, (self.place,))


def test_files_that_are_no_surrogates_are_refused_before_anything_else(problem: Problem, tmp_path: Path) -> None:
    good = np.zeros((3, 8, 8, 1), np.uint8)
    text, single, broken = (tmp_path / name for name in ("a.npz", "b.npz", "c.npz"))
    text.write_text("no archive")
    with single.open("wb") as stream:
        np.save(stream, good)
    broken.write_bytes(Path(saved(tmp_path, images=good)).read_bytes()[:100])
    (tmp_path / "many").mkdir()
    (tmp_path / "trap").mkdir()
    (tmp_path / "float").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "flat").mkdir()
    wrong = {
        str(tmp_path / "missing.npz"): "No such file",
        str(text): "",
        str(single): "a single .npy array",
        str(broken): "",
        saved(tmp_path / "many", one=good, two=good): "no array images, but one, two",
        saved(tmp_path / "trap", images=np.array([Trap(tmp_path / "sprung")], object)): "allow_pickle",
        saved(tmp_path / "float", images=good / 1.0): "3 x 8 x 8 x 1 of float64",
        saved(tmp_path / "none", images=good[:0]): "0 x 8 x 8 x 1 of uint8",
        saved(tmp_path / "flat", images=good[0, :, :, 0]): "8 x 8 of uint8",
    }
    for file, why in wrong.items():
        with pytest.raises(SettingError, match=r"must be an \.npz file of uint8 images") as raised:
            build(yaml_of("method", "scar") | {"surrogate": file}, "method")
        assert str(raised.value).startswith(f"method.surrogate={file}: must be")
        assert why in str(raised.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (3, 9, 8, 1), (3, 32, 32, 3)])
def test_surrogates_must_be_as_large_as_the_data_sets_images(
    shape: tuple[int, ...], problem: Problem, tmp_path: Path
) -> None:
    file = saved(tmp_path, images=np.zeros(shape, np.uint8))
    with pytest.raises(
        SettingError, match=rf"^method.surrogate=.*images of 8 x 8 x 1, .* has {' x '.join(map(str, shape[1:]))}$"
    ):
        problem.unlearned("scar", surrogate=file)


@pytest.mark.parametrize("sides", [(8, 8), (9, 6), (3, 2)])
def test_a_patchwork_is_made_of_pieces_of_the_forget_set(sides: tuple[int, int]) -> None:
    height, width = sides
    pixels = torch.arange(5 * height * width * 3).remainder(251).to(torch.uint8).reshape(5, height, width, 3)
    work = patchwork(pixels, 40, Streams("test")("patches"))
    assert work.shape == (40, height, width, 3)
    assert work.dtype == torch.uint8
    down, across = ([side * part // 4 for part in range(5)] for side in sides)
    pieces: dict[tuple[int, int], set[bytes]] = {}
    for h in {b - a for a, b in pairwise(down)} - {0}:
        for w in {b - a for a, b in pairwise(across)} - {0}:
            places = [(r, c) for r in range(height - h + 1) for c in range(width - w + 1)]
            pieces[h, w] = {image[r : r + h, c : c + w].numpy().tobytes() for image in pixels for r, c in places}
    used = set()
    for image in work:
        for top, bottom in pairwise(down):
            for left, right in pairwise(across):
                if bottom > top and right > left:
                    piece = image[top:bottom, left:right].numpy().tobytes()
                    assert piece in pieces[bottom - top, right - left]
                    used.add(piece)
    assert len(used) > 0.3 * len(set.union(*pieces.values()))
    assert torch.equal(work, patchwork(pixels, 40, Streams("test")("patches")))
    assert not torch.equal(work, patchwork(pixels, 40, Streams("test")("others")))


# COLA


def contrast_by_hand(features: Array, labels: list[int], temperature: float) -> float:
    """Khosla et al.'s loss with the mean outside, by two loops."""
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    losses = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        alike = [j for j in others if labels[j] == labels[i]]
        if alike:
            total = sum(math.exp(z[i] @ z[j] / temperature) for j in others)
            losses.append(-sum(math.log(math.exp(z[i] @ z[j] / temperature) / total) for j in alike) / len(alike))
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 1, 2, 0], [0, 1, 2, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0, 0]])
def test_the_contrast_is_a_double_loop(labels: list[int], temperature: float) -> None:
    features = np.random.default_rng(0).normal(size=(7, 5))
    given = torch.tensor(features, dtype=torch.float32, requires_grad=True)
    loss = supervised_contrast(given, torch.tensor(labels), temperature)
    assert loss.item() == pytest.approx(contrast_by_hand(features, labels, temperature), rel=1e-5)
    loss.backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()
    alone = supervised_contrast(given[:1], torch.tensor(labels[:1]), temperature)
    different = supervised_contrast(given, torch.arange(7), temperature)
    assert (alone.item(), different.item()) == (0, 0)
    different.backward()


def test_cola_collapses_the_encoder_and_then_aligns_all(problem: Problem) -> None:
    original, request = problem.original(), problem.request
    names = {name for name, _ in original.named_parameters()}
    collapsed = problem.unlearned("cola", align_epochs=0)
    assert changed(state_of(original), state_of(collapsed)) & names == names - {"1.8.weight", "1.8.bias"}
    with session() as its:
        result = problem.unlearned("cola")
    assert changed(state_of(collapsed), state_of(result)) & names == names
    assert [line["fit"] for line in its.history] == [1] * 5 + [2] * 5
    assert its.sample_gradients == 10 * RETAIN
    aligned = problem.unlearned("cola", collapse_epochs=0)
    assert changed(state_of(aligned), state_of(result)) & names == names
    untouched = problem.unlearned("cola", collapse_epochs=0, align_epochs=0)
    assert changed(state_of(untouched), state_of(original)) == set()

    def contrast(model: nn.Module) -> float:
        return contrast_by_hand(penultimate(model, request.retain)[:80], request.retain.labels[:80].tolist(), 0.1)

    further = problem.unlearned("cola", align_epochs=0, collapse_epochs=10, lr=0.05)
    assert contrast(further) < min(contrast(collapsed), 0.9 * contrast(original))
    assert contrast(collapsed) < contrast(original)
    assert accuracy(result, request.retain) > 0.9


def test_colas_losses_are_the_contrast_and_cross_entropy(problem: Problem) -> None:
    given = {"collapse_epochs": 3, "align_epochs": 4, "lr": 0.03, "momentum": 0.7, "weight_decay": 0.1}
    collapse, align = problem.handed("cola", temperature=0.5, **given)
    student, batch = problem.student().eval(), next(collapse["batches"](0))
    features = penultimate(student, pixels_of(batch.images))
    expected = contrast_by_hand(features, batch.labels.tolist(), 0.5)
    assert collapse["loss"](student, batch).item() == pytest.approx(expected, rel=1e-4)
    scores = log_softmax(student(batch.images).detach().double().numpy(), axis=1)
    fitted = -scores[np.arange(32), batch.labels.numpy()].mean()
    assert align["loss"](student, batch).item() == pytest.approx(fitted, rel=1e-4)
    for one, epochs in zip((collapse, align), (3, 4), strict=True):
        assert [one[key] for key in ("epochs", "lr", "momentum", "weight_decay")] == [epochs, 0.03, 0.7, 0.1]
        assert {key for part in one["batches"](0) for key in keys(part.images)} == set(keys(problem.request.retain))
    assert not torch.equal(next(align["batches"](0)).labels, batch.labels)


def test_without_an_encoder_to_train_nothing_collapses(problem: Problem) -> None:
    model = problem.original()
    with session() as its, scope(model, ["8"]):
        result = problem.unlearned("cola", model=model)
    assert [line["fit"] for line in its.history] == [1] * 5
    assert changed(state_of(problem.original()), state_of(result)) == {"1.8.weight", "1.8.bias"}


# Interruption


@pytest.mark.parametrize(("name", "when"), [("duck", 2), ("scar", 2), ("cola", 3), ("cola", 7)])
def test_an_interrupted_run_continues_bit_for_bit(name: str, when: int, problem: Problem, tmp_path: Path) -> None:
    short = {"duck": {"epochs": 3}, "scar": {"epochs": 3, "surrogate_images": 100}, "cola": {}}[name]
    short = short if name == "cola" else short | {"early_stop": True, "lr": 1e-5}
    its = assert_an_interruption_leaves_no_trace(partial(problem.unlearned, name, **short), tmp_path, when)
    assert len(its.history) == (10 if name == "cola" else 3)


@pytest.mark.parametrize("model", ["model=vit_tiny model.depth=1", "model=fastnet model.widths=[8,8,8]"])
def test_other_architectures_are_unlearned_too(model: str, composing: Callable[..., Any], tmp_path: Path) -> None:
    lab = Lab(composing(tmp_path, [*model.split(), "train.epochs=1"]).settings)
    few = Problem(lab, cut(lab, torch.arange(20), torch.arange(20, 120)), Streams("other"), {"batch_size": 32})
    for name in ("duck", "scar", "cola"):
        assert (penultimate_of(few.original(), few.request.forget) < 0).any()  # what a plain power could not take
        small = {"surrogate_images": 64} if name == "scar" else {}
        small |= {} if name == "cola" else {"epochs": 1}
        result = few.unlearned(name, **small)
        assert np.isfinite(logits(result, few.request.forget)).all()
        assert all(value.isfinite().all() for value in result.state_dict().values())


def penultimate_of(model: nn.Module, images: Images) -> Tensor:
    return features_of(model, head_of("duck", model, images, CLASSES), images)
