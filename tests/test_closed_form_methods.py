"""Methods that compute a step instead of training: influence, fisher, ssd and lfssd, and the gradients they share.

Every figure is worked out a second time here, one image at a time, by the plainest route there is.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from laws import changed, flags_of, random_state_untouched, state_of, yaml_of
from numpy.typing import NDArray
from problems import batch_of, cut, few_of
from torch import Tensor, nn

from unlearn import gradients as shared
from unlearn.data.images import Images
from unlearn.gradients import fisher_diagonal, flat, gradients, mean_gradient, trained
from unlearn.lab import Lab
from unlearn.methods.fisher import classifier, variance
from unlearn.methods.influence import released_recursion, woodbury
from unlearn.methods.lfssd import squared_norms
from unlearn.models.normalise import Normalise
from unlearn.request import Request
from unlearn.session import session
from unlearn.settings import SettingError, build
from unlearn.streams import Streams

Floats = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]
CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "influence": {"batch_size": 32, "samples": 20},
    "fisher": {},
    "ssd": {"batch_size": 8, "alpha": 2.0},
    "lfssd": {"batch_size": 8, "alpha": 1.5},
}


@pytest.fixture(scope="session")
def made(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    words = ["model.widths=[4,6]", "train.epochs=5"]
    return Lab(composing(tmp_path_factory.mktemp("closed"), words).settings)


@pytest.fixture
def model(made: Lab) -> nn.Module:
    return made.load(made.original())


@pytest.fixture
def request_(made: Lab) -> Request:
    """30 images of mixed classes to forget, 83 to retain."""
    return cut(made, torch.arange(30), torch.arange(30, 113))


def whole_class(made: Lab, label: int) -> Request:
    gone = made.data.train.labels[:113] == label
    return cut(made, gone.nonzero().flatten(), (~gone).nonzero().flatten())


def unlearn(name: str, model: nn.Module, request: Request, seed: int = 0, **changes: Any) -> nn.Module:
    method = build(yaml_of("method", name) | SMALL[name] | changes, "method")
    result: nn.Module = method(model, request, Streams("test", seed))
    return result


def entries(model: nn.Module) -> Floats:
    """All trained parameters in a row."""
    return np.concatenate([value.detach().double().numpy().ravel() for value in trained(model).values()])


def cross_entropy(scores: Tensor, label: Tensor) -> Tensor:
    return -scores.log_softmax(1)[0, label]


def squared_norm(scores: Tensor, label: Tensor) -> Tensor:
    return (scores**2).sum()


def one_by_one(model: nn.Module, images: Images, loss: Loss = cross_entropy, label: int | None = None) -> Floats:
    """N x entries: each image's own gradient."""
    model.eval()
    rows = []
    for pixels, true in zip(images.pixels, images.labels, strict=True):
        scores = model(pixels.permute(2, 0, 1)[None].float() / 255)
        found = torch.autograd.grad(
            loss(scores, true if label is None else torch.tensor(label)), list(trained(model).values())
        )
        rows.append(np.concatenate([part.double().numpy().ravel() for part in found]))
    return np.stack(rows)


def rows_of(parts: Iterator[Any]) -> Floats:
    return torch.cat([flat(part.gradients) for part in parts]).double().numpy()


def as_row(parts: dict[str, Tensor]) -> Floats:
    return np.concatenate([part.double().numpy().ravel() for part in parts.values()])


def assert_close(found: Floats, expected: Floats, within: float = 1e-4) -> None:
    """Equal to a share of the largest of the entries: everything under test is float32."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=within * np.abs(expected).max())


# Gradients


def test_each_image_has_its_own_gradient(model: nn.Module, request_: Request) -> None:
    images, before = request_.retain, state_of(model)
    with session() as its:
        found = rows_of(gradients(model.train(), images))
    assert its.sample_gradients == len(images) == 83
    assert_close(found, one_by_one(model, images))
    assert np.abs(found).max() > 0.1
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert changed(before, state_of(model)) == set()


def test_batches_have_the_gradient_of_their_mean_loss(model: nn.Module, request_: Request) -> None:
    with session() as its:
        parts = list(gradients(model, request_.retain, batch_size=32))
    assert [part.size for part in parts] == [32, 32, 19]
    assert its.sample_gradients == 83
    rows = one_by_one(model, request_.retain)
    assert_close(rows_of(iter(parts)), np.stack([rows[:32].mean(0), rows[32:64].mean(0), rows[64:].mean(0)]))
    assert_close(as_row(mean_gradient(model, request_.retain, 32)), rows.mean(0))


def test_memory_bounds_how_many_images_come_at_a_time(
    model: nn.Module, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, size = rows_of(gradients(model, request_.retain)), len(entries(model))
    for room, expected in ((10 * size, [10] * 8 + [3]), (11 * size - 1, [10] * 8 + [3]), (size - 1, [1] * 83)):
        monkeypatch.setattr(shared, "ELEMENTS", room)
        parts = list(gradients(model, request_.retain))
        assert [len(flat(part.gradients)) for part in parts] == expected
        assert_close(rows_of(iter(parts)), whole)


def test_only_trained_parameters_have_gradients(model: nn.Module, request_: Request) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("weight"))
    for size in (1, 32):
        (part, *_) = gradients(model, request_.retain, batch_size=size)
        assert set(part.gradients) == {name for name, _ in model.named_parameters() if name.endswith("weight")}
    assert_close(rows_of(gradients(model, request_.retain)), one_by_one(model, request_.retain))


@pytest.mark.parametrize(
    ("name", "changes"), [("resnet20", {}), ("fastnet", {"widths": [8, 8, 8]}), ("vit_tiny", {"depth": 1})]
)
def test_every_kind_of_network_gives_gradients_of_images(
    name: str, changes: dict[str, Any], request_: Request, made: Lab
) -> None:
    with Streams("test").seeded("model"):
        net = build(yaml_of("model", name) | changes, "model")(made.data.shape, 10)
    model, images = nn.Sequential(Normalise(1, made.data.mean, made.data.std), net), request_.forget[torch.arange(3)]
    assert_close(rows_of(gradients(model, images)), one_by_one(model, images), within=1e-3)


def test_the_fisher_diagonal_is_the_models_own_expectation(model: nn.Module, request_: Request) -> None:
    images = request_.retain[torch.arange(20)]
    with session() as its:
        found = fisher_diagonal(model, images, 10)
    assert its.sample_gradients == 200
    expected = expected_diagonal(model, images)
    assert_close(as_row(found), expected)
    assert as_row(found).min() >= 0
    # Neither the empirical one, nor one that weighs all labels alike
    assert np.abs((one_by_one(model, images) ** 2).mean(0) - expected).max() > 0.05 * expected.max()


def expected_diagonal(model: nn.Module, images: Images) -> Floats:
    with torch.no_grad():
        chance = model.eval()(batch_of(images).images).softmax(1).double().numpy()
    labelled = [one_by_one(model, images, label=label) ** 2 * chance[:, label, None] for label in range(10)]
    result: Floats = np.sum(labelled, axis=0).mean(0)
    return result


# All four


@pytest.mark.parametrize("name", SMALL)
def test_norm_statistics_and_frozen_parameters_stay(name: str, model: nn.Module, request_: Request) -> None:
    frozen = {"1.0.weight", "1.1.bias", "1.8.weight"}
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key not in frozen)
    before, flags = state_of(model), flags_of(model)
    assert len(before) > len(flags)
    with random_state_untouched():
        result = unlearn(name, model.train(), request_)
    moved = changed(before, state_of(result))
    assert moved
    assert moved <= flags.keys() - frozen
    assert flags_of(result) == flags
    assert all(parameter.grad is None for parameter in result.parameters())


COUNTS = {"influence": 30 + 83 + 20, "fisher": 10 * 83, "ssd": 30 + 113, "lfssd": 30 + 113}


@pytest.mark.parametrize("name", SMALL)
def test_the_work_is_counted(name: str, model: nn.Module, request_: Request) -> None:
    with session() as its:
        unlearn(name, model, request_)
    assert its.sample_gradients == COUNTS[name]
    assert its.fits == 0


# Influence


def contrast_of(model: nn.Module, request: Request) -> tuple[Floats, Floats]:
    """v as the paper has it, a difference of two mean gradients, and the retained images' gradients."""
    forget, retain = one_by_one(model, request.forget), one_by_one(model, request.retain)
    result: Floats = np.concatenate([forget, retain]).mean(0) - retain.mean(0)
    return result, retain


@pytest.mark.parametrize("damping", [1e-3, 0.1, 1.0])
def test_woodbury_is_the_dense_inverse(damping: float, model: nn.Module, request_: Request) -> None:
    vector, rows = contrast_of(model, request_)
    assert rows.shape[0] < rows.shape[1]
    dense = damping * np.eye(rows.shape[1]) + rows.T @ rows / len(rows)
    found = woodbury(torch.from_numpy(rows), torch.from_numpy(vector), damping).numpy()
    assert_close(found, np.linalg.solve(dense, vector), within=1e-9)
    assert np.abs(found - vector / damping).max() > 0.01 * np.abs(found).max()


def test_woodbury_is_woodfishers_recursion_with_all_its_vectors(model: nn.Module, request_: Request) -> None:
    vector, rows = contrast_of(model, request_)
    kept: list[tuple[Floats, float]] = []
    step = vector.copy()
    for row in rows:
        image = row - sum(u * (u @ row) / d for u, d in kept)
        kept.append((image, len(rows) + row @ image))
        step -= image * (image @ vector) / kept[-1][1]
    assert_close(woodbury(torch.from_numpy(rows), torch.from_numpy(vector), 1.0).numpy(), step, within=1e-9)


@pytest.mark.parametrize(("alpha", "damping"), [(1.0, 0.1), (0.3, 0.01)])
def test_influence_steps_along_the_inverse_times_the_contrast(
    alpha: float, damping: float, model: nn.Module, request_: Request
) -> None:
    before = entries(model)
    vector, rows = contrast_of(model, request_)
    dense = damping * np.eye(rows.shape[1]) + rows.T @ rows / len(rows)
    result = unlearn("influence", model, request_, alpha=alpha, damping=damping, samples=1000)
    assert_close(entries(result) - before, alpha * np.linalg.solve(dense, vector), within=1e-3)


def test_influence_draws_its_samples(model: nn.Module, made: Lab, request_: Request) -> None:
    results = [state_of(unlearn("influence", made.load(made.original()), request_, seed=seed)) for seed in (0, 0, 1)]
    assert changed(results[0], results[1]) == set()
    assert changed(results[0], results[2])


def test_a_step_of_no_length_is_none(model: nn.Module, request_: Request) -> None:
    before = state_of(model)
    for compat in (None, "released"):
        assert changed(before, state_of(unlearn("influence", model, request_, alpha=0.0, compat=compat))) == set()


def written_out(vector: Floats, rows: Floats, count: int) -> Floats:
    """The released recursion, as its specification has it."""
    k, o = vector.copy(), rows[0].copy()
    for g in rows[1:]:
        t = o @ g
        k = k - (k @ g) / (count + t) * o
        o = o - t / (count + t) * o
    return k


def test_the_released_recursion_is_the_one_written_out(model: nn.Module, request_: Request) -> None:
    vector, rows = contrast_of(model, request_)
    expected = written_out(vector, rows, 20)
    found = released_recursion(iter(torch.from_numpy(rows)), torch.from_numpy(vector), 20).numpy()
    assert_close(found, expected, within=1e-9)
    # It changes the vector along the first image's gradient alone, and so inverts nothing
    difference, first = found - vector, rows[0] / np.linalg.norm(rows[0])
    assert np.linalg.norm(difference) > 1e-3 * np.linalg.norm(vector)
    assert_close(difference, (difference @ first) * first, within=1e-9)


@pytest.mark.parametrize("count", [5, 1000])
def test_released_influence_meets_the_first_images_in_order(count: int, model: nn.Module, request_: Request) -> None:
    before = entries(model)
    vector, rows = contrast_of(model, request_)
    with session() as its:
        result = unlearn("influence", model, request_, alpha=10.0, samples=count, compat="released")
    assert its.sample_gradients == 113 + min(count + 2, 83)
    assert_close(entries(result) - before, 10 * written_out(vector, rows[: count + 2], count), within=1e-3)
    if count == 5:  # where it ends matters
        assert np.abs(written_out(vector, rows[:6], 5) - written_out(vector, rows[:7], 5)).max() > 0


# Selective synaptic dampening

PLAIN = {"ssd": (cross_entropy, np.square), "lfssd": (squared_norm, np.abs)}


def dampened(
    before: Floats, of_all: Floats, of_forget: Floats, alpha: float, dampening: float
) -> tuple[Floats, list[int]]:
    """The rule, entry by entry, and which entries it chose."""
    after, chosen = before.copy(), []
    for j, (all_, forget) in enumerate(zip(of_all, of_forget, strict=True)):
        if forget > alpha * all_:
            after[j] *= min(dampening * all_ / forget, 1)
            chosen.append(j)
    return after, chosen


def assert_agree(result: nn.Module, before: Floats, expected: Floats, chosen: list[int]) -> None:
    """As expected, but for entries so near the threshold that rounding decides; not chosen is not touched."""
    after = entries(result)
    moved, to_move = (set(np.flatnonzero(its != before)) for its in (after, expected))
    assert to_move <= set(chosen)
    assert len(moved ^ to_move) <= 2
    assert 5 < len(to_move) < len(before) / 2
    both = sorted(moved & to_move)
    np.testing.assert_allclose(after[both], expected[both], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("alpha", "dampening"), [(1.5, 1.0), (1.5, 1.8), (2.0, 0.25)])
@pytest.mark.parametrize("name", PLAIN)
def test_single_images_importances_are_the_empirical_fisher_information(
    name: str, alpha: float, dampening: float, model: nn.Module, request_: Request
) -> None:
    loss, measure = PLAIN[name]
    before = entries(model)
    forget, retain = (measure(one_by_one(model, images, loss)) for images in (request_.forget, request_.retain))
    of_all, of_forget = np.concatenate([retain, forget]).mean(0), forget.mean(0)
    expected, chosen = dampened(before, of_all, of_forget, alpha, dampening)
    with session() as its:
        result = unlearn(name, model, request_, batch_size=1, alpha=alpha, dampening=dampening)
    assert_agree(result, before, expected, chosen)
    (line,) = its.history
    assert abs(line["dampened"] - len(chosen)) <= 2
    assert line["dampened_share"] == line["dampened"] / len(before)
    # Which is why a large alpha does nothing: the forget set is a part of all images
    ratio = of_forget[of_all > 0] / of_all[of_all > 0]
    assert ratio.max() <= 113 / 30 * (1 + 1e-9)
    if dampening > alpha:  # no weight grows
        assert (np.abs(entries(result)) <= np.abs(before)).all()


@pytest.mark.parametrize("name", PLAIN)
def test_released_batches_keep_the_order_and_have_one_weight_each(
    name: str, model: nn.Module, request_: Request
) -> None:
    loss, measure = PLAIN[name]
    before = entries(model)
    forget, retain = (one_by_one(model, images, loss) for images in (request_.forget, request_.retain))

    def importance(rows: Floats) -> Floats:
        batches = [measure(rows[start : start + 16].mean(0)) for start in range(0, len(rows), 16)]
        result: Floats = np.mean(batches, axis=0)
        return result

    expected, chosen = dampened(before, importance(np.concatenate([retain, forget])), importance(forget), 1.5, 1.0)
    result = unlearn(name, model, request_, batch_size=16, alpha=1.5, compat="released")
    assert_agree(result, before, expected, chosen)


@pytest.mark.parametrize("name", PLAIN)
def test_batches_are_drawn_of_one_size_and_count_by_their_images(
    name: str, model: nn.Module, request_: Request
) -> None:
    few = few_of(request_, forget=12)
    loss, measure = PLAIN[name]
    before = entries(model)
    forget, retain = (one_by_one(model, images, loss) for images in (few.forget, few.retain))

    def importance(rows: Floats) -> Floats:
        rows = rows[torch.randperm(len(rows), generator=Streams("test", 0)("order")).numpy()]
        result: Floats = sum(
            measure(rows[start : start + 12].mean(0)) * len(rows[start : start + 12]) / len(rows)
            for start in range(0, len(rows), 12)
        )
        return result

    assert len(few.forget) + len(few.retain) == 95  # seven batches of 12 and one of 11
    expected, chosen = dampened(before, importance(np.concatenate([retain, forget])), importance(forget), 1.5, 1.0)
    assert_agree(unlearn(name, model, few, batch_size=50, alpha=1.5), before, expected, chosen)


@pytest.mark.parametrize("compat", [None, "released"])
@pytest.mark.parametrize("name", PLAIN)
def test_nothing_is_dampened_where_nothing_can_be(
    name: str, compat: str | None, model: nn.Module, request_: Request
) -> None:
    before = state_of(model)
    everything = replace(request_, forget=request_.retain, retain=request_.retain[torch.arange(0)])
    for its, changes in (
        (request_, {"alpha": 1e30}),
        (request_, {"dampening": 1e30}),
        (everything, {"alpha": 1.0}),
    ):
        assert changed(before, state_of(unlearn(name, model, its, compat=compat, **changes))) == set(), changes
    with session() as its_session:
        unlearn(name, model, request_, compat=compat, alpha=1e30)
    assert its_session.history == [{"dampened": 0, "dampened_share": 0.0}]
    assert changed(before, state_of(unlearn(name, model, request_, compat=compat)))


@pytest.mark.parametrize("name", PLAIN)
def test_an_alpha_that_provably_does_nothing_is_refused(name: str, model: nn.Module, request_: Request) -> None:
    with session() as its:
        for alpha in (113 / 30, 10.0):
            with pytest.raises(SettingError, match=r"^method\.alpha=.*must be under 3\.76667"):
                unlearn(name, model, request_, batch_size=1, alpha=alpha)
    assert its.sample_gradients == 0
    unlearn(name, model, request_, batch_size=1, alpha=3.7)
    unlearn(name, model, request_, batch_size=2, alpha=10.0)


def test_lfssd_needs_no_labels_and_ssd_does(made: Lab, request_: Request) -> None:
    other = replace(
        request_,
        forget=request_.forget.relabelled((request_.forget.labels + 1) % 10),
        retain=request_.retain.relabelled((request_.retain.labels + 3) % 10),
    )
    for name, moved in (("lfssd", False), ("ssd", True)):
        results = [state_of(unlearn(name, made.load(made.original()), its)) for its in (request_, other)]
        assert bool(changed(*results)) == moved


def test_the_size_of_scores_is_their_squared_norm() -> None:
    scores = torch.tensor([[3.0, 4.0], [1.0, -2.0]])
    assert squared_norms(scores, torch.tensor([0, 0])).tolist() == [25.0, 5.0]


# Fisher forgetting


def test_variance_is_clipped_shared_and_scaled() -> None:
    diagonal = torch.tensor([[0.0, 1e-3, 0.5], [0.25, 0.02, 0.02]], dtype=torch.float64)
    clipped = torch.tensor([[1000, 1000, 2], [4, 50, 50]], dtype=torch.float64)
    in_classifier = torch.tensor([[100, 100, 2], [4, 50, 50]], dtype=torch.float64)
    kernel = diagonal[:, :, None, None].expand(2, 3, 2, 2)
    for found, expected in (
        (variance(diagonal, 0.5, False), 0.5 * clipped.mean(1, keepdim=True).expand(2, 3)),
        (variance(diagonal, 0.5, True), 5 * in_classifier.mean(1, keepdim=True).expand(2, 3)),
        (variance(diagonal[0], 0.5, False), 5 * clipped[0]),
        (variance(diagonal[0], 0.5, True), 5 * in_classifier[0]),
        (variance(kernel, 0.5, False), 0.5 * clipped.mean(1)[:, None, None, None].expand(2, 3, 2, 2)),
    ):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.fixture
def diagonal(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A Fisher diagonal from far under to far over what is clipped, in place of the retained images'."""
    generator = Streams("test")("diagonal")
    found = {
        name: 10 ** (6 * torch.rand(parameter.shape, generator=generator) - 5)
        for name, parameter in trained(model).items()
    }
    monkeypatch.setattr("unlearn.methods.fisher.fisher_diagonal", lambda *given: found)
    return found


def draws(made: Lab, request: Request, count: int, **changes: Any) -> list[dict[str, Tensor]]:
    """What each of several results is away from the original."""
    original = dict(made.load(made.original()).named_parameters())
    results = [unlearn("fisher", made.load(made.original()), request, seed, **changes) for seed in range(count)]
    return [{name: (p - original[name]).detach() for name, p in result.named_parameters()} for result in results]


@pytest.mark.parametrize("root", ["square", "fourth"])
def test_the_noise_has_the_scale_of_the_formula(
    root: str, made: Lab, request_: Request, diagonal: dict[str, Tensor]
) -> None:
    alpha = 1e-4
    away = draws(made, request_, 60, alpha=alpha, root=root)
    for name, information in diagonal.items():
        in_classifier = name in ("1.8.weight", "1.8.bias")
        inverse = np.minimum(1 / (information.double().numpy() + 1e-8), 100 if in_classifier else 1000)
        if inverse.ndim > 1:
            inverse = np.broadcast_to(inverse.mean(1, keepdims=True), inverse.shape)
        factor = 10 if in_classifier or inverse.ndim == 1 else 1
        scale = (factor * alpha * inverse) ** {"square": 0.5, "fourth": 0.25}[root]
        standard = np.stack([draw[name].double().numpy() for draw in away]) / scale
        assert abs(standard.mean()) < 5 / standard.size**0.5, name
        assert abs(standard.std() - 1) < 5 / (2 * standard.size) ** 0.5, name
        assert (standard.std(0) > 0.5).all(), name
    first = [np.concatenate([draw[name].numpy().ravel()[:4] for name in diagonal]) for draw in away]
    assert abs(np.corrcoef(np.stack(first).T)[np.triu_indices(len(first[0]), 1)]).max() < 0.7  # no draw is used twice


def test_without_alpha_only_a_forgotten_class_loses_its_row(made: Lab, request_: Request) -> None:
    before = state_of(made.load(made.original()))
    assert changed(before, state_of(unlearn("fisher", made.load(made.original()), request_, alpha=0.0))) == set()
    request = whole_class(made, 3)
    result = unlearn("fisher", made.load(made.original()), request, alpha=0.0)
    assert changed(before, state_of(result)) == {"1.8.weight", "1.8.bias"}
    original = dict(made.load(made.original()).named_parameters())
    others = torch.arange(10) != 3
    for name in ("1.8.weight", "1.8.bias"):
        assert torch.equal(result.get_parameter(name)[others], original[name][others])
    row = result.get_parameter("1.8.weight")[3].detach()
    assert original["1.8.weight"][3].abs().mean() > 3 * row.abs().mean()
    assert abs(row.std().item() / 0.001**0.5 - 1) < 5 / (2 * len(row)) ** 0.5
    assert abs(row.mean().item()) < 5 * (0.001 / len(row)) ** 0.5


def test_two_draws_differ_and_one_does_not(made: Lab, request_: Request, diagonal: dict[str, Tensor]) -> None:
    results = [state_of(unlearn("fisher", made.load(made.original()), request_, seed=seed)) for seed in (0, 0, 1)]
    assert changed(results[0], results[1]) == set()
    assert changed(results[0], results[2]) == set(diagonal)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("convnet", {"widths": [10, 10]}, {"8.weight", "8.bias"}),  # other layers with a row a class
        ("fastnet", {"widths": [8, 8, 10]}, {"head.weight"}),
        ("resnet20", {}, None),
        ("vit_tiny", {"depth": 1}, None),
    ],
)
def test_the_classifier_is_the_last_layer_alone(
    name: str, changes: dict[str, Any], expected: set[str] | None, made: Lab
) -> None:
    with Streams("test").seeded("model"):
        net = build(yaml_of("model", name) | changes, "model")(made.data.shape, 10)
    last = [key for key, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    assert classifier(net, 10) == (expected or {f"{last}.weight", f"{last}.bias"})
