"""Entries of the NeurIPS 2023 unlearning competition: FCS, PRMQ, KDE and RNI, against plain loops of torch."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import State, assert_an_interruption_leaves_no_trace, changed, flags_of, state_of
from problems import Problem, few_of
from scipy.special import log_softmax, softmax
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from unlearn.batches import Batches, shuffled
from unlearn.data.images import Images
from unlearn.lab import Lab
from unlearn.loop import fit
from unlearn.methods.fanchuan import rounds, unevenness
from unlearn.methods.kde_distil import first_layer
from unlearn.methods.prmq import entropies, prune, round_to_half, shortened
from unlearn.methods.rni import of_norms
from unlearn.request import Recipe, Request
from unlearn.session import session
from unlearn.settings import SettingError
from unlearn.signals import Signals, logits
from unlearn.streams import Streams

FORGET, RETAIN, VALIDATION = 70, 130, 60
STEPS = {"forget": 3, "retain": 5, "validation": 2}  # of 30, the last batch of two being the rest
SETTINGS: dict[str, Any] = {"batch_size": 30, "momentum": 0.8}
METHODS = ("fanchuan", "prmq", "kde_distil", "rni")
WEIGHTS = ["1.0.weight", "1.1.weight", "1.1.bias", "1.4.weight", "1.5.weight", "1.5.bias", "1.8.weight", "1.8.bias"]
NORMS = {"1.1.weight", "1.1.bias", "1.5.weight", "1.5.bias"}
STATISTICS = {f"1.{norm}.{name}" for norm in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")}


@pytest.fixture(scope="module")
def small(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A net of two convolutions and a dense layer."""
    words = ["model.widths=[4,8]", "train.epochs=6", "method=retrain"]
    lab = Lab(composing(tmp_path_factory.mktemp("competition"), words).settings)
    few = few_of(lab.request(0), forget=FORGET, retain=RETAIN, validation=VALIDATION)
    return Problem(lab, few, Streams("law"), SETTINGS)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """`fits(name, run)`: what a method hands to each of its fits, and which parameters learn; nothing is trained."""

    def fits(name: str, run: Callable[[], nn.Module]) -> list[dict[str, Any]]:
        handed: list[dict[str, Any]] = []

        def noted(model: nn.Module, batches: Batches, loss: Any, streams: Streams, **settings: Any) -> nn.Module:
            learning = {name for name, flag in flags_of(model).items() if flag}
            its = {"state": state_of(model), "learning": learning, "batches": batches, "loss": loss}
            handed.append(settings | its | {"values": {k: v.detach().clone() for k, v in model.named_parameters()}})
            return model

        with monkeypatch.context() as patch:
            patch.setattr(f"unlearn.methods.{name}.fit", noted)
            run()
        return handed

    return fits


def network(words: list[str], compose: Callable[..., Any], small: Problem) -> tuple[nn.Module, Request]:
    """An untrained model for digits, and the request whose recipe makes such ones."""
    lab = Lab(compose(words).settings)
    with Streams("model").seeded():
        model = lab.build_model()
    return model, replace(small.request, recipe=lab.request(0).recipe)


def plain_batches(images: Images, *names: str | int) -> Batches:
    return shuffled(images, 30, Streams("law", *names), augmented=False)


def descent(model: nn.Module, lr: float, weight_decay: float, momentum: float = 0.8) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


def step(optimiser: torch.optim.SGD, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def assert_close(result: nn.Module, by_hand: nn.Module, original: nn.Module) -> None:
    """The same numbers up to rounding, next to how far they went."""
    for (name, ours), its, start in zip(
        result.state_dict().items(), by_hand.state_dict().values(), original.state_dict().values(), strict=True
    ):
        distance = float((its - start).abs().max())
        torch.testing.assert_close(ours, its, rtol=1e-4, atol=1e-7 + 1e-3 * distance, msg=name)


def confidence(model: nn.Module, images: Images) -> float:
    return float(Signals(logits(model, images), images.labels.numpy()).confidence.mean())


# All of them

INTERRUPTED = [
    ("fanchuan", {"epochs": 2}, 3),
    ("prmq", {"epochs": 1.5, "lr": 0.01}, 2),
    ("kde_distil", {"epochs": 2, "validation_epochs": 1, "lr": 0.01}, 3),
    ("rni", {"epochs": 4, "last_lr_ratios": [2.0], "quiet_epochs": 0, "lr": 0.01}, 4),
]


@pytest.mark.parametrize(("name", "changes", "epochs"), INTERRUPTED)
def test_an_interruption_in_any_epoch_leaves_no_trace(
    name: str, changes: dict[str, Any], epochs: int, small: Problem, tmp_path: Path
) -> None:
    run = partial(small.unlearned, name, **changes)
    its = assert_an_interruption_leaves_no_trace(run, tmp_path, *range(1, epochs + 1))
    assert sum("epoch" in line for line in its.history) == epochs


@pytest.mark.parametrize("name", METHODS)
def test_no_image_is_augmented(name: str, small: Problem) -> None:
    parts = {part: getattr(small.request, part) for part in ("forget", "retain", "validation")}
    plain, marked = (
        replace(small.request, **{part: replace(images, augment=steps) for part, images in parts.items()})
        for steps in ((), ("crop", "flip"))
    )
    ours, theirs = (state_of(small.unlearned(name, request=request, epochs=1)) for request in (plain, marked))
    assert changed(ours, theirs) == set()


def dense() -> nn.Module:
    """A network without convolutions and without norms."""
    return nn.Sequential(nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)))


def transformer(compose: Callable[..., Any]) -> Callable[[], nn.Module]:
    built: Callable[[], nn.Module] = Lab(compose(["model=vit_tiny", "model.depth=1"]).settings).build_model
    return built


@pytest.mark.parametrize("of_dense_layers", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_networks_without_convolutions_are_unlearned_too(
    name: str, of_dense_layers: bool, small: Problem, compose: Callable[..., Any]
) -> None:
    make = dense if of_dense_layers else transformer(compose)
    recipe = Recipe(make, small.request.recipe.train)
    model = recipe.initialised(Streams("model"))
    before, flags = state_of(model), flags_of(model)
    settings: dict[str, Any] = {"epochs": 2, "lr": 0.05} | ({"last_lr_ratios": [1.0]} if name == "rni" else {})
    result = small.unlearned(name, model=model, request=replace(small.request, recipe=recipe), **settings)
    assert flags_of(result) == flags
    assert changed(before, state_of(result)) == flags.keys()
    assert np.isfinite(logits(result, small.request.forget)).all()


# FCS

FCS = {
    "epochs": 3,
    "lr": 0.02,
    "weight_decay": 0.05,
    "uniform_lr_ratio": 0.5,
    "forget_lr_ratio": 0.2,
    "floor": 0.1,
    "temperature": 1.5,
}


def test_fanchuan_is_a_plain_loop_with_three_optimisers(small: Problem) -> None:
    request, model = small.request, small.original().train()
    first, forgetting, retaining = (descent(model, lr, decay) for lr, decay in ((0.01, 0), (0.004, 0), (0.02, 0.05)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(forgetting, T_max=3 * STEPS["forget"], eta_min=0.0004)
    for batch in plain_batches(request.forget, "uniform")(0):
        scores = model(batch.images)
        uniform = torch.full_like(scores, 0.1)
        step(first, nn.functional.kl_div(scores.log_softmax(1), uniform, reduction="batchmean"))
    batches = [
        plain_batches(images, name)
        for images, name in ((request.forget, "forget"), (request.retain, "beside"), (request.retain, "retain"))
    ]
    for epoch in range(3):
        for forget, beside in zip(batches[0](epoch), batches[1](epoch), strict=False):
            ours, theirs = model(forget.images), model(beside.images).detach()
            step(forgetting, -torch.log_softmax(ours @ theirs.T / 1.5, dim=1).mean())
            schedule.step()
        for batch in batches[2](epoch):
            step(retaining, nn.functional.cross_entropy(model(batch.images), batch.labels))
    assert_close(small.unlearned("fanchuan", **FCS), model, small.original())
    assert retaining.param_groups[0]["weight_decay"] == 0.05
    assert forgetting.param_groups[0]["lr"] == pytest.approx(0.0004)


def test_unevenness_is_the_mean_over_all_entries_and_least_for_equal_similarities() -> None:
    generator = torch.Generator().manual_seed(1)
    forget, retain = (torch.randn(count, 5, generator=generator) for count in (7, 4))
    by_hand = -log_softmax(forget.double().numpy() @ retain.double().numpy().T / 1.15, axis=1).mean()
    assert unevenness(forget, retain, 1.15).item() == pytest.approx(by_hand, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert unevenness(forget, retain, 1.15).item() == pytest.approx(by_hand, rel=1e-5)
    equal = unevenness(forget, retain[:1].expand(4, -1), 1.15).item()
    assert equal == pytest.approx(np.log(4), rel=1e-5)
    assert equal < by_hand


def test_the_forget_rounds_have_a_cosine_of_their_own_and_the_retain_rounds_none() -> None:
    factors = [rounds(number, 8, 2, steps=3, ratio=0.5, floor=0.2) for number in range(16)]
    shape = [0.5 * (0.2 + 0.4 * (1 + np.cos(np.pi * done / 6))) for done in range(6)]
    assert factors[:3] + factors[8:11] == pytest.approx(shape)
    assert factors[3:8] + factors[11:] == [1.0] * 10


@pytest.mark.parametrize("swapped", [False, True])
def test_fanchuan_counts_gradients_and_the_shorter_set_begins_again(swapped: bool, small: Problem) -> None:
    forget, retain = small.request.forget, small.request.retain
    forget, retain = (retain, forget) if swapped else (forget, retain)
    with session() as its:
        small.unlearned("fanchuan", request=replace(small.request, forget=forget, retain=retain), epochs=2)
    assert its.sample_gradients == len(forget) + 2 * (len(forget) + len(retain))


def test_fanchuan_takes_confidence_from_the_forget_set_and_keeps_it_elsewhere(small: Problem) -> None:
    request, original = small.request, small.original()
    still = {"uniform_lr_ratio": 0.0, "forget_lr_ratio": 0.0}
    without, uniform = (small.unlearned("fanchuan", lr=0.02, **off) for off in (still, still | {"uniform_lr_ratio": 5}))
    rounds_alone = small.unlearned("fanchuan", lr=0.02, **still | {"forget_lr_ratio": 0.5})
    assert confidence(uniform, request.forget) < confidence(without, request.forget)
    assert confidence(rounds_alone, request.forget) < confidence(without, request.forget) - 0.02
    assert confidence(rounds_alone, request.retain) > confidence(original, request.retain) - 0.1


# PRMQ


def test_prune_takes_the_entries_that_torchs_pruning_takes(small: Problem) -> None:
    ours, theirs, original = small.original(), small.original(), small.original()
    layers = [module for module in theirs.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    pairs = [(layer, name) for layer in layers for name, _ in layer.named_parameters()]
    torch_prune.global_unstructured(pairs, pruning_method=torch_prune.L1Unstructured, amount=0.6)
    masks = {
        layer: {name: getattr(layer, f"{name}_mask") for where, name in pairs if where is layer} for layer in layers
    }
    prune(ours, 0.6, Streams("prune"))
    moved = 0
    for name in WEIGHTS:
        module, _, part = name.rpartition(".")
        now, before = ours.get_parameter(name).detach(), original.get_parameter(name).detach()
        if name in NORMS:
            assert torch.equal(now, before)
            continue
        kept = masks[theirs.get_submodule(module)][part].bool()
        assert torch.equal(now[kept], before[kept])
        assert (now[~kept] != before[~kept]).all()
        moved += int((~kept).sum())
        if part == "bias":
            assert (now[~kept] == 0).all()
    assert moved == round(0.6 * sum(p.numel() for name, p in ours.named_parameters() if name not in NORMS))


def test_pruned_weights_are_uniform_within_one_over_the_root_of_their_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 40, 5), nn.Flatten(), nn.Linear(50, 60))
    prune(model, 1.0, Streams("prune"))
    for weight, inputs in ((model[0].weight, 75), (model[2].weight, 50)):
        scaled = weight.detach().double().numpy().ravel() * inputs**0.5
        assert kstest(scaled, "uniform", args=(-1, 2)).pvalue > 1e-3
    drawn = [weight.detach().flatten()[:100] for weight in (model[0].weight, model[2].weight)]
    assert not torch.equal(drawn[0] * 75**0.5, drawn[1] * 50**0.5)
    assert (model[0].bias == 0).all()


def test_prune_of_nothing_changes_nothing_and_needs_a_layer_that_is_trained(small: Problem) -> None:
    model = small.original()
    prune(model, 0.0, Streams("prune"))
    assert changed(state_of(model), state_of(small.original())) == set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in NORMS)
    with pytest.raises(SettingError, match=r"^method=prmq: prunes convolutions and dense layers, and none"):
        small.unlearned("prmq", model=model)


@pytest.mark.parametrize(("epochs", "steps"), [(3.2, 16), (0.5, 2), (0.01, 1), (1.0, 5), (1.99, 9)])
def test_a_fraction_of_an_epoch_is_its_first_batches(epochs: float, steps: int, small: Problem) -> None:
    whole = plain_batches(small.request.retain, "retain")
    batches, count = shortened(whole, epochs)
    parts = [list(batches(number)) for number in range(count)]
    assert sum(map(len, parts)) == steps
    assert min(map(len, parts)) > 0
    for number, part in enumerate(parts):
        for ours, its in zip(part, whole(number), strict=False):
            assert torch.equal(ours.images, its.images)


def test_entropies_are_those_of_signals(small: Problem) -> None:
    scores = logits(small.original(), small.request.forget)
    expected = Signals(scores, small.request.forget.labels.numpy()).entropy
    np.testing.assert_allclose(entropies(torch.from_numpy(scores)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("whole_class", [False, True])
def test_prmq_is_a_plain_loop_after_the_pruning(whole_class: bool, small: Problem) -> None:
    retain = small.request.retain
    retain = retain[retain.labels != 3] if whole_class else retain
    model, original = small.original(), small.original()
    prune(model, 0.4, Streams("law"))
    optimiser = descent(model.train(), 0.02, 0.01)
    weights = torch.tensor([max(1, int((retain.labels == label).sum())) ** -0.7 for label in range(10)])
    batches = list(plain_batches(retain)(0)) + list(plain_batches(retain)(1))
    for batch in batches[: int(1.5 * plain_batches(retain).steps)]:
        ours = torch.log_softmax(model(batch.images), 1)
        theirs = torch.log_softmax(original(batch.images).detach(), 1)
        distance = ((ours.exp() * ours).sum(1) - (theirs.exp() * theirs).sum(1)).square().mean()
        chosen = weights[batch.labels]
        fitted = -(chosen * ours[range(len(chosen)), batch.labels]).sum() / chosen.sum()
        step(optimiser, fitted + 3 * distance)
    settings = {"epochs": 1.5, "lr": 0.02, "weight_decay": 0.01, "prune_share": 0.4, "half_precision": False}
    result = small.unlearned(
        "prmq", request=replace(small.request, retain=retain), class_exponent=0.7, entropy_weight=3.0, **settings
    )
    assert_close(result, model, original)


def test_prmq_rounds_to_half_precision_and_stays_in_single(small: Problem) -> None:
    exact, rounded = (small.unlearned("prmq", lr=0.01, half_precision=half) for half in (False, True))
    for name, value in exact.state_dict().items():
        once, constant = rounded.state_dict()[name], name in ("0.mean", "0.std") or not value.is_floating_point()
        assert once.dtype == value.dtype
        assert torch.equal(once, value if constant else value.half().float())
    assert changed(state_of(exact), state_of(rounded)) == {*WEIGHTS, *(n for n in STATISTICS if "num" not in n)}
    still = small.unlearned("prmq", lr=0.0)
    assert changed(state_of(small.original()), state_of(still)) == STATISTICS


def test_rounding_keeps_to_what_is_trained_and_to_finite_numbers(small: Problem) -> None:
    model = small.original()
    with torch.no_grad():
        model[1][5].running_var.fill_(1e6)
        model[1][8].weight[0, 0] = -1e6
    model[1][0].weight.requires_grad_(False)
    before = state_of(model)
    with session() as its:
        its.frozen = [model[1][1]]
        round_to_half(model)
    still = {"1.0.weight", "0.mean", "0.std"} | {
        name for name in STATISTICS if name.startswith("1.1.") or "num" in name
    }
    assert changed(before, state_of(model)) == before.keys() - still
    assert model[1][5].running_var.unique().tolist() == [65504.0]
    assert model[1][8].weight[0, 0].item() == -65504.0


def test_prmq_recovers_from_its_pruning(small: Problem) -> None:
    settings = {"lr": 0.05, "epochs": 20, "prune_share": 0.9}
    pruned = small.unlearned("prmq", **settings | {"lr": 1e-9})
    retrained = small.unlearned("prmq", **settings)
    retain = small.request.retain
    assert confidence(retrained, retain) > confidence(pruned, retain) + 0.3


# KDE


@pytest.mark.parametrize(
    ("words", "renewed"),
    [
        (["model.widths=[4,8]"], {"1.0.weight", "1.8.weight", "1.8.bias"}),
        (["model=fastnet", "model.widths=[8,8,8]"], {"1.stem.bias", "1.head.weight"}),  # the stem's weight is fixed
        (
            ["model=vit_tiny", "model.depth=1"],
            {"1.patch_embed.proj.weight", "1.patch_embed.proj.bias", "1.head.weight", "1.head.bias"},
        ),
        (["model=resnet20"], {"1.conv.weight", "1.head.weight", "1.head.bias"}),
    ],
)
def test_kde_draws_the_first_and_the_last_layer_anew(
    words: list[str], renewed: set[str], small: Problem, compose: Callable[..., Any], fits: Any
) -> None:
    model, request = network(words, compose, small)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = state_of(model)
    first, second = fits("kde_distil", lambda: small.unlearned("kde_distil", model=model, request=request))
    assert changed(before, first["state"]) == renewed
    new = state_of(request.recipe.initialised(Streams("law")))
    assert not changed(new, first["state"]) & renewed
    assert first["state"] == second["state"]
    unmoved = fits("kde_distil", lambda: small.unlearned("kde_distil", model=model, request=request, lr=0.0))
    assert unmoved[0]["state"] == first["state"]


def test_the_first_layer_is_dense_where_there_is_no_convolution() -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    assert first_layer(dense) is dense[1]
    assert first_layer(nn.Sequential(dense, conv := nn.Conv1d(1, 1, 1))) is conv


def test_kde_is_the_released_pair_of_plain_loops(small: Problem) -> None:
    request, model, original = small.request, small.original(), small.original()
    new = request.recipe.initialised(Streams("law"))
    with torch.no_grad():
        for name in ("1.0.weight", "1.8.weight", "1.8.bias"):
            model.get_parameter(name).copy_(new.get_parameter(name))
    model.train()

    def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
        return nn.functional.kl_div((ours / 3).log_softmax(1), (theirs / 3).softmax(1), reduction="batchmean")

    optimiser = descent(model, 0.01, 0.001)
    for epoch in range(2):
        for batch in plain_batches(request.validation, "validation")(epoch):
            step(optimiser, divergence(model(batch.images), original(batch.images).detach()))
    optimiser = descent(model, 0.02, 0.001)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=3)
    for epoch in range(3):
        for batch in plain_batches(request.retain, "retain")(epoch):
            ours, theirs = model(batch.images), original(batch.images).detach()
            twice = (ours / 3).log_softmax(1).log_softmax(1)
            soft = -((theirs / 3).softmax(1) * twice).sum(1).mean()
            step(optimiser, soft + nn.functional.cross_entropy(ours, batch.labels) + divergence(ours, theirs))
        schedule.step()
    result = small.unlearned(
        "kde_distil",
        epochs=3,
        validation_epochs=2,
        lr=0.02,
        validation_lr_ratio=0.5,
        weight_decay=0.001,
        temperature=3.0,
        divergence_weight=2.0,
    )
    assert_close(result, model, original)


def test_kde_weighs_the_divergence(small: Problem, fits: Any) -> None:
    def loss(weight: float) -> tuple[Any, float]:
        its = fits("kde_distil", partial(small.unlearned, "kde_distil", divergence_weight=weight, lr=0.0))[1]
        batch = next(its["batches"](0))
        return batch, its["loss"](student, batch).item()

    student = small.request.recipe.initialised(Streams("student")).eval()
    (batch, plain), (_, weighed) = loss(0.0), loss(4.0)
    theirs, ours = (model(batch.images).detach().double().numpy() / 5 for model in (small.original(), student))
    distance = (softmax(theirs, 1) * (log_softmax(theirs, 1) - log_softmax(ours, 1))).sum(1).mean()
    assert weighed - plain == pytest.approx(4 * distance, rel=1e-4)
    assert plain == pytest.approx(-log_softmax(5 * ours, 1)[range(30), batch.labels].mean(), rel=1e-5)


# RNI


def trace(small: Problem, fits: Any, model: nn.Module, request: Request, **changes: Any) -> tuple[State, list[Any]]:
    flags = flags_of(model)
    before = state_of(model)
    steps = fits("rni", lambda: small.unlearned("rni", model=model, request=request, **changes))
    assert flags_of(model) == flags
    return before, steps


def test_rni_shakes_and_trains_few_tensors_at_a_time(small: Problem, compose: Callable[..., Any], fits: Any) -> None:
    model, request = network(["model=resnet20"], compose, small)
    norms, every = of_norms(model), set(flags_of(model))
    assert len(norms) == 2 * 19
    before, steps = trace(small, fits, model, request)
    assert [its["lr"] for its in steps] == pytest.approx([2e-4] * 8 + [1e-3])
    assert [its["learning"] == every for its in steps] == [False] * 5 + [True] * 4
    assert all(its["epochs"] == 1 for its in steps)
    assert changed(before, steps[0]["state"]) == {"1.head.weight", "1.head.bias"}
    chosen = [its["learning"] - norms for its in steps[:5]]
    assert all(len(its) == 9 and norms <= step["learning"] for its, step in zip(chosen, steps, strict=False))
    assert len({frozenset(its) for its in chosen}) > 1
    for epoch in range(1, 9):
        noisy = changed(steps[epoch - 1]["state"], steps[epoch]["state"])
        if epoch >= 5:
            assert not noisy
            continue
        assert noisy <= chosen[epoch] - set().union(*chosen[:epoch])
        assert len(noisy) <= 6
    noisy = changed(steps[0]["state"], steps[4]["state"])
    assert len(noisy) >= 4
    values = [(steps[4]["values"][name] - steps[0]["values"][name]).double().numpy().ravel() for name in sorted(noisy)]
    assert kstest(np.concatenate(values) / 0.04, "norm").pvalue > 1e-3


def test_rni_adds_noise_when_and_where_it_is_asked_to(small: Problem, compose: Callable[..., Any], fits: Any) -> None:
    model, request = network(["model=resnet20"], compose, small)
    settings = {"epochs": 3, "last_lr_ratios": [], "tensors": 5, "noisy_share": 1.0, "noise": 2.0, "lr": 0.1}
    _, steps = trace(small, fits, model, request, quiet_epochs=0, **settings)
    _, none = trace(small, fits, model, request, quiet_epochs=0, **settings | {"noisy_share": 0.0})
    _, quiet = trace(small, fits, model, request, quiet_epochs=2, **settings)
    _, still = trace(small, fits, model, request, quiet_epochs=0, **settings | {"lr": 0.0})
    chosen = [its["learning"] - of_norms(model) for its in steps]
    assert [len(its) for its in chosen] == [5, 5, 5]
    assert changed(steps[0]["state"], steps[1]["state"]) == chosen[1] - chosen[0]
    assert changed(steps[1]["state"], steps[2]["state"]) == chosen[2] - chosen[0] - chosen[1]
    assert none[0]["state"] == none[2]["state"]
    assert quiet[0]["state"] == quiet[1]["state"] != quiet[2]["state"]
    assert still[0]["state"] == still[2]["state"]
    name = max(chosen[1] - chosen[0], key=lambda its: model.get_parameter(its).numel())
    noise = (steps[1]["values"][name] - steps[0]["values"][name]).std()
    assert float(noise) == pytest.approx(2.0, rel=0.2)


def test_rni_chooses_half_of_the_tensors_of_a_small_network(small: Problem, fits: Any) -> None:
    model = small.original()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number > 0)  # the first convolution is fixed
    _, steps = trace(small, fits, model, small.request, quiet_epochs=0, epochs=40, last_lr_ratios=[])
    chosen = [its["learning"] - NORMS for its in steps]
    assert {len(its) for its in chosen} == {2}  # of three, rounded up
    assert set().union(*chosen) == {"1.4.weight", "1.8.weight", "1.8.bias"}
    _, steps = trace(small, fits, small.original(), small.request, epochs=2)
    assert [its["lr"] for its in steps] == pytest.approx([2e-4, 1e-3])  # the last two of the four ratios


def test_layer_norms_are_norms_and_position_embeddings_are_not(small: Problem, compose: Callable[..., Any]) -> None:
    model, _ = network(["model=vit_tiny", "model.depth=1"], compose, small)
    expected = {
        f"1.{name}.{part}" for name in ("blocks.0.norm1", "blocks.0.norm2", "norm") for part in ("weight", "bias")
    }
    assert of_norms(model) == expected


def test_rni_is_a_plain_loop_with_a_fresh_optimiser_each_epoch(small: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each epoch starts from is taken from the method; what it makes of that is done again by hand."""
    ends: list[tuple[State, State]] = []

    def doubled(model: nn.Module, **settings: Any) -> nn.Module:
        by_hand = small.original().train()
        by_hand.load_state_dict(model.state_dict())
        learning = [its for its, flag in zip(by_hand.parameters(), flags_of(model).values(), strict=True) if flag]
        optimiser = torch.optim.SGD(learning, lr=settings["lr"], momentum=0.8, weight_decay=0.01)
        for batch in plain_batches(small.request.retain, "epoch", len(ends))(0):
            step(optimiser, nn.functional.cross_entropy(by_hand(batch.images), batch.labels))
        result = fit(model, **settings)
        ends.append((state_of(result), state_of(by_hand)))
        return result

    monkeypatch.setattr("unlearn.methods.rni.fit", doubled)
    small.unlearned("rni", epochs=4, lr=0.01, weight_decay=0.01, last_lr_ratios=[3.0], quiet_epochs=0)
    assert len(ends) == 4
    for ours, by_hand in ends:
        for name, value in ours.items():
            kind = np.int64 if "num_batches" in name else np.float32
            np.testing.assert_allclose(np.frombuffer(value, kind), np.frombuffer(by_hand[name], kind), 1e-3, 1e-5)
    moved = [changed(ends[epoch][0], ends[epoch + 1][0]) for epoch in range(3)]
    assert moved[2] >= set(WEIGHTS)
    assert moved[0] >= NORMS
    assert len(moved[0] - NORMS - STATISTICS) == 2


def test_rni_recovers_from_its_new_classifier_and_its_noise(small: Problem) -> None:
    shaken, result = (small.unlearned("rni", lr=lr, noise=0.1) for lr in (1e-9, 0.05))
    assert confidence(result, small.request.retain) > confidence(shaken, small.request.retain) + 0.3
