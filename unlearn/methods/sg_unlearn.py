"""SG-Unlearn: fine-tune on what stays, against an auditor that answers every move with its best attack.

    minimise CE(R) - alpha loss(w*(theta)), where w*(theta) is the auditor that tells F from V best

Di, Yu, Vorobeychik & Liu, "Adversarial Machine Unlearning" (ICLR 2025, arXiv:2406.07687); code marsplus/SG-Unlearn. A
Stackelberg game: the model descends on the retained images' cross-entropy and on `alpha` times the utility of an
auditor that tells forget images from unseen ones by the model's outputs; the utility is differentiated through the
auditor's optimum (`games/follower.py`). Unseen images are the validation part, of the classes that are forgotten.

The game may not be what does the work: the same epochs fine-tune the model and refresh its norm statistics. Hence the
controls, each a value of `game`: only the `direct` or the `implicit` path of the gradient; an auditor that is a
`constant`, so that its step is momentum and decay alone; a `random_direction` as long as the game's gradient; the
auditor's forward `passes` without any step; and `none`, which is fine-tuning. `sweep=sg_controls` runs them all.

Deviations from the released code, by the name of the quirk; `compat: [Q1, Q5]` brings these back, `compat: released`
all of them:
- Q1: it sets train mode once, and its evaluation after epoch 1 leaves eval mode, so that later epochs fine-tune with
  frozen norm statistics that only the auditor's passes refresh. Here every epoch trains in train mode.
- Q3: its auditor's step shares the momentum of the fine-tuning (`optimiser: shared`); here it has its own by default.
- Q4: `alpha: 0` also drops the auditor's forward passes (`game: none`); here it is `game: passes`.
- Q5: its folds are stratified by class alone, so that a fold may hold one membership only; here by membership too.
- Q6: its CIFAR script augments nothing (`augmented: false`). `Q6_svhn`, not among those of `released`: its SVHN script
  augments the forget images that the auditor sees and not the unseen ones, so that augmentation tells them apart.
Q2, a cosine schedule that is undone after every step, can be named and has no effect to bring back; Q7, a max-pool in
the stem, is the model's business. The released class-wise script has no game at all: every auditor there sees a single
membership. Clean whatever `compat` says, as these are no quirks by name: unseen images are of forgotten classes only,
forget images of a class without any are not in the game, and a stratum of one row is in no fold.

The curves show the mean utility over a step's pairs, how many pairs had no auditor (`no_problem`), and how many
problems of a step were out of the ordinary (`follower.Info`; the paper's `solver` counts the general ones alone). Below
some fifty forgotten images a class, auditors of one class are separable: use `per_class: false`, or the steps grow
without bound, and under `compat: released` the model diverges.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor, nn

from unlearn.batches import Batch, Batches, shuffled
from unlearn.data.images import Images
from unlearn.games.follower import Auditor, Solver, Utility, best_response_utility
from unlearn.games.neural_auditor import Network
from unlearn.loop import DivergedError, autocast, cross_entropy, descend, fit, train_mode
from unlearn.request import Request
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Positive, Probability, SettingError, Share
from unlearn.streams import Streams

NEEDS = frozenset({"retain", "forget", "validation"})

Pair = tuple[Batch, Batch]
"""Forget images and as many unseen ones."""
Released = Literal["Q1", "Q2", "Q3", "Q4", "Q5", "Q6"]
Quirk = Literal[Released, "Q6_svhn"]


def check(
    lab: Any,
    *,
    auditor: str,
    regularisation: float,
    solver: str,
    alpha: float,
    game: str,
    attack_batch: int,
    per_class: bool,
    folds: int,
    fold_share: float,
    compat: Any,
    **_: Any,
) -> None:
    """The auditor has an optimum, a solver, unseen images of the classes to forget, and rows to be fitted on."""
    if regularisation == 0 and auditor != "hinge_l1":
        raise SettingError("method.regularisation", regularisation, f"must be above 0 for auditor={auditor}")
    if auditor == "neural" and solver != "closed":
        raise SettingError("method.solver", solver, "must be closed for auditor=neural, which is no convex program")
    folded = partial(problems, per_class=per_class, folds=folds, share=fold_share, seed=0)
    for number in range(len(lab.requests)):
        both = sides(lab.request(number))
        if not len(both[1]):
            allowed = "leaves no unseen images of the classes to forget, which the auditor needs"
            raise SettingError("dataset.validation", lab.settings["dataset"].get("validation"), allowed)
        size = min(attack_batch, *map(len, both))
        drawn = (labels_of_a_pair(both, size, draw) for draw in range(5))
        played = alpha and game not in ("passes", "none")
        if played and not any(folded(*pair, by_membership="Q5" not in named(compat)) for pair in drawn):
            allowed = f"leaves no auditor any rows to be fitted and judged on, of {size} forgotten images and as many "
            allowed += f"unseen ones a pair, with method.fold_share={fold_share}"
            raise SettingError("method.attack_batch", attack_batch, allowed)


def sg_unlearn(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    epochs: Count,
    batch_size: Count,
    lr: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    augmented: bool,
    alpha: NotNegative,
    game: Literal["full", "direct", "implicit", "constant", "random_direction", "passes", "none"],
    attack_step: NotNegative,
    attack_batch: Count,
    attack_every: Literal["epoch", "pair"],
    optimiser: Literal["own", "shared"],
    features: Literal["logits_and_loss", "loss"],
    per_class: bool,
    folds: Count,
    fold_share: Share,
    auditor: Auditor,
    regularisation: NotNegative,
    utility: Utility,
    solver: Solver,
    network_width: Count,
    network_steps: Count,
    network_lr: Positive,
    network_gradient: Literal["implicit", "unrolled"],
    network_newton_steps: Count,
    network_cg_steps: Count,
    network_unrolled_steps: Count,
    compat: Literal["released"] | list[Quirk] | None,
) -> nn.Module:
    """Descend on cross-entropy over the retained images, and once an epoch, or for each pair, on the auditor's utility.

    A pair is `attack_batch` forget images and as many unseen ones; `attack_step` is the learning rate of its step as a
    multiple of `lr`; `folds` auditors, for each class if `per_class`, are fitted on all but a `fold_share` of its rows
    and judged on that, or on a row of each stratum (class and membership) where that is more. Raises `DivergedError`
    when what an auditor would see is not finite.
    """
    quirks = named(compat)
    augmented = augmented and "Q6" not in quirks
    forgotten, unseen = sides(request)
    smaller = min(len(forgotten), len(unseen))
    retain = shuffled(request.retain, batch_size, streams, augmented=augmented)
    if alpha == 0:
        game = "none" if "Q4" in quirks or game == "none" else "passes"
    audits = pairs(forgotten, unseen, streams, attack_batch, augmented, augmented and "Q6_svhn" not in quirks)
    if game == "none":
        audits = Batches(0, lambda epoch: iter(()))
    network = partial(
        Network,
        width=network_width,
        steps=network_steps,
        learning_rate=network_lr,
        gradient=network_gradient,
        newton_steps=network_newton_steps,
        cg_steps=network_cg_steps,
        unrolled_steps=network_unrolled_steps,
    )
    answers = partial(
        best_response_utility,
        auditor=auditor,
        regularisation=regularisation,
        utility=utility,
        direct=game in ("full", "direct", "random_direction"),
        implicit=game in ("full", "implicit", "random_direction"),
        solver=solver,
    )
    place = {"epoch": 0, "pair": 0}  # where the game is: what is drawn for a pair depends on nothing else

    def rounds(epoch: int) -> Iterator[Any]:
        place.update(epoch=epoch, pair=0)
        yield from retain(epoch)
        each = list(audits(epoch)) if attack_every == "epoch" else [(pair,) for pair in audits(epoch)]
        yield from [tuple(each)] if attack_every == "epoch" and each else each

    def losses(model: nn.Module, batch: Any) -> Any:
        # Q1: from the second epoch on the released loop fine-tunes in eval mode, and scores in train mode.
        if "Q1" in quirks:
            train_mode(model)
        if isinstance(batch, Batch):
            if "Q1" in quirks and place["epoch"]:
                model.eval()
            return cross_entropy(model, batch)
        return scored(model, batch)

    def scored(model: nn.Module, batch: tuple[Pair, ...]) -> Iterator[tuple[Tensor, float, Mapping[str, int]]]:
        """One pair's loss at a time, so that only one graph is held, its share of the mean utility, and counts.

        The counts may still grow in the backward pass.
        """
        images = sum(len(forget.labels) for forget, _ in batch)
        for forget, other in batch:
            here = (place["epoch"], place["pair"])
            place["pair"] += 1
            rows = torch.cat([outputs(model, part, features) for part in (forget, other)])
            if not rows.isfinite().all():
                raise DivergedError(f"{current().label}: the outputs that an auditor would see are not finite")
            labels = torch.cat([forget.labels, other.labels])
            member = torch.cat([torch.ones(len(forget.labels)), -torch.ones(len(other.labels))]).to(rows)
            seed = streams.seed("folds", *here) % 2**32
            chosen = problems(labels, member, per_class, folds, fold_share, seed, by_membership="Q5" not in quirks)
            ours = network(generator=streams("auditor", *here)) if auditor == "neural" else None
            reached, counts = judged(rows, member, chosen, partial(answers, network=ours), mean=utility != "hinge")
            count = len(forget.labels)
            yield alpha * reached * (count / smaller), reached.item() * (count / images), counts

    def backward(loss: Any, parameters: list[nn.Parameter]) -> tuple[Tensor, Mapping[str, float]]:
        if isinstance(loss, Tensor):
            return descend(loss, parameters)
        total, numbers = torch.zeros(()), defaultdict[str, float](float)
        for value, reached, counts in loss:
            if value.requires_grad and game != "passes":
                value.backward()
            total = total + value.detach().cpu()
            numbers["utility"] += reached
            for name, count in counts.items():
                numbers[name] += count
        if game != "passes":
            here = [place["epoch"]] if attack_every == "epoch" else [place["epoch"], place["pair"]]
            fill(parameters, game == "random_direction", streams("direction", *here))
        return total, dict(numbers)

    audit_steps = audits.steps if attack_every == "pair" else min(1, audits.steps)

    def schedule(step: int, per_epoch: int, epochs: int) -> float:
        return attack_step if step % per_epoch >= retain.steps else 1.0

    return fit(
        model,
        Batches(retain.steps + audit_steps, rounds),
        losses,
        streams,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        backward=backward,
        second=None if "Q3" in quirks or optimiser == "shared" else (lambda batch: not isinstance(batch, Batch)),
    )


def named(compat: Literal["released"] | list[Quirk] | None) -> set[str]:
    """The quirks that `compat` brings back."""
    return set(get_args(Released) if compat == "released" else compat or [])


def sides(request: Request) -> tuple[Images, Images]:
    """Forget images and unseen ones, of the same classes both, or an auditor could tell them apart by class."""
    return of_classes(request.forget, request.validation), of_classes(request.validation, request.forget)


def of_classes(images: Images, others: Images) -> Images:
    """Those of `images` whose class is among that of `others`."""
    return images[torch.isin(images.labels, others.labels).nonzero().flatten()]


def pairs(
    forgotten: Images, unseen: Images, streams: Streams, size: int, augmented: bool, unseen_augmented: bool
) -> Batches:
    """Forget batches beside unseen ones of the same size, each set shuffled, until the smaller is through."""
    size = min(size, len(forgotten), len(unseen))
    forget = shuffled(forgotten, size, streams.child("forget"), augmented=augmented)
    # Unseen images are augmented as forgotten ones are, or the augmentation would tell them apart.
    other = shuffled(
        replace(unseen, augment=forgotten.augment), size, streams.child("unseen"), augmented=unseen_augmented
    )

    def epoch(number: int) -> Iterator[Pair]:
        for first, second in zip(forget(number), other(number), strict=False):
            count = min(len(first.labels), len(second.labels))
            yield Batch(first.images[:count], first.labels[:count]), Batch(second.images[:count], second.labels[:count])

    return Batches(min(forget.steps, other.steps), epoch)


def labels_of_a_pair(both: tuple[Images, Images], size: int, seed: int) -> tuple[Tensor, Tensor]:
    """The labels and memberships of a pair drawn at random, in the order of `rows` in the game."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [its.labels[torch.randperm(len(its), generator=generator)[:size]] for its in both]
    return torch.cat(chosen), torch.tensor([1.0, -1.0]).repeat_interleave(size)


def outputs(model: nn.Module, batch: Batch, features: str) -> Tensor:
    """What the auditor sees of each image, B x d: its cross-entropy, behind the raw logits or alone."""
    with autocast(model):
        logits = model(batch.images).float()
    loss = nn.functional.cross_entropy(logits, batch.labels, reduction="none")[:, None]
    return loss if features == "loss" else torch.cat([logits, loss], dim=1)


def problems(
    labels: Tensor, member: Tensor, per_class: bool, folds: int, share: float, seed: int, *, by_membership: bool
) -> list[tuple[Tensor, Tensor]]:
    """(training rows, validation rows) of every auditor: each fold, and in it each class or all rows together.

    Folds are stratified by class, and by membership too if asked; rows of a stratum of one are left out.
    """
    strata = labels.cpu() * 2 + (member.cpu() > 0) if by_membership else labels.cpu()
    _, which, sizes = strata.unique(return_inverse=True, return_counts=True)
    rows = (sizes[which] >= 2).nonzero().flatten()
    groups = [labels.cpu() == label for label in labels.unique().cpu()] if per_class else [torch.ones(len(labels)) > 0]
    strata_count = int((sizes >= 2).sum())
    test = max(strata_count, round(share * len(rows)))
    if len(rows) - test < strata_count or not strata_count:
        return []
    split = StratifiedShuffleSplit(n_splits=folds, test_size=test, random_state=seed)
    found = []
    for kept, held in split.split(np.zeros(len(rows)), strata[rows].numpy()):
        for group in groups:
            train, validation = (
                part[group[part]] for part in (rows[torch.as_tensor(kept)], rows[torch.as_tensor(held)])
            )
            if len(train) and len(validation):
                found.append((train, validation))
    return found


def judged(
    rows: Tensor, member: Tensor, chosen: list[tuple[Tensor, Tensor]], answers: Any, *, mean: bool
) -> tuple[Tensor, Mapping[str, int]]:
    """The pair's utility: hinge sums over all problems by the number of rows, other utilities' mean; and the counts.

    Of these some are complete after the backward pass only (`follower.Info`).
    """
    if not chosen:
        return rows.sum() * 0, {"no_problem": 1}
    longest = max(len(train) + len(validation) for train, validation in chosen)
    index = torch.zeros(len(chosen), longest, dtype=torch.int64)
    train_mask, held_mask = torch.zeros(2, len(chosen), longest, dtype=torch.bool)
    for number, (train, validation) in enumerate(chosen):
        both = torch.cat([train, validation])
        index[number, : len(both)] = both
        train_mask[number, : len(train)] = True
        held_mask[number, len(train) : len(both)] = True
    index = index.to(rows.device)
    reached, info = answers(rows[index], member[index], train_mask.to(rows.device), held_mask.to(rows.device))
    scale = 1 / len(chosen) if mean else 1 / len(rows)
    return reached.sum() * scale, info.outcomes


def fill(parameters: list[nn.Parameter], at_random: bool, generator: torch.Generator) -> None:
    """Give every parameter a gradient, zero where the game has none; or a random one, as long altogether."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if at_random:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        drawn = [torch.randn(gradient.shape, generator=generator).to(gradient) for gradient in gradients]
        scale = length / torch.stack([direction.norm() for direction in drawn]).norm()
        for gradient, direction in zip(gradients, drawn, strict=True):
            gradient.copy_(direction * scale)
