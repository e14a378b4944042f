"""What attacks read from logits: against loops, scipy and torch in float64, at ordinary and at extreme logits."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import entropy as scipy_entropy
from torch import nn

from unlearn.data.images import Images
from unlearn.signals import Signals, accuracy, logits

DERIVED = ("loss", "confidence", "entropy", "modified_entropy", "margin")


def drawn(count: int = 200, classes: int = 7, scale: float = 3.0, seed: int = 0) -> Signals:
    draw = np.random.default_rng(seed)
    scores = (scale * draw.standard_normal((count, classes))).astype(np.float32)
    return Signals(scores, draw.integers(0, classes, count))


def one_hot(classes: int, hot: int, label: int, height: float = 60.0) -> Signals:
    """One image of `label` that the model is certain to be of class `hot`."""
    scores = np.zeros((1, classes), dtype=np.float32)
    scores[0, hot] = height
    return Signals(scores, np.array([label]))


def softmax_by_hand(scores: NDArray[np.float32]) -> list[list[float]]:
    rows = []
    for row in scores.astype(np.float64).tolist():
        top = max(row)
        powers = [math.exp(z - top) for z in row]
        rows.append([power / math.fsum(powers) for power in powers])
    return rows


# Of each definition, an independent computation


def test_probabilities_and_accuracy_equal_a_loop() -> None:
    signals = drawn()
    expected = softmax_by_hand(signals.logits)
    np.testing.assert_allclose(signals.probabilities, expected, rtol=1e-12)
    hits = [row.index(max(row)) == label for row, label in zip(expected, signals.labels, strict=True)]
    assert signals.correct.tolist() == hits
    assert signals.accuracy == sum(hits) / len(hits)
    assert 0 < sum(hits) < len(hits)


def test_loss_and_confidence_equal_torch_in_float64() -> None:
    signals = drawn()
    expected = nn.functional.cross_entropy(
        torch.from_numpy(signals.logits).double(), torch.from_numpy(signals.labels), reduction="none"
    )
    np.testing.assert_allclose(signals.loss, expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(signals.confidence, (-expected).exp().numpy(), rtol=1e-12)
    assert signals.loss.dtype == np.float64


def test_entropy_equals_scipy() -> None:
    signals = drawn()
    expected = [scipy_entropy(row) for row in softmax_by_hand(signals.logits)]
    np.testing.assert_allclose(signals.entropy, expected, rtol=1e-12)


def test_margin_is_the_logit_of_the_confidence() -> None:
    # Moderate logits, where 1 - p keeps enough digits for the textbook formula to be an oracle
    signals = drawn(scale=1.5)
    p = signals.confidence
    np.testing.assert_allclose(signals.margin, np.log(p) - np.log(1 - p), atol=1e-10, rtol=0)


def test_margin_keeps_its_digits_where_the_textbook_formula_has_none() -> None:
    # p_y rounds to 1 in float64, so log(1 - p_y) is -inf; the margin is z_y - log(C - 1)
    signals = one_hot(classes=5, hot=2, label=2)
    assert signals.confidence[0] == 1.0
    assert signals.margin[0] == pytest.approx(60.0 - math.log(4), abs=1e-12)


def modified_entropy_by_hand(signals: Signals) -> list[float]:
    values = []
    for row, label in zip(softmax_by_hand(signals.logits), signals.labels.tolist(), strict=True):
        terms = [-(1 - p) * math.log(p) if c == label else -p * math.log1p(-p) for c, p in enumerate(row)]
        values.append(math.fsum(terms))
    return values


def test_modified_entropy_equals_a_loop() -> None:
    signals = drawn()
    np.testing.assert_allclose(signals.modified_entropy, modified_entropy_by_hand(signals), rtol=1e-10)


def test_modified_entropy_of_two_classes_equals_a_loop() -> None:
    signals = drawn(classes=2)
    np.testing.assert_allclose(signals.modified_entropy, modified_entropy_by_hand(signals), rtol=1e-10)


# What the definitions imply


@pytest.mark.parametrize("name", DERIVED)
def test_a_constant_added_to_the_logits_changes_nothing(name: str) -> None:
    # Multiples of 1/64 below 2**10 are exact in fp32, so the shift itself adds no rounding error
    exact = np.round(drawn().logits * 64) / 64
    before, after = (Signals((exact + shift).astype(np.float32), drawn().labels) for shift in (0.0, 512.0))
    np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", DERIVED)
def test_the_order_of_the_other_classes_does_not_matter(name: str) -> None:
    signals = drawn()
    order = np.random.default_rng(1).permutation(signals.logits.shape[1])
    moved = Signals(signals.logits[:, order], np.argsort(order)[signals.labels])
    np.testing.assert_allclose(getattr(moved, name), getattr(signals, name), rtol=1e-10)


def test_modified_entropy_tells_right_from_wrong_and_entropy_does_not() -> None:
    right, wrong = one_hot(10, hot=3, label=3), one_hot(10, hot=4, label=3)
    assert right.modified_entropy[0] == pytest.approx(0, abs=1e-12)
    # -(1 - p_y) log p_y and -p_c log(1 - p_c) are each about 60
    assert wrong.modified_entropy[0] > 100
    assert right.entropy[0] == pytest.approx(0, abs=1e-12)
    assert wrong.entropy[0] == pytest.approx(right.entropy[0], abs=1e-20)


def test_a_uniform_prediction_has_the_entropy_of_the_classes() -> None:
    signals = Signals(np.full((1, 10), 2.5, dtype=np.float32), np.array([0]))
    assert signals.entropy[0] == pytest.approx(math.log(10))
    assert signals.margin[0] == pytest.approx(-math.log(9))
    assert signals.modified_entropy[0] == pytest.approx(0.9 * math.log(10) - 0.9 * math.log(0.9))


def test_margin_falls_as_loss_rises() -> None:
    signals = drawn()
    by_loss = np.argsort(signals.loss)
    assert (np.diff(signals.margin[by_loss]) <= 0).all()


@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize("classes", [2, 10])
def test_extreme_logits_give_finite_numbers_and_no_warning(name: str, classes: int) -> None:
    draw = np.random.default_rng(0)
    scores = draw.choice([-1e3, 0.0, 1e3], (300, classes)).astype(np.float32)
    values = getattr(Signals(scores, draw.integers(0, classes, 300)), name)
    assert np.isfinite(values).all()
    if name != "margin":
        assert (values >= 0).all()


def test_the_loss_of_a_hopeless_image_is_the_difference_of_its_logits() -> None:
    signals = Signals(np.array([[-1e3, 1e3, -1e3]], dtype=np.float32), np.array([0]))
    assert signals.loss[0] == pytest.approx(2e3)
    assert signals.confidence[0] == 0.0
    assert signals.margin[0] == pytest.approx(-2e3)
    assert signals.entropy[0] == 0.0


# Picking images


def test_an_index_or_a_mask_picks_images_with_their_labels() -> None:
    signals = drawn()
    index = np.array([5, 3, 3])
    np.testing.assert_array_equal(signals[index].logits, signals.logits[[5, 3, 3]])
    np.testing.assert_array_equal(signals[index].labels, signals.labels[[5, 3, 3]])
    mask = signals.labels == 2
    assert len(signals[mask]) == mask.sum() > 0
    np.testing.assert_array_equal(signals[mask].loss, signals.loss[mask])


def test_no_images_have_no_accuracy() -> None:
    nothing = drawn()[np.zeros(0, dtype=np.int64)]
    assert len(nothing) == 0
    assert math.isnan(nothing.accuracy)
    assert nothing.loss.shape == nothing.entropy.shape == nothing.margin.shape == (0,)


# The forward pass


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(512, 4)
    )
    with torch.no_grad():
        net[1].running_mean.copy_(torch.randn(8))  # type: ignore[operator, union-attr]
        net[1].running_var.copy_(torch.rand(8) + 0.5)  # type: ignore[operator, union-attr]
    net[0].requires_grad_(False)
    return net.train()


def pictures(count: int = 23) -> Images:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), generator=draw, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 4, (count,), generator=draw), augment=("crop", "flip"))


def test_logits_are_those_of_a_plain_forward_pass_without_augmentation() -> None:
    net, images = network(), pictures()
    outputs = logits(net, images, batch_size=5)
    with torch.no_grad():
        expected = net.eval()((images.pixels.float() / 255).permute(0, 3, 1, 2)).numpy()
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_logits_leave_the_model_and_the_random_state_as_they_were() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    random_state = torch.random.get_rng_state()
    logits(net, pictures())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_accuracy_of_a_model_equals_a_count() -> None:
    net, images = network(), pictures()
    with torch.no_grad():
        answers = net.eval()((images.pixels.float() / 255).permute(0, 3, 1, 2)).argmax(dim=1)
    hits = sum(int(a == b) for a, b in zip(answers, images.labels, strict=True))
    assert 0 < hits < len(images)
    assert accuracy(network(), images) == hits / len(images)
