"""Distances to the retrained model and the time to relearn, against numpy, scikit-learn and a loop written out."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from laws import changed, flags_of, random_state_untouched, state_of
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_auditors import Bench
from test_white_box_audits import assert_all_declared, subject_of
from torch import nn

from unlearn.auditors import distance as distance_file
from unlearn.auditors import relearn_time as relearn_time_file
from unlearn.auditors.distance import distance
from unlearn.auditors.relearn_time import relearn_time
from unlearn.data.images import Images, as_model_input
from unlearn.lab import Lab
from unlearn.signals import Signals
from unlearn.streams import Streams
from unlearn.subject import Subject

CPU = torch.device("cpu")
PROBED: dict[str, Any] = {"C": 0.1, "folds": 5, "limit": 2000}
RELEARNED: dict[str, Any] = {"lr": 0.2, "batch_size": 16, "cap": 200, "tolerance": 0.05, "orders": 3}


@dataclass
class Whole(Bench):
    """A bench that knows the row's original as well."""

    original: Subject | None = None

    def subject(self, role: str) -> Subject:
        assert role == "original"
        assert self.original is not None
        return self.original


def bench(retrained: Subject, original: Subject | None = None, streams: Streams | None = None) -> Whole:
    return Whole(retrained, streams=streams or Streams("lab", 0, 0), original=original or retrained)


def pictures(seed: int, labels: Any) -> Images:
    """Random grey pictures of 4 x 4 pixels."""
    labels = torch.as_tensor(np.asarray(labels))
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 4, 1)).astype(np.uint8)
    return Images(torch.from_numpy(pixels), labels)


def random_parts(seed: int = 0, forget: int = 60, test: int = 80) -> dict[str, Images]:
    return {
        "forget": pictures(seed, np.arange(forget) % 3),
        "retain": pictures(seed + 100, np.arange(90) % 3),
        "test": pictures(seed + 200, np.arange(test) % 3),
    }


def net(seed: int, classes: int = 3, scale: float = 1.0) -> nn.Module:
    with Streams("net", seed).seeded("initialisation"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    with torch.no_grad():
        model[1].weight.mul_(scale)
    return model.eval()


def flat(images: Images) -> NDArray[np.float64]:
    return as_model_input(images.pixels, CPU).flatten(1).double().numpy()


# Distances of weights and of answers


def test_distances_of_weights_are_numpys() -> None:
    parts, models = random_parts(), [net(seed) for seed in range(3)]
    subject, retrained, original = (subject_of(model, parts) for model in models)
    measured = distance(subject, bench(retrained, original), **PROBED)
    flatten = [np.concatenate([p.detach().numpy().ravel() for p in model.parameters()]) for model in models]
    for other, name in ((1, "retrained"), (2, "original")):
        expected = np.linalg.norm(flatten[0] - flatten[other]) / np.linalg.norm(flatten[other])
        assert measured[f"distance_weights_{name}"] == pytest.approx(expected, rel=1e-6)
    itself = distance(retrained, bench(retrained), **PROBED)
    assert itself["distance_weights_retrained"] == itself["distance_weights_original"] == 0.0


def test_models_of_other_parameters_have_no_distance_of_weights() -> None:
    parts = random_parts()
    wider = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3)).eval()
    measured = distance(subject_of(wider, parts), bench(subject_of(net(0), parts)), **PROBED)
    assert measured["distance_weights_retrained"] == "the two models have other parameters"
    assert isinstance(measured["distance_probe_member_auc"], float)


def test_distances_of_answers_are_numpys() -> None:
    parts = random_parts()
    subject, retrained = (subject_of(net(seed, scale=5), parts) for seed in range(2))
    measured = distance(subject, bench(retrained), **PROBED)
    for part in parts:
        ours, its = (
            [
                np.exp(row - row.max()) / np.exp(row - row.max()).sum()
                for row in getattr(each, part).logits.astype(float)
            ]
            for each in (subject, retrained)
        )
        sums = [sum(abs(a - b) for a, b in zip(one, two, strict=True)) for one, two in zip(ours, its, strict=True)]
        roots = [
            sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) ** 0.5 for one, two in zip(ours, its, strict=True)
        ]
        for order, values in (("l1", sums), ("l2", roots)):
            name = f"distance_answers_{order}_{part}"
            assert measured[name] == pytest.approx(np.mean(values), rel=1e-9)
            half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
            assert measured[f"{name}_high"] - measured[name] == pytest.approx(half, rel=1e-6)
    itself = distance(retrained, bench(retrained), **PROBED)
    assert all(itself[f"distance_answers_{order}_{part}"] == 0.0 for order in ("l1", "l2") for part in parts)


# Probes. The features of a linear model are the pixels


def probe() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000))


def class_parts() -> dict[str, Images]:
    """Class 2 is forgotten, and told by its first pixel."""
    parts = {
        "forget": pictures(4, np.full(50, 2)),
        "retain": pictures(5, np.arange(90) % 2),
        "test": pictures(6, np.arange(120) % 3),
    }
    for images in parts.values():
        images.pixels[:, 0, 0, 0] = torch.where(images.labels == 2, 250, 5).to(torch.uint8)
    return parts


def test_the_probe_of_a_class_is_scikit_learns() -> None:
    parts = random_parts()
    parts["forget"] = pictures(1, np.full(50, 2))
    parts["retain"] = pictures(2, np.arange(90) % 2)
    subject = subject_of(net(0), parts)
    measured = distance(subject, bench(subject), **PROBED)
    learned = np.concatenate([flat(parts["forget"]), flat(parts["retain"])])
    scores = probe().fit(learned, np.repeat([1, 0], [50, 90])).decision_function(flat(parts["test"]))
    expected = roc_auc_score(parts["test"].labels.numpy() == 2, scores)
    assert measured["distance_probe_class_auc"] == pytest.approx(expected, abs=1e-3)
    assert measured["distance_probe_class_auc_difference"] == 0.0
    assert_all_declared(measured, distance_file.METRICS)


def test_the_probe_of_membership_is_scikit_learns() -> None:
    parts = random_parts()
    subject = subject_of(net(0), parts)
    measured = distance(subject, bench(subject), **PROBED)
    features, member = np.concatenate([flat(parts["forget"]), flat(parts["test"])]), np.repeat([1, 0], [60, 80])
    folds = StratifiedKFold(5, shuffle=True, random_state=Streams("lab", 0, 0).seed("distance", "folds") % 2**32)
    scores = cross_val_predict(probe(), features, member, cv=folds, method="decision_function")
    assert measured["distance_probe_member_auc"] == pytest.approx(roc_auc_score(member, scores), abs=1e-3)
    assert not [name for name in measured if "class" in name]  # no class is wholly forgotten


def looking_at(pixels: slice, seed: int) -> nn.Module:
    """A model whose features are some of the pixels, and which never answers class 2."""
    first, last = nn.Linear(16, 4, bias=False), nn.Linear(4, 3)
    with torch.no_grad():
        first.weight.zero_()
        first.weight[:, pixels] = torch.eye(4)
        last.weight.copy_(torch.randn(3, 4, generator=Streams("head")("weight", seed)))
        last.bias.copy_(torch.tensor([0.0, 0.0, -100.0]))
    return nn.Sequential(nn.Flatten(), first, last).eval()


def test_what_only_the_last_layer_hides_is_found() -> None:
    parts = class_parts()
    head_only, retrained = subject_of(looking_at(slice(4), 0), parts), subject_of(looking_at(slice(8, 12), 1), parts)
    assert head_only.forget.accuracy == retrained.forget.accuracy == 0.0
    measured = distance(head_only, bench(retrained), **PROBED)
    assert measured["distance_probe_class_auc"] == 1.0
    assert measured["distance_probe_class_auc_difference_low"] > 0.2
    blind = distance(retrained, bench(retrained), **PROBED)
    assert blind["distance_probe_class_auc_low"] < 0.5 < blind["distance_probe_class_auc_high"]


def test_planted_members_are_found_in_the_features() -> None:
    parts = random_parts(forget=100, test=120)
    parts["forget"].pixels[:, 0, 0, 0] //= 2
    subject = subject_of(looking_at(slice(4), 0), parts)
    measured = distance(subject, bench(subject_of(looking_at(slice(8, 12), 1), parts)), **PROBED)
    assert measured["distance_probe_member_auc_low"] > 0.6
    assert measured["distance_probe_member_auc_difference_low"] > 0.0


def test_the_probe_of_membership_finds_nothing_where_nothing_is() -> None:
    areas, covered = [], []
    for seed in range(20):
        subject = subject_of(net(0), random_parts(1000 * seed, forget=100, test=100))
        its = distance(subject, bench(subject), **PROBED)
        areas.append(its["distance_probe_member_auc"])
        covered.append(its["distance_probe_member_auc_low"] <= 0.5 <= its["distance_probe_member_auc_high"])
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)
    assert sum(covered) >= 16


def test_the_limit_thins_every_side_evenly() -> None:
    parts = random_parts(forget=61, test=91)
    subject = subject_of(net(0), parts)
    thin = {"forget": np.linspace(0, 60, 30).round(), "test": np.linspace(0, 90, 30).round()}
    few = parts | {name: parts[name][torch.from_numpy(rows.astype(np.int64))] for name, rows in thin.items()}
    thinned, whole = (
        distance(its, bench(its), **(PROBED | {"limit": limit}))
        for its, limit in ((subject, 30), (subject_of(net(0), few), 2000))
    )
    assert thinned["distance_probe_member_auc"] == whole["distance_probe_member_auc"]


def test_what_cannot_be_probed_is_refused_in_words() -> None:
    parts = random_parts(forget=4)
    measured = distance(subject_of(net(0), parts), bench(subject_of(net(1), parts)), **PROBED)
    assert measured["distance_probe_member_auc"] == "needs at least 5 forgotten and 5 held-out images"
    assert measured["distance_probe_member_auc_difference"] == measured["distance_probe_member_auc"]
    assert isinstance(measured["distance_weights_retrained"], float)
    one = subject_of(net(0), random_parts(forget=1))
    measured = distance(one, bench(subject_of(net(1), random_parts(forget=1))), **PROBED)
    assert measured["distance_answers_l2_forget"] == "needs at least 2 images, and there are 1"
    assert isinstance(measured["distance_answers_l2_test"], float)
    assert relearn_time(one, bench(one), **RELEARNED)["relearn_time"] == 0.0
    gone = class_parts()
    gone["test"] = gone["test"][(gone["test"].labels != 2).nonzero().flatten()]
    subject = subject_of(net(0), gone)
    refused = distance(subject, bench(subject), **PROBED)
    assert refused["distance_probe_class_auc"] == "needs test images of forgotten and of other classes"
    assert "at least 5" in refused["distance_probe_member_auc"]
    headless = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()).eval()
    subject = subject_of(headless, class_parts())
    refused = distance(subject, bench(subject), **PROBED)
    assert {refused[name] for name in distance_file._names(["class", "member"])} == {
        "needs a model whose last layer is linear, to 3"
    }
    assert refused["distance_weights_retrained"] == 0.0


# The time to relearn


def by_hand(model: nn.Module, images: Images, target: float, streams: Streams, settings: Mapping[str, Any]) -> int:
    """Steps in eval mode throughout, written out."""
    model = deepcopy(model).eval()
    x, labels, steps = as_model_input(images.pixels, CPU), images.labels, 0

    def far() -> bool:
        with torch.no_grad():
            return bool(nn.functional.cross_entropy(model(x).double(), labels) > target)

    turn = 0
    while far() and steps <= settings["cap"]:
        order = torch.randperm(len(images), generator=streams("order", turn))
        turn += 1
        for chosen in order.split(settings["batch_size"]):
            if steps > settings["cap"] or not far():
                break
            steps += 1
            model.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), labels[chosen]).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= settings["lr"] * parameter.grad
    return steps


def normed(seed: int) -> nn.Module:
    """A net with batch norm, whose statistics are far from those of any batch."""
    with Streams("normed", seed).seeded("initialisation"):
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad():
        model[1].running_var.fill_(0.2)
    return model.eval()


def rows(answer: Mapping[str, Any], name: str = "relearn_time") -> list[float]:
    return [answer[f"{name}{end}"] for end in ("", "_low", "_high")]


@pytest.mark.parametrize("make", [lambda seed: net(seed, scale=4), normed], ids=["linear", "batch norm"])
def test_times_are_those_of_the_loop_written_out(make: Callable[[int], nn.Module]) -> None:
    parts = random_parts(forget=48)
    models = [make(seed) for seed in range(2)]
    subject, retrained = (subject_of(model, parts) for model in models)
    goal = min(subject.forget.loss.mean(), retrained.forget.loss.mean()) * 0.95
    original = replace(subject, forget=losses(48, float(goal) - 0.05))
    measured = relearn_time(subject, bench(retrained, original), **RELEARNED)
    streams = [Streams("lab", 0, 0).child("relearn_time", number) for number in range(3)]
    target = float(original.forget.loss.mean()) + 0.05
    ours, its = (
        np.array([by_hand(model, parts["forget"], target, each, RELEARNED) for each in streams]) for model in models
    )
    assert measured["steps"].tolist() == ours.tolist()
    assert min(ours.min(), its.min()) > 2
    assert max(ours.max(), its.max()) <= 200
    half = student.ppf(0.975, 2) * ours.std(ddof=1) / np.sqrt(3)
    assert rows(measured) == pytest.approx([ours.mean(), ours.mean() - half, ours.mean() + half], abs=1e-9)
    assert measured["relearn_time_ratio"] == pytest.approx(ours.mean() / its.mean(), rel=1e-9)
    assert measured["relearn_capped"] == 0.0
    assert_all_declared(measured, relearn_time_file.METRICS)


def losses(count: int, value: float) -> Signals:
    """Signals of three classes on which the loss is everywhere the same."""
    right = np.exp(-value)
    row = np.log(np.array([right, (1 - right) / 2, (1 - right) / 2], dtype=np.float64))
    labels = np.arange(count) % 3
    return Signals(np.stack([np.roll(row, label) for label in labels]).astype(np.float32), labels)


def subject_with_goal(model: nn.Module, parts: dict[str, Images], goal: float) -> Subject:
    return replace(subject_of(model, parts), forget=losses(len(parts["forget"]), goal))


def test_whoever_is_there_already_takes_no_step() -> None:
    parts = random_parts()
    original, retrained = subject_of(net(0), parts), subject_of(net(1), parts)
    for role, its in (("original", original), ("a second copy", subject_of(deepcopy(net(0)), parts))):
        measured = relearn_time(its, bench(retrained, original), **(RELEARNED | {"tolerance": 0.0}))
        assert rows(measured) == [0.0, 0.0, 0.0], role
    same = relearn_time(retrained, bench(retrained), **RELEARNED)
    assert same["relearn_time"] == 0.0
    assert same["relearn_time_ratio"] == "the retrained model's loss is no higher than the original's to begin with"


@pytest.mark.parametrize("lr", [1e-9, 1e30])  # too little, and so much that the loss is no number
def test_a_time_beyond_the_cap_is_cut_and_said(lr: float) -> None:
    parts = random_parts()
    original, retrained = subject_with_goal(net(0), parts, 0.01), subject_of(net(1, scale=3), parts)
    measured = relearn_time(subject_of(net(2), parts), bench(retrained, original), **(RELEARNED | {"lr": lr, "cap": 4}))
    assert rows(measured) == [4.0, 4.0, 4.0]
    assert measured["relearn_capped"] == 1.0
    assert measured["relearn_time_ratio"] == "the retrained model does not relearn within 4 steps"


def test_the_cap_itself_is_in_time() -> None:
    parts = random_parts()
    model, original = subject_of(net(1), parts), subject_with_goal(net(0), parts, 1.0)
    free = relearn_time(model, bench(model, original), **(RELEARNED | {"orders": 2}))["steps"]
    taken = int(free.max())
    assert taken > 1
    exact, short = (
        relearn_time(model, bench(model, original), **(RELEARNED | {"orders": 2, "cap": cap}))
        for cap in (taken, taken - 1)
    )
    assert exact["relearn_capped"] == 0.0
    assert exact["steps"].tolist() == free.tolist()
    assert short["relearn_capped"] > 0.0


def test_a_model_that_kept_half_needs_less_time_than_the_retrained() -> None:
    parts = random_parts()
    start = net(1, scale=3)
    subject = subject_of(start, parts)
    original = subject_with_goal(start, parts, float(subject.forget.loss.mean()) * 0.9)
    settings = RELEARNED | {"tolerance": 0.0}
    far = relearn_time(subject, bench(subject, original), **settings)
    assert rows(far, "relearn_time_ratio") == pytest.approx([1.0, 1.0, 1.0], abs=1e-12)
    half_way = deepcopy(start)
    x, labels = as_model_input(parts["forget"].pixels, CPU), parts["forget"].labels
    for _ in range(int(far["relearn_time"] // 2)):
        half_way.zero_grad()
        nn.functional.cross_entropy(half_way(x), labels).backward()
        with torch.no_grad():
            for parameter in half_way.parameters():
                parameter -= 0.2 * parameter.grad
    near = relearn_time(subject_of(half_way, parts), bench(subject, original), **settings)
    assert 0.3 < near["relearn_time_ratio"] < 0.7
    assert near["relearn_time_ratio_high"] < 1


def test_the_interval_of_a_ratio_covers_it() -> None:
    draw, covered = np.random.default_rng(0), []
    for _ in range(2000):
        common = draw.normal(0, 1, 6)
        ours, its = 20 + common + draw.normal(0, 2, 6), 40 + 2 * common + draw.normal(0, 2, 6)
        measured = relearn_time_file._ratio(ours, its, 1000, "x")
        covered.append(measured["x_low"] <= 0.5 <= measured["x_high"])
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


# Both


def test_the_audits_leave_the_models_as_they_were_and_repeat_themselves() -> None:
    parts = random_parts()
    models = [normed(0), normed(1), normed(2)]
    models[0].requires_grad_(False)
    models[0].train()
    subject, retrained = (subject_of(model, parts) for model in models[:2])
    models[0][1].train()
    before, flags = [state_of(model) for model in models], [flags_of(model) for model in models]
    modes = [module.training for module in models[0].modules()]
    room = bench(retrained, subject_with_goal(models[2], parts, float(subject.forget.loss.mean()) * 0.93 - 0.05))
    for audit, settings in ((distance, PROBED), (relearn_time, RELEARNED)):  # the last is looked at again below
        torch.manual_seed(3)
        with random_state_untouched():
            first = audit(subject, room, **settings)
        torch.manual_seed(4)
        second = audit(subject, room, **settings)
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)
    assert relearn_time(subject, room, **RELEARNED)["relearn_time"] > 0
    assert not any(changed(was, state_of(model)) for was, model in zip(before, models, strict=True))
    assert [flags_of(model) for model in models] == flags
    assert [module.training for module in models[0].modules()] == modes
    assert all(parameter.grad is None for model in models for parameter in model.parameters())
    other = bench(retrained, room.original, Streams("lab", 1, 0))
    assert relearn_time(subject, other, **RELEARNED)["steps"].tolist() != first["steps"].tolist()


@pytest.mark.parametrize("scenario", ["random", "class_wise"])
def test_a_small_lab_is_audited_whole(scenario: str, lab: Callable[..., Lab]) -> None:
    made = lab(
        f"scenario={scenario}", "auditor=[distance,relearn_time]", "objective=relearn_time", "train.epochs=10",
        "auditor.relearn_time.lr=0.1", "auditor.relearn_time.orders=2", "auditor.relearn_time.cap=150",
    )  # fmt: skip
    declared = (*distance_file.METRICS, *relearn_time_file.METRICS)
    audits = {
        role: made.audit("distance", made.subject(role)) | made.audit("relearn_time", made.subject(role))
        for role in ("original", "retrained")
    }
    for measured in audits.values():
        assert_all_declared(measured, declared)
    assert audits["original"]["relearn_time_ratio"] == audits["original"]["relearn_time"] == 0.0
    assert audits["retrained"]["relearn_time"] > 2
    assert audits["retrained"]["relearn_time_ratio"] == 1.0
    assert audits["retrained"]["distance_weights_retrained"] == audits["original"]["distance_weights_original"] == 0.0
    assert ("distance_probe_class_auc" in audits["original"]) == (scenario == "class_wise")
    if scenario == "class_wise":
        assert audits["original"]["distance_probe_class_auc"] > 0.8  # a tenth of all labels are noise
