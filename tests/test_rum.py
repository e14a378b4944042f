"""RUM: its strata, what each stage is given, its proxies and files of scores, its refusals, and its interruption."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_an_interruption_leaves_no_trace, changed, state_of, yaml_of
from problems import Problem, batch_of, cut, few_of, keys
from scipy.special import rel_entr, softmax
from scipy.stats import entropy
from torch import nn

from unlearn.attacks import nearest
from unlearn.data.images import Images, as_model_input
from unlearn.lab import Lab
from unlearn.methods import rum as module
from unlearn.methods.rum import held_out, strata_of
from unlearn.request import Request, needed
from unlearn.row import identity
from unlearn.session import current, session
from unlearn.settings import SettingError, build
from unlearn.streams import Streams

FORGET, RETAIN = 31, 83
SHORT = {"holdout_epochs": 2}
NONE = {"method": "none"}
TUNE = {"method": "finetune", "epochs": 2, "batch_size": 32}
LABEL = {"method": "random_label", "epochs": 1, "batch_size": 32, "lr": 0.05}
REWIND = {"method": "scrub", "epochs": 2, "batch_size": 32, "forget_batch_size": 8, "lr": 0.01, "rewind": True}
AMUN = {"method": "amun", "epochs": 1, "batch_size": 32, "steps": 2}


@pytest.fixture(scope="module")
def problem(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    lab = Lab(composing(tmp_path_factory.mktemp("rum"), ["train.epochs=3"]).settings)
    forget = torch.arange(FORGET)

    def neighbours(of: str, searched: str, norm: Any, eps: float, steps: int) -> Any:
        return nearest(lab.load(lab.original()), lab.data.train[forget], norm=norm, eps_init=eps, steps=steps)

    request = cut(lab, forget, torch.arange(FORGET, FORGET + RETAIN))
    return Problem(lab, replace(request, neighbours=neighbours), Streams("rum", 0), SHORT)


def rum(*stages: dict[str, Any], **changes: Any) -> Any:
    return build(yaml_of("method", "rum") | SHORT | {"stages": list(stages)} | changes, "method")


def unlearn(problem: Problem, *stages: dict[str, Any], seed: int = 0, **changes: Any) -> nn.Module:
    return problem.unlearned("rum", streams=Streams("rum", seed), stages=list(stages), **changes)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, Request]]]:
    """`given(problem, *stages, ...)`: the name and the request of each stage that is run."""

    def given(problem: Problem, *stages: dict[str, Any], **changes: Any) -> list[tuple[str, Request]]:
        seen: list[tuple[str, Request]] = []

        def recording(stage: dict[str, Any], number: int) -> Any:
            method = its(stage, number)

            def run(model: nn.Module, request: Request, streams: Streams) -> nn.Module:
                seen.append((stage["method"], request))
                return model

            monkeypatch.setattr(module, "needed", lambda _: needed(method))
            return run

        its = module.built
        method = rum(*stages, **changes)
        with monkeypatch.context() as patch:
            patch.setattr(module, "built", recording)
            method(problem.original(), problem.request, Streams("rum", 0))
        return seen

    return given


# Strata


@pytest.mark.parametrize(("size", "count"), [(31, 3), (30, 3), (1, 3), (2, 3), (5, 1), (7, 7), (3, 5)])
def test_strata_are_equal_parts_in_the_order_of_their_scores(size: int, count: int) -> None:
    scores = np.random.default_rng(0).normal(size=size)
    strata = strata_of(scores, count)
    by_hand = sorted(range(size), key=lambda position: scores[position])
    assert len(strata) == count
    assert [position for part in strata for position in sorted(part.tolist(), key=lambda at: scores[at])] == by_hand
    sizes = [len(part) for part in strata]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == -(-size // count)  # of a remainder, and so of a single image, the last has its share
    assert all(part.tolist() == sorted(part.tolist()) for part in strata)


def test_equal_scores_are_ranked_as_they_stand() -> None:
    assert [part.tolist() for part in strata_of(np.zeros(6), 3)] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_each_stage_is_given_its_stratum_and_retains_those_to_come(
    order: str, problem: Problem, given: Any, tmp_path: Path
) -> None:
    scores = np.random.default_rng(1).normal(size=len(problem.lab.data.train) + len(problem.lab.data.validation))
    np.save(tmp_path / "scores.npy", scores)
    stages = given(problem, LABEL, LABEL, LABEL, order=order, scores=str(tmp_path / "scores.npy"))
    own = scores[problem.request.forget_numbers.numpy()]
    ranked = np.argsort(own if order == "ascending" else -own)
    everything = keys(problem.request.forget)
    done: set[bytes] = set()
    assert len(stages) == 3
    for number, (_, request) in enumerate(stages):
        sizes = [10, 10, 11] if order == "ascending" else [11, 10, 10]
        start = sum(sizes[:number])
        wanted = {everything[position] for position in ranked[start : start + sizes[number]]}
        assert set(keys(request.forget)) == wanted
        done |= wanted
        kept = (set(everything) | set(keys(problem.request.retain))) - done
        assert sorted(keys(request.retain)) == sorted(kept)
        numbers = dict(zip(everything, problem.request.forget_numbers.tolist(), strict=True))
        assert [numbers[key] for key in keys(request.forget)] == request.forget_numbers.tolist()
        labels = dict(zip(everything, problem.request.forget.labels.tolist(), strict=True))
        assert [labels[key] for key in keys(request.forget)] == request.forget.labels.tolist()
    assert done == set(everything)


def test_a_stage_is_given_only_the_parts_that_its_method_needs(problem: Problem, given: Any) -> None:
    names = ("forget", "retain", "validation")
    stages = given(problem, NONE, TUNE, REWIND, proxy="holdout")
    found = [(name, {part for part in names if len(getattr(request, part))}) for name, request in stages]
    assert found == [("none", set()), ("finetune", {"retain"}), ("scrub", set(names))]


def test_a_stage_without_an_image_is_skipped(problem: Problem, given: Any) -> None:
    request = few_of(problem.request, forget=1, forget_numbers=1)
    assert [name for name, _ in given(replace(problem, request=request), NONE, TUNE, LABEL)] == ["random_label"]


def test_neighbours_of_a_stage_are_those_of_its_stratum(problem: Problem, given: Any) -> None:
    for _, request in given(problem, AMUN, AMUN, proxy="random"):
        found = request.neighbours("original", "forget", "l2", 0.1, 2)
        positions = [keys(problem.request.forget).index(key) for key in keys(request.forget)]
        every = problem.request.neighbours("original", "forget", "l2", 0.1, 2)
        assert 0 < len(positions) < FORGET
        for name, values in vars(every).items():
            assert torch.equal(getattr(found, name), values[torch.tensor(positions)]), name


# Stages


@pytest.mark.parametrize("stage", [TUNE, LABEL, AMUN, REWIND], ids=lambda stage: stage["method"])
def test_one_stratum_is_the_method_itself(stage: dict[str, Any], problem: Problem) -> None:
    name = stage["method"]
    settings = yaml_of("method", name) | {key: value for key, value in stage.items() if key != "method"}
    alone = build(settings, "method")(problem.original(), problem.request, Streams("rum", 0, "stage 0"))
    assert changed(state_of(unlearn(problem, stage)), state_of(alone)) == set()
    assert changed(state_of(problem.original()), state_of(alone))


def test_stages_go_on_from_each_other_with_streams_of_their_own(problem: Problem) -> None:
    model, request = problem.original(), problem.request
    outputs = model(batch_of(request.forget).images).detach().double()
    confidence = outputs.softmax(1)[torch.arange(FORGET), request.forget.labels]
    low, high = (part.sort().values for part in confidence.sort(descending=True).indices.tensor_split([15]))
    for number, (stage, now, later) in enumerate(((TUNE, low, high), (LABEL, high, high[:0]))):
        settings = yaml_of("method", stage["method"]) | {key: value for key, value in stage.items() if key != "method"}
        part = replace(request, forget=request.forget[now], retain=request.retain.joined(request.forget[later]))
        model = build(settings, "method")(model, part, Streams("rum", 0, f"stage {number}"))
    assert changed(state_of(unlearn(problem, TUNE, LABEL)), state_of(model)) == set()


def test_stages_of_none_leave_the_model_untouched(problem: Problem) -> None:
    for proxy in ("confidence", "entropy", "random", "holdout"):
        result = unlearn(problem, NONE, NONE, NONE, proxy=proxy)
        assert changed(state_of(problem.original()), state_of(result)) == set()
        assert not result.training


def test_strata_are_written_down(problem: Problem) -> None:
    with session() as its:
        unlearn(problem, NONE, NONE, NONE)
    assert its.history == [{"strata": [10, 10, 11]}]


def test_the_default_is_the_released_sequence() -> None:
    stages = build(yaml_of("method", "rum"), "method").keywords["stages"]
    assert [(its["method"], its.get("epochs"), its.get("lr")) for its in stages] == [
        ("none", None, None),
        ("finetune", 10, 0.1),
        ("salun", 5, 0.1),
    ]
    assert stages[2] == {key: value for key, value in yaml_of("method", "salun").items() if key != "_target_"} | {
        "method": "salun",
        "epochs": 5,
        "lr": 0.1,
    }


# Memorisation


def scores_of(problem: Problem, given: Any, **changes: Any) -> list[set[bytes]]:
    return [set(keys(request.forget)) for _, request in given(problem, *[LABEL] * 3, **changes)]


@pytest.mark.parametrize("proxy", ["confidence", "entropy"])
def test_proxies_of_the_original_alone(proxy: str, problem: Problem, given: Any) -> None:
    forget = problem.request.forget
    outputs = softmax(logits_of(problem.original(), forget), axis=1)
    rows = np.arange(FORGET)
    scores = 1 - outputs[rows, forget.labels.numpy()] if proxy == "confidence" else entropy(outputs, axis=1)
    parts = np.split(np.argsort(scores), [10, 20])
    assert scores_of(problem, given, proxy=proxy) == [{keys(forget)[at] for at in part} for part in parts]


def logits_of(model: nn.Module, images: Images) -> Any:
    with torch.no_grad():
        return model.eval()(batch_of(images).images).double().numpy()


def test_images_with_a_wrong_label_are_in_the_last_stratum(problem: Problem, given: Any) -> None:
    request = problem.request
    labels = request.forget.labels.clone()
    labels[::4] = (labels[::4] + 3) % 10
    wrong = {keys(request.forget)[at] for at in range(0, FORGET, 4)}
    mislabelled = replace(problem, request=replace(request, forget=request.forget.relabelled(labels)))
    assert wrong <= scores_of(mislabelled, given)[2]


def test_the_control_is_a_matter_of_chance(problem: Problem) -> None:
    states = [state_of(unlearn(problem, NONE, LABEL, proxy="random", seed=seed)) for seed in (0, 0, 1)]
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])


def test_held_out_scores_are_the_divergence_after_plain_sgd_on_validation(problem: Problem) -> None:
    model, validation = problem.original(), problem.request.validation
    before = state_of(model)
    found = held_out(model, problem.request, Streams("rum", 0), 2, 64, 0.05)
    assert changed(before, state_of(model)) == set()

    plain = problem.original().train()
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(2):
        order = torch.randperm(len(validation), generator=Streams("rum", 0, "holdout")("order", epoch))
        for chosen in order.split(64):
            optimiser.zero_grad()
            scores = plain(as_model_input(validation.pixels[chosen], torch.device("cpu")))
            nn.functional.cross_entropy(scores, validation.labels[chosen]).backward()
            optimiser.step()
    one, other = (softmax(logits_of(each, problem.request.forget), axis=1) for each in (model, plain))
    by_hand = (rel_entr(one, other).sum(axis=1) + rel_entr(other, one).sum(axis=1)) / 2
    np.testing.assert_allclose(found, by_hand, rtol=1e-6, atol=1e-12)
    assert found.min() >= 0
    assert found.max() > 1e-3


def test_held_out_training_takes_its_settings_and_is_counted(problem: Problem) -> None:
    with session() as its:
        unlearn(problem, NONE, NONE, proxy="holdout", holdout_epochs=3, holdout_batch_size=50, holdout_lr=0.02)
    assert [line["epoch"] for line in its.history if "epoch" in line] == [1, 2, 3]
    assert {line["lr"] for line in its.history if "epoch" in line} == {0.02}
    assert its.sample_gradients == 3 * len(problem.request.validation)


@pytest.mark.parametrize("name", ["plain.npy", "one.npz", "memorization.npz", "tr_mem.npz"])
def test_scores_of_a_file_are_counted_in_the_official_order(
    name: str, problem: Problem, given: Any, tmp_path: Path
) -> None:
    official = np.random.default_rng(2).permutation(len(problem.lab.data.train) + len(problem.lab.data.validation))
    file = tmp_path / name
    if name == "plain.npy":
        np.save(file, official)
    else:
        other = {} if name == "one.npz" else {"influence": np.zeros((3, 3))}
        np.savez(file, **{file.stem: official.astype(np.float32)}, **other)
    own = official[problem.request.forget_numbers.numpy()]
    parts = np.split(np.argsort(own), [10, 20])
    wanted = [{keys(problem.request.forget)[at] for at in part} for part in parts]
    assert scores_of(problem, given, scores=str(file)) == wanted
    assert not torch.equal(problem.request.forget_numbers, torch.arange(FORGET))


def test_scores_are_identified_by_their_content(lab: Callable[..., Lab], tmp_path: Path) -> None:
    official = np.random.default_rng(3).normal(size=2000)
    words = ["method=rum", "train.epochs=1", "method.stages=[{method: none},{method: finetune,epochs: 1}]"]
    choices = dict.fromkeys(("dataset", "model", "train", "scenario", "method"), "")
    keys, rows = [], []
    for name, scores in (("a", official), ("b", official), ("c", official[::-1])):
        np.save(tmp_path / f"{name}.npy", scores)
        here = lab(*words, f"method.scores={tmp_path / name}.npy")
        keys.append(here.unlearned().key)
        rows.append(identity(here, choices))
    assert keys[0] == keys[1] != keys[2]
    assert rows[0] == rows[1] != rows[2]


def test_the_identity_holds_all_settings_of_the_stages(lab: Callable[..., Lab]) -> None:
    here = lab("method=rum", "method.stages=[{method: none},{method: finetune,lr: 1}]")
    stages = here.settings["method"]["stages"]
    own = {key: value for key, value in yaml_of("method", "finetune").items() if key != "_target_"}
    assert stages == [{"method": "none"}, {"method": "finetune"} | own | {"lr": 1.0}]
    assert isinstance(stages[1]["lr"], float)  # as everywhere, lest 1 and 1.0 be two recipes
    again = lab("method=rum", f"method.stages={stages}".replace("'", ""))
    assert again.settings["method"] == here.settings["method"]


def test_one_setting_of_a_stage_can_be_changed_on_the_command_line(lab: Callable[..., Lab]) -> None:
    assert lab("method=rum", "method.stages.1.lr=0.05").settings["method"]["stages"][1]["lr"] == 0.05


# Refusals


def test_a_single_stage_may_look_at_the_whole_request(lab: Callable[..., Lab]) -> None:
    assert lab("method=rum", "method.stages=[{method: amnesiac,variant: exact}]").forget.numel()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.stages.1.lr=-1"], r"^method\.stages\.1\.lr=-1: must be greater than or equal to 0"),
        (["method.stages=[{method: finetune,lr: abc}]"], r"^method\.stages\.0\.lr=abc: "),
        (["method.stages=[{method: none},{method: nothing}]"], r"^method\.stages\.1\.method=nothing: must be one of "),
        (["method.stages=[{method: rum}]"], r"^method\.stages\.0\.method=rum: must be one of "),
        (["method.stages=[{method: sisa}]"], r"^method\.stages\.0\.method=sisa: .* it follows train=sisa alone"),
        (
            ["method.stages=[{method: none},{method: amnesiac,variant: exact}]"],
            r"^method\.stages\.1\.variant=exact: looks at the whole request",
        ),
        (
            ["method.stages=[{method: amun,neighbours_of: current},{method: none}]"],
            r"^method\.stages\.0\.neighbours_of=current: looks at the whole request",
        ),
        (["method.stages=[{lr: 0.1}]"], r"^method\.stages\.0\.method=None: must be one of "),
        (["method.stages=[{method: none,lr: 0.1}]"], r"^method\.stages\.0\.lr=0\.1: is not a setting of none"),
        (["method.stages=[{method: salun,learning: 1}]"], r"^method\.stages\.0\.learning=1: .* has epochs, batch_size"),
        (["method.stages=[]"], r"^method\.stages=\[\]: "),
        (["method.stages=[none]"], r"^method\.stages\.0="),
        (["method.proxy=loss"], r"^method\.proxy=loss: "),
        (["method.scores=nowhere.npy"], r"^method\.scores=nowhere\.npy: must be an \.npy, or an \.npz"),
        (["layers=last"], r"^layers=last: must be all: method rum has no learning rate of its own"),
        (["dataset.validation=0", "method.proxy=holdout"], "^method=rum: needs validation images"),
        (["dataset.validation=0", "method.stages=[{method: sg_unlearn}]"], "^method=rum: needs validation images"),
        (["dataset.validation=0", "method.stages=[{method: scrub,rewind: true}]"], "^method=rum: needs validation"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    words: list[str], message: str, lab: Callable[..., Lab], tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        lab("method=rum", *words)
    assert not (tmp_path / "store" / "originals").exists()


def test_stages_that_need_no_validation_images_run_without(lab: Callable[..., Lab]) -> None:
    stages = "method.stages=[{method: none},{method: scrub,epochs: 1,rewind: false}]"
    here = lab("method=rum", "dataset.validation=0", "train.epochs=1", stages)
    assert changed(state_of(here.load(here.original())), state_of(here.load(here.unlearned())))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3), "b": np.zeros(3)}, "and has a, b"),
        ({"memorization": np.zeros((3, 2))}, r"in one dimension, and holds float64 \(3, 2\)"),
        ({"tr_mem": np.array([1.0, np.inf])}, "must hold finite numbers"),
        ({"one": np.array(["a"])}, "must hold finite numbers"),
    ],
)
def test_a_file_that_has_no_scores_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(SettingError, match=rf"^method\.scores=.*x\.npz: .*{message}"):
        rum(NONE, scores=str(tmp_path / "x.npz"))


def test_too_few_scores_are_refused(problem: Problem, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros(int(problem.request.forget_numbers.max())))
    with pytest.raises(SettingError, match=r"^method\.scores=.*few\.npy: has \d+ scores, and no image \d+"):
        unlearn(problem, NONE, scores=str(tmp_path / "few.npy"))


# Interruption


@pytest.mark.parametrize("stop", range(1, 9))
def test_an_interrupted_run_goes_on_bit_for_bit(stop: int, problem: Problem, tmp_path: Path) -> None:
    """Two rewinds, which keep files of their own beside the unfinished work, behind a proxy that is trained."""

    def run() -> nn.Module:
        folder = current().checkpoint
        result = unlearn(problem, TUNE, REWIND, REWIND | {"lr": 0.02}, proxy="holdout")
        assert current().checkpoint == folder
        return result

    its = assert_an_interruption_leaves_no_trace(run, tmp_path, stop)
    assert sum("epoch" in line for line in its.history) == 8
