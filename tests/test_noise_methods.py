"""Methods that make or measure noise: UNSIR's images, L2UL's attacks, MU-Mis's sensitivities, LoTUS's soft targets."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from laws import assert_an_interruption_leaves_no_trace, changed, flags_of, state_of, yaml_of
from problems import CPU, Linear, Problem, batch_of, counted, cut, few_of, keys, norm_batches
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare
from torch import nn

from unlearn.attacks import anywhere_within, targeted
from unlearn.batches import Batch
from unlearn.data.images import Images, as_model_input
from unlearn.lab import Lab
from unlearn.methods.l2ul import matter, rescaled
from unlearn.methods.lotus import one_hot_of_largest, with_gumbel_noise
from unlearn.methods.mu_mis import sensitivities
from unlearn.methods.unsir import hardest, some_of_each_class
from unlearn.models.normalise import Normalise
from unlearn.session import session
from unlearn.settings import SettingError, build
from unlearn.signals import accuracy, logits
from unlearn.streams import Streams

FORGET, RETAIN, CLASSES = 60, 200, 10
SMALL_NOISE = {"noise_images": 8, "noise_steps": 3, "copies": 2}
SMALL_ATTACK = {"attack_steps": 4, "per_image": 2}


@pytest.fixture(scope="module")
def problem(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    lab = Lab(composing(tmp_path_factory.mktemp("noise"), ["train.epochs=5"]).settings)
    train = lab.data.train
    correct = logits(lab.load(lab.original()), train).argmax(1) == train.labels.numpy()
    known = torch.from_numpy(correct).nonzero().flatten()
    request = cut(lab, known[:FORGET], known[FORGET : FORGET + RETAIN])
    return Problem(lab, request, Streams("noise", 0), {"batch_size": 32} | SMALL_NOISE | SMALL_ATTACK)


@pytest.mark.parametrize(
    ("name", "fit", "epoch", "settings"),
    [
        ("unsir", 1, 1, {"epochs": 2, "repair_epochs": 2}),
        ("unsir", 2, 1, {"epochs": 2, "repair_epochs": 2}),
        ("lotus", 1, 2, {"epochs": 3}),
        ("l2ul", 1, 5, {"epochs": 2, "lr": 0.01}),
        ("mu_mis", 1, 2, {"epochs": 3, "recovery": 50.0}),
    ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    name: str, fit: int, epoch: int, settings: dict[str, Any], problem: Problem, tmp_path: Path
) -> None:
    run = partial(problem.unlearned, name, **settings)
    its = assert_an_interruption_leaves_no_trace(run, tmp_path, (fit - 1) * settings["epochs"] + epoch + 1)
    assert its.sample_gradients > 0


# UNSIR


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_noise_is_adams_by_hand_behind_the_models_normalisation(penalty: float) -> None:
    linear = Linear()
    model = nn.Sequential(Normalise(1, [0.3], [0.2]), linear).train()
    start = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    with session() as its:
        found = hardest(model, start, 2, steps=7, lr=0.1, penalty=penalty)
    assert its.sample_gradients == 42
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    noise, weight = start.double().numpy().reshape(6, 16), linear.weight.detach().double().numpy()
    first, second = np.zeros_like(noise), np.zeros_like(noise)
    for step in range(1, 8):
        slope = -((softmax(noise @ weight.T, 1) - np.eye(4)[2]) @ weight) / 6 + 2 * penalty * noise / 6
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        noise = noise - 0.1 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(found.numpy().reshape(6, 16), 0.3 + 0.2 * noise, atol=1e-4)


@pytest.mark.parametrize("compat", [None, "released"])
def test_unsir_impairs_with_each_classs_noise_and_repairs_with_the_retained_images_it_saw(
    compat: str | None, problem: Problem
) -> None:
    model, request = problem.original(), problem.request
    present = request.forget.labels.unique().tolist()
    impair, repair = problem.handed(
        "unsir", retained_per_class=7, lr=0.02, repair_lr_factor=0.25, epochs=3, repair_epochs=5, compat=compat
    )
    assert (impair["lr"], repair["lr"], impair["epochs"], repair["epochs"]) == (0.02, 0.005, 3, 5)
    few = some_of_each_class(request.retain, 7, Streams("noise", 0))
    sizes = np.bincount(few.labels.numpy(), minlength=CLASSES)
    np.testing.assert_array_equal(sizes, np.bincount(request.retain.labels.numpy(), minlength=CLASSES).clip(max=7))
    assert counted(few) <= counted(request.retain)

    wanted: Counter[bytes] = Counter()
    for label in present:
        start = torch.randn(8, 1, 8, 8, generator=Streams("noise", 0)("noise", label))
        noise = hardest(model, start, label, steps=3, lr=0.1, penalty=0.1)
        wanted += counted(noise[:1] if compat else noise) + counted(noise[:1] if compat else noise)
    orders = []
    for epoch in range(2):
        seen = list(impair["batches"](epoch))
        images, labels = (torch.cat([getattr(batch, part) for batch in seen]) for part in ("images", "labels"))
        assert len(seen) == impair["batches"].steps
        assert counted(images) == wanted + counted(few)
        made = torch.tensor([key in wanted for key in keys(images)])
        counts = np.bincount(labels[made].numpy(), minlength=CLASSES)
        assert counts.tolist() == [(2 if compat else 16) * (label in present) for label in range(CLASSES)]
        assert not made[: int(made.sum())].all()  # mixed
        orders.append(labels.tolist())
        healing = list(repair["batches"](epoch))
        assert counted(torch.cat([batch.images for batch in healing])) == counted(few)
    assert orders[0] != orders[1]


def test_unsir_never_looks_at_forgotten_images_and_counts_its_noise(problem: Problem) -> None:
    request = problem.request
    scrambled = replace(request.forget, pixels=255 - request.forget.pixels)
    with session() as its:
        first = problem.unlearned("unsir")
    other = problem.unlearned("unsir", request=replace(request, forget=scrambled))
    assert changed(state_of(first), state_of(other)) == set()
    classes = len(request.forget.labels.unique())
    assert its.sample_gradients == classes * 8 * 3 + (classes * 16 + RETAIN) + RETAIN


def test_unsirs_noise_follows_the_settings_and_repair_may_be_left_out(problem: Problem) -> None:
    plain = problem.unlearned("unsir")
    for changes in (
        {"noise_lr": 0.5},
        {"penalty": 5.0},
        {"weight_decay": 0.1},
        {"momentum": 0.5},
        {"optimiser": "sgd"},
    ):
        assert changed(state_of(plain), state_of(problem.unlearned("unsir", **changes)))
    with session() as its:
        problem.unlearned("unsir", repair_lr_factor=0.0, repair_epochs=2)
    assert [line["lr"] for line in its.history] == [0.02, 0.0, 0.0]


def test_unsir_forgets_a_class_and_keeps_the_others(problem: Problem) -> None:
    request = problem.whole([3])
    strong = {"noise_images": 32, "noise_steps": 20, "copies": 8}
    impaired = problem.unlearned("unsir", request=request, **strong, repair_lr_factor=0.0)
    result = problem.unlearned("unsir", request=request, **strong, repair_epochs=2)
    original = problem.original()
    assert accuracy(original, request.forget) > 0.7
    assert accuracy(impaired, request.forget) < 0.3
    assert accuracy(result, request.forget) < 0.3
    assert accuracy(result, request.retain) > accuracy(original, request.retain) - 0.1


# L2UL


def test_the_targeted_attack_is_torchattacks(problem: Problem) -> None:
    model, batch = problem.original().train(), batch_of(problem.request.forget, 30)
    wanted = (batch.labels + 1 + torch.arange(30) % 9) % CLASSES
    flags = flags_of(model)
    with session() as its:
        ours = targeted(model, batch.images, wanted, batch.images, radius=0.5, stride=0.1, steps=9, batch_size=7)
    assert its.sample_gradients == 30 * 9
    assert model.training
    assert flags_of(model) == flags
    theirs = torchattacks.PGDL2(model.eval(), eps=0.5, alpha=0.1, steps=9, random_start=False)
    theirs.set_mode_targeted_by_label(quiet=True)
    torch.testing.assert_close(ours, theirs(batch.images, wanted), atol=2e-4, rtol=0)
    distances = (ours - batch.images).flatten(1).norm(dim=1)
    assert distances.max() <= 0.5 + 1e-5
    assert (distances > 0.45).float().mean() > 0.5  # the ball was felt


def test_an_attack_begins_anywhere_in_its_ball(problem: Problem) -> None:
    images = batch_of(problem.request.forget, 30).images
    near, far = (anywhere_within(images, radius, Streams("begin")("begin")) for radius in (1.0, 100.0))
    drawn = torch.rand(images.shape, generator=Streams("begin")("begin"))
    torch.testing.assert_close(far, drawn, atol=1e-6, rtol=0)
    change = (drawn - images).double().flatten(1)
    expected = images.flatten(1).double() + change / change.norm(dim=1, keepdim=True)
    torch.testing.assert_close(near.flatten(1).double(), expected, atol=1e-6, rtol=0)
    assert 0 <= near.min() < near.max() <= 1


def test_importance_is_the_mean_absolute_gradient_of_the_scores_length(problem: Problem) -> None:
    model, few = problem.original(), problem.request.forget[torch.arange(5)]
    parameters = dict(model.named_parameters())
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for image in as_model_input(few.pixels, CPU):
        length = model(image[None]).square().sum().sqrt()
        for name, slope in zip(totals, torch.autograd.grad(length, list(parameters.values())), strict=True):
            totals[name] += slope.abs() / 5
    for name, part in matter(model, few).items():
        torch.testing.assert_close(part, totals[name], rtol=1e-3, atol=1e-5)
    assert rescaled(torch.tensor([[3.0, 5.0], [4.0, 7.0]])).tolist() == [[0.0, 0.5], [0.25, 1.0]]
    assert rescaled(torch.tensor([2.0])).tolist() == [0.0]


def plain_l2ul(
    problem: Problem,
    forget: Images,
    adversarial: Batch,
    parts: tuple[list[int], list[int]],
    limit: int,
    **settings: float,
) -> tuple[nn.Module, int]:
    """The method's loop written out; `parts` are the sizes of the batches in a pass over either set."""
    model = problem.original().to(memory_format=torch.channels_last)
    weights = {}
    for name, part in matter(problem.original(), forget).items():
        spread = part.max() - part.min()
        weights[name] = 1 - (part - part.min()) / spread
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=settings["lr"], momentum=0.9, weight_decay=1e-4)
    gone = batch_of(forget)
    streams = Streams("noise", 0)
    for step in range(limit):
        few, some = (
            torch.randperm(sum(sizes), generator=streams(name, "order", step // len(sizes))).split(sizes)[
                step % len(sizes)
            ]
            for name, sizes in zip(("adversarial", "forget"), parts, strict=True)
        )
        model.train()
        near = nn.functional.cross_entropy(model(adversarial.images[few]), adversarial.labels[few])
        far = nn.functional.cross_entropy(model(gone.images[some]), gone.labels[some])
        loss = (len(few) * near - len(some) * far) / (len(few) + len(some))
        for name, weight in model.named_parameters():
            loss = loss + settings["anchor"] / 2 * (weights[name] * (weight - start[name]) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (logits(model, forget).argmax(1) != forget.labels.numpy()).all():
            return model, step + 1
    return model.eval(), limit


@pytest.mark.parametrize(
    ("lr", "anchor", "parts", "limit", "ends"),
    [
        (0.05, 0.1, ([12], [3]), 60, True),
        (0.0005, 20.0, ([32, 32, 32, 24], [3, 3]), 8, False),
    ],
)
def test_l2ul_is_its_loop_written_out_and_ends_when_all_is_wrong(
    lr: float,
    anchor: float,
    parts: tuple[list[int], list[int]],
    limit: int,
    ends: bool,
    problem: Problem,
) -> None:
    count, forgotten, passes = sum(parts[0]), sum(parts[1]), limit // len(parts[0])
    request = few_of(problem.request, forget=forgotten)
    settings = {"lr": lr, "anchor": anchor, "per_image": count // forgotten, "attack_steps": 10, "stride": 0.3}
    settings |= {"forget_batch_size": 3, "request": request}
    [given] = problem.handed("l2ul", **settings)
    first = [batch[0] for step in range(len(parts[0])) for batch in given["batches"](step)]
    order = torch.randperm(count, generator=Streams("noise", 0)("adversarial", "order", 0)).argsort()
    images, labels = (torch.cat([getattr(part, which) for part in first])[order] for which in ("images", "labels"))
    expected, steps = plain_l2ul(problem, request.forget, Batch(images, labels), parts, limit, lr=lr, anchor=anchor)
    with session() as its:
        result = problem.unlearned("l2ul", **settings, epochs=passes)
    assert len([line for line in its.history if "epoch" in line]) == steps
    assert (steps < limit, accuracy(result, request.forget) == 0) == (ends, ends)
    for (name, ours), theirs in zip(result.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3, msg=name)
    shown = sum(part[step % len(part)] for part in parts for step in range(steps))
    assert its.sample_gradients == count * 10 + forgotten + shown


def test_l2uls_proxies_are_near_their_images_and_led_to_wrong_classes(problem: Problem) -> None:
    with session() as its:
        [given] = problem.handed("l2ul", per_image=20, attack_steps=20, radius=3.0, stride=0.3, batch_size=1200)
    [(adversarial, forget)] = given["batches"](0)
    order = torch.randperm(1200, generator=Streams("noise", 0)("adversarial", "order", 0)).argsort()
    images, labels = adversarial.images[order], adversarial.labels[order]
    start = as_model_input(problem.request.forget.pixels, CPU).repeat_interleave(20, dim=0)
    true = problem.request.forget.labels.repeat_interleave(20)
    assert 0 <= images.min() < images.max() <= 1
    distances = (images - start).flatten(1).norm(dim=1)
    assert distances.max() <= 3 + 1e-4
    assert distances.min() > 0.3
    distance = ((labels - true) % CLASSES).numpy()
    assert chisquare(np.bincount(distance, minlength=CLASSES)[1:]).pvalue > 1e-4
    assert (distance > 0).all()
    taken = problem.original()(images).argmax(1) == labels
    assert its.history == [{"adversarial": 1200, "adversarial_as_asked": pytest.approx(taken.float().mean().item())}]
    assert taken.float().mean() > 0.8
    assert counted(forget.images) <= counted(problem.request.forget)
    assert len(forget.labels) == 32


def test_l2ul_leaves_a_model_that_is_all_wrong_as_it_is(problem: Problem) -> None:
    train = problem.lab.data.train
    wrong = torch.from_numpy(logits(problem.original(), train).argmax(1)) != train.labels
    request = replace(problem.request, forget=train[wrong.nonzero().flatten()])
    assert len(request.forget) > 0
    with session() as its:
        result = problem.unlearned("l2ul", request=request)
    assert changed(state_of(result), state_of(problem.original())) == set()
    assert its.sample_gradients == 0


# MU-Mis


def test_sensitivities_are_the_lengths_of_single_images_gradients(problem: Problem) -> None:
    model, batch = problem.original(), batch_of(problem.request.forget, 6)
    others = (batch.labels + 3) % CLASSES
    with session() as its:
        found = sensitivities(model, batch.images, batch.labels, others)
    assert its.sample_gradients == 12
    assert not batch.images.requires_grad
    for lengths, classes in zip(found, (batch.labels, others), strict=True):
        for image, label, length in zip(batch.images, classes.tolist(), lengths.tolist(), strict=True):
            jacobian = torch.autograd.functional.jacobian(model, image[None])
            assert length == pytest.approx(float(jacobian[0, label].norm()), rel=1e-4)


def test_mu_mis_descends_on_own_minus_other_squared_sensitivities(problem: Problem) -> None:
    [given] = problem.handed("mu_mis")
    model, images = Linear(), torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    batch = Batch(images, torch.arange(8) % 4)
    given["batches"](0)
    drawn = torch.randint(CLASSES - 1, (8,), generator=Streams("noise", 0)("irrelevant", 0))
    others = drawn + (drawn >= batch.labels)
    weight = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(4)).requires_grad_()
    model.weight = nn.Parameter(weight.detach().clone())
    expected = (weight[batch.labels].square().sum(1) - weight[others].square().sum(1)).mean()
    loss = given["loss"](model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(loss, model.weight), torch.autograd.grad(expected, weight), rtol=1e-5, atol=1e-6
    )
    assert (others != batch.labels).all()


def test_mu_mis_lowers_what_the_forget_set_contributes_and_counts_both_kinds_of_gradients(problem: Problem) -> None:
    settings = {"epochs": 4, "lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0}
    with session() as its:
        result = problem.unlearned("mu_mis", **settings, recovery=None)
    assert its.sample_gradients == 4 * 3 * FORGET
    batch = batch_of(problem.request.forget)
    gaps = []
    for model in (problem.original(), result):
        others = [sensitivities(model, batch.images, (batch.labels + shift) % CLASSES)[0] for shift in range(1, 10)]
        own = sensitivities(model, batch.images, batch.labels)[0]
        gaps.append((own.square().mean() - torch.stack(others).square().mean()).item())
    assert 0 < gaps[1] < 0.8 * gaps[0]
    losses = [line["loss"] for line in its.history]
    assert losses[-1] < losses[0]


def test_mu_mis_stops_after_the_epoch_in_which_other_sensitivities_have_recovered(problem: Problem) -> None:
    forget = problem.whole([3]).forget
    drawn = torch.randint(CLASSES - 1, (len(forget),), generator=Streams("noise", 0)("watched"))
    watched = drawn + (drawn >= 3)

    def run(epochs: int, recovery: float | None) -> nn.Module:
        """On a linear model of one forgotten class the sensitivities to other classes can only rise."""
        with Streams("linear").seeded():
            model = nn.Sequential(Normalise(1, [0.3], [0.4]), nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)))
        settings = {"epochs": epochs, "batch_size": 64, "lr": 0.01, "recovery": recovery}
        return problem.unlearned("mu_mis", replace(problem.request, forget=forget), model=model, **settings)

    def seen(model: nn.Module) -> float:
        return float((model[1][1].weight[watched].norm(dim=1) / 0.4).mean().detach())  # type: ignore[index]

    models = [run(epochs, None) for epochs in range(1, 7)]
    means = [seen(model) for model in models]
    assert means == sorted(means)
    with Streams("linear").seeded():
        original = nn.Linear(64, CLASSES)
    bound = (means[2] + means[3]) / 2 / float((original.weight[watched].norm(dim=1) / 0.4).mean().detach())
    assert bound > 1
    with session() as its:
        result = run(6, bound)
    assert len(its.history) == 4
    assert changed(state_of(result), state_of(models[3])) == set()
    assert its.sample_gradients == 4 * 3 * len(forget) + 5 * len(forget)
    with pytest.raises(SettingError, match=r"^method.recovery=0.9: "):
        problem.unlearned("mu_mis", recovery=0.9)


def test_mu_mis_keeps_norm_statistics_unless_told_and_decays_what_no_gradient_reaches(problem: Problem) -> None:
    [start] = norm_batches(problem.original())
    for choice, steps in (("frozen", 0), ("moving", 2)):
        assert norm_batches(problem.unlearned("mu_mis", epochs=1, norm_statistics=choice, recovery=None)) == {
            start + steps
        }
    before = dict(problem.original().named_parameters())["1.8.bias"]
    for decay in (0.0, 0.5):
        result = problem.unlearned("mu_mis", epochs=1, lr=1e-3, momentum=0.0, weight_decay=decay, recovery=None)
        after = dict(result.named_parameters())["1.8.bias"]
        torch.testing.assert_close(after, before * (1 - 1e-3 * decay) ** 2, rtol=1e-6, atol=0)
        assert torch.equal(after, before) == (decay == 0)


def test_mu_mis_differentiates_twice_through_attention(compose: Callable[..., Any]) -> None:
    lab = Lab(compose(["model=vit_tiny", "model.depth=1"]).settings)
    with Streams("model").seeded():
        model = lab.build_model()
    before = state_of(model)
    method = build(yaml_of("method", "mu_mis") | {"epochs": 1, "lr": 0.01, "weight_decay": 0.0}, "method")
    result = method(model, replace(lab.request(0), forget=lab.data.train[torch.arange(8)]), Streams("attention"))
    moved = changed(before, state_of(result))
    assert any("attn" in name or "attention" in name for name in moved), moved


# LoTUS


def test_the_largest_noisy_score_is_a_draw_from_the_softmax() -> None:
    scores = torch.tensor([2.0, 0.0, 1.0, -1.0])
    noisy = with_gumbel_noise(scores.expand(20_000, 4), Streams("gumbel")("gumbel"))
    drawn = one_hot_of_largest(noisy).sum(0).numpy()
    assert drawn.sum() == 20_000
    assert chisquare(drawn, 20_000 * softmax(scores.double().numpy())).pvalue > 1e-4


def lotus_targets(problem: Problem, alpha: float, target: float, epoch: int, batch: Batch) -> np.ndarray[Any, Any]:
    teacher = problem.original()
    uniform = torch.empty(len(batch.labels), CLASSES).exponential_(generator=Streams("noise", 0)("gumbel", epoch))
    noisy = teacher(batch.images).detach().double().numpy() - np.log(uniform.double().numpy())
    temperature = np.exp(alpha * (accuracy(problem.student(), problem.request.forget) - target))
    soft, hard = softmax(noisy / temperature, 1), np.eye(CLASSES)[noisy.argmax(1)]
    return np.where(batch.labels.numpy()[:, None] == 1, soft, hard)


@pytest.mark.parametrize("validation", [True, False])
def test_lotus_fits_noisy_soft_answers_on_the_forget_set_and_drawn_classes_elsewhere(
    validation: bool, problem: Problem
) -> None:
    nothing = problem.request.limited_to({"forget", "retain"}) if not validation else problem.request
    [given] = problem.handed(
        "lotus", request=nothing, alpha=3.0, retain_share=0.4, validation_target=validation, batch_size=200
    )
    # The weights that the student has when an epoch begins
    given["model"].load_state_dict(problem.student().state_dict())
    [batch] = given["batches"](1)
    target = accuracy(problem.original(), problem.request.validation) if validation else 0.0
    wanted = lotus_targets(problem, 3.0, target, 1, batch)
    assert Counter(batch.labels.tolist()) == {0: 80, 1: FORGET}
    assert counted(batch.images[batch.labels == 1]) == counted(problem.request.forget)
    student = problem.student().eval()
    answers = log_softmax(student(batch.images).detach().double().numpy(), 1)
    assert given["loss"](student, batch).item() == pytest.approx(float(-(wanted * answers).sum(1).mean()), rel=1e-4)
    assert (wanted * (1 - wanted)).max() > 0.05  # some are soft


def test_lotus_heats_by_what_the_student_still_knows_better_and_stops_when_it_does_not(problem: Problem) -> None:
    settings = {"lr": 0.01, "alpha": 2.0, "retain_share": 0.1}
    target = accuracy(problem.original(), problem.request.validation)
    with session() as its:
        result = problem.unlearned("lotus", **settings, epochs=9)
    count = len(its.history)
    assert 1 < count < 9, [line["temperature"] for line in its.history]
    models = [problem.unlearned("lotus", **settings, epochs=epochs) for epochs in range(1, count + 1)]
    over = [accuracy(model, problem.request.forget) - target for model in (problem.original(), *models)]
    assert [line["temperature"] for line in its.history] == pytest.approx(np.exp(2 * np.array(over[:-1])).tolist())
    assert min(over[:-1]) > -0.01 >= over[-1]
    assert changed(state_of(result), state_of(models[-1])) == set()
    assert {line["lr"] for line in its.history} == {0.01}


@pytest.mark.parametrize("whole", [True, False])
def test_lotus_aims_at_what_a_retrained_model_knows_of_classes_that_go_wholly(whole: bool, problem: Problem) -> None:
    train, scenario = problem.lab.data.train, problem.request
    forget = train.labels == 3
    kept = (~forget).nonzero().flatten()
    if not whole:
        kept = torch.cat([kept, forget.nonzero().flatten()[:1]])
    request = replace(scenario, forget=train[forget.nonzero().flatten()], retain=train[kept])
    with session() as its:
        problem.unlearned("lotus", request=request, epochs=1, alpha=2.0)
    known, unseen = (accuracy(problem.original(), part) for part in (request.forget, request.validation))
    assert its.history[0]["temperature"] == pytest.approx(np.exp(2 * (known - (0 if whole else unseen))))


def test_lotus_leaves_a_model_that_knows_the_forget_set_worse_as_it_is(problem: Problem) -> None:
    train = problem.lab.data.train
    wrong = torch.from_numpy(logits(problem.original(), train).argmax(1)) != train.labels
    request = replace(problem.request, forget=train[wrong.nonzero().flatten()])
    result = problem.unlearned("lotus", request=request, epochs=2)
    assert changed(state_of(result), state_of(problem.original())) == set()
    moved = problem.unlearned("lotus", request=request, epochs=2, validation_target=False)
    assert changed(state_of(moved), state_of(problem.original()))


def test_lotus_softens_with_alpha(problem: Problem) -> None:
    def entropy(model: nn.Module) -> float:
        chances = softmax(logits(model, problem.request.forget).astype(np.float64), 1)
        return float(-(chances * np.log(chances)).sum(1).mean())

    settings = {"epochs": 4, "lr": 1e-3, "validation_target": False}
    cold, hot = (entropy(problem.unlearned("lotus", **settings, alpha=alpha)) for alpha in (0.0, 2.0))
    assert hot > cold + 0.1
