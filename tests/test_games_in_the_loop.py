"""MUNBa and SG-Unlearn as methods: what the games' mathematics becomes inside the loop."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_an_interruption_leaves_no_trace, state_of
from torch import nn

from unlearn.batches import Batch, Batches, shuffled
from unlearn.checks import check_method
from unlearn.data.images import Images, as_model_input
from unlearn.games import bargaining
from unlearn.games.bargaining import Outcome, nash_weights
from unlearn.games.follower import Utility, best_response_utility
from unlearn.lab import Lab
from unlearn.layers import scope
from unlearn.loop import DivergedError, cross_entropy
from unlearn.masks import salient
from unlearn.methods.munba import first_batches, forget_batches, rules, settle
from unlearn.methods.sg_unlearn import fill, judged, of_classes, outputs, pairs, problems
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


def test_a_bargains_step_is_clipped_and_a_repairs_is_not(two: tuple[nn.Module, Batch, Batch]) -> None:
    model, retain, forget = two
    parameters = list(model.parameters())

    def step(losses: Any, clip: float | None) -> torch.Tensor:
        settle(losses, parameters, rule=nash_weights, clip=clip)
        step = torch.cat([its.grad.flatten() for its in parameters if its.grad is not None])
        model.zero_grad()
        return step

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        return cross_entropy(model, retain), cross_entropy(model, forget)

    free = step(both(), None)
    torch.testing.assert_close(step(both(), 1.0), free / free.norm(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(step(both(), 2.0), free, rtol=1e-4, atol=1e-6)  # its length is below 2
    plain = torch.cat([gradient.flatten() for gradient in gradients(model, cross_entropy(model, retain))])
    assert plain.norm() > 1e-3
    torch.testing.assert_close(step(cross_entropy(model, retain), 1e-3), plain)


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


MUNBA = (*SMALL, "method=munba", "method.epochs=2")


@pytest.mark.parametrize("aggregator", ["sum", "fixed", "mgda", "pcgrad", "imtl_g"])
def test_every_aggregator_makes_a_model_of_its_own_and_writes_its_numbers_down(
    lab: Callable[..., Lab], aggregator: str
) -> None:
    # Unclipped, or the two that have the bargain's direction would have its step too
    nash, other = (
        unlearned(lab(*MUNBA, "method.clip=null", f"method.aggregator={its}")) for its in ("nash", aggregator)
    )
    assert state_of(nash[0]) != state_of(other[0])
    for model, history in (nash, other):
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        line = history[-1]
        assert {"retain_weight", "forget_weight", "opposed", "vanished", "not_positive"} <= line.keys()
        assert -1 <= line["cosine"] <= 1
        assert line["fallback"] == line["opposed"] + line["vanished"] + line["not_positive"]
    assert abs(nash[1][-1]["imbalance"]) < 1e-9  # the bargain's two players gain the same


@pytest.mark.parametrize(
    "words",
    [
        ("method.compat=released",),
        ("method.forget_loss=ascent",),
        ("method.forget_loss=other_label",),
        ("method.clip=null",),
        ("method.mask_share=0.5",),
        ("method.bargain=every_step",),
    ],
)
def test_munbas_other_options_change_the_model(lab: Callable[..., Lab], words: tuple[str, ...]) -> None:
    (plain, _), (other, _) = unlearned(lab(*MUNBA)), unlearned(lab(*MUNBA, *words))
    assert state_of(plain) != state_of(other)


def test_every_aggregator_is_the_rule_of_its_name() -> None:
    named = rules(1, 0.1)
    assert named.keys() == {"nash", "released", "sum", "fixed", "mgda", "pcgrad", "imtl_g"}
    answers = {name: rule(2.0, 0.5, -0.5) for name, rule in named.items()}
    for name in ("nash", "released", "mgda", "pcgrad", "imtl_g"):
        assert answers[name] == getattr(bargaining, f"{name}_weights")(2.0, 0.5, -0.5)
    assert answers["sum"][:2] == (1, 1)
    assert answers["fixed"][:2] == (1, 0.1)
    assert len(set(answers.values())) == len(answers)


@pytest.mark.parametrize(
    ("forget_loss", "share"), [("random_label", (0.01, 0.3)), ("other_label", (0, 0)), ("ascent", (1, 1))]
)
def test_forget_batches_have_the_labels_that_their_loss_asks_for(
    lab: Callable[..., Lab], forget_loss: str, share: tuple[float, float]
) -> None:
    request = lab(*SMALL).request(0)
    images = as_model_input(request.forget.pixels, torch.device("cpu"))
    true = {image.numpy().tobytes(): label for image, label in zip(images, request.forget.labels.tolist(), strict=True)}
    assert len(true) == len(request.forget)
    drawn = []
    for epoch in range(2):
        parts = list(forget_batches(request, Streams("test"), 50, forget_loss)(epoch))
        labels = {
            image.contiguous().numpy().tobytes(): label
            for part in parts
            for image, label in zip(part.images, part.labels.tolist(), strict=True)
        }
        assert labels.keys() == true.keys()
        drawn.append(labels)
        assert share[0] <= np.mean([labels[image] == its for image, its in true.items()]) <= share[1]
    assert (drawn[0] == drawn[1]) is (forget_loss == "ascent")


def forget_loss(lab: Lab, model: nn.Module) -> float:
    forget = lab.request(0).forget
    return cross_entropy(model.eval(), Batch(as_model_input(forget.pixels, torch.device("cpu")), forget.labels)).item()


def test_the_weights_are_those_of_their_players_and_ascent_climbs(lab: Callable[..., Lab]) -> None:
    words = ("method.aggregator=fixed", "method.forget_loss=ascent", "method.bargain=every_step", "method.clip=null")
    alone = {}
    for player, weights in {"retain": (1, 0), "forget": (0, 1)}.items():
        its = (
            f"method.retain_weight={weights[0]}",
            f"method.forget_weight={weights[1]}",
            "method.lr=0.02",
            "method.batch_size=64",
        )
        made = lab(*MUNBA, *words, *its)
        alone[player] = forget_loss(made, unlearned(made)[0])
    before = forget_loss(made, made.load(made.original()))
    assert alone["forget"] > 2 * before  # every step climbs, and none repairs
    assert alone["retain"] < 1.2 * before


@pytest.mark.parametrize(("weights", "player"), [((1.0, 0.0), 0), ((0.0, 1.0), 1)])
def test_a_weight_of_zero_leaves_the_other_players_gradient(
    two: tuple[nn.Module, Batch, Batch], weights: tuple[float, float], player: int
) -> None:
    model, *batches = two
    expected = gradients(model, cross_entropy(model, batches[player]))
    losses = (cross_entropy(model, batches[0]), cross_entropy(model, batches[1]))
    settle(losses, list(model.parameters()), rule=rules(*weights)["fixed"], clip=None)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_gradient_that_is_not_finite_ends_the_run(two: tuple[nn.Module, Batch, Batch]) -> None:
    model, retain, forget = two
    losses = (cross_entropy(model, retain), torch.inf * cross_entropy(model, forget))
    with pytest.raises(DivergedError, match="not finite"):
        settle(losses, list(model.parameters()), rule=nash_weights, clip=1.0)


def test_the_released_formula_is_of_the_bargain_alone(lab: Callable[..., Lab]) -> None:
    with pytest.raises(SettingError, match=r"method\.compat=released: must be null for aggregator=sum"):
        lab(*MUNBA, "method.aggregator=sum", "method.compat=released")


def test_munba_moves_only_the_masks_entries(lab: Callable[..., Lab]) -> None:
    made = lab(*SMALL, "method=munba", "method.epochs=1", "method.mask_share=0.2")
    original = made.load(made.original())
    chosen = salient(original, made.request(0).forget, 0.2)
    after = dict(unlearned(made)[0].named_parameters())
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter[~chosen[name]], after[name][~chosen[name]]), name
        assert not chosen[name].any() or not torch.equal(parameter[chosen[name]], after[name][chosen[name]]), name


def test_players_bargain_over_what_a_mask_lets_move(two: tuple[nn.Module, Batch, Batch]) -> None:
    model, retain, forget = two
    parameters = list(model.parameters())
    movable = [torch.rand(its.shape, generator=torch.Generator().manual_seed(1)) < 0.3 for its in parameters]
    both = [
        torch.cat(
            [(part * kept).flatten() for part, kept in zip(gradients(model, loss), movable, strict=True)]
        ).double()
        for loss in (cross_entropy(model, retain), cross_entropy(model, forget))
    ]
    losses = (cross_entropy(model, retain), cross_entropy(model, forget))
    _, numbers = settle(losses, parameters, rule=nash_weights, clip=None, movable=movable)
    joint = torch.cat([its.grad.flatten() for its in parameters if its.grad is not None]).double()
    expected = both[0] / both[0].norm() + both[1] / both[1].norm()
    torch.testing.assert_close(joint, expected / expected.norm() * 2**0.5, rtol=1e-4, atol=1e-6)
    assert numbers["cosine"] == pytest.approx(float(torch.cosine_similarity(*both, dim=0)), abs=1e-5)


def test_the_released_code_would_bargain_over_all_entries(lab: Callable[..., Lab]) -> None:
    one_step = (*SMALL, "method=munba", "method.epochs=1", "method.batch_size=2000")
    cosine = {
        (compat, mask): unlearned(lab(*one_step, f"method.compat={compat}", f"method.mask_share={mask}"))[1][0][
            "cosine"
        ]
        for compat in ("null", "released")
        for mask in ("null", 0.2)
    }
    assert cosine["null", "null"] == cosine["released", "null"] == cosine["released", 0.2] != cosine["null", 0.2]


def test_munbas_mask_and_the_layers_scope_compose(lab: Callable[..., Lab]) -> None:
    made = lab(*SMALL, "method=munba", "method.epochs=1", "method.mask_share=0.2", "layers=last")
    original, after = made.load(made.original()), made.load(made.unlearned())
    moved = {
        name: int((before != now).sum())
        for (name, before), now in zip(original.named_parameters(), after.parameters(), strict=True)
    }
    with scope(original, "last"):
        trained = {name: its.numel() for name, its in original.named_parameters() if its.requires_grad}
    assert 0 < len(trained) < len(moved)
    assert not any(count for name, count in moved.items() if name not in trained)
    assert sum(moved.values()) == round(0.2 * sum(trained.values()))


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


GAME = (*SMALL, "method=sg_unlearn", "method.epochs=1", "method.batch_size=256", "method.per_class=false")
RIDGE = (*GAME, "method.auditor=hinge_l2", "method.regularisation=0.1")
NEURAL = (*GAME, "method.auditor=neural", "method.regularisation=0.01", "method.network_steps=20")
UNROLLED = (*NEURAL, "method.network_gradient=unrolled")
OPTIONS = {
    GAME: ("auditor=hinge_l2 regularisation=0.1", "regularisation=0.001", "features=loss", "attack_batch=40"),
    RIDGE: (
        *(f"game={game}" for game in ("direct", "implicit", "constant", "random_direction", "passes", "none")),
        *(f"auditor={auditor}" for auditor in ("hinge_l1", "squared_hinge", "logistic", "neural")),
        "utility=auc",
        "utility=balanced_accuracy",
        "regularisation=0.2",
        "per_class=true",
        "optimiser=shared",
        "alpha=3",
        "attack_step=0.5",
        "folds=2",
        "fold_share=0.5",
    ),
    (*RIDGE, "method.attack_batch=40"): ("attack_every=pair",),
    NEURAL: (
        "network_width=8",
        "network_steps=60",
        "network_lr=0.01",
        "network_gradient=unrolled",
        "network_newton_steps=1",
        "network_cg_steps=2",
    ),
    UNROLLED: ("network_unrolled_steps=3",),
}


@pytest.mark.parametrize(
    ("base", "option"), [(base, option) for base, options in OPTIONS.items() for option in options]
)
def test_every_option_of_the_game_makes_another_model_than_its_default(
    lab: Callable[..., Lab], base: tuple[str, ...], option: str
) -> None:
    words = {word.split("=")[0]: word for word in (*base, *(f"method.{each}" for each in option.split()))}
    (plain, _), (model, history) = unlearned(lab(*base)), unlearned(lab(*words.values()))
    differing = {name for name, value in state_of(model).items() if value != state_of(plain)[name]}
    assert differing & {name for name, _ in model.named_parameters()}
    if option != "game=none":
        assert history[-1]["problems"] >= 1
        assert np.isfinite(history[-1]["utility"])


@pytest.mark.parametrize(
    ("game", "paths"),
    [
        ("full", (True, True)),
        ("random_direction", (True, True)),
        ("direct", (True, False)),
        ("implicit", (False, True)),
        ("constant", (False, False)),
    ],
)
def test_a_game_has_the_paths_of_its_name(lab: Callable[..., Lab], game: str, paths: tuple[bool, bool]) -> None:
    asked: set[tuple[bool, bool]] = set()

    def noted(*arguments: Any, direct: bool, implicit: bool, **others: Any) -> Any:
        asked.add((direct, implicit))
        return best_response_utility(*arguments, direct=direct, implicit=implicit, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearn.methods.sg_unlearn.best_response_utility", noted)
        unlearned(lab(*RIDGE, f"method.game={game}"))
    assert asked == {paths}


def test_a_constant_auditor_moves_by_decay_alone_and_passes_do_not_move(lab: Callable[..., Lab]) -> None:
    words = (*RIDGE, "method.momentum=0", "method.lr=0.02", "method.weight_decay=0.1", "method.attack_step=0.5")
    none, passes, constant = (
        list(unlearned(lab(*words, f"method.game={game}"))[0].parameters()) for game in ("none", "passes", "constant")
    )
    for fine_tuned, passed, decayed in zip(none, passes, constant, strict=True):
        assert torch.equal(passed, fine_tuned)
        torch.testing.assert_close(decayed, passed * (1 - 0.5 * 0.02 * 0.1), rtol=1e-6, atol=0)


def test_auditors_see_the_loss_behind_the_logits_or_alone(two: tuple[nn.Module, Batch, Batch]) -> None:
    model, batch, _ = two
    logits = model(batch.images)
    loss = nn.functional.cross_entropy(logits, batch.labels, reduction="none")[:, None]
    torch.testing.assert_close(outputs(model, batch, "loss"), loss)
    torch.testing.assert_close(outputs(model, batch, "logits_and_loss"), torch.cat([logits, loss], 1))


@pytest.mark.parametrize(
    ("compat", "augmented"), [("null", (True, True)), ("[Q6]", (False, False)), ("[Q6_svhn]", (True, False))]
)
def test_both_sides_of_a_pair_are_augmented_alike_but_by_a_quirk(
    lab: Callable[..., Lab], compat: str, augmented: tuple[bool, bool]
) -> None:
    made = lab(*RIDGE, "dataset.augment=[flip]", f"method.compat={compat}")
    sides: list[tuple[bool, bool]] = []

    def noted(forgotten: Images, unseen: Images, streams: Streams, size: int, *asked: bool) -> Batches:
        sources = [{its.numpy().tobytes() for its in as_model_input(part.pixels, cpu)} for part in (forgotten, unseen)]
        made_pairs = pairs(forgotten, unseen, streams, size, *asked)
        for pair in made_pairs(0):
            as_they_were = [
                all(image.contiguous().numpy().tobytes() in source for image in part.images)
                for part, source in zip(pair, sources, strict=True)
            ]
            sides.append((not as_they_were[0], not as_they_were[1]))
        return made_pairs

    cpu = torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearn.methods.sg_unlearn.pairs", noted)
        unlearned(made)
    assert set(sides) == {augmented}


@pytest.mark.parametrize("utility", ["hinge", "auc"])
def test_the_auditors_step_descends_on_its_utility_over_all_pairs(lab: Callable[..., Lab], utility: Utility) -> None:
    bare = ("method.momentum=0", "method.weight_decay=0", "method.attack_batch=50", "method.alpha=2")
    made = lab(*RIDGE, *bare, "method.attack_step=0.5", f"method.utility={utility}")
    (before, _), (after, history) = unlearned(lab(*RIDGE, *bare, "method.game=none")), unlearned(made)
    request, streams = made.request(0), Streams("test")
    forgotten, unseen = request.forget, of_classes(request.validation, request.forget)
    batches = list(pairs(forgotten, unseen, streams, 50, True, True)(0))
    counts = [len(part.labels) for part, _ in batches]
    assert len(set(counts)) > 1

    def mean_utility(model: nn.Module) -> torch.Tensor:
        total = torch.zeros(())
        for number, pair in enumerate(batches):
            rows = torch.cat([outputs(model, part, "logits_and_loss") for part in pair])
            labels = torch.cat([part.labels for part in pair])
            member = torch.where(torch.arange(len(rows)) < counts[number], 1.0, -1.0)
            seed = streams.seed("folds", 0, number) % 2**32
            for train, held in problems(labels, member, False, 3, 0.3, seed, by_membership=True):
                sides = [torch.isin(torch.arange(len(rows)), part)[None] for part in (train, held)]
                reached, _ = best_response_utility(
                    rows[None],
                    member[None],
                    *sides,
                    auditor="hinge_l2",
                    regularisation=0.1,
                    utility=utility,
                    direct=True,
                    implicit=True,
                    solver="closed",
                )
                total = total + reached.sum() * counts[number] / sum(counts) / (3 if utility == "auc" else len(rows))
        return total

    value = mean_utility(before.train())
    assert history[-1]["utility"] == pytest.approx(value.item(), rel=1e-4)
    rate = 0.5 * made.settings["method"]["lr"]
    for old, new, gradient in zip(before.parameters(), after.parameters(), gradients(before, 2 * value), strict=True):
        torch.testing.assert_close((old - new) / rate, gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()))
    assert mean_utility(after.train()) < value


def test_a_game_that_diverges_says_so(lab: Callable[..., Lab]) -> None:
    with pytest.raises(DivergedError, match="an auditor would see are not finite"):
        unlearned(lab(*RIDGE, "method.lr=1e30"))


@pytest.mark.parametrize("solver", ["cvxpylayers", "cvxpylayers_tight"])
def test_the_papers_solver_leads_next_to_where_the_closed_form_does(lab: Callable[..., Lab], solver: str) -> None:
    words = (*RIDGE, "method.folds=1", "method.attack_batch=60")
    (plain, _), (model, _) = unlearned(lab(*words)), unlearned(lab(*words, f"method.solver={solver}"))
    assert state_of(plain) != state_of(model)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("words", [("method.network_gradient=unrolled",), ("method.attack_every=pair",)])
def test_an_interrupted_game_against_a_network_goes_on_bit_for_bit(
    lab: Callable[..., Lab], tmp_path: Path, words: tuple[str, ...]
) -> None:
    made = lab(*NEURAL, "method.epochs=3", "method.attack_batch=40", *words)
    original, request = made.original(), made.request(0)
    whole = assert_an_interruption_leaves_no_trace(
        lambda: made.method(made.load(original), request, Streams("test")), tmp_path / "unfinished", 2
    )
    assert whole.history[-1]["utility"] != whole.history[0]["utility"]


def test_a_network_that_its_penalty_has_taken_away_is_counted(lab: Callable[..., Lab]) -> None:
    _, alive = unlearned(lab(*NEURAL))
    _, gone = unlearned(lab(*NEURAL, "method.regularisation=0.3"))
    assert alive[-1]["constant"] == 0
    assert gone[-1]["constant"] == gone[-1]["problems"] > 0


def test_adjoints_that_are_not_solved_reach_the_history(lab: Callable[..., Lab]) -> None:
    _, history = unlearned(lab(*NEURAL, "method.network_cg_steps=2"))
    assert history[-1]["adjoint_unsolved"] == history[-1]["problems"] > 0


def test_every_pairs_random_direction_is_its_own(lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def noted(parameters: list[nn.Parameter], at_random: bool, generator: torch.Generator) -> None:
        seeds.append(generator.initial_seed())
        fill(parameters, at_random, generator)

    monkeypatch.setattr("unlearn.methods.sg_unlearn.fill", noted)
    words = ("method.game=random_direction", "method.attack_every=pair", "method.attack_batch=40", "method.epochs=2")
    unlearned(lab(*RIDGE, *words))
    assert len(seeds) > 4
    assert len(set(seeds)) == len(seeds)


def test_the_auditors_passes_have_the_trainings_precision(lab: Callable[..., Lab]) -> None:
    made = lab(*RIDGE)
    model, seen = made.load(made.original()), []
    model.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with session(precision="bf16"):
        made.method(model, made.request(0), Streams("test"))
    assert len(seen) > 4
    assert all(seen)


@pytest.mark.parametrize("quirk", ["Q1", "Q3", "Q5", "Q6", "Q6_svhn"])
def test_each_quirk_of_the_released_code_changes_the_model(lab: Callable[..., Lab], quirk: str) -> None:
    words = (*SMALL, "dataset.augment=[flip]", "method=sg_unlearn", "method.epochs=2", "method.per_class=false")
    clean, _ = unlearned(lab(*words))
    quirky, _ = unlearned(lab(*words, f"method.compat=[{quirk}]"))
    assert state_of(clean) != state_of(quirky)
    by_name = {"Q3": "method.optimiser=shared", "Q6": "method.augmented=false"}
    if quirk in by_name:
        assert state_of(quirky) == state_of(unlearned(lab(*words, by_name[quirk]))[0])


def test_released_is_six_quirks_of_which_the_second_does_nothing(lab: Callable[..., Lab]) -> None:
    words = (*SMALL, "dataset.augment=[flip]", "method=sg_unlearn", "method.epochs=2", "method.per_class=false")
    plain, second, all_six, five = (
        state_of(unlearned(lab(*words, f"method.compat={quirks}"))[0])
        for quirks in ("null", "[Q2]", "released", "[Q1,Q3,Q4,Q5,Q6]")
    )
    assert plain == second
    assert all_six == five


def test_the_released_loop_fine_tunes_in_eval_mode_after_the_first_epoch(lab: Callable[..., Lab]) -> None:
    made = lab(*RIDGE, "method.epochs=2", "method.compat=[Q1]")
    model, modes = made.load(made.original()), []
    model.register_forward_hook(lambda its, *_: modes.append(its.training))
    made.method(model, made.request(0), Streams("test"))
    steps, passes = -(-len(made.request(0).retain) // 256), 2  # one pair an epoch
    assert modes == [True] * (steps + passes) + [False] * steps + [True] * passes


def test_without_a_weight_the_passes_remain_and_q4_drops_them(lab: Callable[..., Lab]) -> None:
    words = (*SMALL, "method=sg_unlearn", "method.epochs=1", "method.per_class=false")
    weightless, fine_tuned = (unlearned(lab(*words, *more))[0] for more in (["method.alpha=0"], ["method.game=none"]))
    assert state_of(weightless) == state_of(unlearned(lab(*words, "method.game=passes"))[0])
    assert state_of(weightless) != state_of(fine_tuned)
    assert state_of(unlearned(lab(*words, "method.alpha=0", "method.compat=[Q4]"))[0]) == state_of(fine_tuned)


def seen_by_auditors(made: Lab) -> tuple[Counter[int], Counter[int]]:
    """How many images of each class the game is given, the forgotten and the unseen ones."""
    given: list[Images] = []

    def noted(forgotten: Images, unseen: Images, *others: Any) -> Batches:
        given.extend((forgotten, unseen))
        return pairs(forgotten, unseen, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearn.methods.sg_unlearn.pairs", noted)
        unlearned(made)
    forgotten, unseen = (Counter(its.labels.tolist()) for its in given)
    return forgotten, unseen


def test_auditors_see_only_unseen_images_of_the_forgotten_classes(lab: Callable[..., Lab]) -> None:
    made = lab(*SMALL, "method=sg_unlearn", "method.epochs=1", "scenario=class_wise", "method.per_class=false")
    validation = made.data.validation
    unseen = int((validation.labels == 0).sum())
    assert 0 < unseen < len(validation)
    assert seen_by_auditors(made) == (Counter({0: len(made.forget)}), Counter({0: unseen}))
    _, history = unlearned(made)
    assert history[-1]["one_membership"] == 0
    made.data = replace(made.data, validation=validation[(validation.labels != 0).nonzero().flatten()])
    with pytest.raises(SettingError, match="unseen"):
        check_method(made)


def test_forgotten_images_of_a_class_without_unseen_ones_are_not_in_the_game(lab: Callable[..., Lab]) -> None:
    made = lab(*SMALL, "method=sg_unlearn", "method.epochs=1", "scenario=class_wise", "scenario.classes=[0,1]")
    validation = made.data.validation
    made.data = replace(made.data, validation=validation[(validation.labels != 1).nonzero().flatten()])
    forgotten, unseen = seen_by_auditors(made)
    assert forgotten.keys() == unseen.keys() == {0}


@pytest.mark.parametrize(
    "words",
    [
        ("method.attack_batch=1",),
        ("method.attack_batch=40", "method.fold_share=0.8"),
        ("scenario.fraction=null", "scenario.count=1"),
    ],
)
def test_a_game_without_a_row_for_its_auditors_is_refused(lab: Callable[..., Lab], words: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=r"method\.attack_batch=\d+: leaves no auditor any rows"):
        check_method(lab(*SMALL, "method=sg_unlearn", *words))
    check_method(lab(*SMALL, "method=sg_unlearn", *words, "method.game=passes"))
    check_method(lab(*SMALL, "method=sg_unlearn", *words, "method.alpha=0"))


def test_pairs_without_an_auditor_are_counted(lab: Callable[..., Lab]) -> None:
    made = lab(*GAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearn.methods.sg_unlearn.problems", lambda *_, **__: [])
        _, history = unlearned(made)
    assert history[-1]["no_problem"] == 1
    assert "problems" not in history[-1]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("method.auditor=logistic",), "regularisation"),
        (("method.auditor=neural", "method.regularisation=0.01", "method.solver=cvxpylayers"), "solver"),
    ],
)
def test_auditors_that_there_cannot_be_are_refused_before_anything_is_trained(
    lab: Callable[..., Lab], words: tuple[str, ...], key: str
) -> None:
    with pytest.raises(SettingError, match=rf"method\.{key}"):
        lab(*SMALL, "method=sg_unlearn", *words)


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


def test_the_released_folds_keep_the_shares_of_classes_and_not_those_of_memberships() -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor([60, 30, 30]))
    member = torch.where(torch.arange(120) % 2 == 0, 1.0, -1.0)
    found = problems(labels, member, False, 20, 0.3, 0, by_membership=False)
    assert [labels[held].bincount().tolist() for _, held in found] == [[18, 9, 9]] * 20
    assert len({int((member[held] > 0).sum()) for _, held in found}) > 1


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
