"""The laws that every method, auditor, scenario and recipe keeps, and what each method promises of its own.

The laws walk over the files of `conf/`, so a new file is tested by being there.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import (
    ROOT,
    assert_declared,
    assert_keys_are_the_keyword_only_parameters,
    assert_like,
    assert_positions,
    changed,
    content_of,
    flags_of,
    images_untouched,
    random_state_untouched,
    state_of,
    stems,
    yaml_of,
)
from safetensors.torch import save_model
from scipy.special import log_softmax
from scipy.stats import chisquare
from torch import Tensor, nn

from unlearn.attacks import Adversarial, Norm, nearest
from unlearn.batches import Batches
from unlearn.data.images import Images, as_model_input
from unlearn.lab import ROLES, Lab
from unlearn.methods.random_label import draw
from unlearn.replay import replay
from unlearn.request import Of, Request, Searched
from unlearn.scenarios.random import random as random_scenario
from unlearn.session import session
from unlearn.settings import SettingError, build, companion
from unlearn.signals import Signals, accuracy, logits
from unlearn.streams import Streams

METHODS, AUDITORS, SCENARIOS = (stems(group) for group in ("method", "auditor", "scenario"))
SHORT = {"epochs": 2, "batch_size": 32}
SHORT |= {"attack_steps": 2, "per_image": 2, "noise_steps": 2, "noise_images": 8, "copies": 2}  # work on images
PARTS = {"forget", "retain", "validation"}
CPU = torch.device("cpu")

DRAW_NOTHING = {"none", "sisa", "imported"}  # methods whose result does not depend on their streams
START_AFRESH = {"retrain", "sisa", "imported"}  # methods that return a new model, or one with new parts
SCENARIOS_WITHOUT_A_DRAW = {"class_wise", "indices"}


def training(name: str | None) -> list[str]:
    """The words that give a method the training that it goes with, if it goes with one only."""
    train = name and companion(build(yaml_of("method", name), "method"), "TRAIN", None)
    return [f"train={train}", "train.shards=2", "train.slices=2", f"method={name}"] if train else []


def required(name: str, lab: Lab) -> dict[str, str]:
    """What a method cannot do without: weights of the lab's architecture, and of nobody's training."""
    if name != "imported":
        return {}
    weights = lab.store.root / "foreign.safetensors"
    if not weights.exists():
        save_model(lab.training.initialised(Streams("foreign")), str(weights))
    return {"weights": str(weights)}


def switches(name: str) -> dict[str, str]:
    """Parts of the data that a method needs only while a setting is on, and that setting's name."""
    declared: dict[str, str] = companion(build(yaml_of("method", name), "method"), "NEEDED_IF", {})
    return declared


@dataclass(frozen=True)
class Problem:
    """A trained original and requests cut from its training set."""

    lab: Lab

    def original(self) -> nn.Module:
        return self.lab.load(self.lab.original())

    def request(self, forget: Tensor, retain: int = 257) -> Request:
        train = self.lab.data.train
        rest = torch.ones(len(train), dtype=torch.bool)
        rest[forget] = False
        kept = rest.nonzero().flatten()[:retain]

        def neighbours(of: Of, searched: Searched, norm: Norm, eps: float, steps: int) -> Adversarial:
            return nearest(self.original(), train[forget], norm=norm, eps_init=eps, steps=steps)

        parts = {"forget": train[forget], "forget_numbers": self.lab.data.train_index[forget], "retain": train[kept]}
        found = {"neighbours": neighbours, "replay": partial(replay, self.lab, forget, None)}
        return replace(self.lab.request(0), **parts, **found)

    def whole_class(self, label: int) -> Tensor:
        return (self.lab.data.train.labels == label).nonzero().flatten()


@pytest.fixture(scope="session")
def problems(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Problem]:
    """The problem of some words, one for every method that is given the same."""

    @cache
    def opened(*words: str) -> Problem:
        return Problem(Lab(composing(tmp_path_factory.mktemp("problem"), list(words)).settings))

    return opened


@pytest.fixture
def problem(request: pytest.FixtureRequest, problems: Callable[..., Problem]) -> Problem:
    """A problem for the method `name` of a law, or for any."""
    return problems("train.epochs=5", *training(of_law(request)))


@pytest.fixture
def problem_with_a_fixed_layer(request: pytest.FixtureRequest, problems: Callable[..., Problem]) -> Problem:
    return problems("model=fastnet", "model.widths=[8,8,8]", "train.epochs=2", *training(of_law(request)))


def of_law(request: pytest.FixtureRequest) -> str | None:
    """The method that a law is applied to."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    return name if name in METHODS else None


def unlearn(
    problem: Problem, name: str, request: Request, *, seed: int = 0, model: nn.Module | None = None, **changes: Any
) -> nn.Module:
    """Run a method as the lab does: on a copy of the original, with the parts that it declared."""
    settings = yaml_of("method", name)
    given = required(name, problem.lab) | changes
    method = build(settings | {k: v for k, v in SHORT.items() if k in settings} | given, "method")
    limited = request.limited_to(companion(method, "NEEDS"))
    result: nn.Module = method(model or problem.original(), limited, Streams("law", seed))
    return result


# Files


@pytest.mark.parametrize("group", ["method", "auditor", "scenario"])
def test_modules_and_yamls_come_in_pairs(group: str) -> None:
    modules = {file.stem for file in (ROOT / "unlearn" / f"{group}s").glob("*.py")} - {"__init__"}
    defining = {name for name in modules if hasattr(importlib.import_module(f"unlearn.{group}s.{name}"), name)}
    assert defining == set(stems(group))
    for stem in stems(group):
        assert yaml_of(group, stem)["_target_"] == f"unlearn.{group}s.{stem}.{stem}"


@pytest.mark.parametrize(
    ("group", "stem", "positional"),
    [
        *(("method", stem, ("model", "request", "streams")) for stem in METHODS),
        *(("auditor", stem, ("subject", "lab")) for stem in AUDITORS),
        *(("scenario", stem, ("data", "streams")) for stem in SCENARIOS),
        *(("train", stem, ("model", "images", "streams")) for stem in stems("train")),
    ],
)
def test_yaml_keys_are_the_keyword_only_parameters(group: str, stem: str, positional: tuple[str, ...]) -> None:
    settings = yaml_of(group, stem)
    function = build(settings, group).func
    assert_keys_are_the_keyword_only_parameters(settings, inspect.unwrap(function), positional)


# Every method


@pytest.mark.parametrize("name", METHODS)
def test_method_returns_a_model_like_the_original(name: str, problem: Problem) -> None:
    ordinary = torch.arange(97)  # 32, 32 and 33; retained are 8 times 32 and 1 more
    for forget in (ordinary, ordinary[:1], ordinary[:33], problem.whole_class(3)):
        request, model = problem.request(forget), problem.original().train()
        assert_like(unlearn(problem, name, request, model=model), problem.original(), request.retain)


@pytest.mark.parametrize("name", METHODS)
def test_method_restores_every_flag_and_leaves_fixed_weights(name: str, problem_with_a_fixed_layer: Problem) -> None:
    problem = problem_with_a_fixed_layer
    original = problem.original()
    result = unlearn(problem, name, problem.request(torch.arange(97)))
    assert set(flags_of(original).values()) == {True, False}
    assert flags_of(result) == flags_of(original)
    fixed = {key for key, moves in flags_of(original).items() if not moves}
    if name not in START_AFRESH:
        assert not changed(state_of(original), state_of(result)) & fixed


@pytest.mark.parametrize("name", METHODS)
def test_method_needs_only_what_it_declares(name: str, problem: Problem) -> None:
    needs = companion(build(yaml_of("method", name), "method"), "NEEDS")
    assert needs <= PARTS
    request = problem.request(torch.arange(97))
    limited = request.limited_to(needs)
    assert {part for part in PARTS if len(getattr(limited, part))} == needs
    settings = yaml_of("method", name) | required(name, problem.lab)
    method = build(settings | {k: v for k, v in SHORT.items() if k in settings}, "method")
    results = [state_of(method(problem.original(), its, Streams("law"))) for its in (request, limited)]
    assert changed(*results) == set()


WITH_VALIDATION = [name for name in METHODS if "validation" in importlib.import_module(f"unlearn.methods.{name}").NEEDS]


@pytest.mark.parametrize("name", WITH_VALIDATION)
def test_method_is_refused_without_the_part_that_it_needs(name: str, lab: Callable[..., Lab], tmp_path: Path) -> None:
    switch = switches(name).get("validation")
    with pytest.raises(SettingError, match=rf"^method={name}: needs validation images"):
        lab(f"method={name}", "dataset.validation=0", *([f"method.{switch}=true"] if switch else []))
    assert not (tmp_path / "store" / "originals").exists()


@pytest.mark.parametrize("name", [name for name in METHODS if switches(name)])
def test_method_may_lack_a_part_while_the_setting_that_asks_for_it_is_off(name: str, lab: Callable[..., Lab]) -> None:
    settings = yaml_of("method", name)
    assert switches(name).keys() <= companion(build(settings, "method"), "NEEDS")
    assert all(isinstance(settings[switch], bool) for switch in switches(name).values())
    if "validation" in switches(name):
        without = f"method.{switches(name)['validation']}=false"
        here = lab(f"method={name}", "dataset.validation=0", without, "train.epochs=1", "method.epochs=1")
        assert len(here.data.validation) == 0
        assert_like(here.load(here.unlearned()), here.load(here.original()), here.data.test)


@pytest.mark.parametrize("name", METHODS)
def test_method_changes_nothing_but_its_copy(name: str, problem: Problem) -> None:
    request, bystander = problem.request(torch.arange(97)), problem.original()
    before = state_of(bystander)
    torch.manual_seed(7)  # any state but that of a stream
    with random_state_untouched(), images_untouched(request.forget, request.retain, request.validation):
        unlearn(problem, name, request)
    assert changed(before, state_of(bystander)) == set()
    assert changed(before, state_of(problem.original())) == set()


@pytest.mark.parametrize("name", METHODS)
def test_method_depends_on_its_streams_and_on_no_other_chance(name: str, problem: Problem) -> None:
    request = problem.request(torch.arange(97))
    torch.manual_seed(1)
    first = state_of(unlearn(problem, name, request))
    torch.manual_seed(2)
    again, other = (state_of(unlearn(problem, name, request, seed=seed)) for seed in (0, 1))
    assert changed(first, again) == set()
    assert (changed(first, other) == set()) == (name in DRAW_NOTHING)


@pytest.mark.parametrize("name", [name for name in METHODS if "lr" in yaml_of("method", name)])
def test_method_without_a_learning_rate_moves_no_weight(name: str, problem: Problem) -> None:
    result = unlearn(problem, name, problem.request(torch.arange(97)), lr=0.0)
    for (key, weight), before in zip(result.named_parameters(), problem.original().parameters(), strict=True):
        assert torch.equal(weight, before), key


@pytest.mark.parametrize("name", [name for name in METHODS if "lr" in yaml_of("method", name)])
def test_method_keeps_to_the_layers_that_it_was_given(name: str, lab: Callable[..., Lab]) -> None:
    short = [f"method.{key}={value}" for key, value in SHORT.items() if key in yaml_of("method", name)]
    here = lab(f"method={name}", "layers=['8']", "train.epochs=1", *short)
    before, after = here.load(here.original()), here.load(here.unlearned())
    assert isinstance(before[1][8], nn.Linear)
    assert changed(state_of(before), state_of(after)) == {"1.8.weight", "1.8.bias"}


@pytest.mark.parametrize("name", METHODS)
def test_method_in_the_lab_leaves_the_stored_original_alone(name: str, lab: Callable[..., Lab]) -> None:
    short = [f"method.{key}={value}" for key, value in SHORT.items() if key in yaml_of("method", name)]
    short += [f"method.{key}={value}" for key, value in required(name, lab()).items()]
    here = lab(*training(name), f"method={name}", "train.epochs=2", *short)
    original = here.original()
    files, signals = content_of(original.folder), here.signals(original)["train"].logits
    unlearned = here.unlearned()
    assert content_of(original.folder) == files
    np.testing.assert_array_equal(logits(here.load(original), here.data.train), signals)
    assert_like(here.load(unlearned), here.load(original), here.data.test)
    moved = changed(state_of(here.load(original)), state_of(here.load(unlearned)))
    assert (moved == set()) == (name == "none")


# Every auditor


PROBLEMS = {
    "random": [],
    "one image": ["scenario.fraction=null", "scenario.count=1"],
    "class_wise": ["scenario=class_wise"],
    "confusion": ["scenario=confusion"],
}
FEW = {"references": 4, "models": 4, "limit": 50, "cap": 30, "exchanges": 19}  # of what audits ask many of


@pytest.fixture(scope="session")
def auditing(
    composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Callable[[], Lab]]:
    """`auditing(problem, auditor)()`: a lab for an auditor and those whose metrics it builds on, few models each."""
    store = tmp_path_factory.mktemp("auditing")
    modules = {name: build(yaml_of("auditor", name), "auditor") for name in AUDITORS}
    owner = {metric.name: name for name in AUDITORS for metric in companion(modules[name], "METRICS")}

    def opened(problem: str, name: str) -> Callable[[], Lab]:
        chosen = sorted({owner[metric] for metric in modules[name].keywords.get("metrics", [])} | {name})
        few = [f"auditor.{each}.{key}={FEW[key]}" for each in chosen for key in modules[each].keywords if key in FEW]
        words = [*PROBLEMS[problem], "method=random_label", "method.epochs=1", f"auditor=[{','.join(chosen)}]", *few]
        words.append(f"objective={companion(modules[name], 'METRICS')[0].name}")
        return lambda: Lab(composing(store, words).settings)

    return opened


def test_full_is_every_auditor_but_those_of_one_scenario(compose: Callable[..., Any]) -> None:
    assert {*compose(["auditor=[full]"]).settings["auditor"]} == {*AUDITORS} - {"interclass_confusion"}


def test_no_two_auditors_declare_the_same_metric() -> None:
    names = [
        metric.name for stem in AUDITORS for metric in companion(build(yaml_of("auditor", stem), "auditor"), "METRICS")
    ]
    assert len(names) == len(set(names)) >= len(AUDITORS)


def refused(opened: Callable[[], Lab]) -> SettingError | None:
    """Why a lab cannot be opened, if it cannot."""
    try:
        opened()
    except SettingError as error:
        return error
    return None


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", AUDITORS)
def test_auditor_measures_what_it_declares_and_changes_nothing(
    name: str, problem: str, auditing: Callable[[str, str], Callable[[], Lab]]
) -> None:
    opened = auditing(problem, name)
    if refusal := refused(opened):  # before anything is trained, in one line
        assert refusal.key.startswith("auditor")
        assert "\n" not in str(refusal)
        return
    lab = opened()
    for role in ROLES:
        subject = lab.subject(role)
        model, files = subject.model(), [content_of(stored.folder) for stored in lab.stored(role)]
        before = state_of(model)
        outputs = {part: getattr(subject, part).logits.copy() for part in ("forget", "retain", "validation", "test")}
        torch.manual_seed(7)
        with random_state_untouched():
            measured = lab.auditors[name](replace(subject, model=lambda model=model: model), lab)
        assert_declared(measured, companion(lab.auditors[name], "METRICS"), one_image=problem == "one image")
        assert changed(before, state_of(model)) == set()
        assert not model.training
        assert [content_of(stored.folder) for stored in lab.stored(role)] == files
        for part, output in outputs.items():
            np.testing.assert_array_equal(getattr(subject, part).logits, output)

        torch.manual_seed(8)
        other = opened()
        np.testing.assert_equal(dict(other.auditors[name](other.subject(role), other)), dict(measured))


@pytest.mark.parametrize("name", AUDITORS)
def test_an_auditor_is_refused_by_some_problems_at_most(
    name: str, auditing: Callable[[str, str], Callable[[], Lab]]
) -> None:
    assert not all(refused(auditing(problem, name)) for problem in PROBLEMS)


# Every scenario


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_gives_positions_and_depends_on_the_split_alone(name: str, problem: Problem, tmp_path: Path) -> None:
    data, given = problem.lab.data, {}
    if name == "indices":
        given["file"] = str(tmp_path / "forget.txt")
        (tmp_path / "forget.txt").write_text(" ".join(str(int(i)) for i in data.train_index[:40].flip(0)))
    if name == "memorised":
        given["scores"] = str(tmp_path / "scores.npy")
        np.save(given["scores"], np.arange(len(data.train) + len(data.validation)) // 400)  # equal ones are drawn
    scenario = build(yaml_of("scenario", name) | given, "scenario")
    torch.manual_seed(7)
    with random_state_untouched(), images_untouched(data.train, data.validation, data.test):
        first = scenario(data, Streams("scenario", 0))
    assert_positions(first, data)
    torch.manual_seed(8)
    assert torch.equal(first, scenario(data, Streams("scenario", 0)))
    assert torch.equal(first, scenario(data, Streams("scenario", 1))) == (name in SCENARIOS_WITHOUT_A_DRAW)


# Gradient ascent


def forget_loss(model: nn.Module, images: Images) -> float:
    return float(Signals(logits(model, images), images.labels.numpy()).loss.mean())


def statistics_of(model: nn.Module) -> dict[str, bytes]:
    return {name: value for name, value in state_of(model).items() if "running" in name or "num_batches" in name}


def test_one_step_of_ascent_raises_the_forget_loss(problem: Problem) -> None:
    request = problem.request(torch.arange(97))
    plain = {"epochs": 1, "batch_size": 97, "momentum": 0.0, "weight_decay": 0.0, "norm_statistics": "frozen"}
    losses = [
        forget_loss(unlearn(problem, "gradient_ascent", request, lr=lr, **plain), request.forget)
        for lr in (0.0, 1e-4, 1e-3)
    ]
    assert losses[0] < losses[1] < losses[2]
    assert losses[0] == forget_loss(problem.original(), request.forget)


def test_norm_statistics_stay_when_frozen_and_else_move(problem: Problem) -> None:
    request, before = problem.request(torch.arange(97)), statistics_of(problem.original())
    for choice, moved in (("frozen", set()), ("moving", set(before))):
        result = unlearn(problem, "gradient_ascent", request, lr=0.01, norm_statistics=choice)
        assert changed(before, statistics_of(result)) == moved
    assert len(before) == 6  # mean, variance and count of two layers


def test_ascent_stops_after_the_first_epoch_that_is_no_better_than_validation(problem: Problem) -> None:
    train = problem.lab.data.train
    outputs = Signals(logits(problem.original(), train), train.labels.numpy())
    known = torch.from_numpy(outputs.correct).nonzero().flatten()[:97]
    request = problem.request(known)
    settings = {"lr": 0.01, "momentum": 0.0, "norm_statistics": "frozen"}
    epochs, stopped = 0, False
    while not stopped:
        epochs += 1
        result = unlearn(problem, "gradient_ascent", request, epochs=epochs, **settings)
        stopped = accuracy(result, request.forget) <= accuracy(result, request.validation)
    assert 1 < epochs < 40
    with session() as its:
        early = unlearn(problem, "gradient_ascent", request, epochs=50, until_validation=True, **settings)
    assert len(its.history) == epochs
    assert changed(state_of(result), state_of(early)) == set()


# Random labels


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Batches, Callable[..., Tensor]]]]:
    """`captured(problem, name, request, ...)`: the batches and the loss that a method hands to the loop."""

    def captured(problem: Problem, name: str, request: Request, **changes: Any) -> Any:
        handed: list[Any] = []

        def fit(model: nn.Module, batches: Batches, loss: Any, streams: Streams, **settings: Any) -> nn.Module:
            handed.extend((batches, loss))
            return model

        with monkeypatch.context() as patch:
            patch.setattr(f"unlearn.methods.{name}.fit", fit)
            unlearn(problem, name, request, **changes)
        return tuple(handed)

    return captured


def keys(pixels: Tensor) -> list[bytes]:
    """One key an image; no two digits have the same pixels."""
    return [image.contiguous().numpy().tobytes() for image in pixels]


def visits(batches: Batches, epoch: int) -> list[tuple[bytes, int]]:
    """(image, label) of an epoch, in order."""
    seen = []
    for batch in batches(epoch):
        pixels = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        seen += list(zip(keys(pixels), batch.labels.tolist(), strict=True))
    return seen


@pytest.mark.parametrize("labels", ["all", "other"])
def test_random_labels_are_uniform(labels: str) -> None:
    true = torch.arange(10).repeat_interleave(2000)
    drawn = draw(true, 10, labels == "all", Streams("chance")("labels"))
    distance = (drawn - true) % 10
    for label in range(10):
        counts = np.bincount(drawn[true == label], minlength=10)
        assert counts.sum() == 2000
        if labels == "other":
            assert counts[label] == 0
            counts = np.delete(counts, label)
        assert chisquare(counts).pvalue > 1e-4
    assert (distance == 0).any() == (labels == "all")
    assert 0 <= drawn.min() < drawn.max() == 9


@pytest.mark.parametrize("labels", ["all", "other"])
@pytest.mark.parametrize("order", ["sequential", "mixed"])
def test_random_label_visits_everything_once_and_relabels_the_forget_set_only(
    order: str, labels: str, problem: Problem, captured: Any
) -> None:
    request = problem.request(torch.arange(97))
    truth = dict(zip(keys(request.forget.pixels), request.forget.labels.tolist(), strict=True))
    kept = dict(zip(keys(request.retain.pixels), request.retain.labels.tolist(), strict=True))
    batches, _ = captured(problem, "random_label", request, order=order, labels=labels)
    for epoch in range(3):
        seen = visits(batches, epoch)
        assert batches.steps == len(list(batches(epoch)))
        assert sorted(image for image, _ in seen) == sorted([*truth, *kept])
        assert all(kept[image] == label for image, label in seen if image in kept)
        true = [truth[image] == label for image, label in seen if image in truth]
        assert any(true) == (labels == "all")
        assert not all(true)
        leading = [image in truth for image, _ in seen[: len(truth)]]
        assert all(leading) if order == "sequential" else 0 < sum(leading) < len(truth)


@pytest.mark.parametrize("order", ["sequential", "mixed"])
@pytest.mark.parametrize("redraw", ["once", "each_epoch"])
def test_random_labels_are_drawn_again_when_asked(redraw: str, order: str, problem: Problem, captured: Any) -> None:
    request = problem.request(torch.arange(97))
    batches, _ = captured(problem, "random_label", request, order=order, redraw=redraw)
    first, second, again = (visits(batches, epoch) for epoch in (0, 1, 0))
    assert first == again
    assert [image for image, _ in first] != [image for image, _ in second]
    assert (dict(first) == dict(second)) == (redraw == "once")


# NegGrad+


def test_neggrad_plus_weighs_the_two_losses(problem: Problem, captured: Any) -> None:
    request, model = problem.request(torch.arange(97)), problem.original()
    batches, loss = captured(problem, "neggrad_plus", request, alpha=0.8)
    retain, forget = next(batches(0))
    by_hand = []
    for batch, images in ((retain, request.retain), (forget, request.forget)):
        pixels = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        assert set(keys(pixels)) <= set(keys(images.pixels))
        scores = log_softmax(model(batch.images).detach().double().numpy(), axis=1)
        by_hand.append(-scores[np.arange(len(batch.labels)), batch.labels.numpy()].mean())
    assert loss(model, (retain, forget)).item() == pytest.approx(0.8 * by_hand[0] - 0.2 * by_hand[1], rel=1e-5)
    assert by_hand[0] != pytest.approx(by_hand[1], rel=1e-2)
    assert batches.steps == 8  # as the retained images ask, and not the forget set


# Fine-tuning and retraining


def test_finetune_is_plain_sgd_on_the_retained_images(problem: Problem) -> None:
    request, plain = problem.request(torch.arange(97)), problem.original().train()
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.03, momentum=0.8, weight_decay=1e-3)
    for epoch in range(2):
        order = torch.randperm(257, generator=Streams("law", 0)("order", epoch))
        for chosen in order.split([32] * 7 + [33]):
            optimiser.zero_grad()
            scores = plain(as_model_input(request.retain.pixels[chosen], CPU))
            nn.functional.cross_entropy(scores, request.retain.labels[chosen]).backward()
            optimiser.step()
    result = unlearn(problem, "finetune", request, lr=0.03, momentum=0.8, weight_decay=1e-3)
    assert changed(state_of(plain), state_of(result)) == set()
    assert changed(state_of(problem.original()), state_of(result)) == state_of(result).keys() - {"0.mean", "0.std"}


def test_retrain_owes_nothing_to_the_original_nor_to_the_reference(problem: Problem, lab: Callable[..., Lab]) -> None:
    request, ruined = problem.request(torch.arange(97)), problem.original()
    with torch.no_grad():
        for weight in ruined.parameters():
            weight.fill_(float("nan"))
    results = [state_of(unlearn(problem, "retrain", request, model=model)) for model in (None, ruined)]
    assert changed(*results) == set()

    here = lab("method=retrain", "train.epochs=2")
    weights = {name for name, _ in here.build_model().named_parameters()}
    contestant, reference = (state_of(here.load(stored)) for stored in (here.unlearned(), here.retrained()))
    assert changed(contestant, reference) >= weights


def test_none_is_the_original(lab: Callable[..., Lab]) -> None:
    here = lab("method=none", "train.epochs=1")
    assert changed(state_of(here.load(here.original())), state_of(here.load(here.unlearned()))) == set()
    assert here.unlearned().json("cost.json")["sample_gradients"] == 0


def test_random_scenario_is_the_one_that_its_file_names() -> None:
    assert build(yaml_of("scenario", "random"), "scenario").func is random_scenario
