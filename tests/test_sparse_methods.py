"""Methods that move few weights or make them few: l1-sparse, CF-k, EU-k, SalUn and SalUn-soft, on digits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_an_interruption_leaves_no_trace, changed, flags_of, state_of, yaml_of
from problems import Problem, few_of
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from unlearn.batches import Batches, announced, relabelled, shuffled
from unlearn.lab import Lab
from unlearn.last_layers import last_modules, only_last
from unlearn.layers import scope
from unlearn.loop import cross_entropy, train_mode
from unlearn.masks import filtered, salient, shrink
from unlearn.methods.eu_k import warm_restarts
from unlearn.methods.l1_sparse import l1_norm, penalties
from unlearn.methods.random_label import random_labels
from unlearn.methods.salun_soft import share_at
from unlearn.session import session
from unlearn.settings import SettingError, build
from unlearn.streams import Streams

PLAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 64,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-3,
}
LAST = {"1.8.weight", "1.8.bias"}
LAST_TWO = LAST | {"1.4.weight"} | {f"1.5.{name}" for name in ("weight", "bias")}
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


@pytest.fixture(scope="module")
def small(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A net of two convolutions and a dense layer."""
    words = ["model.widths=[4,8]", "train.epochs=2", "method=retrain"]
    lab = Lab(composing(tmp_path_factory.mktemp("small"), words).settings)
    return Problem(lab, few_of(lab.request(0), retain=193, forget=97), Streams("law", 0), PLAIN)


def numbers(model: nn.Module) -> Tensor:
    """All parameters in a row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def descent(model: nn.Module, **changes: float) -> torch.optim.SGD:
    settings = {key: PLAIN[key] for key in ("lr", "momentum", "weight_decay")} | changes
    return torch.optim.SGD(model.parameters(), **settings)


def backward(model: nn.Module, batch: Any) -> None:
    model.zero_grad()
    cross_entropy(model, batch).backward()


# What they share


def test_an_epoch_is_announced_before_its_first_batch(small: Problem) -> None:
    seen: list[Any] = []
    plain = shuffled(small.request.forget, 64, Streams("announced"))
    batches = announced(plain, seen.append)
    assert batches.steps == 2
    for epoch in (3, 0):
        for batch, same in zip(batches(epoch), plain(epoch), strict=True):
            seen.append(len(batch.labels))
            assert torch.equal(batch.images, same.images)
    assert seen == [3, 64, 33, 0, 64, 33]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("l1_sparse", {"gamma": 1e-2}),
        ("eu_k", {"k": 2, "schedule": "warm_restarts"}),
        ("salun", {"compat": "released"}),
        ("salun_soft", {"reference": "epoch"}),
        ("salun_soft", {"reference": "original"}),
    ],
)
def test_an_interruption_leaves_no_trace(name: str, changes: dict[str, Any], small: Problem, tmp_path: Path) -> None:
    run = partial(small.unlearned, name, **{"epochs": 3, **changes})
    assert_an_interruption_leaves_no_trace(run, tmp_path, 2)


# l1-sparse


def test_the_penalty_falls_by_equal_parts_to_nothing() -> None:
    assert penalties(0.5, 5, 0, "decreasing") == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert penalties(3.0, 5, 2, "decreasing") == pytest.approx([3.0, 2.0, 1.0, 0.0, 0.0])
    assert penalties(3.0, 2, 2, "decreasing") == [0.0, 0.0]
    assert penalties(3.0, 2, 9, "constant") == [0.0, 0.0]
    assert penalties(3.0, 3, 1, "constant") == [3.0, 3.0, 0.0]


def test_the_slope_of_the_norm_is_the_sign_and_at_zero_nothing() -> None:
    parts = [torch.tensor([-2.0, 0.0, 3.0], requires_grad=True), torch.tensor([[0.25]], requires_grad=True)]
    norm = l1_norm(parts)
    assert norm.item() == 5.25
    slopes = torch.autograd.grad(norm, parts)
    assert [slope.flatten().tolist() for slope in slopes] == [[-1.0, 0.0, 1.0], [1.0]]


@pytest.mark.parametrize("schedule", ["decreasing", "constant"])
def test_l1_sparse_adds_the_sign_of_every_parameter_to_its_gradient(schedule: str, small: Problem) -> None:
    weights = {"decreasing": [0.02, 0.01, 0.0], "constant": [0.02, 0.02, 0.0]}[schedule]
    by_hand = small.original().train()
    retain, optimiser = shuffled(small.request.retain, 64, Streams("law", 0)), descent(by_hand)
    for epoch, weight in enumerate(weights):
        for batch in retain(epoch):
            backward(by_hand, batch)
            for parameter in by_hand.parameters():
                assert parameter.grad is not None
                parameter.grad.add_(weight * parameter.detach().sign())
            optimiser.step()
    settings = {"gamma": 0.02, "plain_epochs": 1, "schedule": schedule, "epochs": 3}
    result = small.unlearned("l1_sparse", **settings)
    torch.testing.assert_close(numbers(result), numbers(by_hand), rtol=1e-4, atol=1e-6)
    plain = numbers(small.unlearned("finetune", epochs=3))
    assert (numbers(result) - plain).abs().max() > 1e-2
    assert numbers(result).abs().sum() < plain.abs().sum()


def test_without_a_penalty_l1_sparse_is_fine_tuning(small: Problem) -> None:
    plain = state_of(small.unlearned("finetune"))
    for nothing in ({"gamma": 0.0}, {"gamma": 1.0, "plain_epochs": 2}):
        assert changed(plain, state_of(small.unlearned("l1_sparse", **nothing))) == set()
    assert changed(plain, state_of(small.unlearned("l1_sparse", gamma=1e-4)))


def test_l1_sparse_tells_what_share_of_the_parameters_is_near_zero(small: Problem) -> None:
    shares = []
    for gamma in (0.0, 0.05):
        with session() as its:
            model = small.unlearned("l1_sparse", gamma=gamma)
        shares.append(its.history[-1]["share_near_zero"])
        assert shares[-1] == pytest.approx(np.mean(np.abs(numbers(model).numpy()) < 1e-3))
    assert shares[0] < shares[1]


# The last layers

EXPECTED = {
    ("fastnet", 1): {"head"},
    ("fastnet", 2): {"blocks.2.conv2", "blocks.2.norm2", "head"},
    ("resnet20", 2): {"blocks.8.conv2", "blocks.8.bn2", "head"},
    ("vit_tiny", 1): {"head"},
    ("vit_tiny", 2): {"blocks.11.mlp.fc2", "norm", "head"},
}


def net_of(name: str) -> nn.Module:
    with Streams("net").seeded():
        net: nn.Module = build(yaml_of("model", name), "model")((3, 32, 32), 10)
    return net


@pytest.mark.parametrize(("name", "k"), EXPECTED)
def test_the_last_layers_are_those_before_the_output(name: str, k: int) -> None:
    net = net_of(name)
    with only_last(net, k):
        learning = {key.rsplit(".", 1)[0] for key, flag in flags_of(net).items() if flag}
    assert learning == EXPECTED[name, k]


@pytest.mark.parametrize("name", ["fastnet", "resnet20", "vit_tiny"])
def test_as_many_layers_as_there_are_are_all_of_a_network(name: str) -> None:
    net = net_of(name)
    count = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules())
    before = flags_of(net)
    with only_last(net, count):
        assert flags_of(net) == before
        assert all(module.training for module in net.modules())
    assert len(last_modules(net, count - 1)) < len(last_modules(net, count)) == len(list(net.modules()))
    with pytest.raises(SettingError, match=rf"^method.k={count + 1}: must be at most {count}"):
        last_modules(net, count + 1)


def test_what_does_not_learn_is_in_eval_mode_in_every_pass_and_all_is_undone(small: Problem) -> None:
    model = small.original()
    before = flags_of(model)
    with session() as its, only_last(model, 2):
        # The second convolution, its norm layer, and 128 features to 10 classes
        assert its.history == [
            {"trained_parameters": 4 * 8 * 9 + 16 + 1290, "trained_share": pytest.approx(0.973, abs=1e-3)}
        ]
        for _ in range(2):
            train_mode(model)
            model(torch.rand(4, 1, 8, 8))
            training = {name for name, module in model.named_modules() if module.training}
            assert training == {"1.4", "1.5", "1.6", "1.7", "1.8"}
    assert flags_of(model) == before
    assert not model._forward_pre_hooks
    model.train()
    model(torch.rand(4, 1, 8, 8))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["cf_k", "eu_k"])
def test_only_the_last_layers_and_their_statistics_change(name: str, small: Problem) -> None:
    before = state_of(small.original())
    assert changed(before, state_of(small.unlearned(name, k=1))) == LAST
    assert changed(before, state_of(small.unlearned(name, k=2))) == LAST_TWO | {f"1.5.{part}" for part in STATISTICS}
    assert changed(before, state_of(small.unlearned(name, k=3))) == before.keys() - {"0.mean", "0.std"}


@pytest.mark.parametrize("name", ["cf_k", "eu_k"])
def test_the_last_layers_keep_to_a_scope(name: str, small: Problem) -> None:
    before = state_of(small.original())
    for layers, k, moved in ((["8"], 2, LAST), (["0", "1", "4"], 2, {"1.4.weight"})):
        model = small.original()
        with session(), scope(model, layers):
            after = state_of(small.unlearned(name, k=k, model=model))
        assert changed(before, after) == moved
    model = small.original()
    with session(), scope(model, "first"), pytest.raises(SettingError, match=r"^method.k=1: leaves nothing to train"):
        small.unlearned(name, k=1, model=model)


def test_cf_k_of_all_layers_is_fine_tuning(small: Problem) -> None:
    plain = state_of(small.unlearned("finetune"))
    assert changed(plain, state_of(small.unlearned("cf_k", k=3))) == set()
    assert changed(plain, state_of(small.unlearned("cf_k", k=2)))


# EU-k


def test_eu_k_of_all_layers_is_a_retrained_model(small: Problem) -> None:
    train = small.lab.settings["train"]
    settings = {key: train[key] for key in ("epochs", "batch_size", "lr", "momentum", "weight_decay", "clip")}
    retrained = state_of(build(yaml_of("method", "retrain"), "method")(None, small.request, Streams("law", 0)))
    ours = {k: state_of(small.unlearned("eu_k", k=k, schedule="constant", **settings)) for k in (3, 2)}
    assert changed(retrained, ours[3]) == set()
    assert changed(retrained, ours[2])


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """EU-k without its training: what it hands to the loop."""
    monkeypatch.setattr("unlearn.methods.eu_k.fit", lambda model, *_, **__: model)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(("k", "renewed"), [(1, LAST), (2, LAST_TWO)])
def test_eu_k_draws_its_layers_from_the_stream_of_initialisations(k: int, renewed: set[str], small: Problem) -> None:
    original = state_of(small.original())
    drawn = {seed: state_of(small.unlearned("eu_k", k=k, streams=Streams("law", seed))) for seed in (0, 1)}
    statistics = {f"1.5.{part}" for part in STATISTICS} if k == 2 else set()
    for seed, state in drawn.items():
        new = state_of(small.request.recipe.initialised(Streams("law", seed)))
        assert changed(original, state) == renewed | statistics
        assert not changed(new, state) & (renewed | statistics)
    assert changed(drawn[0], drawn[1]) == {name for name in renewed if not name.startswith("1.5.")}
    assert changed(original, state_of(small.unlearned("eu_k", k=k, lr=0.0))) == set()


def test_warm_restarts_are_torchs() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = CosineAnnealingWarmRestarts(optimiser, T_0=1, T_mult=2, eta_min=0.005)
    for epoch in range(62):
        for step in (7 * epoch, 7 * epoch + 6):
            assert 0.1 * warm_restarts(step, 7, 62, floor=0.05) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert [warm_restarts(epoch, 1, 62, floor=0.05) for epoch in (0, 1, 3, 7, 15, 31)] == [1.0] * 6
    assert warm_restarts(2, 1, 62, floor=0.05) == pytest.approx(0.525)


RATES = {
    "warm_restarts": [0.1, 0.1, 0.055],
    "constant": [0.1, 0.1, 0.1],
    "cosine": [0.088302, 0.041318, 0.0030154],  # 0.1 (1 + cos(s / 9 pi)) / 2, s = 2, 5, 8
}


@pytest.mark.parametrize("schedule", RATES)
def test_eu_k_trains_by_its_schedule_and_clips(schedule: str, small: Problem) -> None:
    settings = {"epochs": 3, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "floor": 0.1, "clip": 1e-3}
    with session() as its:
        model = small.unlearned("eu_k", schedule=schedule, **settings)
    assert [line["lr"] for line in its.history if "epoch" in line] == pytest.approx(RATES[schedule], rel=1e-4)
    start = small.request.recipe.initialised(Streams("law", 0))
    assert 0 < (model[1][8].weight - start[1][8].weight).norm() < 9 * 0.1 * 1.01e-3


# SalUn

SALUN = {"mask_share": 0.3, "order": "sequential"}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_salun_moves_the_most_salient_entries_and_no_bit_of_another(share: float, small: Problem) -> None:
    original = small.original()
    mask = salient(original, small.request.forget, share)
    result = small.unlearned("salun", mask_share=share)
    moved = []
    for (name, before), after in zip(original.named_parameters(), result.parameters(), strict=True):
        assert torch.equal(before[~mask[name]], after[~mask[name]]), name
        moved.append((before != after).sum().item())
    size = len(numbers(original))
    assert sum(int(part.sum()) for part in mask.values()) == round(share * size)
    assert round(0.95 * share * size) <= sum(moved) <= round(share * size)
    assert {f"1.1.{part}" for part in STATISTICS} <= changed(state_of(original), state_of(result))


@pytest.mark.parametrize("changes", [{"order": "sequential"}, {"order": "mixed", "labels": "other", "redraw": "once"}])
def test_salun_of_all_entries_is_random_labelling(changes: dict[str, str], small: Problem) -> None:
    plain = state_of(small.unlearned("random_label", **changes))
    for compat in (None, "released"):
        for share in (1.0, 0.9):
            with session() as its:
                result = state_of(small.unlearned("salun", mask_share=share, compat=compat, **changes))
            assert (changed(plain, result) == set()) == (share == 1.0)
            assert its.sample_gradients == 2 * (97 + 193) + 97


def test_the_released_mask_lets_weight_decay_by(small: Problem) -> None:
    original, steps = small.original(), 2 * (2 + 3)
    mask = salient(original, small.request.forget, 0.3)
    decayed = small.original()
    optimiser = descent(decayed)
    for _ in range(steps):
        for parameter in decayed.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
    result = small.unlearned("salun", compat="released", **SALUN)
    rows = zip(original.named_parameters(), decayed.parameters(), result.parameters(), strict=True)
    for (name, before), alone, after in rows:
        torch.testing.assert_close(after[~mask[name]], alone[~mask[name]], rtol=1e-6, atol=0.0)
        assert (before != after)[~mask[name] & (before != 0)].all(), name
    without = [
        state_of(small.unlearned("salun", compat=compat, weight_decay=0.0, **SALUN)) for compat in (None, "released")
    ]
    assert changed(*without) == set()


def test_a_filter_leaves_the_loss_and_the_salient_gradients_alone(small: Problem) -> None:
    model = small.original()
    mask = salient(model, small.request.forget, 0.3)
    batch = next(shuffled(small.request.retain, 64, Streams("filter"))(0))
    backward(model, batch)
    expected = {name: parameter.grad.clone() * mask[name] for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss = cross_entropy(model, batch)
    shown, figures = filtered(mask)(loss, list(model.parameters()))
    assert (shown.item(), figures) == (loss.item(), {})
    assert all(torch.equal(parameter.grad, expected[name]) for name, parameter in model.named_parameters())


# SalUn-soft


def test_shrinking_takes_the_distance_of_the_share_from_every_entry() -> None:
    anchors = [torch.tensor([0.3, 1.0, -1.0, 7.0]), torch.tensor([[0.1]])]
    moves = [torch.tensor([1.0, -2.0, 4.0, 0.0]), torch.tensor([[-8.0]])]
    wanted = {0.0: 0.0, 0.19: 0.0, 0.2: 0.0, 0.4: 1.0, 0.6: 2.0, 0.99: 4.0, 1.0: 8.0}
    for share, threshold in wanted.items():
        parts = [anchor + move for anchor, move in zip(anchors, moves, strict=True)]
        shrink(parts, anchors, share)
        for part, anchor, move in zip(parts, anchors, moves, strict=True):
            left = move.sign() * (move.abs() - threshold).clamp(min=0)
            torch.testing.assert_close(part, anchor + left)
            if threshold:
                back = move.abs() <= threshold
                assert torch.equal(part[back], anchor[back])


def test_the_share_that_is_put_back_falls_epoch_by_epoch() -> None:
    shares = [share_at(step, 4, 2, 0.5) for step in range(8)]
    assert shares == [0.5 * (1 - 1 / 8)] * 4 + [0.5 * (1 - 5 / 8)] * 4
    assert share_at(0, 1, 1, 0.5) == 0


@pytest.mark.parametrize("order", ["mixed", "sequential"])
@pytest.mark.parametrize("reference", ["epoch", "original"])
def test_salun_soft_is_random_labelling_with_a_threshold(reference: str, order: Any, small: Problem) -> None:
    streams, request = Streams("law", 0), small.request
    forget = random_labels(request, "all", "each_epoch", streams)
    batches: Batches = relabelled(request.retain, forget, len(request.forget), order, 64, streams)
    by_hand = small.original().train()
    optimiser, size = descent(by_hand), len(numbers(by_hand))
    start = [parameter.detach().clone() for parameter in by_hand.parameters()]
    for epoch in range(3):
        if reference == "epoch":
            start = [parameter.detach().clone() for parameter in by_hand.parameters()]
        rank = int(0.6 * (1 - (epoch * batches.steps + 1) / (3 * batches.steps)) * size)
        for batch in batches(epoch):
            backward(by_hand, batch)
            optimiser.step()
            distances = numbers(by_hand).sub(torch.cat([part.flatten() for part in start])).abs()
            threshold = distances.sort().values[rank - 1]
            with torch.no_grad():
                for parameter, its in zip(by_hand.parameters(), start, strict=True):
                    left = nn.functional.softshrink(parameter - its, threshold.item())
                    parameter.copy_(its + left)
    settings = {"order": order, "epochs": 3}
    result = small.unlearned("salun_soft", share=0.6, reference=reference, **settings)
    torch.testing.assert_close(numbers(result), numbers(by_hand), rtol=1e-3, atol=1e-4)
    plain = numbers(small.unlearned("random_label", **settings))
    assert (numbers(result) - plain).abs().max() > 1e-2
    unmoved = int((numbers(result) == numbers(small.original())).sum())
    assert (unmoved >= rank) == (reference == "original")


def test_salun_soft_that_puts_nothing_back_is_random_labelling(small: Problem) -> None:
    plain = state_of(small.unlearned("random_label", order="mixed"))
    for share in (0.0, 0.5):
        result = state_of(small.unlearned("salun_soft", share=share, order="mixed"))
        assert (changed(plain, result) == set()) == (share == 0.0)


def test_an_entry_that_was_put_back_is_that_of_the_epochs_start(small: Problem) -> None:
    original = numbers(small.original())
    unmoved = (numbers(small.unlearned("salun_soft", share=0.5, epochs=1)) == original).sum().item()
    steps = 5  # 290 images in batches of 64
    assert int(0.5 * (1 - 1 / steps) * len(original)) <= unmoved < 0.45 * len(original)
