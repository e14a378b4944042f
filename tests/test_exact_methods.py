"""Exact methods: amnesiac unlearning beside a log of every step, and ensembles of shards beside one trained anew."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import (
    Killed,
    assert_an_interruption_leaves_no_trace,
    assert_like,
    changed,
    flags_of,
    state_of,
    stems,
    yaml_of,
)
from problems import CPU, cut, handed, keys
from scipy.special import softmax
from scipy.stats import chisquare
from torch import Tensor, nn

from unlearn.data.images import Images, as_model_input
from unlearn.lab import Lab
from unlearn.replay import farthest, replay
from unlearn.session import session
from unlearn.settings import SettingError, build
from unlearn.sisa import METHODS, Ensemble, ensemble_of, unions_of
from unlearn.streams import Streams
from unlearn.training import supervised

PLAIN = ["train.epochs=3", "train.momentum=0", "train.weight_decay=0", "train.schedule=constant", "train.lr=0.05"]
EXACT = ["method=amnesiac", "method.variant=exact"]
ALONE = [*EXACT, "method.epochs=0"]
Labs = Callable[..., Lab]


# Amnesiac unlearning


@dataclass(frozen=True)
class Logged:
    """A training by a plain loop: where it began and ended, and each step's images and what it added."""

    start: nn.Module
    end: nn.Module
    steps: list[tuple[set[int], list[Tensor]]]

    def without(self, forget: Tensor) -> list[Tensor]:
        gone = set(forget.tolist())
        touched = [added for positions, added in self.steps if positions & gone]
        return [
            sum((its[number] for its in touched), torch.zeros_like(end)).neg().add(end).detach()
            for number, end in enumerate(self.end.parameters())
        ]


def logged(lab: Lab, *, momentum: float, weight_decay: float) -> Logged:
    """The original's training by a plain loop over batches of 64."""
    train, streams = lab.data.train, Streams("original", 0)
    start, model = (lab.training.initialised(streams) for _ in range(2))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum, weight_decay=weight_decay)
    steps = []
    for epoch in range(3):
        order = torch.randperm(len(train), generator=streams("order", epoch))
        for positions in order.split(64):
            before = [weight.detach().clone() for weight in model.train().parameters()]
            optimiser.zero_grad()
            scores = model(as_model_input(train.pixels[positions], CPU))
            nn.functional.cross_entropy(scores, train.labels[positions]).backward()
            optimiser.step()
            added = [weight.detach() - old for weight, old in zip(model.parameters(), before, strict=True)]
            steps.append((set(positions.tolist()), added))
    return Logged(start, model, steps)


def amnesiac(lab: Lab, forget: Tensor, *, retain: int = 100, **changes: Any) -> nn.Module:
    """The exact variant on any forget set, all the requests so far."""
    count = len(lab.data.train)
    request = replace(cut(lab, forget, torch.arange(count - retain, count)), replay=partial(replay, lab, forget, None))
    method = build(yaml_of("method", "amnesiac") | {"variant": "exact", "epochs": 0} | changes, "method")
    result: nn.Module = method(lab.load(lab.original()), request, Streams("amnesiac"))
    return result


def assert_close(model: nn.Module, expected: list[Tensor]) -> None:
    for weight, its in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.detach(), its, rtol=0, atol=2e-6)


def buffers_of(model: nn.Module) -> dict[str, bytes]:
    names = {name for name, _ in model.named_buffers()}
    return {name: value for name, value in state_of(model).items() if name in names}


@pytest.fixture(scope="module")
def plain(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(composing(tmp_path_factory.mktemp("plain"), [*PLAIN, *EXACT]).settings)
    assert len(lab.data.train) % 64 != 1  # or one batch would have 65
    return lab


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_exact_subtracts_the_steps_that_had_a_forgotten_image_and_no_others(
    momentum: float, lab: Labs, plain: Lab
) -> None:
    here = lab(*PLAIN, *EXACT, f"train.momentum={momentum}", "train.weight_decay=0.01") if momentum else plain
    log = logged(here, momentum=momentum, weight_decay=0.01 if momentum else 0.0)
    original = here.load(here.original())
    assert changed(state_of(log.end), state_of(original)) == set()
    for forget in (torch.tensor([5]), torch.tensor([0, 17, 300])):
        with session() as its:
            result = amnesiac(here, forget)
        assert_close(result, log.without(forget))
        assert buffers_of(result) == buffers_of(original)
        touched = sum(bool(positions & set(forget.tolist())) for positions, _ in log.steps)
        assert 3 <= touched <= 3 * len(forget)
        told = {"replayed_steps": len(log.steps), "forgotten_steps": touched, "replay_distance": 0.0}
        assert its.history == [told]
        assert its.sample_gradients == 3 * len(here.data.train)
    assert changed(state_of(result), state_of(original)) == {name for name, _ in original.named_parameters()}


def test_exact_without_any_image_left_is_the_initialisation(plain: Lab) -> None:
    start = plain.training.initialised(Streams("original", 0))
    assert farthest(plain.load(plain.original()), start) > 0.01
    everything = amnesiac(plain, torch.arange(len(plain.data.train)))
    assert_close(everything, [weight.detach() for weight in start.parameters()])


RECIPES = {
    "standard": [],
    "fast": ["model=fastnet", "model.widths=[8,8,8]"],
    "spectral_clip": ["train.every=2", "model.widths=[8,8]"],
}


def test_every_training_that_keeps_one_model_is_replayed() -> None:
    assert sorted(RECIPES) == sorted(set(stems("train")) - {"sisa"})


@pytest.mark.parametrize("train", RECIPES)
def test_the_replay_ends_in_the_original_bit_for_bit(train: str, lab: Labs) -> None:
    here = lab(
        *ALONE, f"train={train}", "train.epochs=2", "scenario.fraction=null", "scenario.count=1", *RECIPES[train]
    )
    stored = here.unlearned()
    [line] = [line for line in stored.json("history.json") if "replay_distance" in line]
    assert line["replay_distance"] == 0
    assert line["forgotten_steps"] == 2
    original, result = (here.load(its) for its in (here.original(), stored))
    trained = {name for name, moves in flags_of(original).items() if moves}
    assert changed(state_of(original), state_of(result)) == trained
    assert stored.json("cost.json")["sample_gradients"] == 2 * len(here.data.train)


def test_exact_goes_on_with_the_retained_images(lab: Labs, plain: Lab) -> None:
    plainly = ["method.optimiser=sgd", "method.lr=0.02", "method.batch_size=64"]
    words = [*PLAIN, *EXACT, f"store={plain.store.root}", *plainly]
    here = lab(*words, "method.epochs=2", "method.weight_decay=0.001")
    model, retain = lab(*words, "method.epochs=0"), here.request(0).retain
    expected = model.load(model.unlearned()).train()
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.02, momentum=0.9, weight_decay=0.001)
    for epoch in range(2):
        order = torch.randperm(len(retain), generator=Streams("unlearned", 0, 0, 0)("order", epoch))
        assert len(retain) % 64 != 1
        for positions in order.split(64):
            optimiser.zero_grad()
            scores = expected(as_model_input(retain.pixels[positions], CPU))
            nn.functional.cross_entropy(scores, retain.labels[positions]).backward()
            optimiser.step()
    stored = here.unlearned()
    assert changed(state_of(expected), state_of(here.load(stored))) == set()
    assert stored.json("cost.json")["sample_gradients"] == 3 * len(here.data.train) + 2 * len(retain)


def test_requests_in_turn_take_back_the_steps_of_all_so_far(lab: Labs, plain: Lab) -> None:
    few = [*PLAIN, f"store={plain.store.root}", "scenario.fraction=null", "scenario.count=3"]
    turns, together = lab(*few, *ALONE, "requests=3"), lab(*few, *ALONE)
    log = logged(turns, momentum=0.0, weight_decay=0.0)
    for number in range(3):
        met = torch.cat(turns.requests[: number + 1])
        assert_close(turns.load(turns.unlearned(request=number)), log.without(met))
    last = state_of(turns.load(turns.unlearned()))
    assert changed(last, state_of(together.load(together.unlearned()))) == set()
    tuned = lab(*few, *EXACT, "requests=3", "method.epochs=1")
    parent = tuned.load(tuned.unlearned(request=1))
    request = tuned.request(2)
    ruined = tuned.load(tuned.unlearned(request=1))
    with torch.no_grad():
        for weight in ruined.parameters():
            weight.fill_(7.0)
    results = [state_of(tuned.method(model, request, Streams("last"))) for model in (parent, ruined)]
    assert changed(*results) == set()  # earlier fine-tuning, which saw this request's images, left nothing


def test_a_training_that_does_not_repeat_itself_is_told_and_refused_when_it_is_far(lab: Labs) -> None:
    here = lab(*PLAIN, *ALONE)
    here.original()
    keywords = here.train.keywords
    here.train = partial(here.train.func, **keywords | {"lr": keywords["lr"] * (1 + 1e-6)})
    with session() as its:
        amnesiac(here, torch.tensor([5]))
    assert 0 < its.history[0]["replay_distance"] < 1e-4
    here.train = partial(here.train.func, **keywords | {"lr": keywords["lr"] * 1.1})
    with pytest.raises(SettingError, match=r"^method=amnesiac: needs the original's training to repeat .* ends 0\."):
        amnesiac(here, torch.tensor([5]))

    def on_a_part(model: nn.Module, images: Images, streams: Streams) -> nn.Module:
        return supervised(model, images[torch.arange(128)], streams, **keywords)

    here.train = partial(on_a_part)
    with pytest.raises(SettingError, match=r"^method=amnesiac: needs a training that walks over the training set"):
        amnesiac(here, torch.tensor([5]))


def test_exact_is_the_same_after_an_interruption(plain: Lab, tmp_path: Path) -> None:
    forget, settings = torch.tensor([5]), {"epochs": 3, "lr": 0.01, "optimiser": "sgd", "batch_size": 32}
    its = assert_an_interruption_leaves_no_trace(partial(amnesiac, plain, forget, **settings), tmp_path, 2)
    assert [line["epoch"] for line in its.history if "epoch" in line] == [1, 2, 3]
    assert its.sample_gradients == 3 * len(plain.data.train) + 3 * 100  # the replay is counted once


def test_exact_keeps_to_a_layer_scope_and_does_nothing_without_a_learning_rate(lab: Labs, plain: Lab) -> None:
    here = lab(*PLAIN, *ALONE, "layers=['8']", "requests=2", f"store={plain.store.root}")
    original = state_of(here.load(here.original()))
    assert changed(original, state_of(here.load(here.unlearned()))) == {"1.8.weight", "1.8.bias"}
    with session() as its:
        result = amnesiac(plain, torch.tensor([5]), lr=0.0)
    assert changed(original, state_of(result)) == set()
    assert its.sample_gradients == 0


def test_relabel_fits_one_wrong_label_each_mixed_with_what_stays(plain: Lab) -> None:
    train, forget = plain.data.train, torch.arange(50)
    changes = {"retain": len(train) - 50, "variant": "relabel", "epochs": 3, "batch_size": 64}
    [given] = handed("amnesiac", partial(amnesiac, plain, forget, **changes))
    settings = {key: value for key, value in given.items() if key not in ("model", "batches", "loss")}
    assert settings == {"epochs": 3, "optimiser": "adam", "lr": 1e-4, "momentum": 0.9, "weight_decay": 0.0}
    truth = dict(zip(keys(train), train.labels.tolist(), strict=True))
    gone = set(keys(train[forget]))
    epochs = []
    for epoch in range(2):
        drawn = {}
        for batch in given["batches"](epoch):
            seen = dict(zip(keys(batch.images), batch.labels.tolist(), strict=True))
            assert all(label == truth[image] for image, label in seen.items() if image not in gone)
            drawn |= seen
        assert drawn.keys() == truth.keys()
        wrong = {image: label for image, label in drawn.items() if image in gone}
        assert all(label != truth[image] for image, label in wrong.items())
        epochs.append(wrong)
    assert epochs[0] == epochs[1]
    assert len(set(epochs[0].values())) > 5


# Shards and slices

SHARDS, SLICES = 3, 2
SHARDED = ["train=sisa", f"train.shards={SHARDS}", f"train.slices={SLICES}", "train.epochs=3", "model.widths=[8,8]"]
SHARDED += ["train.milestones=[2]", "train.lr=0.05"]  # epoch 2 of 3, so 1 of each slice's 2


def place(seed: int, pixels: Tensor, label: int) -> tuple[int, int, bytes]:
    """Shard, slice and rank of an image by the docstring's hash, once more."""
    digest = hashlib.sha256(b"%d %d " % (seed, label) + bytes(pixels.flatten().tolist())).digest()
    return *divmod(int.from_bytes(digest[:8], "big") % (SHARDS * SLICES), SLICES), digest


def placed(model: nn.Module, images: Images) -> list[tuple[int, int, bytes]]:
    seed = int(ensemble_of(model).seed)
    return [place(seed, *its) for its in zip(images.pixels, images.labels.tolist(), strict=True)]


def retained(lab: Lab, forget: Tensor) -> Images:
    stays = torch.ones(len(lab.data.train), dtype=torch.bool)
    stays[forget] = False
    return lab.data.train[stays.nonzero().flatten()]


def forgotten(lab: Lab, forget: Tensor) -> nn.Module:
    request = replace(lab.request(0), forget=lab.data.train[forget], retain=retained(lab, forget))
    method = build(yaml_of("method", "sisa"), "method")
    result: nn.Module = method(lab.load(lab.original()), request, Streams("not used"))
    return result


@pytest.fixture(scope="module")
def sharded(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(composing(tmp_path_factory.mktemp("sharded"), [*SHARDED, "method=sisa"]).settings)


def test_a_sharded_training_is_a_plain_loop_over_the_slices_of_each_shard(sharded: Lab) -> None:
    train, original = sharded.data.train, sharded.load(sharded.original())
    ensemble = ensemble_of(original)
    initial = sharded.training.initialised(Streams("original", 0))
    assert int(ensemble.seed) == Streams("original", 0).seed("sisa")
    where = placed(original, train)
    steps = 0
    for shard in range(SHARDS):
        member = ensemble_of(initial).members[shard].train()
        for number in range(SLICES):
            assert changed(state_of(member), kept(ensemble, shard, number)) == set()
            union = sorted((rank, at) for at, (its, part, rank) in enumerate(where) if its == shard and part <= number)
            images = train[torch.tensor([at for _, at in union])]
            optimiser = torch.optim.SGD(member.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
            assert len(images) % 64 != 1
            for epoch in range(2):  # 2 * 3 / (2 + 1)
                for group in optimiser.param_groups:
                    group["lr"] = 0.05 * 0.1**epoch
                streams = Streams("sisa", int(ensemble.seed), shard, number)
                order = torch.randperm(len(images), generator=streams("order", epoch))
                for positions in order.split(64):
                    optimiser.zero_grad()
                    scores = member(original[0](as_model_input(images.pixels[positions], CPU)))
                    nn.functional.cross_entropy(scores, images.labels[positions]).backward()
                    optimiser.step()
                    steps += len(positions)
        assert changed(state_of(member), state_of(ensemble.members[shard])) == set()
    assert sharded.original().json("cost.json")["sample_gradients"] == steps
    assert ensemble.due.tolist() == [SLICES] * SHARDS


def kept(ensemble: Ensemble, shard: int, number: int) -> dict[str, bytes]:
    checkpoint: Any = ensemble.before
    return {name.replace("/", "."): value for name, value in state_of(checkpoint[shard][number]).items()}


@pytest.mark.parametrize("which", ["one image", "two images", "a tenth", "a class"])
def test_what_forgot_is_the_ensemble_that_is_trained_without(which: str, sharded: Lab) -> None:
    train = sharded.data.train
    forget = {
        "one image": torch.tensor([5]),
        "two images": torch.tensor([17, 300]),
        "a tenth": torch.arange(0, len(train), 10),
        "a class": (train.labels == 3).nonzero().flatten(),
    }[which]
    original = sharded.load(sharded.original())
    with session() as its:
        result = forgotten(sharded, forget)
    scratch = sharded.training.trained(retained(sharded, forget), Streams("original", 0))
    assert changed(state_of(scratch), state_of(result)) == set()
    first = {}
    for shard, number, _ in placed(original, train[forget]):
        first[shard] = min(number, first.get(shard, SLICES))
    again = {(shard, number) for shard in first for number in range(first[shard], SLICES)}
    moved = changed(state_of(ensemble_of(original)), state_of(ensemble_of(result)))
    assert {name.split(".")[1] for name in moved} == {str(shard) for shard in first}
    checkpoints = {tuple(map(int, name.split(".")[1:3])) for name in moved if name.startswith("before")}
    assert checkpoints == {(shard, number) for shard, number in again if number > first[shard]}
    shares = {"shards_retrained": len(first) / SHARDS, "slices_retrained": len(again) / (SHARDS * SLICES)}
    assert its.history[0] == pytest.approx(shares)
    stay = [(shard, number) for shard, number, _ in placed(original, retained(sharded, forget))]
    images = sum(sum(its == shard and part <= number for its, part in stay) for shard, number in again)
    assert its.sample_gradients == 2 * images
    assert its.fits == len(again)
    if which == "one image":
        assert len(first) == 1
    if which == "a class":
        assert len(first) == SHARDS


@pytest.mark.parametrize(
    "words",
    [
        ["model=fastnet", "model.widths=[8,8,8]", "train.schedule=one_cycle", "train.nesterov=true"],
        ["train.slices=1", "train.shards=2", "train.label_smoothing=0.1", "train.clip=0.1", "train.schedule=cosine"],
        ["dataset.validation=0", "train.slices=4", "train.shards=1", "train.aggregate=vote", "requests=2"],
    ],
    ids=lambda words: words[0],
)
def test_the_lab_forgets_exactly(words: list[str], lab: Labs) -> None:
    few = ["scenario.fraction=null", "scenario.count=2", "train.epochs=2"]
    settings = {word.split("=")[0]: word for word in [*SHARDED, *few, "method=sisa", *words]}
    here = lab(*settings.values())
    result = here.load(here.unlearned())
    scratch = here.training.trained(retained(here, here.forget), Streams("original", 0))
    assert changed(state_of(scratch), state_of(result)) == set()
    assert changed(state_of(here.load(here.original())), state_of(result))
    seeds = {int(ensemble_of(here.load(its)).seed) for its in (here.original(), here.retrained())}
    assert len(seeds) == 2
    assert np.isfinite(here.signals(here.unlearned())["test"].logits).all()


def test_places_depend_on_the_image_alone_and_are_even(sharded: Lab) -> None:
    model = sharded.load(sharded.original())
    ensemble, train = ensemble_of(model), sharded.data.train
    places = ensemble.places(train)
    assert places == placed(model, train)
    order = torch.randperm(len(train), generator=Streams("places")("order"))[:200]
    assert ensemble.places(train[order]) == [places[at] for at in order.tolist()]
    assert ensemble.places(train.joined(train[order]))[len(train) :] == [places[at] for at in order.tolist()]
    counts = np.bincount([its.shard * SLICES + its.slice for its in places], minlength=SHARDS * SLICES)
    assert chisquare(counts).pvalue > 1e-4
    relabelled = ensemble.places(train.relabelled((train.labels + 1) % 10))
    ensemble.seed += 1
    for others in (relabelled, ensemble.places(train)):
        same = [ours[:2] == theirs[:2] for ours, theirs in zip(places, others, strict=True)]
        assert np.mean(same) == pytest.approx(1 / 6, abs=0.05)


def test_one_image_costs_the_share_of_the_steps_that_the_method_states(sharded: Lab) -> None:
    images = [list(map(len, shard)) for shard in unions(sharded, torch.tensor([], dtype=torch.int64))]
    costs = [sum(union[first:]) for union in images for first in range(SLICES)]
    sizes = [size for union in images for size in np.diff(union, prepend=0)]
    share = np.average(costs, weights=sizes) / np.sum(images)
    assert share == pytest.approx((2 / 3 + 1 / (3 * SLICES)) / SHARDS, rel=0.05)


def test_the_order_of_the_images_does_not_matter(sharded: Lab) -> None:
    order = torch.randperm(300, generator=Streams("places")("order"))
    models = [sharded.training.trained(sharded.data.train[its], Streams("any")) for its in (order, order.sort().values)]
    assert changed(*(state_of(model) for model in models)) == set()


class Says(nn.Module):
    """A net that has one answer."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.expand(len(x), -1)


def speaking(aggregate: Any, *scores: list[float]) -> Ensemble:
    said = iter(scores)
    return Ensemble(lambda: Says(next(said)), len(scores), 1, aggregate)


SAID = ([4.0, 0.0, 0.0], [0.0, 0.3, 0.0], [-1.0, 0.4, 0.0])


def test_members_are_averaged_or_vote() -> None:
    x = torch.zeros(5, 1, 2, 2)
    mean = softmax(np.array(SAID), axis=1).mean(0)
    votes = np.array([1, 2, 0])
    for aggregate, expected in (("mean", mean), ("vote", (votes + mean) / 4)):
        scores = speaking(aggregate, *SAID)(x)
        assert scores.shape == (5, 3)
        np.testing.assert_allclose(scores.detach().exp().numpy(), np.tile(expected, (5, 1)), rtol=1e-5)
        assert float(scores[0].exp().sum().detach()) == pytest.approx(1)
    assert mean.argmax() == 0 != votes.argmax()


def test_a_tie_is_decided_by_the_mean_and_no_logit_is_infinite() -> None:
    tie = speaking("vote", [1.0, 0.0, 0.0], [0.0, 2.0, 0.0])(torch.zeros(1, 1, 2, 2))
    assert tie.argmax() == 1
    for aggregate in ("mean", "vote"):
        sure = speaking(aggregate, [500.0, 0.0, 0.0], [500.0, 0.0, 0.0])
        scores = sure(torch.zeros(1, 1, 2, 2))
        assert scores.isfinite().all()
        nn.functional.cross_entropy(scores, torch.tensor([2])).backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in sure.parameters())


def test_who_was_not_trained_has_no_say() -> None:
    silent, without = speaking("mean", *SAID), speaking("mean", *SAID[1:])
    silent.voting[0] = False
    x = torch.zeros(1, 1, 2, 2)
    torch.testing.assert_close(silent(x), without(x))


def test_a_shard_with_fewer_than_two_images_is_left_out_and_one_must_have_them(lab: Labs) -> None:
    here = lab(*SHARDED, "train.shards=40", "train.epochs=1", "train.slices=1", "method=sisa")
    few = here.data.train[torch.arange(40)]
    model = here.training.trained(few, Streams("few"))
    ensemble = ensemble_of(model)
    counts = np.bincount([its.shard for its in ensemble.places(few)], minlength=40)
    assert ensemble.voting.tolist() == (counts >= 2).tolist()
    assert {0, 1} < set(counts.tolist())
    initial = ensemble_of(here.training.initialised(Streams("few")))
    for member, start, count in zip(ensemble.members, initial.members, counts, strict=True):
        assert (changed(state_of(member), state_of(start)) == set()) == (count < 2)
    with pytest.raises(SettingError, match=r"^train.shards=40: must leave a shard 2 of the 1 images$"):
        here.training.trained(few[torch.arange(1)], Streams("few"))


def test_forgetting_shards_goes_on_after_an_interruption(sharded: Lab, tmp_path: Path) -> None:
    forget, fits = torch.arange(0, len(sharded.data.train), 10), list[int]()
    undisturbed = forgotten(sharded, forget)

    def show(label: str, line: dict[str, Any], epochs: int) -> None:
        fits.append(line["fit"])
        if len(fits) in (2, 8):  # of 6 fits of 2 epochs
            raise Killed

    unfinished: dict[str, Any] = {"checkpoint": tmp_path / "unfinished", "checkpoint_seconds": 0.0, "show": show}
    for _ in range(2):
        with pytest.raises(Killed), session(**unfinished):
            forgotten(sharded, forget)
    with session(**unfinished) as its:
        result = forgotten(sharded, forget)
    assert fits == [1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6][: len(fits)]
    assert len(fits) == 14
    assert changed(state_of(result), state_of(undisturbed)) == set()
    assert its.sample_gradients == 2 * sum(len(union) for shard in unions(sharded, forget) for union in shard)
    assert sum("shards_retrained" in line for line in its.history) == 1


def unions(lab: Lab, forget: Tensor) -> list[list[Tensor]]:
    return unions_of(ensemble_of(lab.load(lab.original())), retained(lab, forget))


REFUSED = [
    (["method=sisa"], r"^method=sisa: needs train=sisa$"),
    (["train=sisa"], r"^method=finetune: must be one of none, retrain, sisa with train=sisa$"),
    (["train=sisa", *EXACT], r"^method=amnesiac: must be one of none, retrain, sisa with train=sisa$"),
    (["train=sisa", "method=sisa", "layers=last"], r"^layers=last: must be all: method sisa"),
    (["train=sisa", "method=retrain", "layers=first"], r"^layers=first: must be all: method retrain"),
    (["train=sisa", "method=sisa", "train.shards=0"], r"^train.shards=0: must be greater than 0"),
    (["train=sisa", "method=sisa", "train.aggregate=median"], r"^train.aggregate=median: must be 'mean' or 'vote'"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=str)
def test_what_does_not_go_together_is_refused_before_anything_is_trained(
    words: list[str], message: str, lab: Labs, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        lab(*words)
    assert not (tmp_path / "store" / "originals").exists()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_methods_that_go_with_shards_run(method: str, sharded: Lab, lab: Labs) -> None:
    here = lab(*SHARDED, f"method={method}", f"store={sharded.store.root}")
    original, result = here.load(here.original()), here.load(here.unlearned())
    assert_like(result, original, here.data.test)
    assert (changed(state_of(original), state_of(result)) == set()) == (method == "none")
    assert (int(ensemble_of(original).seed) == int(ensemble_of(result).seed)) == (method != "retrain")
