"""MUNBa and SG-Unlearn as methods: what the games' mathematics becomes inside the loop."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from laws import state_of
from torch import nn

from unlearn.batches import Batch, Batches, shuffled
from unlearn.games.bargaining import Outcome, nash_weights
from unlearn.games.follower import best_response_utility
from unlearn.lab import Lab
from unlearn.loop import cross_entropy
from unlearn.masks import salient
from unlearn.methods.munba import first_batches, rules, settle
from unlearn.methods.sg_unlearn import fill, judged, outputs, problems
from unlearn.session import session
from unlearn.settings import SettingError
from unlearn.streams import Streams

SMALL = ("train.epochs=8", "dataset.label_noise=0.1")


def unlearned(lab: Lab, **session_settings: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    with session(**session_settings) as done:
        return lab.method(lab.load(lab.original()), lab.request(0), Streams("test")), done.history


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.fixture
def two(lab: Callable[..., Lab]) -> tuple[nn.Module, Batch, Batch]:
    """A trained model, a retained batch, and a forget batch under wrong labels."""
    made = lab(*SMALL)
    request = made.request(0)
    wrong = request.forget.relabelled((request.forget.labels + 1) % 10)
    first, second = (next(shuffled(part, 64, Streams("two"))(0)) for part in (request.retain, wrong))
    return made.load(made.original()), first, second


def test_settling_sets_the_weighted_sum_of_both_gradients(two: tuple[nn.Module, Batch, Batch]) -> None:
    model, retain, forget = two
    separately = [gradients(model, cross_entropy(model, batch)) for batch in (retain, forget)]
    flat = [torch.cat([part.flatten() for part in gradient]).double() for gradient in separately]
    cosine = float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
    weights = nash_weights(float(flat[0].norm()), float(flat[1].norm()), cosine)
    losses = (cross_entropy(model, retain), cross_entropy(model, forget))
    _, numbers = settle(losses, list(model.parameters()), rule=nash_weights, clip=None)
    joint = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    expected = weights.retain * flat[0] + weights.forget * flat[1]
    torch.testing.assert_close(joint.double(), expected, rtol=1e-4, atol=1e-6)
    assert float(joint.norm()) == pytest.approx(2**0.5, rel=1e-4)  # whatever the two lengths
    assert numbers["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert numbers["fallback"] == 0


def test_the_plain_sum_is_the_gradient_of_the_sum(two: tuple[nn.Module, Batch, Batch]) -> None:
    model, retain, forget = two
    expected = gradients(model, cross_entropy(model, retain) + cross_entropy(model, forget))
    losses = (cross_entropy(model, retain), cross_entropy(model, forget))
    settle(losses, list(model.parameters()), rule=rules(1, 1)["sum"], clip=None)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_opposed_players_fall_back_and_it_is_counted(two: tuple[nn.Module, Batch, Batch]) -> None:
    model, retain, _ = two
    losses = (cross_entropy(model, retain), -cross_entropy(model, retain))
    _, numbers = settle(losses, list(model.parameters()), rule=nash_weights, clip=1.0)
    assert numbers["fallback"] == 1
    assert nash_weights(1.0, 1.0, -1.0).outcome is Outcome.OPPOSED


def test_the_released_schedule_bargains_first_and_repairs_after() -> None:
    retain = Batches(5, lambda epoch: iter([f"r{number}" for number in range(5)]))
    forget = Batches(2, lambda epoch: iter(["f0", "f1"]))
    assert list(first_batches(retain, forget)(0)) == [("r0", "f0"), ("r1", "f1"), "r2", "r3", "r4"]
    assert list(first_batches(forget, retain)(0)) == [("f0", "r0"), ("f1", "r1")]


@pytest.mark.parametrize("aggregator", ["nash", "sum", "fixed", "mgda", "pcgrad", "imtl_g"])
@pytest.mark.parametrize("bargain", ["first_batches", "every_step"])
def test_every_aggregator_runs_and_writes_its_numbers_down(
    lab: Callable[..., Lab], aggregator: str, bargain: str
) -> None:
    words = ("method=munba", "method.epochs=2", f"method.aggregator={aggregator}", f"method.bargain={bargain}")
    model, history = unlearned(lab(*SMALL, *words))
    assert all(np.isfinite(parameter.detach().numpy()).all() for parameter in model.parameters())
    assert {"cosine", "retain_weight", "forget_weight", "fallback"} <= history[-1].keys()
    assert -1 <= history[-1]["cosine"] <= 1


@pytest.mark.parametrize(
    "words",
    [
        ("method.compat=released",),
        ("method.forget_loss=ascent",),
        ("method.forget_loss=other_label",),
        ("method.aggregator=fixed", "method.retain_weight=0.5", "method.forget_weight=0.5"),
        ("method.clip=null",),
        ("method.mask_share=0.5",),
        ("layers=last",),
    ],
)
def test_munbas_other_options_change_the_model(lab: Callable[..., Lab], words: tuple[str, ...]) -> None:
    plain, _ = unlearned(lab(*SMALL, "method=munba", "method.epochs=2"))
    made = lab(*SMALL, "method=munba", "method.epochs=2", *words)
    other = made.load(made.unlearned()) if words[0].startswith("layers") else unlearned(made)[0]
    assert state_of(plain) != state_of(other)


def test_munba_moves_only_the_masks_entries(lab: Callable[..., Lab]) -> None:
    made = lab(*SMALL, "method=munba", "method.epochs=1", "method.mask_share=0.2")
    original = made.load(made.original())
    chosen = salient(original, made.request(0).forget, 0.2)
    after = dict(unlearned(made)[0].named_parameters())
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter[~chosen[name]], after[name][~chosen[name]]), name
        assert not chosen[name].any() or not torch.equal(parameter[chosen[name]], after[name][chosen[name]]), name


def test_without_a_game_sg_unlearn_is_fine_tuning_bit_for_bit(lab: Callable[..., Lab]) -> None:
    same = ("method.epochs=2", "method.batch_size=64", "method.lr=0.02")
    plain, _ = unlearned(lab(*SMALL, "method=finetune", *same))
    game, _ = unlearned(lab(*SMALL, "method=sg_unlearn", "method.game=none", *same))
    played, _ = unlearned(lab(*SMALL, "method=sg_unlearn", "method.per_class=false", *same))
    assert state_of(plain) == state_of(game)
    assert state_of(plain) != state_of(played)


def test_the_passes_alone_refresh_statistics_and_nothing_else_in_the_first_epoch(lab: Callable[..., Lab]) -> None:
    words = ("method=sg_unlearn", "method.per_class=false", "method.epochs=1", "method.batch_size=64")
    none, _ = unlearned(lab(*SMALL, *words, "method.game=none"))
    passes, _ = unlearned(lab(*SMALL, *words, "method.game=passes"))
    differing = {name for name, value in state_of(none).items() if value != state_of(passes)[name]}
    assert differing
    assert all("running" in name or "batches_tracked" in name for name in differing)


@pytest.mark.parametrize(
    "words",
    [
        ("method.auditor=hinge_l2", "method.regularisation=0.1"),
        ("method.auditor=squared_hinge", "method.regularisation=0.1"),
        ("method.auditor=logistic", "method.regularisation=0.1"),
        ("method.auditor=neural", "method.regularisation=0.1", "method.network_steps=20"),
        ("method.auditor=hinge_l2", "method.regularisation=0.1", "method.per_class=true"),
        ("method.utility=auc",),
        ("method.utility=balanced_accuracy",),
        ("method.features=loss",),
        ("method.attack_every=pair", "method.attack_batch=40"),
        ("method.optimiser=shared",),
        ("method.game=random_direction",),
        ("method.game=direct",),
        ("method.game=implicit",),
        ("method.compat=released",),
        ("method.auditor=neural", "method.regularisation=0.1", "method.network_gradient=unrolled"),
        ("method.auditor=hinge_l2", "method.regularisation=0.1", "method.solver=cvxpylayers", "method.folds=1"),
        ("method.alpha=3",),
        ("method.augmented=false", "method.attack_step=0.5", "method.folds=2", "method.fold_share=0.5"),
    ],
)
def test_every_option_of_the_game_runs_and_changes_the_model(lab: Callable[..., Lab], words: tuple[str, ...]) -> None:
    plain = ("method=sg_unlearn", "method.epochs=2", "method.batch_size=256", "method.per_class=false")
    base, _ = unlearned(lab(*SMALL, *plain, "method.game=none"))
    chosen = {word.split("=")[0]: word for word in (*plain, *words)}
    model, history = unlearned(lab(*SMALL, *chosen.values()))
    assert state_of(model) != state_of(base)
    assert history[-1]["problems"] >= 1
    assert np.isfinite(history[-1]["utility"])


@pytest.mark.parametrize("quirk", ["Q1", "Q3", "Q5", "Q6"])
def test_each_quirk_of_the_released_code_changes_the_model(lab: Callable[..., Lab], quirk: str) -> None:
    words = (*SMALL, "dataset.augment=[flip]", "method=sg_unlearn", "method.epochs=2", "method.per_class=false")
    clean, _ = unlearned(lab(*words))
    quirky, _ = unlearned(lab(*words, f"method.compat=[{quirk}]"))
    assert state_of(clean) != state_of(quirky)
    by_name = {"Q3": "method.optimiser=shared", "Q6": "method.augmented=false"}
    if quirk in by_name:
        assert state_of(quirky) == state_of(unlearned(lab(*words, by_name[quirk]))[0])


def test_without_a_weight_the_passes_remain_and_q4_drops_them(lab: Callable[..., Lab]) -> None:
    words = (*SMALL, "method=sg_unlearn", "method.epochs=1", "method.per_class=false")
    weightless, fine_tuned = (unlearned(lab(*words, *more))[0] for more in (["method.alpha=0"], ["method.game=none"]))
    assert state_of(weightless) == state_of(unlearned(lab(*words, "method.game=passes"))[0])
    assert state_of(weightless) != state_of(fine_tuned)
    assert state_of(unlearned(lab(*words, "method.alpha=0", "method.compat=[Q4]"))[0]) == state_of(fine_tuned)


def test_auditors_see_only_unseen_images_of_the_forgotten_classes(lab: Callable[..., Lab]) -> None:
    made = lab(*SMALL, "method=sg_unlearn", "method.epochs=1", "scenario=class_wise", "method.per_class=false")
    _, history = unlearned(made)
    assert history[-1]["one_membership"] == 0
    request = made.request(0)
    others = request.validation[(request.validation.labels != 0).nonzero().flatten()]
    with pytest.raises(SettingError, match="unseen"):
        made.method(made.load(made.original()), replace(request, validation=others), Streams("test"))


def test_a_regularisation_that_the_auditor_cannot_have_is_refused(lab: Callable[..., Lab]) -> None:
    with pytest.raises(SettingError, match=r"method\.regularisation"):
        unlearned(lab(*SMALL, "method=sg_unlearn", "method.auditor=logistic"))


def test_folds_are_disjoint_pure_in_class_and_hold_both_memberships() -> None:
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 3, 120))
    member = torch.where(torch.arange(120) < 60, 1.0, -1.0)
    found = problems(labels, member, True, 3, 0.3, 0, by_membership=True)
    assert len(found) == 9
    for train, validation in found:
        assert not set(train.tolist()) & set(validation.tolist())
        assert len(set(labels[torch.cat([train, validation])].tolist())) == 1
        assert set(member[train].tolist()) == set(member[validation].tolist()) == {1.0, -1.0}
    pooled = problems(labels, member, False, 3, 0.3, 0, by_membership=True)
    assert [len(validation) for _, validation in pooled] == [36] * 3


def test_minimising_the_utility_of_free_scores_drives_the_auditor_to_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    member = torch.where(torch.arange(80) < 40, 1.0, -1.0)
    rows = (torch.randn(80, 2, generator=generator) + member[:, None]).requires_grad_()
    chosen = problems(torch.zeros(80, dtype=torch.int64), member, False, 3, 0.3, 0, by_membership=True)
    answers = partial(
        best_response_utility,
        auditor="hinge_l2",
        regularisation=0.1,
        utility="hinge",
        direct=True,
        implicit=True,
        solver="closed",
    )
    first, _ = judged(rows, member, chosen, answers, mean=False)
    optimiser = torch.optim.Adam([rows], lr=0.05)
    for _ in range(150):
        reached, _ = judged(rows, member, chosen, answers, mean=False)
        optimiser.zero_grad()
        reached.backward()
        optimiser.step()
    assert first.item() > -0.6  # the auditor does well: a hinge loss well below 1
    assert reached.item() < -0.85  # -0.9 is the constant rule: three folds of 30 %, each with a hinge loss of 1


def test_one_membership_gives_no_gradient_and_does_not_crash(two: tuple[nn.Module, Batch, Batch]) -> None:
    model, _, forget = two
    rows = outputs(model, forget, "logits_and_loss")
    member = torch.ones(len(rows))
    chosen = problems(forget.labels, member, False, 2, 0.3, 0, by_membership=False)
    answers = partial(
        best_response_utility,
        auditor="hinge_l1",
        regularisation=0.0,
        utility="hinge",
        direct=True,
        implicit=True,
        solver="closed",
    )
    reached, counts = judged(rows, member, chosen, answers, mean=False)
    assert counts["one_membership"] == 2
    assert reached.item() == 0  # the constant rule makes no mistake
    for gradient in gradients(model, reached):
        assert gradient.abs().max() < 1e-6


def test_a_random_direction_is_as_long_as_the_games_gradient() -> None:
    parameters = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))]
    parameters[0].grad = torch.ones(3, 4)
    fill(parameters, False, torch.Generator())
    assert parameters[1].grad is not None
    assert parameters[1].grad.eq(0).all()
    fill(parameters, True, torch.Generator().manual_seed(0))
    drawn = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    assert float(drawn.norm()) == pytest.approx(12**0.5, rel=1e-5)
    assert drawn[12:].ne(0).all()
