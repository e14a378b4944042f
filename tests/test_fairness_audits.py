"""The fairness gap: against sums over stored activations, and on images whose spread is planted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from test_auditors import Bench, audited
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from unlearn.auditors import fairness_gap as file
from unlearn.auditors.fairness_gap import SUMMARIES, fairness_gap, jackknifed
from unlearn.data.images import Images
from unlearn.lab import Lab
from unlearn.models.normalise import Normalise
from unlearn.models.resnet20 import resnet20
from unlearn.models.vit_tiny import vit_tiny
from unlearn.settings import SettingError
from unlearn.streams import Streams
from unlearn.subject import Subject

Floats = NDArray[np.float64]
SETTINGS: dict[str, Any] = {"part": "test", "statistic": "output", "folds": 5}
STATISTICS = ["output", "input", "scale_free", "scatter"]
SHAPE = (1, 8, 8)


class Tokens(nn.Module):
    """An image's pixels as B x tokens x features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.features)


def with_input(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(Normalise(1, [0.3], [0.4]), nn.Sequential(*layers)).eval()


def resnet() -> nn.Module:
    return with_input(*resnet20(SHAPE, 3).children())


def vit() -> nn.Module:
    return with_input(vit_tiny(SHAPE, 3, depth=1, dropout=0.0))


def group_norm() -> nn.Module:
    return with_input(nn.Conv2d(1, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(216, 3))


def several_axes() -> nn.Module:
    return with_input(nn.LayerNorm([8, 8]), nn.Flatten(), nn.LayerNorm(64, elementwise_affine=False), nn.Linear(64, 3))


def channels_first() -> nn.Module:
    return with_input(nn.Conv2d(1, 6, 3), LayerNorm2d(6), nn.Flatten(), nn.Linear(216, 3))


MODELS = {each.__name__: each for each in (resnet, vit, group_norm, several_axes, channels_first)}


def made(name: str) -> nn.Module:
    """A model with norms of every scale, some of them negative or zero, and statistics of their own."""
    with Streams("test", name).seeded("model"):
        model = MODELS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def pictures(seed: int, labels: list[int] | NDArray[np.int64]) -> Images:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)
    return Images(torch.from_numpy(pixels), torch.as_tensor(labels))


def subject_of(model: nn.Module, images: Images, **parts: Any) -> Subject:
    return audited(model=lambda: model, images={"test": images}.__getitem__, **parts)


def measured(model: nn.Module, images: Images, forgotten: tuple[int, ...] = (), **settings: Any) -> Mapping[str, Any]:
    subject = subject_of(model, images, forgotten_classes=np.array(forgotten, dtype=np.int64))
    return fairness_gap(subject, Bench(), **(SETTINGS | settings))


# Against activations stored as a whole


def activations(model: nn.Module, images: Images, statistic: str) -> list[Floats]:
    """What each norm layer gives or takes, images x positions x features, all at once."""
    stored: list[Floats] = []

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = (inputs[0] if statistic == "input" else output).clone()
        if isinstance(module, nn.LayerNorm) and module.normalized_shape == (8, 8):
            values, scale, shift = (each.flatten(-2) for each in (values, module.weight, module.bias))
        elif isinstance(module, nn.LayerNorm) and not isinstance(module, LayerNorm2d):
            scale, shift = module.weight, module.bias
        else:
            values, scale, shift = values.flatten(2).transpose(1, 2), module.weight, module.bias
        if statistic == "scale_free" and scale is not None:
            values = (values.double() - shift.double()) / scale.double()
        stored.append(values.double().detach().numpy().reshape(len(images), -1, values.shape[-1]))

    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)]
    handles = [module.register_forward_hook(keep) for module in norms]
    with torch.no_grad():
        model(images.pixels.permute(0, 3, 1, 2).float() / 255)
    for handle in handles:
        handle.remove()
    return stored


def by_hand(layers: list[Floats], labels: NDArray[np.int64], statistic: str) -> Floats:
    """Layers x classes."""
    rows = []
    for values in layers:
        row = []
        for its in np.unique(labels):
            of_class = values[labels == its]
            if statistic == "scatter":
                centres = of_class.mean(axis=1)
                distances = ((centres - centres.mean(axis=0)) ** 2).sum(axis=1)
                row.append(np.sqrt(distances.mean() / values.shape[2]))
            else:
                row.append(np.mean([of_class[:, :, k].std() for k in range(values.shape[2])]))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("name", MODELS)
def test_one_pass_over_batches_equals_numpy_on_stored_activations(name: str, statistic: str) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 230)  # more than two batches
    model, images = made(name), pictures(1, labels)
    answer = measured(model, images, statistic=statistic)
    sigmas = by_hand(activations(model, images, statistic), labels, statistic)
    gaps = sigmas.max(axis=1) - sigmas.min(axis=1)
    assert answer["fairness_gap_sigmas"] == pytest.approx(sigmas, rel=1e-4)
    assert answer["fairness_gap_curve"] == pytest.approx(gaps, rel=1e-3, abs=1e-6)
    expected = [gaps.mean(), gaps.max(), gaps[-1], (gaps / sigmas.mean(axis=1)).mean()]
    assert [answer[f"fairness_gap_{summary}"] for summary in SUMMARIES] == pytest.approx(expected, rel=1e-3)
    assert len(answer["fairness_gap_layers"]) == len(gaps)
    assert list(answer["fairness_gap_classes"]) == [0, 1, 2]


class Backwards(nn.Module):
    """Its norms in another order than that of their use, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.unused, self.early = nn.GroupNorm(1, 1), nn.GroupNorm(1, 1), nn.BatchNorm2d(1)
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.early(x)).flatten(1))


def test_layers_are_those_in_use_in_the_order_of_their_use() -> None:
    answer = measured(with_input(Backwards()), pictures(0, [0, 0, 1, 1]))
    assert list(answer["fairness_gap_layers"]) == ["1.0.early", "1.0.late"]
    assert answer["fairness_gap_last"] == pytest.approx(answer["fairness_gap_curve"][1], rel=1e-6)


# Planted spreads


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_classes_with_the_same_images_have_no_gap(name: str, statistic: str) -> None:
    one = pictures(0, np.zeros(40, dtype=np.int64))
    both = one.joined(one.relabelled(torch.ones(40, dtype=torch.int64)))
    answer = measured(made(name), both, statistic=statistic)
    assert answer["fairness_gap_sigmas"].min() > 1e-3
    assert all(answer[f"fairness_gap_{summary}"] < 1e-6 for summary in SUMMARIES)


def scaled(factor: int) -> Images:
    """Two classes of the same images, those of the second with deviations from 100 that are `factor` times as large."""
    one = pictures(0, np.zeros(60, dtype=np.int64))
    small = one.pixels // 16
    large = small * factor
    return Images(torch.cat([small + 100, large + 100]), torch.arange(2).repeat_interleave(60))


@pytest.mark.parametrize("factor", [2, 3, 9])
def test_a_class_scaled_before_a_layer_is_found_by_as_much(factor: int) -> None:
    answer = measured(with_input(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2)), scaled(factor))
    small, large = answer["fairness_gap_sigmas"][0]
    assert large == pytest.approx(factor * small, rel=1e-5)
    assert answer["fairness_gap_mean"] == pytest.approx((factor - 1) * small, rel=1e-5)
    assert answer["fairness_gap_relative"] == pytest.approx(2 * (factor - 1) / (factor + 1), rel=1e-5)


def test_a_layer_norm_takes_the_scale_of_a_class_away_and_its_input_shows_it() -> None:
    model = nn.Sequential(
        Normalise(1, [100 / 255], [0.4]), nn.Sequential(nn.Flatten(), nn.LayerNorm(64, eps=1e-12), nn.Linear(64, 2))
    )
    after, before = (measured(model, scaled(3), statistic=statistic) for statistic in ("output", "input"))
    assert after["fairness_gap_mean"] < 1e-5
    assert before["fairness_gap_relative"] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_other_names_of_the_classes_change_nothing(name: str) -> None:
    model, images = made(name), pictures(3, np.arange(90) % 3)
    renamed = images.relabelled(torch.tensor([7, 2, 4])[images.labels])
    one, other = measured(model, images), measured(model, renamed)
    for summary in SUMMARIES:
        for end in ("", "_low", "_high"):
            name = f"fairness_gap_{summary}{end}"
            assert one[name] == pytest.approx(other[name], rel=1e-12)
    assert np.array_equal(one["fairness_gap_sigmas"][:, [1, 2, 0]], other["fairness_gap_sigmas"])


def test_forgotten_classes_count_in_the_first_numbers_and_not_in_the_second() -> None:
    model, images = made("resnet"), pictures(4, np.arange(120) % 4)
    kept = images[images.labels != 2]
    answer, without = measured(model, images, forgotten=(2,)), measured(model, kept)
    plain = measured(model, images)
    for summary in SUMMARIES:
        for end in ("", "_low", "_high"):
            remaining = answer[f"fairness_gap_{summary}_remaining_classes{end}"]
            assert remaining == pytest.approx(without[f"fairness_gap_{summary}{end}"], rel=1e-12)
            assert answer[f"fairness_gap_{summary}{end}"] == plain[f"fairness_gap_{summary}{end}"]
    assert not any("remaining" in key for key in plain)
    # Where the test set has no image of the forgotten class, there is nothing to leave out
    assert set(measured(model, kept, forgotten=(2,))) == set(without)


def test_the_last_layers_gap_is_not_the_largest_where_an_early_one_is_wider() -> None:
    model = with_input(nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2))
    net: Any = model[1]
    nn.init.constant_(net[1].weight, 0.25)
    answer = measured(model, scaled(2))
    assert answer["fairness_gap_last"] == pytest.approx(answer["fairness_gap_max"] / 4, rel=1e-4)
    assert answer["fairness_gap_mean"] == pytest.approx(answer["fairness_gap_max"] * 5 / 8, rel=1e-4)


# Intervals


def test_the_jackknife_of_a_mean_is_the_t_interval_of_the_folds() -> None:
    folds = np.random.default_rng(0).normal(5, 1, (7, 40)).mean(axis=1)
    without = np.array([np.delete(folds, fold).mean() for fold in range(7)])
    interval = jackknifed(folds.mean(), without, "x")
    low, high = student.interval(0.95, 6, loc=folds.mean(), scale=folds.std(ddof=1) / np.sqrt(7))
    assert (interval["x_low"], interval["x_high"]) == pytest.approx((low, high), rel=1e-9)


def test_the_interval_leaves_out_every_fold_once() -> None:
    model, labels = made("vit"), np.arange(90) % 3
    images = pictures(5, labels)
    folds = [np.arange(90) // 3 % 5 != fold for fold in range(5)]  # of each class every fifth image
    replicates = [measured(model, images[torch.from_numpy(chosen).nonzero().flatten()]) for chosen in folds]
    answer = measured(model, images)
    for summary in SUMMARIES:
        name = f"fairness_gap_{summary}"
        expected = jackknifed(answer[name], np.array([each[name] for each in replicates]), name)
        assert {key: answer[key] for key in expected} == pytest.approx(expected, rel=1e-6)
        assert answer[f"{name}_low"] < answer[name] < answer[f"{name}_high"]


def test_intervals_contain_the_true_gap_where_the_classes_lie_apart() -> None:
    # Three classes of normal features, of deviation 1, 2 and 4; the auditor's own sums, no model
    draw, contained, truth = np.random.default_rng(6), 0, 3.0
    for _ in range(300):
        folds = draw.normal(0, 1, (3, 10, 6)) * np.array([1.0, 2.0, 4.0])[:, None, None]
        whole = np.ptp(folds.reshape(3, -1).std(axis=1, ddof=1))
        without = [np.ptp(np.delete(folds, fold, axis=1).reshape(3, -1).std(axis=1, ddof=1)) for fold in range(10)]
        interval = jackknifed(float(whole), np.array(without), "x")
        contained += interval["x_low"] <= truth <= interval["x_high"]
    assert 0.90 <= contained / 300 <= 0.98


# What is refused, and what must not happen


def test_one_class_or_a_single_image_of_one_is_a_reason_and_not_a_number() -> None:
    model = made("resnet")
    one = measured(model, pictures(0, [4] * 10))
    assert one == {
        f"fairness_gap_{summary}": "needs test images of two classes, and there are those of 1" for summary in SUMMARIES
    }
    single = measured(model, pictures(0, [4, 4, 5]))
    assert set(single.values()) == {"needs two test images of each class, and class 5 has one"}
    left = measured(model, pictures(0, [4, 4, 5, 5]), forgotten=(5,))
    assert left["fairness_gap_mean"] > 0
    assert left["fairness_gap_mean_remaining_classes"] == "needs test images of two classes, and there are those of 1"


def test_a_class_with_fewer_images_than_folds_has_an_interval_of_fewer() -> None:
    model, images = made("resnet"), pictures(0, [0] * 30 + [1] * 3)
    two, three, twenty = (measured(model, images, folds=folds)["fairness_gap_mean_high"] for folds in (2, 3, 20))
    assert twenty == three != two


def test_images_that_are_all_alike_have_neither_spread_nor_gap() -> None:
    model = with_input(nn.Conv2d(1, 2, 8), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    blank = Images(torch.zeros(6, 8, 8, 1, dtype=torch.uint8), torch.arange(6) % 2)
    answer = measured(model, blank)
    assert {key: answer[key] for key in answer if answer[key] is not None and np.ndim(answer[key]) == 0} == {
        f"fairness_gap_{summary}{end}": 0.0 for summary in SUMMARIES for end in ("", "_low", "_high")
    }


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_model_and_the_random_state_are_left_as_they_were(statistic: str) -> None:
    model, images = made("resnet"), pictures(0, np.arange(40) % 4)
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    once = measured(model, images, statistic=statistic)
    again = measured(model.train(), images, statistic=statistic)
    assert all(np.array_equal(once[key], again[key]) for key in once)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_it_measures_exactly_what_it_declares() -> None:
    answer = measured(made("resnet"), pictures(0, np.arange(40) % 4), forgotten=(1,))
    declared = {f"{metric.name}{end}" for metric in file.METRICS for end in ("", "_low", "_high")}
    assert {key for key, value in answer.items() if isinstance(value, float)} == declared
    arrays = {key: value.dtype.kind for key, value in answer.items() if isinstance(value, np.ndarray)}
    kinds = {"layers": "U", "curve": "f", "sigmas": "f", "classes": "i"}
    assert arrays == {f"fairness_gap_{name}": kind for name, kind in kinds.items()}


# In a lab


WORDS = ("auditor=[accuracy,fairness_gap]", "objective=test_accuracy", "method=none", "train.epochs=1")


def test_a_model_without_norms_is_refused_before_anything_is_trained(lab: Callable[..., Lab], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="auditor=fairness_gap: must be left out, because model resnet18_no_norm"):
        lab(*WORDS, "model=resnet18_no_norm")
    assert not list((tmp_path / "store").glob("*/*/done.json"))
    with pytest.raises(SettingError, match=r"auditor\.fairness_gap\.folds=1"):
        lab(*WORDS, "auditor.fairness_gap.folds=1")


def test_in_a_lab_the_part_and_the_statistic_are_chosen_and_arrays_kept(lab: Callable[..., Lab]) -> None:
    opened = lab(*WORDS, "scenario=class_wise", "scenario.classes=[3]")
    subject = opened.subject("unlearned")
    test = opened.audit("fairness_gap", subject)
    kept = np.load(opened._audited("fairness_gap", subject).folder / "arrays.npz")
    assert kept["fairness_gap_sigmas"].shape == (2, 10)
    assert kept["fairness_gap_curve"].mean() == pytest.approx(test["fairness_gap_mean"], rel=1e-6)
    assert test["fairness_gap_mean_remaining_classes"] > 0
    retain = lab(*WORDS, "scenario=class_wise", "scenario.classes=[3]", "auditor.fairness_gap.part=retain")
    on_retain = retain.audit("fairness_gap", retain.subject("unlearned"))
    assert "fairness_gap_mean_remaining_classes" not in on_retain
    assert on_retain["fairness_gap_mean"] != test["fairness_gap_mean"]
