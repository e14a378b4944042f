"""Methods with a teacher: boundary shrink and expand, SCRUB and its rewind, the bad teacher."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from laws import changed, content_of, flags_of, kill, state_of
from problems import Linear, Problem, batch_of, counted, cut, norm_batches
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from unlearn.batches import Batch, Batches, samples
from unlearn.lab import Lab
from unlearn.loop import fit
from unlearn.methods import bad_teacher, boundary_expand, boundary_shrink, scrub
from unlearn.methods.boundary_expand import last_layer, widened
from unlearn.methods.boundary_shrink import nearest_class, neighbours
from unlearn.methods.scrub import as_frequent, closest
from unlearn.session import session
from unlearn.settings import SettingError
from unlearn.signals import accuracy, logits
from unlearn.streams import Streams
from unlearn.teachers import answers, divergence, frozen

FORGET, RETAIN, CLASSES = 97, 257, 10
MODULES = {"scrub": scrub, "bad_teacher": bad_teacher, "boundary_shrink": boundary_shrink}
WITHOUT_NORM_DRIFT = {"norm_statistics": "frozen", "momentum": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def problem(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    lab = Lab(composing(tmp_path_factory.mktemp("teachers"), ["train.epochs=5"]).settings)
    request = cut(lab, torch.arange(FORGET), torch.arange(FORGET, FORGET + RETAIN))
    return Problem(lab, request, Streams("teachers", 0), {"batch_size": 32})


def handed(problem: Problem, name: str, **changes: Any) -> dict[str, Any]:
    """What a method gives to the loop, and the teachers that it made."""
    teachers: list[nn.Module] = []

    def making(model: nn.Module) -> nn.Module:
        teachers.append(frozen(model))
        return teachers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULES[name], "frozen", making)
        [given] = problem.handed(name, **changes)
    return given | {"teachers": teachers}


def kl(teacher: Tensor, student: Tensor, temperature: float) -> float:
    """KL(teacher || student) of the softened answers, summed over classes and averaged over images."""
    its, ours = (scores.detach().double().numpy() / temperature for scores in (teacher, student))
    return float((softmax(its, 1) * (log_softmax(its, 1) - log_softmax(ours, 1))).sum(1).mean())


def cross_entropy(scores: Tensor, labels: Tensor) -> float:
    return float(-log_softmax(scores.detach().double().numpy(), 1)[np.arange(len(labels)), labels.numpy()].mean())


# Teachers


def test_a_teacher_is_a_frozen_copy_that_answers_as_the_model_in_the_loop(problem: Problem) -> None:
    model = problem.original().train()
    flags, images = flags_of(model), batch_of(problem.request.forget, 40).images
    teacher = frozen(model)
    assert not any(flags_of(teacher).values())
    assert not any(module.training for module in teacher.modules())
    assert model.training
    assert flags_of(model) == flags
    assert changed(state_of(teacher), state_of(model)) == set()
    assert torch.equal(answers(teacher, images), model.eval().to(memory_format=torch.channels_last)(images))
    assert not answers(teacher, images.clone().requires_grad_()).requires_grad
    before = state_of(teacher)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert changed(before, state_of(teacher)) == set()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_is_torchs_and_the_sum_written_out(temperature: float) -> None:
    student, teacher = 3 * torch.randn(2, 7, 5, generator=Streams("scores")("both"))
    ours = divergence(student.requires_grad_(), teacher, temperature)
    theirs = nn.functional.kl_div(
        torch.log_softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1), reduction="batchmean"
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.item() == pytest.approx(kl(teacher, student, temperature), rel=1e-5)
    assert ours.item() != pytest.approx(kl(student, teacher, temperature), rel=0.05)
    (slope,) = torch.autograd.grad(ours, student)
    expected = (torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1)) / temperature / 7
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-4, atol=1e-7)
    assert divergence(teacher, teacher, temperature).item() == 0


@pytest.mark.parametrize("name", MODULES)
def test_method_leaves_its_teachers_bit_identical_and_changes_its_student(
    name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[tuple[nn.Module, dict[str, bytes]]] = []

    def making(model: nn.Module) -> nn.Module:
        teacher = frozen(model)
        teachers.append((teacher, state_of(teacher)))
        return teacher

    monkeypatch.setattr(MODULES[name], "frozen", making)
    result = problem.unlearned(name, epochs=2, lr=0.01)
    original = state_of(problem.original())
    assert changed(teachers[0][1], original) == set()
    assert len(teachers) == (2 if name == "bad_teacher" else 1)
    for teacher, before in teachers:
        assert changed(before, state_of(teacher)) == set()
        assert not any(module.training for module in teacher.modules())
        assert all(weight.grad is None for weight in teacher.parameters())
    assert changed(original, state_of(result)) >= {name for name, _ in result.named_parameters()}


# Boundary shrink


def away(model: Linear, batch: Batch, *, by_margin: bool = False) -> np.ndarray[Any, Any]:
    """Cross-entropy's slope at each image, or that of the margin to the nearest other class."""
    weight = model.weight.detach().double().numpy()
    scores = batch.images.flatten(1).double().numpy() @ weight.T
    true = np.eye(4)[batch.labels.numpy()]
    others = softmax(np.where(true == 1, -np.inf, scores), 1) if by_margin else softmax(scores, 1)
    return ((others - true) @ weight).reshape(batch.images.shape)


def pixels(count: int = 60) -> Tensor:
    """Whole levels from black to white."""
    return torch.randint(256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(4)).float() / 255


@pytest.mark.parametrize("released", [False, True])
def test_neighbours_are_a_step_up_the_slope_by_hand(released: bool) -> None:
    model, images = Linear(), pixels()
    batch = Batch(images, torch.arange(60) % 4)
    slope = away(model, batch)
    assert np.abs(slope).min() > 1e-6  # no sign is a matter of rounding
    levels = np.rint(images.numpy().astype(np.float64) * 255) + 25.5 * np.sign(slope)
    assert 20 < (levels < 0).sum() < 200  # some pixels are at the edges of the range
    with session() as its:
        moved = neighbours(frozen(model), batch, 0.1, released=released)
    assert its.sample_gradients == 60
    assert moved.dtype == torch.float32
    if released:
        expected = np.rint(levels.clip(0, 255))  # to even: 25.5 levels end between two
        np.testing.assert_array_equal(np.rint(moved.double().numpy() * 255), expected)
        np.testing.assert_allclose(moved.numpy() * 255, expected, atol=1e-4)
        assert (expected % 2 == 0).mean() > 0.9
    else:
        np.testing.assert_allclose(moved.numpy(), (levels / 255).clip(0, 1), atol=1e-6)


def test_neighbours_of_images_that_float32_is_certain_of_still_go_the_right_way() -> None:
    model, images = Linear(scale=1000.0), pixels()
    batch = Batch(images, model(images).argmax(1))
    certain = torch.softmax(model(images), 1).amax(1) == 1
    assert certain.float().mean() > 0.5
    slope = away(model, batch, by_margin=True)
    ours, theirs = (neighbours(frozen(model), batch, 0.1, released=released) for released in (False, True))
    np.testing.assert_allclose(ours, (images.numpy() + 0.1 * np.sign(slope)).clip(0, 1), atol=1e-6)
    assert torch.equal(theirs[certain].mul(255).round(), images[certain].mul(255).round())  # cross-entropy is flat


def test_neighbours_are_those_of_torchattacks_through_the_models_normalisation(problem: Problem) -> None:
    model, batch = problem.original(), batch_of(problem.request.forget)
    bound = 0.08  # 20.4 levels, so that nothing ends half-way between two
    theirs = torchattacks.FGSM(model, eps=bound)(batch.images, batch.labels)
    released, ours = (neighbours(frozen(model), batch, bound, released=released) for released in (True, False))
    assert torch.equal((theirs * 255).round(), (released * 255).round())
    torch.testing.assert_close(released * 255, (released * 255).round(), rtol=0, atol=1e-4)
    assert ((ours - theirs).abs() < 1e-6).float().mean() > 0.99  # but for slopes next to nothing
    assert float((ours - batch.images).abs().max()) == pytest.approx(bound, abs=1e-6)
    assert (ours != batch.images).any()


@pytest.mark.parametrize("compat", [None, "released"])
def test_shrink_fits_clean_images_to_what_the_original_sees_beside_them(compat: str | None, problem: Problem) -> None:
    given = handed(problem, "boundary_shrink", bound=0.08, compat=compat)
    original, student = problem.original(), problem.student().eval()
    batch = next(given["batches"](0))
    moved = neighbours(original, batch, 0.08, released=compat == "released")
    labels = original(moved).argmax(1)
    assert 0 < (labels == batch.labels).float().mean() < 0.9  # some keep theirs
    expected = cross_entropy(student(batch.images), labels)
    assert given["loss"](student, batch).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(nearest_class(original, batch, 0.08, released=compat == "released"), labels)
    seen = [part.images for part in given["batches"](1)]
    assert counted(torch.cat(seen)) == counted(problem.request.forget)
    assert given["batches"].steps == len(seen) == 3


def test_shrink_counts_its_attacks_and_lowers_the_forget_accuracy(problem: Problem) -> None:
    with session() as its:
        result = problem.unlearned("boundary_shrink", epochs=5, lr=0.01, bound=0.25)
    assert its.sample_gradients == 5 * 2 * FORGET
    before = accuracy(problem.original(), problem.request.forget)
    assert accuracy(result, problem.request.forget) < before - 0.2


# Boundary expand


def heads(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "1.8"),
        (["model=fastnet", "model.widths=[8,8,8]"], "1.head"),  # no bias, and a factor behind it
        (["model=resnet20"], "1.head"),
        (["model=vit_tiny", "model.depth=1"], "1.head"),
    ],
)
def test_last_layer_is_found_in_any_network_and_widens_it_by_one_class(
    words: list[str], name: str, compose: Callable[..., Any]
) -> None:
    lab = Lab(compose(words).settings)
    with Streams("model").seeded():
        model = lab.build_model().train()
    images = lab.data.train[torch.arange(4)]
    found, head = last_layer(model, images, CLASSES)
    assert (found, head) == heads(model)[-1]
    assert found == name
    assert all(module.training for module in model.modules())
    assert not head._forward_hooks
    before = logits(model, images)
    model.set_submodule(found, widened(head, Streams("wide"), released=False))
    after = logits(model, images)
    assert after.shape == (4, CLASSES + 1)
    np.testing.assert_allclose(after[:, :CLASSES], before, rtol=1e-5, atol=1e-6)


def test_expand_needs_a_linear_layer_to_the_classes_at_the_end(problem: Problem) -> None:
    flat = nn.Flatten()
    for layers in ((flat, nn.Linear(64, 7)), (flat, nn.Linear(64, 10), nn.Linear(10, 7)), (nn.Conv2d(1, 10, 8), flat)):
        with pytest.raises(SettingError, match=r"^method=boundary_expand: needs a model whose last layer"):
            last_layer(nn.Sequential(*layers), problem.request.forget, CLASSES)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("released", [False, True])
def test_the_new_row_is_initialised_as_asked_and_learns_as_the_others_do(released: bool, flag: bool) -> None:
    head = nn.Linear(400, 3)
    head.weight.requires_grad_(flag)
    wide, again, other = (widened(head, Streams("wide", seed), released=released) for seed in (0, 0, 1))
    assert torch.equal(wide.weight[:3], head.weight)
    assert torch.equal(wide.bias[:3], head.bias)
    assert torch.equal(wide.weight, again.weight)
    assert not torch.equal(wide.weight[3], other.weight[3])
    assert (wide.weight.requires_grad, wide.bias.requires_grad) == (flag, True)
    row = wide.weight[3].detach()
    if released:
        assert float(row.std()) == pytest.approx((2 / 404) ** 0.5, rel=0.15)
        assert wide.bias[3] == 0
    else:
        assert float(row.std()) == pytest.approx((1 / 400 / 3) ** 0.5, rel=0.15)
        assert float(row.abs().max()) <= 1 / 20
        assert 0 < abs(float(wide.bias[3].detach())) <= 1 / 20


def test_expand_trains_one_class_more_and_returns_the_others_rows(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, Tensor] = {}

    def fitted(model: nn.Module, batches: Batches, loss: Any, streams: Streams, **settings: Any) -> nn.Module:
        seen = list(batches(0))
        assert {int(label) for batch in seen for label in batch.labels} == {CLASSES}
        assert counted(torch.cat([batch.images for batch in seen])) == counted(problem.request.forget)
        assert model(seen[0].images).shape == (32, CLASSES + 1)
        fit(model, batches, loss, streams, **settings)
        trained.update({name: value.clone() for name, value in heads(model)[-1][1].state_dict().items()})
        trained["scores"] = torch.from_numpy(logits(model, problem.request.forget))
        return model

    monkeypatch.setattr(boundary_expand, "fit", fitted)
    result = problem.unlearned("boundary_expand", epochs=5, lr=0.05)
    assert (trained["scores"].argmax(1) == CLASSES).float().mean() > 0.9  # the forget set was where it was sent
    original, scores = problem.original(), logits(result, problem.request.forget)
    assert scores.shape == (FORGET, CLASSES)
    np.testing.assert_allclose(scores, trained["scores"][:, :CLASSES], rtol=1e-5, atol=1e-5)
    assert [type(module) for module in result.modules()] == [type(module) for module in original.modules()]
    assert str(result) == str(original)
    assert not any(module.training for module in result.modules())
    _, head = heads(result)[-1]
    assert torch.equal(head.weight, trained["weight"][:CLASSES])
    assert torch.equal(head.bias, trained["bias"][:CLASSES])
    assert changed(state_of(original), state_of(result)) >= {name for name, _ in result.named_parameters()}
    assert accuracy(result, problem.request.forget) < accuracy(original, problem.request.forget)


# SCRUB


@pytest.mark.parametrize("norm_statistics", ["moving", "frozen_in_max"])
def test_divergence_is_nothing_before_the_first_step_and_has_no_slope(norm_statistics: str, problem: Problem) -> None:
    given = handed(problem, "scrub", norm_statistics=norm_statistics, forget_batch_size=32)
    model = given["model"].to(memory_format=torch.channels_last)
    batch = next(given["batches"](0))
    assert samples(batch) == 32
    assert given["loss"](model.eval(), batch).item() == 0
    loss = given["loss"](model.train(), batch)  # as the loop has it
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    steepest = max(float(slope.abs().max()) for slope in slopes)
    if norm_statistics == "moving":
        assert loss.item() < 0
        assert steepest > 1e-3
    else:
        assert loss.item() == 0
        assert steepest < 1e-6


def test_scrub_weighs_cross_entropy_and_the_softened_divergence(problem: Problem) -> None:
    given = handed(problem, "scrub", cross_entropy_weight=0.7, divergence_weight=0.3, temperature=3.0)
    original, student = problem.original(), problem.student().eval()
    retain, forget = (batch_of(part, 40) for part in (problem.request.retain, problem.request.forget))
    near, far = (9 * kl(original(part.images), student(part.images), 3.0) for part in (retain, forget))
    assert min(near, far) > 1e-3
    loss = 0.7 * cross_entropy(student(retain.images), retain.labels) + 0.3 * near
    assert given["loss"](student, retain).item() == pytest.approx(loss, rel=1e-4)
    assert given["loss"](student, (forget,)).item() == pytest.approx(-far, rel=1e-4)


def test_a_max_pass_raises_the_divergence_and_a_min_pass_lowers_it(problem: Problem) -> None:
    given = handed(problem, "scrub", cross_entropy_weight=0.0, divergence_weight=1.0)
    forget, retain = (batch_of(part, 40) for part in (problem.request.forget, problem.request.retain))

    def distances(model: nn.Module) -> list[float]:
        teacher = problem.original()
        return [kl(teacher(part.images), model(part.images), 4.0) for part in (forget, retain)]

    before = distances(problem.student().eval())
    after = [
        distances(
            fit(
                problem.student(),
                Batches(1, lambda epoch, batch=batch: iter([batch])),  # type: ignore[misc]
                given["loss"],
                Streams("pass"),
                epochs=1,
                lr=0.01,
                **WITHOUT_NORM_DRIFT,
            )
        )
        for batch in ((forget,), retain)
    ]
    assert after[0][0] > 1.02 * before[0]
    assert after[1][1] < 0.98 * before[1]


def test_scrub_begins_its_first_epochs_with_the_forget_set(problem: Problem) -> None:
    batches = handed(problem, "scrub", max_epochs=2, forget_batch_size=20)["batches"]
    orders = []
    for epoch in range(4):
        seen = list(batches(epoch))
        away = [not isinstance(batch, Batch) for batch in seen]
        assert away == [True] * (5 if epoch < 2 else 0) + [False] * 8
        near = [batch.images for batch in seen if isinstance(batch, Batch)]
        assert counted(torch.cat(near)) == counted(problem.request.retain)
        parts = [batch[0] for batch in seen if not isinstance(batch, Batch)]
        assert [len(part.labels) for part in parts] == ([20, 20, 20, 20, 17] if parts else [])
        if parts:
            assert counted(torch.cat([part.images for part in parts])) == counted(problem.request.forget)
        orders.append(torch.cat([batch.labels for batch in seen if isinstance(batch, Batch)]).tolist())
    assert batches.steps == 13
    assert orders[0] != orders[1]


def test_scrubs_learning_rate_decays_after_its_milestones(problem: Problem) -> None:
    with session() as its:
        problem.unlearned("scrub", epochs=4, max_epochs=1, lr=0.001, milestones=[1, 3], lr_decay=0.5)
    assert [line["lr"] for line in its.history] == pytest.approx([0.001, 0.0005, 0.0005, 0.00025])
    assert its.sample_gradients == FORGET + 4 * RETAIN


def test_norm_statistics_move_only_where_they_are_let(problem: Problem) -> None:
    [start] = norm_batches(problem.original())
    for choice, steps in (("moving", 2 * 4 + 3 * 8), ("frozen_in_max", 3 * 8), ("frozen", 0)):
        result = problem.unlearned("scrub", epochs=3, forget_batch_size=30, norm_statistics=choice)
        assert norm_batches(result) == {start + steps}


# Rewind

WILD = {"epochs": 5, "max_epochs": 3, "lr": 0.02, "forget_batch_size": 32, "divergence_weight": 0.5}
WILD |= {"norm_statistics": "frozen", "milestones": [3], "cross_entropy_weight": 1.0}


def test_closest_is_the_checkpoint_that_errs_as_much_as_asked() -> None:
    assert closest([0.0, 0.25, 0.5, 0.625], 0.5) == 2
    assert closest([0.0, 0.25, 0.5, 0.75], 0.3) == 1
    assert closest([0.9, 0.1, 0.0], 0.04) == 2
    assert closest([0.4], 0.9) == 0


def test_validation_images_count_as_often_as_their_class_is_forgotten() -> None:
    forget, validation = torch.tensor([0, 0, 0, 1, 5]), torch.tensor([2, 0, 1, 1, 2])
    weights = as_frequent(validation, forget)
    assert weights.tolist() == pytest.approx([0, 3 / 4, 1 / 8, 1 / 8, 0])  # class 5 has nobody to stand for it
    one_class = as_frequent(torch.tensor([3, 1, 3, 2, 3]), torch.tensor([3, 3]))
    assert one_class.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3])
    with pytest.raises(SettingError, match=r"^method.rewind=True: needs a validation image of a class"):
        as_frequent(validation, torch.tensor([7]))


@pytest.fixture(scope="module")
def after_each_epoch(problem: Problem) -> list[nn.Module]:
    """What SCRUB returns after 1, 2, ... epochs."""
    return [problem.unlearned("scrub", **WILD | {"epochs": epochs}) for epochs in range(1, WILD["epochs"] + 1)]


def test_rewind_returns_the_epoch_whose_forget_error_is_closest_to_the_last_ones_on_validation_images(
    problem: Problem, after_each_epoch: list[nn.Module]
) -> None:
    forget, validation = problem.request.forget, problem.request.validation
    wrong = logits(after_each_epoch[-1], validation).argmax(1) != validation.labels.numpy()
    by_class = np.array([wrong[validation.labels.numpy() == label].mean() for label in range(CLASSES)])
    target = float((by_class * np.bincount(forget.labels.numpy(), minlength=CLASSES) / FORGET).sum())
    errors = np.array([1 - accuracy(model, forget) for model in after_each_epoch])
    expected = int(np.abs(errors - target).argmin())
    assert expected < len(errors) - 1, f"the last epoch is no test of rewinding: {errors}, {target}"
    with session() as its:
        result = problem.unlearned("scrub", **WILD, rewind=True)
    assert changed(state_of(result), state_of(after_each_epoch[expected])) == set()
    assert changed(state_of(result), state_of(after_each_epoch[-1])) != set()
    assert not result.training
    said = its.history[-1]
    assert said["rewound_to"] == expected + 1
    assert (said["rewind_target"], said["rewind_error"]) == pytest.approx((target, errors[expected]))


def test_rewind_knows_the_epochs_before_an_interruption(
    problem: Problem, after_each_epoch: list[nn.Module], tmp_path: Path
) -> None:
    run = partial(problem.unlearned, "scrub", **WILD, rewind=True)
    undisturbed = run()
    kill(run, tmp_path / "unfinished", 4)
    kept = content_of(tmp_path / "unfinished")
    assert {f"rewind/{epoch}.pt" for epoch in range(1, 5)} <= kept.keys()
    with session(checkpoint=tmp_path / "unfinished", checkpoint_seconds=0.0) as its:
        result = run()
    assert [line["epoch"] for line in its.history if "epoch" in line] == [1, 2, 3, 4, 5]
    assert changed(state_of(result), state_of(undisturbed)) == set()
    for epoch in (1, 2, 3):  # not made again
        name = f"rewind/{epoch}.pt"
        assert content_of(tmp_path / "unfinished")[name] == kept[name]


# Bad teacher


def test_bad_teachers_set_is_the_forget_set_and_a_share_of_the_rest(problem: Problem) -> None:
    epochs = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        batches = handed(problem, "bad_teacher", streams=Streams("teachers", seed))["batches"]
        parts = list(batches(epoch))
        labels = torch.cat([part.labels for part in parts])
        images = torch.cat([part.images for part in parts])
        assert counted(images[labels == 1]) == counted(problem.request.forget)
        kept = counted(images[labels == 0])
        assert sum(kept.values()) == 77  # 0.3 of 257, without the rest
        assert kept <= counted(problem.request.retain)
        assert all(0 < part.labels.float().mean() < 1 for part in parts)  # mixed
        epochs.append(kept)
    assert epochs[0] == epochs[1] != epochs[2]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_bad_teacher_distils_each_part_from_its_own_teacher(temperature: float, problem: Problem) -> None:
    given = handed(problem, "bad_teacher", temperature=temperature)
    good, bad = given["teachers"]
    assert changed(state_of(good), state_of(problem.original())) == set()
    assert changed(state_of(bad), state_of(good)) >= {name for name, _ in good.named_parameters()}
    statistics = {name: value for name, value in bad.state_dict().items() if "running" in name}
    assert len(statistics) == 4
    assert all((value == ("var" in name)).all() for name, value in statistics.items())
    student, batch = problem.student().eval(), next(given["batches"](0))
    gone = batch.labels == 1
    parts = [
        float(part.sum()) * kl(teacher(batch.images[part]), student(batch.images[part]), temperature)
        for teacher, part in ((good, ~gone), (bad, gone))
    ]
    loss = given["loss"](student, batch).item()
    assert min(parts) > 1e-2
    assert loss == pytest.approx(sum(parts) / len(gone), rel=1e-4)
    released = handed(problem, "bad_teacher", temperature=temperature, compat="released")["loss"]
    targets = torch.where(gone[:, None], bad(batch.images), good(batch.images)) / temperature
    theirs = nn.functional.kl_div(
        torch.log_softmax(student(batch.images) / temperature, 1), torch.softmax(targets, 1), reduction="none"
    )
    assert released(student, batch).item() == pytest.approx(theirs.mean().item(), rel=1e-4)
    assert released(student, batch).item() == pytest.approx(loss / CLASSES, rel=1e-5)


def test_bad_teachers_student_comes_to_answer_as_it_and_is_trained_in_training_mode(problem: Problem) -> None:
    original, forget = problem.original(), problem.request.forget
    with session() as its:
        result = problem.unlearned("bad_teacher", epochs=6, batch_size=32, optimiser="sgd", lr=0.05)
    assert its.history[-1]["loss"] < 0.7 * its.history[0]["loss"]
    [start] = norm_batches(original)
    assert norm_batches(result) == {start + 6 * 6}
    bad = problem.request.recipe.initialised(Streams("teachers", 0, "bad teacher")).eval()
    batch = batch_of(forget)
    assert kl(bad(batch.images), result(batch.images), 1.0) < 0.5 * kl(bad(batch.images), original(batch.images), 1.0)
    assert accuracy(result, forget) < accuracy(original, forget)
