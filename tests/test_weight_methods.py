"""Methods that work on the weights themselves: SFR-on, UAM, NegMerge and Scissorhands, against plain loops."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_an_interruption_leaves_no_trace, changed, state_of, yaml_of
from problems import Problem, batch_of, few_of
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor, nn

from unlearn.batches import Batch, Batches, numbered, shuffled
from unlearn.data.images import Images
from unlearn.lab import Lab
from unlearn.layers import scope
from unlearn.loop import fit
from unlearn.methods.negmerge import consensus
from unlearn.methods.scissorhands import projected
from unlearn.methods.sfr_on import losses_of, rounds, weighted
from unlearn.session import session
from unlearn.settings import SettingError, build
from unlearn.signals import accuracy
from unlearn.streams import Streams

FORGET, RETAIN = 41, 75
PLAIN: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.02, "momentum": 0.9}
DECAY = {"weight_decay": 5e-3}
FEW_COPIES = {"lengths": [0.5, 1.0], "weight_decays": [5e-3], "label_smoothings": [0.0, 0.2]}
METHODS: dict[str, dict[str, Any]] = {
    "sfr_on": DECAY | {"forget_every": 2, "slow_share": 0.6},
    "uam": DECAY | {"rho": 0.5},
    "negmerge": FEW_COPIES,
    "scissorhands": DECAY | {"trim_share": 0.1, "forget_weight": 0.5},
}


class Small(Problem):
    """A trained net of two convolutions and a dense layer, and few images that remain and that go."""

    def original(self) -> nn.Module:
        return super().original().to(memory_format=torch.channels_last)

    def unlearned(self, name: str, *given: Any, **changes: Any) -> nn.Module:
        return super().unlearned(name, *given, **METHODS[name] | changes)

    def batches(self, part: str) -> Batches:
        """The batches of a part as every method here makes them."""
        return shuffled(getattr(self.request, part), PLAIN["batch_size"], Streams("law", 0).child(part))


@pytest.fixture(scope="module")
def small(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Small:
    words = ["model.widths=[4,8]", "train.epochs=6", "method=retrain"]
    lab = Lab(composing(tmp_path_factory.mktemp("weights"), words).settings)
    return Small(lab, few_of(lab.request(0), retain=RETAIN, forget=FORGET), Streams("law", 0), PLAIN)


def descent(model: nn.Module, weight_decay: float = DECAY["weight_decay"]) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=PLAIN["lr"], momentum=0.9, weight_decay=weight_decay)


def loss_of(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
    return nn.functional.cross_entropy(model(batch.images), batch.labels, label_smoothing=smoothing)


def slopes_of(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The gradient of a batch's cross-entropy, in eval mode, on a copy."""
    still = deepcopy(model).eval()
    return list(torch.autograd.grad(loss_of(still, batch), list(still.parameters())))


def endless_from(batches: Batches, number: int) -> Iterator[Batch]:
    """Pass after pass, each in its own order, from that number on."""
    return (batch for later in range(number, number + 99) for batch in batches(later))


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    """The same weights and statistics, but for rounding."""
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-4, atol=2e-6, msg=lambda said, at=name: f"{at}: {said}"
        )


# All of them


@pytest.mark.parametrize("killed_at", [1, 2, 5])
@pytest.mark.parametrize("name", METHODS)
def test_an_interruption_leaves_no_trace(name: str, killed_at: int, small: Small, tmp_path: Path) -> None:
    settings = {"epochs": 2} if name == "negmerge" else {"epochs": 6}
    assert_an_interruption_leaves_no_trace(partial(small.unlearned, name, **settings), tmp_path, killed_at)


@pytest.mark.parametrize("name", METHODS)
def test_a_transformer_without_convolutions_behind_its_stem_is_unlearned_too(
    name: str, small: Small, compose: Callable[..., Any]
) -> None:
    lab = Lab(compose(["model=vit_tiny", "model.depth=1"]).settings)
    with Streams("transformer").seeded():
        model = lab.build_model()
    before = state_of(model)
    few = replace(few_of(small.request, forget=3, retain=20), recipe=lab.request(0).recipe)
    changes = {"epochs": 1} | ({"search": False} if name == "negmerge" else {})
    after = state_of(small.unlearned(name, few, model=model, streams=Streams("transformer"), **changes))
    assert changed(before, after)


@pytest.mark.parametrize("name", METHODS)
def test_frozen_layers_keep_their_statistics(name: str, small: Small) -> None:
    before, model = state_of(small.original()), small.original()
    changes = {"search": False} if name == "negmerge" else {}
    with session(), scope(model, ["4", "5", "8"]):
        after = state_of(small.unlearned(name, model=model, **changes))
    moved = changed(before, after)
    assert moved
    assert all(key.startswith(("1.4.", "1.5.", "1.8.")) for key in moved)


def test_numbered_counts_the_steps_of_all_epochs(small: Small) -> None:
    steps: list[int] = []
    batches = numbered(small.batches("forget"), steps.append)
    for epoch in (0, 1):
        for count, _ in enumerate(batches(epoch), 1):
            assert steps[-1] == epoch * batches.steps + count - 1
    assert steps == list(range(6))


# SFR-on


def fishers(model: nn.Module, images: Images, size: int) -> list[Tensor]:
    """The mean squared gradient of batches, in the order of the stream, by their images."""
    order = torch.randperm(len(images), generator=Streams("law", 0)("importance"))
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for rows in order.split(size):
        for total, slope in zip(sums, slopes_of(model, batch_of(images[rows])), strict=True):
            total += slope**2 * len(rows) / len(images)
    return sums


@pytest.mark.parametrize(
    ("temperature", "clip", "threshold", "slow_share", "forget_weight"),
    [(0.5, 0.5, 1.0, 1.0, 25.0), (0.0, None, 0.0, 0.3, 2.0), (1.0, None, 3.0, 0.0, 2.0)],
)
def test_sfr_on_is_the_loop_written_out(
    temperature: float,
    clip: float | None,
    threshold: float,
    slow_share: float,
    forget_weight: float,
    small: Small,
) -> None:
    plain, every, epochs = small.original(), 2, 2
    size = PLAIN["batch_size"]
    of_forget, of_retain = (fishers(plain, part, size) for part in (small.request.forget, small.request.retain))
    masks = [(f + 1e-15) / (r + 1e-15) >= threshold for f, r in zip(of_forget, of_retain, strict=True)]
    optimiser, forget, retain = descent(plain), endless_from(small.batches("forget"), 0), small.batches("retain")
    total, done = retain.steps * epochs, 0
    plain.train()
    for epoch in range(epochs):
        leading = retain(epoch)
        while group := list(islice(leading, every)):
            slow = [parameter.detach().clone() for parameter in plain.parameters()]
            falling = (1 + math.cos(math.pi * done / total)) / 2
            optimiser.param_groups[0]["lr"] = PLAIN["lr"] * falling
            batch = next(forget)
            losses = nn.functional.cross_entropy(plain(batch.images), batch.labels, reduction="none")
            weights = 1 / losses.detach() ** temperature
            optimiser.zero_grad()
            (-forget_weight * falling * (weights * losses).sum() / weights.sum()).backward()
            for parameter, mask in zip(plain.parameters(), masks, strict=True):
                parameter.grad *= mask
            if clip:
                nn.utils.clip_grad_norm_(plain.parameters(), clip)
            optimiser.step()
            for batch in group:
                optimiser.param_groups[0]["lr"] = PLAIN["lr"] * (1 + math.cos(math.pi * done / total)) / 2
                optimiser.zero_grad()
                loss_of(plain, batch).backward()
                optimiser.step()
                done += 1
            with torch.no_grad():
                for parameter, before in zip(plain.parameters(), slow, strict=True):
                    parameter.copy_(before + slow_share * (parameter - before))
    changes = {"temperature": temperature, "clip": clip, "saliency_threshold": threshold, "slow_share": slow_share}
    with session() as its:
        ours = small.unlearned("sfr_on", forget_weight=forget_weight, **changes)
    assert_same(ours, plain)
    kept, entries = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    if threshold:
        assert 0.01 < kept / entries < 0.99
        assert its.history[0] == {"salient_share": pytest.approx(kept / entries)}
    forgotten = sum(len(batch.labels) for batch in islice(endless_from(small.batches("forget"), 0), 6))
    assert its.sample_gradients == epochs * RETAIN + forgotten + bool(threshold) * (RETAIN + FORGET)


@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_rounds_begin_with_a_forget_batch_and_end_with_their_epoch(every: int, small: Small) -> None:
    retain, forget = small.batches("retain"), small.batches("forget")
    batches, count = rounds(retain, forget, every), math.ceil(retain.steps / every)
    for epoch in range(2):
        beginnings = endless_from(forget, epoch * math.ceil(count / forget.steps))
        expected: list[Batch] = []
        for place, batch in enumerate(retain(epoch)):
            expected += [batch] if place % every else [next(beginnings), batch]
        seen = list(batches(epoch))
        assert len(seen) == batches.steps == len(expected)
        for place, (ours, theirs) in enumerate(zip(seen, expected, strict=True)):
            assert isinstance(ours, Batch) == (place % (every + 1) > 0)
            assert torch.equal((ours if isinstance(ours, Batch) else ours[0]).images, theirs.images)


def test_losses_keep_their_size_where_float32_is_certain() -> None:
    scores = 4 * torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50) % 7
    scores[:10].scatter_add_(1, labels[:10, None], torch.linspace(10, 60, 10)[:, None])
    exact = scores.double().numpy()
    others = exact.copy()
    others[np.arange(50), labels] = -np.inf
    margins = exact[np.arange(50), labels] - np.log(np.exp(others).sum(1))
    expected = np.log1p(np.exp(-margins))
    np.testing.assert_allclose(losses_of(scores, labels), expected, rtol=1e-5)
    np.testing.assert_allclose(expected[10:], -log_softmax(exact, 1)[np.arange(50), labels][10:], rtol=1e-6)
    assert (nn.functional.cross_entropy(scores, labels, reduction="none") == 0).any()
    assert (losses_of(scores, labels) > 0).all()


def test_what_is_known_by_heart_counts_most() -> None:
    losses = torch.tensor([1e-4, 0.25, 4.0], requires_grad=True)
    for temperature, weights in ((0.0, [1, 1, 1]), (0.5, [100, 2, 0.5]), (1.0, [1e4, 4, 0.25])):
        expected = torch.tensor(weights) / sum(weights)
        (slope,) = torch.autograd.grad(weighted(losses, temperature), losses)
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=0)
    assert weighted(torch.tensor([0.0, 1.0]), 0.5).isfinite()


def test_sfr_on_forgets_and_keeps(small: Small) -> None:
    before, images = small.original(), small.request
    after = small.unlearned("sfr_on", epochs=6, forget_weight=25.0, slow_share=1.0)
    assert accuracy(after, images.forget) < accuracy(before, images.forget) - 0.2
    assert accuracy(after, images.retain) > accuracy(after, images.forget) + 0.2


# UAM


@pytest.mark.parametrize(
    ("annealed", "compat", "rho"), [(True, None, 0.5), (False, None, 0.2), (True, "released", 0.5), (True, None, 0.0)]
)
def test_uam_is_the_loop_written_out(annealed: bool, compat: str | None, rho: float, small: Small) -> None:
    plain, retain, forget = small.original(), small.batches("retain"), small.batches("forget")
    optimiser, parameters = descent(plain), list(plain.parameters())
    plain.train()
    step, total, distances = 0, 2 * retain.steps, []
    for epoch in range(2):
        passes = -(-retain.steps // forget.steps)
        again = endless_from(forget, epoch * passes)
        for batch in retain(epoch):
            gone = next(again)
            distances.append(rho * (1 + math.cos(math.pi * step / total)) / 2 if annealed else rho)
            images = torch.cat([gone.images, batch.images]) if compat else gone.images
            before = nn.functional.cross_entropy(plain(images)[: len(gone.labels)], gone.labels)
            up = torch.autograd.grad(before, parameters)
            norm = sum((slope**2).sum() for slope in up) ** 0.5
            start = [parameter.detach().clone() for parameter in parameters]
            with torch.no_grad():
                for parameter, slope in zip(parameters, up, strict=True):
                    parameter += distances[-1] / norm * slope
            optimiser.zero_grad()
            loss_of(plain, batch).backward()
            with torch.no_grad():
                for parameter, was in zip(parameters, start, strict=True):
                    parameter.copy_(was)
            optimiser.step()
            step += 1
    with session() as its:
        ours = small.unlearned("uam", annealed=annealed, compat=compat, rho=rho)
    assert_same(ours, plain)
    assert [line["rho"] for line in its.history] == pytest.approx([np.mean(distances[:5]), np.mean(distances[5:])])
    of_forget = sum(len(b.labels) for epoch in (0, 2) for b in islice(endless_from(forget, epoch), 5))
    assert its.sample_gradients == 2 * RETAIN * (2 if compat else 1) + of_forget


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_uams_retained_loss_is_that_of_the_place_nearby(precision: str, small: Small) -> None:
    few = few_of(small.request, retain=16)
    rho = 3.0
    batches = [next(shuffled(getattr(few, part), 16, Streams("law").child(part))(0)) for part in ("retain", "forget")]
    expected = []
    for distance in (0.0, rho):
        model = small.original().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            before = loss_of(model, batches[1])
        up = torch.autograd.grad(before, list(model.parameters()))
        norm = torch.cat([slope.flatten() for slope in up]).norm()
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), up, strict=True):
                parameter += distance / norm * slope
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected.append(loss_of(model, batches[0]).item())
    with session(precision=precision) as its:
        small.unlearned("uam", few, streams=Streams("law"), epochs=1, lr=0.0, rho=rho)
    assert its.history[0]["loss"] == pytest.approx(expected[1], rel=1e-3)
    assert expected[1] > 1.1 * expected[0]


def test_uam_forgets_what_is_known_by_heart(small: Small) -> None:
    everything = shuffled(small.request.retain.joined(small.request.forget), 16, Streams("by heart"))
    settings = {"epochs": 60, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}
    learned = fit(small.original(), everything, loss_of, Streams("by heart"), **settings)
    before = loss_of(learned, batch_of(small.request.forget)).item()
    losses = []
    for rho in (0.0, 2.0):
        result = small.unlearned("uam", model=deepcopy(learned), epochs=6, rho=rho)
        losses.append([loss_of(result, batch_of(getattr(small.request, part))).item() for part in ("forget", "retain")])
    assert losses[0][0] < 10 * before < 0.1  # fine-tuning does not forget
    assert losses[1][0] > 10 * losses[0][0]
    assert losses[1][0] > 2 * losses[1][1]


# NegMerge


def learned_by_copies(small: Small) -> list[list[Tensor]]:
    """What copies learn from the forget set in plain loops, over `FEW_COPIES`."""
    vectors = []
    for number, (length, decay, smoothing) in enumerate(product(*FEW_COPIES.values())):
        plain = small.original().train()
        optimiser = descent(plain, decay)
        for epoch in range(round(2 * length)):
            for batch in shuffled(small.request.forget, 16, Streams("law", 0).child("copy", number))(epoch):
                optimiser.zero_grad()
                loss_of(plain, batch, smoothing).backward()
                optimiser.step()
        start = small.original()
        vectors.append([p.detach() - q.detach() for p, q in zip(plain.parameters(), start.parameters(), strict=True)])
    return vectors


def merged_by_hand(vectors: list[list[Tensor]]) -> list[np.ndarray[Any, Any]]:
    merged = []
    for parts in zip(*vectors, strict=True):
        stack = np.stack([part.numpy() for part in parts]).astype(np.float64)
        alike = (stack > 0).all(0) | (stack < 0).all(0)
        merged.append(np.where(alike, stack.mean(0), 0.0))
    return merged


def test_consensus_is_the_mean_where_all_signs_agree() -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = [[torch.randn(4, 5, generator=generator), torch.randn(9, generator=generator)] for _ in range(3)]
    for vector in vectors:
        vector[1][0] = 0.0  # nobody moved it
    vectors[0][1][1] = 0.0
    merged, share = consensus(iter(vectors))
    for ours, theirs in zip(merged, merged_by_hand(vectors), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert not merged[1][:2].any()
    assert share == sum(int((part != 0).sum()) for part in merged) / 29
    alone, everything = consensus(iter(vectors[:1]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(alone, vectors[0], strict=True))
    assert everything == 27 / 29


def test_negmerge_subtracts_what_all_copies_learned_alike(small: Small) -> None:
    original, merged = small.original(), merged_by_hand(learned_by_copies(small))
    with session() as its:
        result = small.unlearned("negmerge", search=False, weight=1.5)
    unlike = 0
    for (name, ours), before, vector in zip(result.named_parameters(), original.parameters(), merged, strict=True):
        moved = (ours - before).detach().double().numpy()
        unlike += int((~np.isclose(moved, -1.5 * vector, rtol=1e-3, atol=2e-5)).sum())
        assert (moved == 0).any() or vector.size < 20, name
    share = its.history[-1]["consensus_share"]
    entries = sum(vector.size for vector in merged)
    assert unlike <= 0.002 * entries  # signs of next to nothing
    assert share == pytest.approx(sum((vector != 0).sum() for vector in merged) / entries, abs=0.002)
    assert 0.1 < share < 0.9
    assert its.history[-1] == {"copies": 4, "consensus_share": share, "weight": 1.5}
    assert its.sample_gradients == FORGET * 2 * (1 + 2)
    statistics = {name for name, _ in original.named_buffers()}
    assert not changed(state_of(original), state_of(result)) & statistics


def test_negmerges_search_tries_every_weight(small: Small) -> None:
    forget, validation, start = small.request.forget, small.request.validation, small.original()
    moved = small.unlearned("negmerge", search=False, weight=1.0)
    vectors = [was.detach() - now.detach() for was, now in zip(start.parameters(), moved.parameters(), strict=True)]
    tried = []
    for weight in range(21):
        model = small.original()
        with torch.no_grad():
            for parameter, vector in zip(model.parameters(), vectors, strict=True):
                parameter -= weight * vector
        tried.append((accuracy(model, forget), float(weight), accuracy(model, validation)))
    chosen = []
    for kept in (0.0, 0.9, 1.0):
        allowed = [line for line in tried if line[2] >= kept * tried[0][2]]
        with session() as its:
            result = small.unlearned("negmerge", search=True, weight=20.0, kept=kept)
        said = its.history[-1]
        chosen.append((said["forget_accuracy"], said["weight"], said["validation_accuracy"]))
        assert chosen[-1] == min(allowed)
        assert (accuracy(result, forget), accuracy(result, validation)) == (chosen[-1][0], chosen[-1][2])
    assert chosen[0][1] > chosen[1][1] > chosen[2][1]


def test_negmerge_without_a_list_is_refused() -> None:
    for key in ("lengths", "weight_decays", "label_smoothings"):
        with pytest.raises(SettingError, match=rf"^method\.{key}="):
            build(yaml_of("method", "negmerge") | {key: []}, "method")


def test_negmerge_forgets(small: Small) -> None:
    before = loss_of(small.original(), batch_of(small.request.forget)).item()
    result = small.unlearned("negmerge", search=False, weight=3.0)
    assert loss_of(result, batch_of(small.request.forget)).item() > before


# Scissorhands


def trimmed_by_hand(small: Small, share: float, parts: tuple[str, ...] = ("1.",)) -> tuple[nn.Module, int]:
    """The original with its most sensitive entries drawn anew, and how many those are."""
    model = small.original()
    new = small.request.recipe.initialised(Streams("law", 0).child("new"))
    slopes = slopes_of(model, batch_of(small.request.forget))
    sensitive = [(slope * value).abs() for slope, value in zip(slopes, model.parameters(), strict=True)]
    everything = np.sort(torch.cat([part.flatten() for part in sensitive]).detach().numpy())
    least = everything[len(everything) - round(share * len(everything))]
    count = 0
    norm_layers = ("1.1.", "1.5.")
    with torch.no_grad():
        for (name, value), drawn, its in zip(model.named_parameters(), new.parameters(), sensitive, strict=True):
            if name.startswith(parts) and not name.startswith(norm_layers):
                value[its >= least] = drawn[its >= least]
                count += int((its >= least).sum())
    return model, count


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("modules", [None, ["4", "8"]])
def test_the_most_sensitive_entries_are_drawn_anew(share: float, modules: list[str] | None, small: Small) -> None:
    parts = ("1.4.", "1.8.") if modules else ("1.",)
    expected, count = trimmed_by_hand(small, share, parts) if share else (small.original(), 0)
    assert isinstance(expected[1][1], nn.BatchNorm2d)
    tiny = {"lr": 1e-12, "weight_decay": 0.0, "epochs": 1}
    with session() as its:
        result = small.unlearned("scissorhands", trim_share=share, modules=modules, **tiny)
    for (name, ours), theirs in zip(result.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8, msg=name)
    entries = sum(parameter.numel() for parameter in expected.parameters())
    assert its.history[0] == {"trimmed": count, "trimmed_share": count / entries}
    assert (count > 0) == (share > 0)


@pytest.mark.parametrize(
    ("project", "margin", "modules"), [(True, 0.5, None), (True, 0.0, ["4", "8"]), (False, 0.0, None)]
)
def test_scissorhands_is_the_loop_written_out(
    project: bool, margin: float, modules: list[str] | None, small: Small
) -> None:
    parts = ("1.4.", "1.8.") if modules else ("1.",)
    plain, _ = trimmed_by_hand(small, 0.1, parts)
    optimiser, retain, forget = descent(plain), small.batches("retain"), small.batches("forget")
    inside = [parameter for name, parameter in plain.named_parameters() if name.startswith(parts)]
    against, steps = [], 0
    for epoch in range(2):
        memories = dict(zip(plain.parameters(), slopes_of(plain, batch_of(small.request.forget)), strict=True))
        memory = -torch.cat([memories[parameter].flatten() for parameter in inside])
        plain.train()
        gone = forget(epoch)
        for batch in retain(epoch):
            beside = next(gone, None)
            optimiser.zero_grad()
            loss = loss_of(plain, batch)
            if beside is not None:
                loss = loss - 0.5 * loss_of(plain, beside)
            loss.backward()
            if beside is not None:
                steps += 1
                gradient = torch.cat([parameter.grad.flatten() for parameter in inside])
                inner = float(gradient @ memory)
                against.append(inner < 0)
                if project and inner < 0:
                    factor = max(margin, -inner / float(memory @ memory))
                    pieces = (factor * memory).split([parameter.numel() for parameter in inside])
                    for parameter, piece in zip(inside, pieces, strict=True):
                        parameter.grad += piece.view_as(parameter)
            optimiser.step()
    with session() as its:
        ours = small.unlearned("scissorhands", project=project, margin=margin, modules=modules)
    assert_same(ours, plain)
    assert steps == 2 * forget.steps < 2 * retain.steps
    if project:
        assert any(against)
        shown = [line["projected"] for line in its.history[1:]]
        assert shown == pytest.approx([np.mean(against[: forget.steps]), np.mean(against[forget.steps :])])
    assert its.sample_gradients == 2 * (RETAIN + FORGET) + FORGET * (1 + 2 * project)


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_a_gradient_is_projected_as_by_the_quadratic_programme(margin: float) -> None:
    generator = torch.Generator().manual_seed(3)
    outcomes = set()
    for _ in range(12):
        gradient, memory = (torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(2))
        parts = [gradient[:3].clone(), gradient[3:].clone().view(2, 2)]
        against = projected(parts, [memory[:3], memory[3:].view(2, 2)], margin)
        ours = torch.cat([part.flatten() for part in parts]).numpy()
        outcomes.add(against)
        if not against:
            assert gradient @ memory >= 0
            np.testing.assert_array_equal(ours, gradient)
            continue
        assert gradient @ memory < 0
        g, m = gradient.numpy(), memory.numpy()
        dual = minimize(lambda v, g=g, m=m: ((g + v[0] * m) ** 2).sum(), [3.0], bounds=[(margin, None)], tol=1e-14)
        np.testing.assert_allclose(ours, g + dual.x[0] * m, atol=1e-5)
        assert ours @ m >= -1e-12
        if not margin:  # it is the nearest vector that is not against the memory
            nearest = minimize(
                lambda x, g=g: ((x - g) ** 2).sum(), g, constraints={"type": "ineq", "fun": lambda x, m=m: x @ m}
            )
            np.testing.assert_allclose(ours, nearest.x, atol=1e-4)
    assert outcomes == {True, False}
    zeros = [torch.zeros(3)]
    assert not projected([torch.ones(3)], zeros, margin)


def test_some_forget_images_are_enough_for_the_gradients(small: Small) -> None:
    with session() as its:
        few = small.unlearned("scissorhands", gradient_images=10)
    assert its.sample_gradients == 2 * (RETAIN + FORGET) + 10 * (1 + 2)
    everything = state_of(small.unlearned("scissorhands"))
    assert changed(state_of(few), everything)
    assert not changed(state_of(small.unlearned("scissorhands", gradient_images=FORGET)), everything)


def test_scissorhands_refuses_modules_that_it_cannot_trim(small: Small) -> None:
    with pytest.raises(SettingError, match=r"^method\.modules=layer9: must be names of this model's modules: 0, 1, "):
        small.unlearned("scissorhands", modules=["8", "layer9"])
    model = small.original()
    with scope(model, ["8"]), pytest.raises(SettingError, match=r"^method\.modules=\['4'\]: leaves nothing to trim"):
        small.unlearned("scissorhands", model=model, modules=["4"])


def test_scissorhands_forgets_and_keeps(small: Small) -> None:
    before = loss_of(small.original(), batch_of(small.request.forget)).item()
    result = small.unlearned("scissorhands", epochs=6)
    losses = {part: loss_of(result, batch_of(getattr(small.request, part))).item() for part in ("forget", "retain")}
    assert losses["forget"] > before
    assert losses["retain"] < losses["forget"]
