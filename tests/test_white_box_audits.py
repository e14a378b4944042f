"""The auditors that look into the model, against torchattacks, scikit-learn, and models whose answers are known."""

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from laws import changed, flags_of, random_state_untouched, state_of
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from test_auditors import Bench
from torch import Tensor, nn

from unlearn import white_box
from unlearn.auditors import robustness as robustness_file
from unlearn.auditors.robustness import robustness
from unlearn.batches import shuffled
from unlearn.data.images import Data, Images, as_model_input
from unlearn.lab import Lab
from unlearn.loop import cross_entropy, fit
from unlearn.metrics import Metric
from unlearn.models.convnet import convnet
from unlearn.models.normalise import Normalise
from unlearn.paired import quantile, share_difference
from unlearn.settings import SettingError, build
from unlearn.signals import Signals, logits
from unlearn.streams import Streams
from unlearn.subject import Subject
from unlearn.thinning import evenly
from unlearn.white_box import Attack, attacked

Floats = NDArray[np.float64]
CPU = torch.device("cpu")
CONF = Path(__file__).resolve().parents[1] / "conf"
ATTACK: dict[str, Any] = {
    "attacks": ["fgsm_linf", "pgd_10_linf"], "linf": ["1", "4"], "l2": ["0.5"], "parts": ["test", "forget", "retain"],
    "limit": 1000, "eps_init": 0.04, "steps": 20, "batch_size": 500,
}  # fmt: skip


def subject_of(model: nn.Module, parts: Mapping[str, Images], role: str = "unlearned") -> Subject:
    """A model under audit with its images, as a lab would hand it out."""

    def signals(part: str) -> Signals:
        images = parts.get(part, parts["test"][torch.arange(0)])
        outputs = logits(model, images) if len(images) else np.zeros((0, 10), dtype=np.float32)
        return Signals(outputs, images.labels.numpy())

    known = {part: signals(part) for part in ("forget", "retain", "validation", "test")}
    trained = np.unique(known["retain"].labels)
    gone = np.setdiff1d(known["forget"].labels, trained)
    return Subject(role, **known, forgotten_classes=gone, cost={}, model=lambda: model, images=lambda part: parts[part])


def assert_all_declared(answer: Mapping[str, Any], metrics: tuple[Metric, ...]) -> None:
    """Every number is a declared metric or an end of its interval, which stands around it; all else are arrays."""
    plain = {metric.name: metric for metric in metrics}
    for name, value in answer.items():
        if isinstance(value, np.ndarray):
            assert value.dtype in (np.float32, bool), name
            assert name not in plain
        elif name.endswith(("_low", "_high")):
            assert plain[name.rpartition("_")[0]].interval, name
        else:
            its = plain[name]
            assert its.interval == (f"{name}_low" in answer) or isinstance(value, str), name
            if its.interval and not isinstance(value, str):
                assert answer[f"{name}_low"] <= value <= answer[f"{name}_high"], name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "digits.yaml"), resolve=False)
    digits: Data = build(settings | {"root": str(tmp_path_factory.mktemp("data"))}, "dataset")()
    return digits


def trained(data: Data, rows: Tensor, name: str, epochs: int) -> nn.Module:
    """A small net that knows most of some training images."""
    streams = Streams("white box", name)
    with streams.seeded("initialisation"):
        net = nn.Sequential(Normalise(1, data.mean, data.std), convnet(data.shape, 10, widths=[8, 16]))
    batches = shuffled(data.train[rows], 64, streams)
    fit(net, batches, cross_entropy, streams, epochs=epochs, lr=0.1, momentum=0.9, weight_decay=5e-4)
    return net.to(memory_format=torch.contiguous_format)


@pytest.fixture(scope="module")
def digits(data: Data) -> tuple[nn.Module, nn.Module, dict[str, Images]]:
    """An original, a model that was never shown the forget set, and the images of every part."""
    rows = torch.arange(len(data.train))
    forget = rows % 5 == 0
    parts = {"forget": data.train[rows[forget]], "retain": data.train[rows[~forget]], "test": data.test}
    return trained(data, rows, "original", 12), trained(data, rows[~forget], "retrained", 12), parts


# Linear models: two classes, and pixels so far from 0 and 1 that nothing is clipped


WEIGHTS = np.random.default_rng(0).normal(0, 1, (2, 16)).astype(np.float32)


def linear(scale: float, weights: NDArray[np.float32] = WEIGHTS) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(weights.shape[1], len(weights)))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(weights * scale))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)  # the boundary passes through grey
    return model.eval()


def greys(seed: int, count: int) -> Images:
    draw = np.random.default_rng(seed)
    pixels = torch.from_numpy(draw.integers(80, 176, (count, 4, 4, 1)).astype(np.uint8))
    labels = torch.from_numpy(draw.integers(0, 2, count))
    return Images(pixels, labels)


def lead(images: Images) -> Floats:
    """How far the true class is ahead, and so the distance to the boundary times a norm of the weights' difference."""
    x = as_model_input(images.pixels, CPU).flatten(1).double().numpy() - 0.5
    sign = np.where(images.labels.numpy() == 1, 1, -1)
    return sign * (x @ (WEIGHTS[1] - WEIGHTS[0]).astype(np.float64))


GREYS = {"forget": greys(1, 90), "retain": greys(2, 200), "test": greys(3, 150)}


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_accuracies_against_a_linear_model_are_analytic(scale: float) -> None:
    # At scale 1000 cross-entropy vanishes for most images, in float32 and in float64
    subject = subject_of(linear(scale), GREYS)
    attacks = ["fgsm_linf", "pgd_10_linf", "pgd_20_linf", "pgd_20_l2"]
    grid = ATTACK | {"attacks": attacks, "linf": ["0.5", "8"], "l2": ["0.1", "0.5"]}
    measured = robustness(subject, Bench(subject), **grid)
    slope = np.abs(WEIGHTS[1] - WEIGHTS[0])
    for part, attack in product(GREYS, attacks):
        ahead, clean = lead(GREYS[part]), (lead(GREYS[part]) > 0).mean()
        for eps in grid["l2"] if attack.endswith("l2") else grid["linf"]:
            taken = float(eps) * np.linalg.norm(slope) if attack.endswith("l2") else float(eps) / 255 * slope.sum()
            expected, name = (ahead > taken).mean(), f"{part}_{attack}_{eps}"
            assert measured[f"robust_accuracy_{name}"] == pytest.approx(expected, abs=1e-12), name
            assert measured[f"robust_drop_{name}"] == pytest.approx(clean - expected, abs=1e-12), name
            assert measured[f"robust_difference_{name}"] == 0.0
    assert measured["robust_gradients_sound"] == 1.0
    assert_all_declared(measured, robustness_file.METRICS)


def test_distances_of_a_linear_model_are_analytic() -> None:
    subject = subject_of(linear(30.0), GREYS)
    measured = robustness(subject, Bench(subject), **(ATTACK | {"attacks": []}))
    length = np.linalg.norm(WEIGHTS[1] - WEIGHTS[0])
    expected = {"forget": np.clip(lead(GREYS["forget"]), 0, None) / length}
    expected["held_out"] = np.clip(lead(GREYS["test"]), 0, None) / length
    for side, distances in expected.items():
        found = measured[f"norm_{side}"]
        assert (found >= distances * (1 - 1e-5)).all()
        radius = 0.04 * 2 ** np.maximum(0, np.ceil(np.log2(np.maximum(distances, 1e-9) / 0.04)))
        assert (found <= distances + 0.1 * radius + 1e-5).all()
        for share in (0.1, 0.5, 0.9):
            value = measured[f"robust_norm_{side}_quantile_{share}"]
            assert value == pytest.approx(np.quantile(found, share, method="inverted_cdf"), abs=1e-7)
    member = np.repeat([1, 0], [90, 150])
    area = roc_auc_score(member, np.concatenate([expected["forget"], expected["held_out"]]))
    assert measured["robust_norm_auc"] == pytest.approx(area, abs=0.02)
    assert measured["robust_norm_auc_difference"] == 0.0
    assert not [name for name in measured if "accuracy" in name or "sound" in name]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_sensitivity_is_the_doubt_times_the_weights(scale: float) -> None:
    subject = subject_of(linear(scale), GREYS)
    measured = robustness(subject, Bench(subject), **(ATTACK | {"attacks": []}))
    doubt = 1 / (1 + np.exp(scale * lead(GREYS["test"])))
    lengths = doubt * scale * np.linalg.norm(WEIGHTS[1] - WEIGHTS[0])
    assert measured["robust_sensitivity"] == pytest.approx(lengths.mean(), rel=1e-4)
    half = 1.976 * lengths.std(ddof=1) / np.sqrt(150)  # t with 149 degrees of freedom
    assert measured["robust_sensitivity_high"] - measured["robust_sensitivity"] == pytest.approx(half, rel=1e-3)


# torchattacks, called directly


@pytest.mark.parametrize("eps", [2 / 255, 8 / 255])
@pytest.mark.parametrize("attack", ["fgsm_linf", "pgd_10_linf", "pgd_20_linf", "pgd_20_l2"])
def test_the_attacks_are_torchattacks(attack: Attack, eps: float, digits: Any) -> None:
    model, _, parts = digits
    images, streams, eps = parts["test"], Streams("test"), eps * (10 if attack.endswith("l2") else 1)
    plain: dict[Attack, Any] = {
        "fgsm_linf": torchattacks.FGSM(model, eps=eps),
        "pgd_10_linf": torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=10),
        "pgd_20_linf": torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=20),
        "pgd_20_l2": torchattacks.PGDL2(model, eps=eps, alpha=eps / 4, steps=20),
    }
    ours = torch.cat([batch.images for batch in attacked(model, images, attack, eps, 10, streams, 200)])
    for number, rows in enumerate(torch.arange(len(images)).split(200)):
        torch.manual_seed(streams.seed("attack", number))
        theirs = plain[attack](as_model_input(images.pixels[rows], CPU), images.labels[rows])
        # A pixel without slope in float32 has one in float64, and goes the other way
        assert ((ours[rows] - theirs).abs() < 1e-5).float().mean() > 0.98
        with torch.no_grad():
            right = [(model(its).argmax(1) == images.labels[rows]).float().mean() for its in (ours[rows], theirs)]
        assert right[0] == pytest.approx(float(right[1]), abs=0.0051)  # at most one image in 200
    start = as_model_input(images.pixels, CPU)
    change = (ours - start).flatten(1)
    assert (change.norm(dim=1) if attack.endswith("l2") else change.abs().amax(1)).max() <= eps * (1 + 1e-5)
    assert (ours >= 0).all()
    assert (ours <= 1).all()


def test_autoattack_is_torchattacks_with_the_papers_iterations(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, parts = digits
    images, streams = parts["test"][torch.arange(20)], Streams("test")
    assert (white_box.ITERATIONS, white_box.QUERIES, white_box.TARGETS) == (100, 5000, 9)
    monkeypatch.setattr(white_box, "ITERATIONS", 10)  # as torchattacks' own has it
    monkeypatch.setattr(white_box, "QUERIES", 30)
    square = torchattacks.Square
    monkeypatch.setattr(
        torchattacks.attacks.autoattack, "Square", lambda *its, **more: square(*its, **(more | {"n_queries": 30}))
    )
    (ours,) = attacked(model, images, "autoattack_linf", 4 / 255, 10, streams, 500)
    seed = streams.seed("attack", 0) % 2**31
    theirs = torchattacks.AutoAttack(model, eps=4 / 255, n_classes=10, seed=seed)
    assert torch.equal(ours.images, theirs(as_model_input(images.pixels, CPU), images.labels))
    with torch.no_grad():
        right = (model(ours.images).argmax(1) == images.labels).float().mean()
        (weaker,) = attacked(model, images, "fgsm_linf", 4 / 255, 10, streams, 500)
        assert 0 < right <= (model(weaker.images).argmax(1) == images.labels).float().mean()


@pytest.mark.parametrize("attack", ["fgsm_linf", "pgd_10_linf", "pgd_20_l2", "autoattack_linf"])
def test_an_attack_leaves_model_and_generators_alone(
    attack: Attack, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(white_box, "ITERATIONS", 2)
    monkeypatch.setattr(white_box, "QUERIES", 2)
    model = deepcopy(digits[0]).requires_grad_(False)
    before, images = state_of(model), digits[2]["test"][torch.arange(9)]
    with random_state_untouched():
        first, second = (list(attacked(model, images, attack, 0.01, 10, Streams("a"), 4)) for _ in range(2))
    assert changed(before, state_of(model)) == set()
    assert not [module for module in model.modules() if module.training]
    assert all(torch.equal(one.images, two.images) for one, two in zip(first, second, strict=True))
    assert [len(batch.labels) for batch in first] == [4, 4, 1]


# The audit on digits


def audited_digits(digits: Any, **settings: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    original, retrained, parts = digits
    reference = subject_of(retrained, parts, "retrained")
    given = ATTACK | settings
    return (
        robustness(subject_of(original, parts, "original"), Bench(reference), **given),
        robustness(reference, Bench(reference), **given),
    )


def test_the_original_holds_on_to_what_it_memorised(digits: Any) -> None:
    original, retrained = audited_digits(digits, parts=["forget", "test"], linf=["4"], limit=200, steps=10)
    assert original["robust_difference_forget_pgd_10_linf_4_low"] > 0
    gap = original["robust_accuracy_forget_pgd_10_linf_4"] - retrained["robust_accuracy_forget_pgd_10_linf_4"]
    assert original["robust_difference_forget_pgd_10_linf_4"] == pytest.approx(gap, abs=1e-12)
    assert original["robust_norm_auc_difference_low"] > 0
    assert retrained["robust_norm_auc_low"] < 0.5 < retrained["robust_norm_auc_high"]
    assert retrained["robust_difference_forget_pgd_10_linf_4"] == 0.0
    for measured in (original, retrained):
        assert measured["robust_drop_test_pgd_10_linf_4_low"] > 0
        assert measured["robust_gradients_sound"] == 1.0
        assert_all_declared(measured, robustness_file.METRICS)


def test_the_audit_leaves_the_models_as_they_were_and_repeats_itself(digits: Any) -> None:
    original, retrained, parts = digits
    few = {"limit": 6, "batch_size": 4, "linf": ["2"], "steps": 3}
    models = [deepcopy(original), deepcopy(retrained)]
    models[0].train()
    before = [(state_of(model), flags_of(model)) for model in models]
    subject, reference = subject_of(models[0], parts), subject_of(models[1], parts, "retrained")
    models[0].get_submodule("1.1").train()
    with random_state_untouched():
        first = robustness(subject, Bench(reference), **(ATTACK | few))
    torch.manual_seed(5)
    second = robustness(subject, Bench(reference), **(ATTACK | few))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert [(state_of(model), flags_of(model)) for model in models] == before
    assert all(parameter.grad is None for model in models for parameter in model.parameters())


def test_images_are_chosen_evenly_and_alike_for_all_models() -> None:
    assert evenly(10, 20).tolist() == list(range(10))
    assert evenly(9, 3).tolist() == [0, 4, 8]
    assert evenly(0, 3).tolist() == []
    subject = subject_of(linear(30.0), GREYS)
    measured = robustness(subject, Bench(subject), **(ATTACK | {"limit": 7, "linf": ["0.5"]}))
    chosen = np.linspace(0, 149, 7).round().astype(int)
    expected = lead(GREYS["test"])[chosen] > 0.5 / 255 * np.abs(WEIGHTS[1] - WEIGHTS[0]).sum()
    assert np.array_equal(measured["right_test_fgsm_linf_0.5"], expected)
    assert len(measured["norm_forget"]) == len(measured["norm_held_out"]) == 7


class _OnGrid(nn.Module):
    """A linear model whose slope is hidden from everybody who does not ask exactly at a grey level."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.model, self.hidden = linear(30.0), hidden

    def forward(self, images: Tensor) -> Tensor:
        levels = images * 255
        there = (levels - levels.round()).abs().flatten(1).amax(1) < 1e-3
        seen = torch.where(there[:, None, None, None], images, images.detach() + 0 * images)
        scores: Tensor = self.model(torch.zeros_like(images) * images + images.detach() if self.hidden else seen)
        return scores


def test_gradients_that_mislead_are_found() -> None:
    plain = subject_of(linear(30.0), GREYS, "retrained")
    sizes = {"linf": ["8"], "parts": ["test"], "steps": 3}
    believed = robustness(plain, Bench(plain), **(ATTACK | sizes))
    assert believed["robust_gradients_sound"] == 1.0
    # Random starts are off the grid: FGSM sees the slope and PGD does not
    half = subject_of(_OnGrid(hidden=False), GREYS)
    misled = robustness(half, Bench(half), **(ATTACK | sizes))
    assert misled["robust_accuracy_test_pgd_10_linf_8"] > misled["robust_accuracy_test_fgsm_linf_8"] + 0.1
    assert misled["robust_gradients_sound"] == 0.0
    # No attack sees a slope, and what was made for the plain model misleads
    blind = subject_of(_OnGrid(hidden=True), GREYS)
    alone, beside = (robustness(blind, Bench(its), **(ATTACK | sizes)) for its in (blind, plain))
    assert (alone["robust_gradients_sound"], beside["robust_gradients_sound"]) == (1.0, 0.0)


def test_one_forgotten_image_and_a_class_that_the_test_set_lacks() -> None:
    one = GREYS | {"forget": GREYS["forget"][torch.tensor([0])]}
    subject = subject_of(linear(30.0), one)
    measured = robustness(subject, Bench(subject), **ATTACK)
    assert (
        measured["robust_accuracy_forget_fgsm_linf_1_high"] - measured["robust_accuracy_forget_fgsm_linf_1_low"] > 0.7
    )
    assert measured["robust_norm_forget_quantile_0.5_high"] == np.inf
    assert measured["robust_norm_auc_low"] <= measured["robust_norm_auc"] <= measured["robust_norm_auc_high"]
    only = GREYS["test"].labels.eq(0).nonzero().flatten()
    lacking = one | {"test": GREYS["test"][only], "forget": GREYS["forget"][GREYS["forget"].labels == 1]}
    subject = subject_of(linear(30.0), lacking)
    measured = robustness(subject, Bench(subject), **ATTACK)
    assert not [name for name in measured if "norm" in name]
    assert "robust_sensitivity" in measured


def test_images_that_are_never_misled_are_infinitely_far() -> None:
    deaf = subject_of(linear(0.0), GREYS)  # every score is 0, and class 0 the first of the largest
    measured = robustness(deaf, Bench(deaf), **(ATTACK | {"attacks": ["pgd_10_linf"]}))
    share = (GREYS["test"].labels == 0).float().mean().item()
    assert measured["robust_accuracy_test_pgd_10_linf_4"] == pytest.approx(share, abs=1e-6)
    assert measured["robust_norm_held_out_quantile_0.9"] == np.inf
    assert measured["robust_norm_held_out_quantile_0.1"] == 0.0
    assert measured["robust_sensitivity"] == 0.0


# Settings


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("linf=[3]", r"auditor.robustness.linf.0=.*must be '0.5', '1', '2', '4' or '8'"),
        ("linf=[-1]", r"auditor.robustness.linf.0=.*must be"),
        ("l2=[1,abc]", r"auditor.robustness.l2.1=.*must be"),
        ("attacks=[pgd]", r"auditor.robustness.attacks.0=.*must be"),
        ("parts=[validation]", r"auditor.robustness.parts.0=.*must be"),
        ("limit=0", r"auditor.robustness.limit=0: must be"),
    ],
)
def test_settings_off_the_grid_are_refused(word: str, message: str, lab: Callable[..., Lab]) -> None:
    with pytest.raises(SettingError, match=message):
        lab("auditor=[robustness]", "objective=robust_sensitivity", f"auditor.robustness.{word}")


def test_sizes_are_words_of_the_grid_however_they_are_written(lab: Callable[..., Lab]) -> None:
    words = ["auditor=[robustness]", "objective=robust_sensitivity"]
    made = lab(*words, "auditor.robustness.linf=[2.0,'4',0.5]", "auditor.robustness.l2=[1]")
    assert made.settings["auditor"]["robustness"]["linf"] == ["2", "4", "0.5"]
    assert made.settings["auditor"]["robustness"]["l2"] == ["1"]


def test_what_cannot_attack_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def lab(classes: int) -> Any:
        return type("Lab", (), {"data": type("Data", (), {"class_count": classes})})

    robustness_file.check(lab(4), **(ATTACK | {"attacks": ["autoattack_linf"]}))
    robustness_file.check(lab(3), **ATTACK)
    with pytest.raises(SettingError, match=r"auditor.robustness.attacks=.*four classes, and there are 3"):
        robustness_file.check(lab(3), **(ATTACK | {"attacks": ["autoattack_linf"]}))
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    robustness_file.check(lab(10), **(ATTACK | {"attacks": []}))
    with pytest.raises(SettingError, match=r"needs torchattacks: pip install 'unlearn\[robustness\]'"):
        robustness_file.check(lab(10), **ATTACK)


# Statistics of pairs, and quantiles


@pytest.mark.parametrize(("first", "second", "agreement"), [(0.9, 0.8, 0.75), (0.5, 0.5, 0.45), (0.8, 0.6, 0.5)])
def test_the_interval_of_a_paired_difference_covers_it(first: float, second: float, agreement: float) -> None:
    draw, covered = np.random.default_rng(0), []
    chances = [agreement, first - agreement, second - agreement, 1 - first - second + agreement]
    for _ in range(400):
        both, one, other, neither = draw.multinomial(100, chances)
        hits = [np.repeat([True, *its, False], [both, one, other, neither]) for its in ((True, False), (False, True))]
        its = share_difference(*hits, "x")
        assert its["x"] == pytest.approx((one - other) / 100, abs=1e-12)
        covered.append(its["x_low"] <= first - second <= its["x_high"])
    assert 0.92 <= np.mean(covered) <= 0.985


def test_the_interval_of_a_paired_difference_of_a_worked_case() -> None:
    # Newcombe 1998, method 10, for 36, 12, 2 and 0 pairs
    hits = [np.repeat(its, [36, 12, 2, 0]) for its in ([True, True, False, False], [True, False, True, False])]
    its = share_difference(*hits, "x")
    assert its["x"] == pytest.approx(0.2, abs=1e-12)
    mirrored = share_difference(*reversed(hits), "x")
    assert mirrored["x_low"] == pytest.approx(-its["x_high"], abs=1e-12)
    same = share_difference(hits[0], hits[0], "x")
    assert same["x_low"] < same["x"] == 0.0 < same["x_high"]
    assert share_difference(hits[0][:0], hits[0][:0], "x") == {}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_interval_of_a_quantile_covers_it(share: float) -> None:
    draw = np.random.default_rng(1)
    covered = []
    for _ in range(1500):
        its = quantile(draw.normal(0, 1, 80), share, "x")
        assert its["x_low"] <= its["x"] <= its["x_high"]
        covered.append(its["x_low"] <= norm.ppf(share) <= its["x_high"])
    assert 0.94 <= np.mean(covered) <= 0.99


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile(np.arange(1.0, 11.0), 0.1, "x")["x"] == 1.0
    assert quantile(np.arange(1.0, 11.0), 0.9, "x")["x"] == 9.0
    assert quantile(np.array([4.0]), 0.9, "x") == {"x": 4.0, "x_low": -np.inf, "x_high": np.inf}
