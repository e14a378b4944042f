"""The one loop, what it walks over, and that an interruption leaves no trace: against torch, numpy and plain loops."""

import math
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from laws import changed, random_state_untouched, state_of
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from unlearn import batches as walks
from unlearn.batches import Batch, Batches, in_turn, paired, relabelled, samples, shuffled, sizes
from unlearn.data.images import Images, as_model_input
from unlearn.loop import DivergedError, cross_entropy, fit, freeze_norm_statistics, warm_up
from unlearn.schedules import constant, cosine, multistep, named, one_cycle
from unlearn.session import Session, session
from unlearn.streams import Streams
from unlearn.training import smoothed_cross_entropy, supervised

PLAIN = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}


def digits(count: int, *augment: str) -> Images:
    """The first digits of scikit-learn's set."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels[:count].reshape(-1, 8, 8, 1) * 15).astype(np.uint8)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels[:count]).long(), augment)


def numbered(count: int, first: int = 0) -> Images:
    """Digits whose labels are their numbers, so that a batch tells which images it holds."""
    images = digits(count)
    return images.relabelled(torch.arange(first, first + count))


def numbers(batches: Batches, epoch: int) -> list[list[int]]:
    return [batch.labels.tolist() for batch in batches(epoch)]


def flat(lists: list[list[int]]) -> list[int]:
    return [number for part in lists for number in part]


def linear(seed: int = 0) -> nn.Module:
    with Streams("model", seed).seeded():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def convolutional(seed: int = 0) -> nn.Module:
    """Batch norm and dropout: statistics and random layers that a checkpoint must not lose."""
    with Streams("model", seed).seeded():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 10)
        )


# Streams


def test_a_stream_is_its_name_and_nothing_else() -> None:
    streams = Streams("a", 1)
    assert torch.equal(torch.rand(3, generator=streams("x", 2)), torch.rand(3, generator=streams("x", 2)))
    assert streams.child("x").seed(2) == streams.seed("x", 2) == Streams("a", 1, "x", 2).seed()
    names: list[tuple[Any, ...]] = [(), ("x",), ("x", 0), ("x", "0"), ("x0",), ("x", 0, 0), ("x, 0",), (0,)]
    assert len({streams.seed(*name) for name in names} | {Streams("a").seed(*name) for name in names}) == 16
    assert all(0 <= streams.seed(number) < 2**63 for number in range(100))


def test_seeded_leaves_the_global_generator_where_it_was() -> None:
    streams = Streams("a")
    with random_state_untouched():
        draws = []
        for name in ("x", "x", "y"):
            with streams.seeded(name):
                draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# Schedules


def factors_of(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    """Learning rate, from 1, before each of `steps` steps of one of torch's schedulers."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, factors = make(optimiser), []
    for _ in range(steps):
        factors.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return factors


def test_multistep_is_torchs() -> None:
    wanted = factors_of(lambda optimiser: MultiStepLR(optimiser, [2, 5, 6], 0.3), 8)
    schedule = named("multistep", milestones=[2, 5, 6], gamma=0.3, warmup=0.0)
    got = [schedule(step, 7, 8) for step in range(56)]
    np.testing.assert_allclose(got, np.repeat(wanted, 7), rtol=1e-12)
    assert len(set(got)) == 4


def test_cosine_is_torchs_at_every_step() -> None:
    wanted = factors_of(lambda optimiser: CosineAnnealingLR(optimiser, T_max=35), 35)
    np.testing.assert_allclose([cosine(step, 7, 5) for step in range(35)], wanted, atol=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5, 1.0])
def test_one_cycle_is_two_straight_lines(warmup: float) -> None:
    per_epoch, epochs = 10, 6
    factors = np.array([one_cycle(step, per_epoch, epochs, warmup=warmup) for step in range(60)])
    peak = max(1, round(60 * warmup))
    assert factors.max() == factors[peak - 1] == 1
    assert factors.min() > 0
    assert factors[0] == pytest.approx(1 / peak)
    np.testing.assert_allclose(np.diff(factors[:peak], 2), 0, atol=1e-12)
    if warmup < 1:
        np.testing.assert_allclose(np.diff(factors[peak:], 2), 0, atol=1e-12)
        np.testing.assert_allclose(factors[-1], 1 / (60 - peak))  # one more step and it is 0
        assert (np.diff(factors[peak - 1 :]) <= 0).all()


def test_every_schedule_that_a_yaml_may_name_exists() -> None:
    names = get_args(get_type_hints(supervised)["schedule"])
    made = {name: named(name, milestones=[1], gamma=0.1, warmup=0.2) for name in names}
    curves = {tuple(schedule(step, 4, 3) for step in range(12)) for schedule in made.values()}
    assert len(curves) == len(names) > 3
    assert [made["constant"](step, 4, 3) for step in (0, 11)] == [constant(5, 4, 3)] * 2 == [1.0, 1.0]


# Batches


@pytest.mark.parametrize(
    ("count", "batch_size", "wanted"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (8, 4, [4, 4]),
        (5, 4, [5]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
        (2, 4, [2]),
    ],
)
def test_one_image_left_over_joins_the_batch_before_it(count: int, batch_size: int, wanted: list[int]) -> None:
    assert sizes(count, batch_size) == wanted
    batches = shuffled(numbered(count), batch_size, Streams("order"))
    assert [samples(batch) for batch in batches(0)] == wanted
    assert batches.steps == len(wanted)


def test_shuffled_gives_every_image_once_in_an_order_of_its_own() -> None:
    batches = shuffled(numbered(50), 8, Streams("order"))
    epochs = [flat(numbers(batches, epoch)) for epoch in range(4)]
    for order in epochs:
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in [*epochs, list(range(50))]}) == 5
    assert flat(numbers(batches, 2)) == epochs[2]  # an epoch is its number, however often it is asked for
    assert flat(numbers(shuffled(numbered(50), 8, Streams("other")), 0)) != epochs[0]


def test_batches_are_the_images_themselves() -> None:
    images = digits(30)
    for batch in shuffled(images.relabelled(torch.arange(30)), 8, Streams("order"))(0):
        wanted = images.pixels[batch.labels].permute(0, 3, 1, 2).double() / 255
        torch.testing.assert_close(batch.images.double(), wanted, rtol=0, atol=1e-7)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert images.pixels.max() > 200  # and dividing in place left the data set alone


def test_augmentation_is_fresh_each_epoch_reproducible_and_can_be_left_out() -> None:
    plain, images = digits(16), digits(16, "crop", "flip")

    def epoch(images: Images, number: int, **settings: bool) -> Tensor:
        seen = torch.empty(16, 1, 8, 8)
        for batch in shuffled(images.relabelled(torch.arange(16)), 5, Streams("order"), **settings)(number):
            seen[batch.labels] = batch.images
        return seen

    untouched = as_model_input(plain.pixels, torch.device("cpu"))
    assert torch.equal(epoch(plain, 0), untouched)
    assert torch.equal(epoch(images, 0, augmented=False), untouched)
    assert torch.equal(epoch(images, 0), epoch(images, 0))
    assert not torch.equal(epoch(images, 0), untouched)
    one = shuffled(images[torch.tensor([0])], 5, Streams("order"))  # alone it has no order that could differ
    assert len({next(one(number)).images.numpy().tobytes() for number in range(8)}) > 1


def test_in_turn_walks_over_one_and_then_the_other() -> None:
    first, second = (shuffled(numbered(9, start), 4, Streams(start)) for start in (0, 100))
    both = in_turn(first, second)
    assert both.steps == 4 == len(numbers(both, 3))
    assert numbers(both, 3) == numbers(first, 3) + numbers(second, 3)


@pytest.mark.parametrize(("leading", "following"), [(50, 12), (12, 50), (12, 12), (50, 1), (1, 50), (1, 1)])
def test_paired_cycles_what_follows_in_fresh_orders(leading: int, following: int) -> None:
    leader = shuffled(numbered(leading), 4, Streams("leading"))
    follower = shuffled(numbered(following, 100), 4, Streams("following"))
    both = paired(leader, follower)
    passes = []
    for epoch in range(3):
        pairs = list(both(epoch))
        assert len(pairs) == both.steps == leader.steps
        assert [pair[0].labels.tolist() for pair in pairs] == numbers(leader, epoch)
        assert [samples(pair) for pair in pairs] == [len(a.labels) + len(b.labels) for a, b in pairs]
        after = [pair[1].labels.tolist() for pair in pairs]
        for start in range(0, len(after), follower.steps):
            seen = flat(after[start : start + follower.steps])
            assert max(Counter(seen).values()) == 1
            if len(after) - start >= follower.steps:
                assert sorted(seen) == list(range(100, 100 + following))
            passes.append(tuple(seen))
    if following > 1:
        assert len(set(passes)) == len(passes)


@pytest.mark.parametrize("order", ["sequential", "mixed"])
@pytest.mark.parametrize("forget_count", [1, 9])
def test_relabelled_takes_the_labels_of_its_epoch(order: Any, forget_count: int) -> None:
    retain, forget = numbered(17), numbered(forget_count)

    def labelled(epoch: int) -> Images:
        return forget.relabelled(torch.full((forget_count,), 1000 + epoch))

    batches = relabelled(retain, labelled, forget_count, order, 4, Streams("order"))
    for epoch in range(3):
        seen = numbers(batches, epoch)
        assert len(seen) == batches.steps
        assert sorted(flat(seen)) == [*range(17), *[1000 + epoch] * forget_count]
        if order == "sequential":
            assert set(flat(seen)[:forget_count]) == {1000 + epoch}


def test_a_batch_of_one_image_trains() -> None:
    result = fit(convolutional(), shuffled(digits(1), 4, Streams("s")), cross_entropy, Streams("s"), epochs=1, **PLAIN)
    assert all(value.isfinite().all() for value in result.state_dict().values())


# The loop


@pytest.mark.parametrize("nesterov", [False, True])
def test_fit_is_sgd_as_the_formula_has_it(nesterov: bool) -> None:
    images, model, plain = digits(50), linear(), linear().double()
    batches, schedule = shuffled(images, 8, Streams("order")), partial(multistep, milestones=[1], gamma=0.5)
    epochs, lr, momentum, weight_decay = 3, 0.2, 0.9, 0.01
    velocity = [torch.zeros_like(weight) for weight in plain.parameters()]
    for epoch in range(epochs):
        for batch in batches(epoch):
            loss = nn.functional.cross_entropy(plain(batch.images.double()), batch.labels)
            gradients = torch.autograd.grad(loss, list(plain.parameters()))
            with torch.no_grad():
                for i, weight in enumerate(plain.parameters()):
                    gradient = gradients[i] + weight_decay * weight
                    velocity[i] = momentum * velocity[i] + gradient
                    move = gradient + momentum * velocity[i] if nesterov else velocity[i]
                    weight -= lr * (0.5 if epoch >= 1 else 1) * move
    with session() as its:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        result = fit(model, batches, cross_entropy, Streams("s"), epochs=epochs, schedule=schedule, **settings)
    assert result is model
    assert not model.training
    for weight, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight.double(), wanted, rtol=1e-4, atol=1e-5)
    assert [line["lr"] for line in its.history] == [0.2, 0.1, 0.1]
    assert [(line["epoch"], line["fit"]) for line in its.history] == [(1, 1), (2, 1), (3, 1)]
    assert its.sample_gradients == 150


BETAS = {"betas": (0.8, 0.999), "lr": 0.01, "weight_decay": 1e-2}
ADAPTIVE = {"momentum": 0.8, "lr": 0.01, "weight_decay": 1e-2}


@pytest.mark.parametrize(
    ("settings", "kind", "its"),
    [
        (SGD := {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}, torch.optim.SGD, SGD),
        (ADAPTIVE | {"optimiser": "adam"}, torch.optim.Adam, BETAS),
        (ADAPTIVE | {"optimiser": "adamw"}, torch.optim.AdamW, BETAS),
    ],
)
def test_fit_is_torchs_optimiser_bit_for_bit(settings: Any, kind: Any, its: Any) -> None:
    images, model = digits(51), convolutional()
    plain = convolutional().train().to(memory_format=torch.channels_last)
    optimiser = kind(plain.parameters(), **its)
    losses = []
    for epoch in range(2):
        order, total = torch.randperm(51, generator=Streams("s")("order", epoch)), 0.0
        with Streams("s").seeded("layers", epoch):
            for chosen in order.split([8] * 6 + [3]):
                optimiser.zero_grad()
                pixels = images.pixels[chosen].permute(0, 3, 1, 2).float() / 255
                loss = nn.functional.cross_entropy(plain(pixels), images.labels[chosen])
                loss.backward()
                optimiser.step()
                total += loss.item() * len(chosen)
        losses.append(total / 51)
    with session() as done:
        fit(model, shuffled(images, 8, Streams("s")), cross_entropy, Streams("s"), epochs=2, **settings)
    assert changed(state_of(plain), state_of(model)) == set()
    assert [line["loss"] for line in done.history] == pytest.approx(losses, rel=1e-6)


def moved(clip: float | None, images: Images) -> list[Tensor]:
    """How one step at learning rate 1 moves the weights: minus the gradient."""
    model = linear()
    before = [weight.detach().clone() for weight in model.parameters()]
    batches = shuffled(images, len(images), Streams("s"))
    fit(model, batches, cross_entropy, Streams("s"), epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, clip=clip)
    return [weight.detach() - old for weight, old in zip(model.parameters(), before, strict=True)]


def test_clip_bounds_the_global_norm_and_keeps_the_direction() -> None:
    images = digits(40)
    free = torch.cat([step.flatten() for step in moved(None, images)])
    norm = free.norm().item()
    clipped = torch.cat([step.flatten() for step in moved(norm / 3, images)])
    assert clipped.norm().item() == pytest.approx(norm / 3, rel=1e-4)
    torch.testing.assert_close(clipped, free / 3, rtol=1e-3, atol=1e-6)
    loose = torch.cat([step.flatten() for step in moved(norm * 3, images)])
    torch.testing.assert_close(loose, free, rtol=0, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_spreads_its_share_over_all_classes(smoothing: float) -> None:
    model, images = linear(), digits(30)
    batch = Batch(as_model_input(images.pixels, torch.device("cpu")), images.labels)
    log_probabilities = log_softmax(model(batch.images).detach().double().numpy(), axis=1)
    target = np.full((30, 10), smoothing / 10)
    target[np.arange(30), images.labels.numpy()] += 1 - smoothing
    wanted = -(target * log_probabilities).sum(axis=1).mean()
    assert smoothed_cross_entropy(model, batch, smoothing).item() == pytest.approx(wanted, rel=1e-5)


def test_only_what_requires_a_gradient_moves() -> None:
    model = convolutional()
    model[0].weight.requires_grad_(False)
    before = state_of(model)
    fit(model, shuffled(digits(40), 8, Streams("s")), cross_entropy, Streams("s"), epochs=2, **PLAIN)
    assert changed(before, state_of(model)) == before.keys() - {"0.weight"}
    assert not model[0].weight.requires_grad


def test_frozen_norm_statistics_are_used_and_kept() -> None:
    model, images = convolutional(), digits(40)
    model[1].running_mean.fill_(0.3)
    model[3].p = 0.0
    seen: list[Tensor] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        model[1].register_forward_hook(lambda module, its, output: seen.extend((its[0].detach(), output.detach())))
        assert model[0].training
        return cross_entropy(model, batch)

    before = state_of(model)
    settings = PLAIN | {"lr": 0.0, "norm_statistics": "frozen"}
    fit(model, shuffled(images, 40, Streams("s")), loss, Streams("s"), epochs=1, **settings)
    assert changed(before, state_of(model)) == set()
    torch.testing.assert_close(seen[1], (seen[0] - 0.3) / math.sqrt(1 + model[1].eps), rtol=1e-5, atol=1e-6)
    freeze_norm_statistics(model.train())
    assert [module.training for module in model] == [True, False, True, True, True, True]


def test_until_ends_after_the_first_epoch_for_which_it_is_true() -> None:
    modes, batches = [], shuffled(digits(40), 8, Streams("s"))

    def until(model: nn.Module) -> bool:
        modes.append(any(module.training for module in model.modules()))
        return len(modes) == 3

    with session() as its:
        stopped = fit(convolutional(), batches, cross_entropy, Streams("s"), epochs=9, until=until, **PLAIN)
    plain = fit(convolutional(), batches, cross_entropy, Streams("s"), epochs=3, **PLAIN)
    assert len(its.history) == 3
    assert modes == [False] * 3
    assert changed(state_of(stopped), state_of(plain)) == set()


def test_a_loss_that_is_no_number_ends_the_training_with_its_name() -> None:
    batches, settings = shuffled(digits(40), 8, Streams("s")), PLAIN | {"lr": 1e38}
    with session(label="originals") as its, pytest.raises(DivergedError, match=r"^originals: the loss is (nan|inf)"):
        fit(linear(), batches, cross_entropy, Streams("s"), epochs=5, **settings)
    assert len(its.history) == 1


def test_bf16_is_for_the_forward_pass_and_weights_stay_fp32() -> None:
    seen: set[torch.dtype] = set()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        scores = model(batch.images)
        seen.add(scores.dtype)
        return nn.functional.cross_entropy(scores, batch.labels)

    results = []
    for precision in ("fp32", "bf16"):
        with session(precision=precision):
            results.append(fit(linear(), shuffled(digits(40), 8, Streams("s")), loss, Streams("s"), epochs=2, **PLAIN))
    assert seen == {torch.float32, torch.bfloat16}
    assert {weight.dtype for weight in results[1].parameters()} == {torch.float32}
    for exact, coarse in zip(*(result.parameters() for result in results), strict=True):
        assert not torch.equal(exact, coarse)
        torch.testing.assert_close(exact, coarse, rtol=0.1, atol=0.02)


def test_the_loop_draws_from_no_global_generator_and_warm_up_is_not_counted() -> None:
    with session() as its, random_state_untouched():
        warm_up(convolutional(), digits(20), "fp32")
        assert (its.history, its.sample_gradients, its.fits) == ([], 0, 0)
        fit(convolutional(), shuffled(digits(20), 8, Streams("s")), cross_entropy, Streams("s"), epochs=2, **PLAIN)
    assert its.sample_gradients == 40


def test_supervised_prepares_a_net_on_its_own_normalised_images() -> None:
    class Net(nn.Sequential):
        shown: Tensor

        def prepare(self, images: Tensor) -> None:
            self.shown = images

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    images, model = digits(20), nn.Sequential(Halved(), Net(nn.Flatten(), nn.Linear(64, 10)))
    settings = {"schedule": "constant", "milestones": [], "gamma": 1.0, "warmup": 0.0, "clip": None}
    settings |= {"epochs": 1, "batch_size": 8, "nesterov": False, "label_smoothing": 0.0} | PLAIN
    supervised(model, images, Streams("s"), **settings)
    assert torch.equal(model[1].shown, as_model_input(images.pixels, torch.device("cpu")) / 2)


# Interruptions


class Killed(BaseException):
    """An interruption from outside, such as Ctrl-C."""


FITS = (
    {"epochs": 3, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "schedule": partial(one_cycle, warmup=0.3)},
    {"epochs": 9, "lr": 0.02, "momentum": 0.5, "weight_decay": 0.0, "clip": 1.0, "optimiser": "adam"},
)
EPOCHS = 3 + 2  # `until` ends the second fit after two


def train_twice(folder: Path | None, killed: Callable[[int], bool]) -> tuple[nn.Module, Session, int]:
    """Two fits in one session, the second with an `until`; returns the model, the session and the epochs shown."""
    shown = 0

    def show(label: str, line: dict[str, Any], epochs: int) -> None:
        nonlocal shown
        shown += 1
        if killed(shown):
            raise Killed

    def twice(model: nn.Module) -> bool:
        return its.history[-1]["epoch"] == 2

    images = digits(61, "crop", "flip")
    with session(checkpoint=folder, checkpoint_seconds=0.0, show=show) as its:
        model = convolutional()
        for number, settings in enumerate(FITS):
            streams = Streams("fit", number)
            until = twice if number else None
            fit(model, shuffled(images, 12, streams), cross_entropy, streams, until=until, **settings)
    return model, its, shown


def untimed(its: Session) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in its.history]


@pytest.fixture(scope="module")
def undisturbed() -> tuple[nn.Module, Session]:
    model, its, shown = train_twice(None, lambda shown: False)
    assert shown == EPOCHS
    assert its.sample_gradients == EPOCHS * 61
    return model, its


def assert_undisturbed(model: nn.Module, its: Session, undisturbed: tuple[nn.Module, Session]) -> None:
    assert changed(state_of(model), state_of(undisturbed[0])) == set()
    assert not model.training
    assert untimed(its) == untimed(undisturbed[1])
    assert its.sample_gradients == undisturbed[1].sample_gradients


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_training_continues_bit_for_bit(epoch: int, tmp_path: Path, undisturbed: Any) -> None:
    with pytest.raises(Killed):
        train_twice(tmp_path, lambda shown: shown == epoch)
    model, its, shown = train_twice(tmp_path, lambda shown: False)
    assert shown == EPOCHS - (epoch - 1)  # the epochs before the one in which it died are not trained again
    assert_undisturbed(model, its, undisturbed)


def test_a_training_that_is_always_interrupted_arrives(tmp_path: Path, undisturbed: Any) -> None:
    for _ in range(EPOCHS - 1):
        with pytest.raises(Killed):
            train_twice(tmp_path, lambda shown: shown == 2)
    model, its, shown = train_twice(tmp_path, lambda shown: shown == 2)
    assert shown == 1
    assert_undisturbed(model, its, undisturbed)
    model, its, shown = train_twice(tmp_path, lambda shown: True)
    assert shown == 0  # nothing is left to do, and the early end of `until` is remembered
    assert_undisturbed(model, its, undisturbed)


def test_dying_within_an_epoch_or_a_write_loses_that_epoch_only(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, Counter[str]()

    def torn(half: Path, file: Path) -> None:
        calls["save"] += 1
        if calls["save"] == 2:
            raise Killed
        replace(half, file)

    def broken(pixels: Tensor, *rest: Any) -> Tensor:
        calls["augment"] += 1
        if calls["augment"] == 8:
            raise Killed
        return augment(pixels, *rest)

    augment = walks.augment
    monkeypatch.setattr(os, "replace", torn)
    with pytest.raises(Killed):
        train_twice(tmp_path, lambda shown: False)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(walks, "augment", broken)
    with pytest.raises(Killed):
        train_twice(tmp_path, lambda shown: False)
    monkeypatch.setattr(walks, "augment", augment)
    model, its, shown = train_twice(tmp_path, lambda shown: False)
    assert shown == EPOCHS - 2
    assert_undisturbed(model, its, undisturbed)


def test_a_diverged_epoch_is_not_a_checkpoint(tmp_path: Path) -> None:
    def exploding(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * (float("inf") if len(its.history) == 2 else 1.0)

    epochs: list[int] = []
    settings = {"checkpoint": tmp_path, "checkpoint_seconds": 0.0, "label": "x"}
    for _ in range(2):
        with session(show=lambda label, line, total: epochs.append(line["epoch"]), **settings) as its:
            batches = shuffled(digits(30), 8, Streams("s"))
            with pytest.raises(DivergedError, match=r"in epoch 3 \(learning rate 0\.1\)"):
                fit(linear(), batches, exploding, Streams("s"), epochs=5, **PLAIN)
    assert epochs == [1, 2, 3, 3]
