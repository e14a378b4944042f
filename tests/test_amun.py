"""AMUN: the training set is put together as each option says, and what is learned from it."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from laws import state_of, yaml_of
from scipy.stats import chisquare
from torch import Tensor, nn

from unlearn.attacks import Adversarial, Norm, nearest
from unlearn.batches import Batch, Batches, shuffled
from unlearn.data.images import Images, as_model_input
from unlearn.lab import Lab
from unlearn.loop import cross_entropy
from unlearn.masks import salient
from unlearn.methods import amun as module
from unlearn.methods.amun import aside, mixed, third_label
from unlearn.request import Request
from unlearn.session import session
from unlearn.settings import SettingError, build
from unlearn.signals import Signals, logits
from unlearn.store import Stored
from unlearn.streams import Streams

CPU = torch.device("cpu")
Visit = tuple[bytes, int]


@dataclass(frozen=True)
class Problem:
    """A trained original, a request with images that the original gets wrong, and the forget set's neighbours."""

    lab: Lab
    request: Request
    found: Adversarial

    def original(self) -> nn.Module:
        return self.lab.load(self.lab.original())


@pytest.fixture(scope="module")
def problem(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    lab = Lab(composing(tmp_path_factory.mktemp("amun"), ["train.epochs=10"]).settings)
    train = lab.data.train
    forget = train[torch.arange(60)]
    model = lab.load(lab.original())
    request = replace(
        lab.request(0),
        forget=forget,
        retain=train[torch.arange(60, 317)],
        neighbours=lambda of, searched, norm, eps, steps: nearest(model, forget, norm=norm, eps_init=eps, steps=steps),
    )
    return Problem(lab, request, request.neighbours("original", "forget", "l2", 0.04, 50))


def unlearn(problem: Problem, request: Request | None = None, seed: int = 0, **changes: Any) -> nn.Module:
    method = build(yaml_of("method", "amun") | {"epochs": 2, "batch_size": 32} | changes, "method")
    result: nn.Module = method(problem.original(), request or problem.request, Streams("law", seed))
    return result


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`handed(problem, found=None, ...)`: what the method gives to the loop, with a search that is already done."""

    def handed(problem: Problem, found: Adversarial | None = None, **changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def fit(model: nn.Module, batches: Batches, loss: Any, streams: Streams, **settings: Any) -> nn.Module:
            given.update(settings, batches=batches, loss=loss)
            return model

        with monkeypatch.context() as patch:
            patch.setattr(module, "fit", fit)
            searched = replace(problem.request, neighbours=lambda *_: found or problem.found)
            unlearn(problem, searched, **changes)
        return given

    return handed


def visits(images: Tensor, labels: Tensor) -> Counter[Visit]:
    """How often each image occurs under each label; images differ if a single bit does."""
    keys = [image.contiguous().numpy().tobytes() for image in images]
    return Counter(zip(keys, labels.tolist(), strict=True))


def of(images: Images) -> Counter[Visit]:
    return visits(as_model_input(images.pixels, CPU), images.labels)


def epoch_of(batches: Batches, epoch: int = 0) -> Batch:
    parts = list(batches(epoch))
    assert len(parts) == batches.steps
    return Batch(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


# The set


@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize("retain", [True, False])
def test_set_is_what_was_asked_for_and_each_neighbour_once(
    retain: bool, forget: bool, problem: Problem, handed: Callable[..., dict[str, Any]]
) -> None:
    expected = visits(problem.found.images, problem.found.labels)
    expected += of(problem.request.retain) if retain else Counter()
    expected += of(problem.request.forget) if forget else Counter()  # under its true labels
    given = handed(problem, retain=retain, forget=forget)
    assert given["loss"] is cross_entropy
    for number in range(2):
        seen = epoch_of(given["batches"], number)
        assert visits(*seen) == expected
        assert len(seen.labels) == 60 + 257 * retain + 60 * forget
    batch = next(given["batches"](0))
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    orders = [[label for part in given["batches"](number) for label in part.labels.tolist()] for number in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_neighbours_are_not_rounded_to_pixels(problem: Problem, handed: Callable[..., dict[str, Any]]) -> None:
    moved = problem.found.norms > 0
    levels = problem.found.images[moved] * 255
    assert ((levels - levels.round()).abs() > 1e-3).flatten(1).any(1).all()
    seen = visits(*epoch_of(handed(problem, retain=False, forget=False)["batches"]))
    assert seen == visits(problem.found.images, problem.found.labels)


def test_images_of_the_set_are_mixed_within_a_batch(problem: Problem, handed: Callable[..., dict[str, Any]]) -> None:
    neighbours = visits(problem.found.images, problem.found.labels)
    shares = [
        sum((visits(*batch) & neighbours).values()) / len(batch.labels) for batch in handed(problem)["batches"](0)
    ]
    assert min(shares) > 0
    assert max(shares) < 0.5


# The controls


@pytest.mark.parametrize("control", ["clean_adversarial_label", "second_copy"])
def test_controls_without_chance(control: str, problem: Problem, handed: Callable[..., dict[str, Any]]) -> None:
    forget, found = problem.request.forget, problem.found
    labels = forget.labels if control == "second_copy" else found.labels
    seen = epoch_of(handed(problem, retain=False, forget=True, control=control)["batches"])
    assert visits(*seen) == of(forget) + of(forget.relabelled(labels))


@pytest.mark.parametrize("control", ["random_label", "adversarial_random_label"])
def test_controls_with_a_third_label(control: str, problem: Problem, handed: Callable[..., dict[str, Any]]) -> None:
    forget, found = problem.request.forget, problem.found
    start = as_model_input(forget.pixels, CPU) if control == "random_label" else found.images
    both = {
        image.contiguous().numpy().tobytes(): {int(true), int(wrong)}
        for image, true, wrong in zip(start, forget.labels, found.labels, strict=True)
    }
    batches = handed(problem, retain=False, forget=False, control=control)["batches"]
    epochs = [visits(*epoch_of(batches, number)) for number in (0, 1, 0)]
    for seen in epochs:
        assert sorted(image for image, _ in seen.elements()) == sorted(both)
        assert not [image for image, label in seen if label in both[image]]
    assert epochs[0] == epochs[2] != epochs[1]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_directions_have_the_neighbours_lengths_and_labels(
    norm: Norm, problem: Problem, handed: Callable[..., dict[str, Any]]
) -> None:
    settings = {"retain": False, "forget": False, "norm": norm, "batch_size": 100}
    found = nearest(problem.original(), problem.request.forget, norm=norm, eps_init=0.01, steps=50)
    batches = handed(problem, found, control="random_direction", **settings)["batches"]
    start, seen = as_model_input(problem.request.forget.pixels, CPU), [epoch_of(batches, n) for n in (0, 1, 0)]
    order = torch.randperm(60, generator=Streams("law", 0)("order", 0))
    assert torch.equal(seen[0].labels, found.labels[order])
    change = (seen[0].images - start[order]).flatten(1)
    lengths = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
    torch.testing.assert_close(lengths, found.norms[order], rtol=1e-4, atol=1e-6)
    along = nn.functional.cosine_similarity(change, (found.images - start)[order].flatten(1))
    assert along.abs().median() < 0.6  # above 0: at the border of the range there is one way to go
    assert 0 <= seen[0].images.min() < seen[0].images.max() <= 1
    assert torch.equal(seen[0].images, seen[2].images)
    assert visits(*seen[0]) != visits(*seen[1])


def test_moving_aside_keeps_the_length_at_the_border_of_the_range() -> None:
    start = torch.tensor([0.0, 1.0, 0.5, 0.02]).repeat_interleave(16).view(4, 1, 4, 4)
    lengths = torch.tensor([0.3, 0.9, 0.6, 0.0])
    moved = aside(start, lengths, "l2", Streams("aside")("draw"))
    torch.testing.assert_close((moved - start).flatten(1).norm(dim=1), lengths, rtol=1e-5, atol=1e-6)
    assert 0 <= moved.min() <= moved.max() <= 1
    wide = aside(start, torch.full((4,), 9.0), "l2", Streams("aside")("draw"))
    assert 0 <= wide.min() <= wide.max() <= 1


def test_third_labels_are_uniform_over_the_rest() -> None:
    for true, wrong in ((0, 9), (9, 0), (4, 5), (7, 2)):
        one, two = (torch.full((8000,), label) for label in (true, wrong))
        counts = np.bincount(third_label(one, two, 10, Streams("third")("labels", true)), minlength=10)
        assert counts[true] == counts[wrong] == 0
        assert chisquare(np.delete(counts, [true, wrong])).pvalue > 1e-4
    assert third_label(torch.tensor([0, 2]), torch.tensor([1, 0]), 3, Streams("third")("labels")).tolist() == [2, 1]


def test_third_label_needs_a_third_class(problem: Problem) -> None:
    binary = replace(problem.request, class_count=2)
    for control in ("random_label", "adversarial_random_label"):
        with pytest.raises(SettingError, match=rf"^method\.control={control}: needs a third class"):
            unlearn(problem, binary, control=control)


def test_unknown_controls_are_refused(problem: Problem) -> None:
    with pytest.raises(SettingError, match=r"^method\.control=any"):
        unlearn(problem, control="any")


# Batches of both kinds


def some(images: Images, count: int) -> Batch:
    generator = Streams("some")("pixels")
    shape = (count, *images.pixels.shape[1:])
    ready = torch.rand(shape, generator=generator).permute(0, 3, 1, 2)
    return Batch(ready, torch.arange(count) % 10)


@pytest.mark.parametrize("count", [97, 96, 1])
def test_mixed_with_nothing_is_shuffled(count: int, problem: Problem) -> None:
    images = replace(problem.request.retain[torch.arange(count)], augment=("crop", "flip"))
    both, plain = mixed(images, some(images, 0), 32, Streams("law")), shuffled(images, 32, Streams("law"))
    assert both.steps == plain.steps
    for epoch in range(2):
        for one, two in zip(both(epoch), plain(epoch), strict=True):
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.labels, two.labels)
            assert one.images.stride() == two.images.stride()


def test_nothing_mixed_with_something_is_that(problem: Problem) -> None:
    nothing = replace(problem.request.retain[torch.arange(0)], augment=("crop", "flip"))
    ready = some(nothing, 33)
    batches = mixed(nothing, ready, 16, Streams("law"))
    assert [len(batch.labels) for batch in batches(0)] == [16, 17]  # never a batch of one
    assert visits(*epoch_of(batches)) == visits(*ready)


@pytest.mark.parametrize("ready_augmented", [True, False])
def test_pixels_are_augmented_and_ready_images_when_asked(ready_augmented: bool, problem: Problem) -> None:
    images = replace(problem.request.retain[torch.arange(64)], augment=("flip",))
    ready = some(images, 64)
    first, second = as_model_input(images.pixels, CPU), ready.images
    batches = mixed(images, ready, 32, Streams("law"), ready_augmented=ready_augmented)
    for number in range(2):
        seen = {image for image, _ in visits(*epoch_of(batches, number))}
        for part, flips in ((first, True), (second, ready_augmented)):
            straight, mirrored = (
                sum(image.contiguous().numpy().tobytes() in seen for image in its) for its in (part, part.flip(3))
            )
            assert straight + mirrored >= 64  # a digit may be its own mirror image
            assert (straight < 60) == (mirrored > 10) == flips


@pytest.mark.parametrize("asked", [True, False])
def test_neighbours_are_augmented_when_asked(
    asked: bool, problem: Problem, handed: Callable[..., dict[str, Any]]
) -> None:
    flipping = replace(problem.request.forget, augment=("flip",))
    its = replace(problem, request=replace(problem.request, forget=flipping))
    seen = epoch_of(handed(its, retain=False, forget=False, adversarial_augmented=asked)["batches"])
    assert (visits(*seen) == visits(problem.found.images, problem.found.labels)) is not asked


# What is learned


def test_rate_falls_as_torchs_step_schedule(problem: Problem, handed: Callable[..., dict[str, Any]]) -> None:
    for lr_step, gamma in ((1, 0.1), (3, 0.5), (100, 0.1)):
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = torch.optim.lr_scheduler.StepLR(optimiser, lr_step, gamma)
        schedule = handed(problem, epochs=7, lr_step=lr_step, gamma=gamma)["schedule"]
        for epoch in range(7):
            assert schedule(epoch * 5 + 4, 5, 7) == pytest.approx(theirs.get_last_lr()[0])
            optimiser.step()
            theirs.step()


def test_search_is_counted_and_told(problem: Problem) -> None:
    with session() as its:
        unlearn(problem)
    assert its.sample_gradients == int(problem.found.steps.sum()) + 2 * (257 + 60 + 60)
    line, *epochs = its.history
    assert (line["adversarial"], line["adversarial_failures"]) == (60, 0)
    assert line["adversarial_norm"] == pytest.approx(float(problem.found.norms.mean()))
    assert len(epochs) == 2


def test_images_without_a_neighbour_stay_out_and_are_told(
    problem: Problem, capsys: pytest.CaptureFixture[str], handed: Callable[..., dict[str, Any]]
) -> None:
    stuck = torch.zeros(60, dtype=torch.bool)
    stuck[[3, 17]] = True
    found = replace(problem.found, found=~stuck)
    for control, count in (("none", 58), ("random_direction", 58), ("random_label", 58), ("second_copy", 60)):
        with session() as its:
            batches = handed(problem, found, retain=False, forget=False, control=control)["batches"]
        seen = visits(*epoch_of(batches))
        assert sum(seen.values()) == count
        told = "2 of 60 images have no adversarial neighbour" in capsys.readouterr().err
        assert told == (control != "second_copy")
        if control == "none":
            assert seen == visits(problem.found.images[~stuck], problem.found.labels[~stuck])
            assert its.history[0]["adversarial_failures"] == 2
    with pytest.raises(SettingError, match="no adversarial neighbour of any of the 60 forgotten images"):
        handed(problem, replace(problem.found, found=torch.zeros(60, dtype=torch.bool)))


def signals(model: nn.Module, images: Images) -> Signals:
    return Signals(logits(model, images), images.labels.numpy())


@pytest.fixture(scope="module")
def learned(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A tenth of the training set, and an original that knows all of it by heart."""
    lab = Lab(composing(tmp_path_factory.mktemp("learned"), ["train.epochs=30"]).settings)
    request, model = lab.request(0), lab.load(lab.original())
    assert signals(model, request.forget).confidence.mean() > 0.95
    return Problem(lab, request, nearest(model, request.forget, norm="l2", eps_init=0.04, steps=50))


@pytest.mark.parametrize("retain", [True, False])
def test_confidence_falls_on_what_goes_more_than_on_what_stays(retain: bool, learned: Problem) -> None:
    lr, epochs = (0.05, 3) if retain else (0.003, 5)
    models = learned.original(), unlearn(learned, retain=retain, epochs=epochs, lr=lr, lr_step=10, batch_size=128)
    forget, kept, test = (
        [signals(model, images).confidence.mean() for model in models]
        for images in (learned.request.forget, learned.request.retain, learned.lab.data.test)
    )
    assert forget[1] < forget[0] - 0.03
    assert kept[1] - kept[0] > forget[1] - forget[0]
    assert kept[1] > kept[0] - (0.03 if retain else 0.1)
    assert test[1] > test[0] - (0.06 if retain else 0.1)
    with torch.no_grad():  # the neighbours are learned
        losses = [nn.functional.cross_entropy(its(learned.found.images), learned.found.labels) for its in models]
    assert losses[1] < losses[0]


def test_alone_the_neighbours_do_less_harm_than_any_other_wrong_labels(learned: Problem) -> None:
    # Fig. 1 of the paper, the panel without D_R and D_F
    request = replace(learned.request, neighbours=lambda *_: learned.found)
    settings: dict[str, Any] = {"retain": False, "forget": False, "epochs": 3, "lr_step": 10, "batch_size": 128}

    def accuracy(control: str) -> float:
        return signals(unlearn(learned, request, control=control, **settings), learned.lab.data.test).accuracy

    ours, copy = accuracy("none"), accuracy("second_copy")
    wrong = ("random_direction", "random_label", "adversarial_random_label", "clean_adversarial_label")
    assert ours > max(accuracy(control) for control in wrong) + 0.03
    assert copy > signals(learned.original(), learned.lab.data.test).accuracy - 0.02


def test_it_runs_in_the_lab_with_everything_switched(lab: Callable[..., Lab]) -> None:
    words = ["method=amun", "method.epochs=1", "train.epochs=2", "method.retain=false", "method.forget=false"]
    words += ["method.norm=linf", "method.eps_init=0.01", "method.adversarial_augmented=true", "dataset.augment=[flip]"]
    here = lab(*words, "method.control=adversarial_random_label")
    kept = here.unlearned()
    assert kept.json("cost.json")["sample_gradients"] > 0
    assert kept.json("history.json")[0]["adversarial"] > 0


# The searches that the lab keeps


FAST = ["method=amun", "method.epochs=1", "train.epochs=2", "method.steps=10"]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each search went over, in the order of the searches."""
    counts: list[int] = []

    def counting(model: nn.Module, images: Images, **settings: Any) -> Adversarial:
        counts.append(len(images))
        return nearest(model, images, **settings)

    monkeypatch.setattr("unlearn.attacks.nearest", counting)
    return counts


def test_search_is_made_once_for_all_settings_that_share_a_forget_set(
    lab: Callable[..., Lab], searches: list[int]
) -> None:
    first, second = (lab(*FAST, f"method.lr={lr}", f"method.retain={lr == 0.1}") for lr in (0.1, 0.01))
    costs = [its.unlearned().json("cost.json") for its in (first, second)]
    assert searches == [130]
    assert first.unlearned().key != second.unlearned().key
    # Whoever finds it done is charged for it too
    (kept,) = (first.store.root / "adversarial").glob("*/cost.json")
    search = json.loads(kept.read_text())
    assert search["sample_gradients"] > 130
    with np.load(kept.with_name("adversarial.npz")) as arrays:
        found = int(arrays["found"].sum())
    for cost, trained in zip(costs, (len(first.data.train) + found, 130 + found), strict=True):
        assert cost["sample_gradients"] == search["sample_gradients"] + trained
        assert cost["seconds"] > search["seconds"] > 0
    lab(*FAST, "split=1").unlearned()
    lab(*FAST, "seed=1").unlearned()
    assert searches == [130, 130, 130]


def test_search_around_the_whole_training_set_serves_every_split(lab: Callable[..., Lab], searches: list[int]) -> None:
    for split in range(2):
        here = lab(*FAST, "method.searched=train", f"split={split}")
        here.unlearned()
        assert searches == [len(here.data.train)]
        found = here.request(0).neighbours("original", "train", "l2", 0.04, 10)
        alone = nearest(here.load(here.original()), here.data.train[here.forget], norm="l2", eps_init=0.04, steps=10)
        assert torch.equal(found.labels, alone.labels)
        assert torch.equal(found.eps, alone.eps)
        assert torch.allclose(found.images, alone.images, atol=1e-5)
    (kept,) = (here.store.root / "adversarial").glob("*/adversarial.npz")
    with np.load(kept) as arrays:  # what pictures are made of
        assert {"labels", "norms", "eps", "steps", "found"} <= set(arrays.files)
        assert arrays["norms"].shape == (len(here.data.train),)


def test_interrupted_search_goes_on_where_it_was(
    lab: Callable[..., Lab], searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlearn.attacks.PART", 50)
    shown: list[int] = []
    here = lab(*FAST, show=lambda label, line, parts: shown.append(line["epoch"]) if label[:3] == "adv" else None)
    model = here.original()
    with monkeypatch.context() as patch:
        patch.setattr("unlearn.attacks.nearest", lambda *_, **__: raised(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            here.unlearned()
    counting, calls = nearest, iter([None, KeyboardInterrupt()])

    def interrupted(*arguments: Any, **settings: Any) -> Adversarial:
        error = next(calls)
        return raised(error) if error else counting(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("unlearn.attacks.nearest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            here.unlearned()
    found = here.adversarial(model, here.forget, "l2", 0.04, 10)
    assert searches == [50, 30]  # the first fifty were done
    assert shown == [1, 1, 2, 3]  # and are shown again
    whole = nearest(here.load(model), here.data.train[here.forget], norm="l2", eps_init=0.04, steps=10)
    assert torch.equal(found.labels, whole.labels)
    assert torch.allclose(found.images, whole.images, atol=1e-5)
    assert int(found.steps.sum()) == int(whole.steps.sum())


def raised(error: BaseException) -> Any:
    raise error


def test_later_requests_use_the_original_or_the_model_as_it_is(lab: Callable[..., Lab], searches: list[int]) -> None:
    models = {}
    for of in ("original", "current"):
        here = lab(*FAST, "requests=2", f"method.neighbours_of={of}", "method.lr=0.1")
        models[of] = [state_of(here.load(here.unlearned(request=number))) for number in range(2)]
    assert models["original"][0] == models["current"][0]  # nothing was forgotten yet
    assert models["original"][1] != models["current"][1]
    assert searches == [65, 65, 65]  # the second request's once on each model
    found = here.request(1).neighbours("current", "forget", "l2", 0.04, 10)
    scores = logits_of(here.load(here.unlearned(request=0)), found.images)
    assert torch.equal(scores.argmax(1), found.labels)


def test_a_repeat_is_searched_on_the_model_that_it_starts_from(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, models = lab(*FAST, "requests=2", "method.neighbours_of=current", "method.lr=0.1"), []
    search = here.adversarial

    def noted(stored: Stored, *arguments: Any) -> Adversarial:
        models.append(stored.key)
        return search(stored, *arguments)

    monkeypatch.setattr(here, "adversarial", noted)
    here.unlearned(request=1, repeat=1)
    first = here.unlearned(request=0, repeat=1)
    assert first.key != here.unlearned(request=0).key
    assert models[:2] == [here.original().key, first.key]


def test_what_was_found_lies_beside_the_model_for_pictures(lab: Callable[..., Lab]) -> None:
    for searched in ("forget", "train"):
        here = lab(*FAST, f"method.searched={searched}")
        folder = here.unlearned().folder
        found = here.request(0).neighbours("original", searched, "l2", 0.04, 10)
        for name in ("labels", "norms", "found"):
            np.testing.assert_array_equal(np.load(folder / f"neighbours_{name}.npy"), getattr(found, name).numpy())
        assert len(found) == len(here.forget)
        assert found.norms[found.found].max() > 0


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    scores: Tensor = model(images)
    return scores


def test_mask_lets_only_salient_entries_move(problem: Problem) -> None:
    before = problem.original()
    chosen = salient(before, problem.request.forget, 0.3)
    after = dict(unlearn(problem, mask_share=0.3).named_parameters())
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter[~chosen[name]], after[name][~chosen[name]]), name
    moved = sum(int((parameter != after[name]).sum()) for name, parameter in before.named_parameters())
    assert moved > 0.9 * sum(int(part.sum()) for part in chosen.values())


# What `compat: released` brings back


def test_the_released_mask_lets_weight_decay_by(problem: Problem) -> None:
    before = problem.original()
    chosen = salient(before, problem.request.forget, 0.3)
    settings = {"mask_share": 0.3, "momentum": 0.0, "weight_decay": 0.1, "lr": 0.01, "gamma": 0.1}
    after = dict(unlearn(problem, compat="released", **settings).named_parameters())
    steps = 377 // 32 + 1
    for name, parameter in before.named_parameters():
        left = parameter[~chosen[name]]
        shrunk = left * (1 - 1e-3) ** steps * (1 - 1e-4) ** steps
        torch.testing.assert_close(after[name][~chosen[name]], shrunk, rtol=1e-5, atol=0)
        assert not chosen[name].any() or not torch.equal(after[name][chosen[name]], parameter[chosen[name]]), name


def test_released_random_directions_are_clamped(problem: Problem, handed: Callable[..., dict[str, Any]]) -> None:
    settings = {"retain": False, "forget": False, "control": "random_direction", "batch_size": 100}
    clean, released = (
        epoch_of(handed(problem, compat=compat, **settings)["batches"]).images for compat in (None, "released")
    )
    order = torch.randperm(60, generator=Streams("law", 0)("order", 0))
    start = as_model_input(problem.request.forget.pixels, CPU)[order]
    stopped, same = (released == 0) | (released == 1), released == clean
    assert (same | stopped).all()  # the same direction, up to the border
    assert ((released - start) * (clean - start))[~same].max() <= 0  # which ours turns away from
    assert 0 < (~same).float().mean() < 1


def test_beside_a_second_copy_the_released_code_augments_nothing(
    problem: Problem, handed: Callable[..., dict[str, Any]]
) -> None:
    flipped = replace(problem.request, retain=replace(problem.request.retain, augment=("flip",)))
    flipped = replace(flipped, forget=replace(flipped.forget, augment=("flip",)))
    both = of(flipped.retain) + of(flipped.forget) + of(flipped.forget)
    for compat, control, plain in [
        ("released", "second_copy", True),
        (None, "second_copy", False),
        ("released", "clean_adversarial_label", False),
    ]:
        batches = handed(replace(problem, request=flipped), compat=compat, control=control)["batches"]
        seen = Counter(image for image, _ in visits(*epoch_of(batches)).elements())
        assert (seen == Counter(image for image, _ in both.elements())) is plain


def test_amun_starts_from_a_model_of_bounded_spectral_norm(lab: Callable[..., Lab], searches: list[int]) -> None:
    made = lab(*FAST, "train=spectral_clip", "train.milestones=[]")
    original, after = made.load(made.original()), made.load(made.unlearned())
    assert searches == [len(made.forget)]
    assert made.unlearned().json("history.json")[0]["adversarial"] > 0
    moved = [not torch.equal(*pair) for pair in zip(original.parameters(), after.parameters(), strict=True)]
    assert all(moved)
