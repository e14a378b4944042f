"""Memorisation: the scores against their definition, the audit by thirds of them, and files to choose and part by."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_declared, yaml_of
from scipy.stats import spearmanr
from scipy.stats import t as student
from test_auditors import Bench, Floats, answers, audited, some

from scripts import memorisation as script
from unlearn.auditors.memorisation import METRICS, attacks, memorisation, strata
from unlearn.data.images import Data
from unlearn.lab import Lab
from unlearn.memorisation import PROXIES, contrasts, correctness
from unlearn.row import identity
from unlearn.settings import SettingError, build
from unlearn.signals import Signals
from unlearn.streams import Streams
from unlearn.subject import Shadow, Subject

CHOICES = dict.fromkeys(("dataset", "model", "train", "scenario", "method"), "")


# Planted memories


def pool(count: int, seed: int, **hard: Floats) -> list[Shadow]:
    """Reference models that know members, and others the less the harder they are, from 0 to 1."""
    draw, models = np.random.default_rng(seed), []
    for number in range(count):
        if number % 2 == 0:
            members = {part: draw.random(len(its)) < 0.5 for part, its in hard.items()}
        else:
            members = {part: ~its for part, its in members.items()}
        parts = {
            part: answers(np.where(members[part], 0.05, 0.05 + 4 * its * draw.random(len(its))))
            for part, its in hard.items()
        }
        nothing = {part: answers(np.zeros(0)) for part in ("retain", "validation")}
        models.append(Shadow(**(nothing | parts), members=members))
    return models


@dataclass
class Pooled(Bench):
    """A laboratory with reference models."""

    shadows_there: tuple[Shadow, ...] = ()

    def references(self, count: int) -> Iterator[Shadow]:
        return iter(self.shadows_there[:count])


HARD = np.random.default_rng(0).random(150) ** 2
HARD_TEST = np.random.default_rng(1).random(260) ** 2
POOL = tuple(pool(16, 2, forget=HARD, test=HARD_TEST))


def model(seed: int, known: float = 1.0, **parts: Signals) -> Subject:
    """A model that never saw a test image, and knows what is to be forgotten as well as those if `known` is 1."""
    draw = np.random.default_rng(seed)
    forget = answers(0.05 + 4 * known * HARD * draw.random(len(HARD)))
    return audited(**({"forget": forget, "test": answers(0.05 + 4 * HARD_TEST * draw.random(len(HARD_TEST)))} | parts))


def measured(
    subject: Subject, reference: Subject, models: tuple[Shadow, ...] = POOL, count: int = 16
) -> dict[str, Any]:
    return dict(memorisation(subject, Pooled(reference, shadows_there=models), references=count))


def by_definition(part: str, of: Callable[[Signals], Floats]) -> Floats:
    """Mean over the models that saw an image, minus the mean over the others."""
    values = np.array([of(getattr(shadow, part)) for shadow in POOL])
    members = np.array([shadow.members[part] for shadow in POOL])
    return np.array(
        [values[members[:, i], i].mean() - values[~members[:, i], i].mean() for i in range(values.shape[1])]
    )


def test_scores_are_the_difference_of_two_means() -> None:
    kept = measured(model(0), model(1))
    for signal, name in ((correctness, "scores"), (lambda its: its.confidence, "confidence_scores")):
        found = contrasts(POOL, signal, ("forget", "test"))
        for part in ("forget", "test"):
            assert found[part].shape[0] == 8
            np.testing.assert_allclose(found[part].mean(axis=0), by_definition(part, signal), atol=1e-12)
        np.testing.assert_array_equal(kept[name], found["forget"].mean(axis=0).astype(np.float32))
        assert kept[name].dtype == np.float32
    with pytest.raises(SettingError, match=r"^references=forget: must come in pairs .* complementary halves$"):
        contrasts((POOL[0], POOL[2]), correctness, ("forget",))


def test_planted_memories_are_found_and_their_interval_is_over_pairs_of_models() -> None:
    found = measured(model(0), model(1))
    assert spearmanr(found["scores"], HARD).statistic > 0.7
    right = contrasts(POOL, correctness, ("forget",))["forget"]
    of_pairs = right.mean(axis=1)
    half = student.ppf(0.975, 7) * of_pairs.std(ddof=1) / math.sqrt(8)
    assert found["memorisation_mean"] == pytest.approx(right.mean())
    assert found["memorisation_mean_low"] == pytest.approx(right.mean() - half)
    assert found["memorisation_mean_high"] == pytest.approx(right.mean() + half)
    two = measured(model(0), model(1), count=2)
    assert_declared(two, METRICS)
    assert two["memorisation_mean"] == "needs at least 4 reference models for its interval"
    assert set(two["scores"]) <= {-1, 0, 1}


def test_correlations_are_spearmans_and_proxies_grow_with_memorisation() -> None:
    subject = model(0)
    found = measured(subject, model(1))
    by_hand = {"confidence": subject.forget.loss, "entropy": subject.forget.entropy}
    assert by_hand.keys() == PROXIES.keys()
    for name, values in by_hand.items():
        wanted = spearmanr(values, found["scores"]).statistic
        assert found[f"memorisation_correlation_{name}"] == pytest.approx(wanted, abs=1e-6)
        assert found[f"memorisation_correlation_{name}"] > 0.3


def area(positive: Floats, negative: Floats) -> float:
    return float(np.mean(np.sign(np.subtract.outer(positive, negative)) / 2 + 0.5))


def test_thirds_have_the_accuracy_and_the_area_of_their_own_images() -> None:
    subject, reference = model(0, known=0.5), model(1)
    found = measured(subject, reference)
    scores = by_definition("forget", lambda its: its.correct), by_definition("forget", lambda its: its.confidence)
    order = sorted(range(150), key=lambda i: (round(scores[0][i], 9), scores[1][i]))
    held_scores = by_definition("test", lambda its: its.correct), by_definition("test", lambda its: its.confidence)
    pairs = [[(round(a, 9), b) for a, b in zip(*its, strict=True)] for its in (scores, held_scores)]
    bounds = [(-9.0, 0.0), pairs[0][order[50]], pairs[0][order[100]], (9.0, 0.0)]
    seen = 0
    for number, ((low, high), name) in enumerate(zip(pairwise(bounds), ("low", "middle", "high"), strict=True)):
        chosen, held_out = (np.array([low <= pair < high for pair in its]) for its in pairs)
        assert chosen.sum() == 50
        np.testing.assert_array_equal(found["strata"] == number, chosen)
        assert found[f"memorisation_{name}_forget_accuracy"] == pytest.approx(subject.forget.correct[chosen].mean())
        own, theirs = (area(-its.forget.loss[chosen], -its.test.loss[held_out]) for its in (subject, reference))
        assert found[f"memorisation_{name}_loss_auc"] == pytest.approx(own)
        seen += held_out.sum()
    assert found["memorisation_high_loss_auc_difference"] == pytest.approx(own - theirs)
    assert seen == 260


def test_held_out_images_are_of_the_classes_to_forget() -> None:
    one = replace(model(0), forget=Signals(model(0).forget.logits, np.full(150, 2)))
    shadows = tuple(replace(its, forget=Signals(its.forget.logits, np.full(150, 2))) for its in POOL)
    found = measured(one, one, shadows)
    foreign = one.test.labels != 2
    spoilt = replace(one, test=Signals(np.where(foreign[:, None], 0, one.test.logits), one.test.labels))
    np.testing.assert_equal(measured(spoilt, spoilt, shadows), found)


def null(seed: int) -> dict[str, Any]:
    """The attacks on one of two retrained models, on images of their own in each case."""
    draw = np.random.default_rng(seed)
    hard, hard_test = draw.random(150) ** 2, draw.random(260) ** 2
    models = pool(4, seed + 1000, forget=hard, test=hard_test)
    both = [contrasts(models, signal, ("forget", "test")) for signal in (correctness, lambda its: its.confidence)]
    thirds = strata(*(tuple(found[part].mean(axis=0) for found in both) for part in ("forget", "test")))
    models = [
        audited(
            forget=answers(0.05 + 4 * hard * draw.random(150)), test=answers(0.05 + 4 * hard_test * draw.random(260))
        )
        for _ in range(2)
    ]
    return dict(attacks(models[0], models[1], *thirds))


def test_an_independent_retrain_passes_and_is_at_one_half_in_each_third_and_the_original_fails() -> None:
    found = [null(seed) for seed in range(200)]
    assert 182 <= sum(its["memorisation_passed"] for its in found) <= 199  # a binomial of 0.95 is in one case of 200
    for name in ("low", "middle", "high"):
        assert np.mean([its[f"memorisation_{name}_loss_auc"] for its in found]) == pytest.approx(0.5, abs=0.02)
        inside = [its[f"memorisation_{name}_loss_auc_{end}"] for its in found for end in ("low", "high")]
        assert sum(low <= 0.5 <= high for low, high in zip(inside[::2], inside[1::2], strict=True)) >= 182
    original = measured(model(0, known=0.0), model(1))
    assert original["memorisation_passed"] == 0
    assert original["memorisation_high_loss_auc"] > 0.8
    assert original["memorisation_high_forget_accuracy"] == 1
    assert measured(model(1), model(1))["memorisation_high_loss_auc_difference"] == 0


def cut(count: int) -> tuple[Subject, tuple[Shadow, ...]]:
    """The first `count` images to forget, and all test images."""
    few = np.arange(count)
    shadows = [
        replace(its, forget=its.forget[few], members={**its.members, "forget": its.members["forget"][few]})
        for its in POOL
    ]
    return replace(model(0), forget=model(0).forget[few]), tuple(shadows)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_of_a_few_images_the_last_thirds_have_one(count: int) -> None:
    subject, shadows = cut(count)
    found = measured(subject, subject, shadows)
    assert_declared(found, METRICS)
    sizes = np.bincount(found["strata"], minlength=3).tolist()
    assert sizes == {1: [0, 0, 1], 2: [0, 1, 1], 3: [1, 1, 1], 5: [1, 2, 2]}[count]
    for size, name in zip(sizes, ("low", "middle", "high"), strict=True):
        if size == 0:
            reason = f"none of the {count} images to forget is in this third"
            assert found[f"memorisation_{name}_forget_accuracy"] == found[f"memorisation_{name}_loss_auc"] == reason
    if count == 1:
        assert found["memorisation_correlation_entropy"].startswith("of 1 images all scores are equal")


def test_equal_images_are_in_one_third_and_a_third_without_held_out_images_is_refused() -> None:
    same = np.full(150, 0.0), np.full(260, 0.0)
    shadows = tuple(pool(4, 0, forget=same[0], test=same[1]))
    subject = audited(forget=answers(np.full(150, 100.0)), test=answers(np.full(260, 100.0)))
    found = measured(subject, subject, shadows, 4)
    assert_declared(found, METRICS)
    assert set(found["strata"]) == {2}
    assert found["memorisation_high_loss_auc"] == 0.5
    assert found["memorisation_passed"] == 1
    assert found["memorisation_correlation_confidence"].startswith("of 150 images all scores are equal")

    own = np.array([0.1, 0.2, 0.3]), np.zeros(3)
    thirds, others = strata(own, (np.array([0.0, 0.1, 0.15, 0.2]), np.zeros(4)))
    assert thirds.tolist() == [0, 1, 2]
    assert others.tolist() == [0, 0, 0, 1]
    high = tuple(pool(4, 0, forget=np.ones(150), test=np.zeros(260)))
    last = "none of the 260 held-out images is in this third"
    refused = measured(model(0), model(1), high, 4)
    assert refused["memorisation_high_loss_auc"] == refused["memorisation_passed"] == last


def test_without_a_test_image_of_the_class_there_is_no_attack() -> None:
    subject = replace(
        model(0), test=answers(some(0, 260), np.full(260, 1)), forget=answers(some(1, 150), np.full(150, 2))
    )
    found = measured(subject, subject)
    assert_declared(found, METRICS)
    assert not [name for name in found if "auc" in name or "passed" in name]
    assert "memorisation_high_forget_accuracy" in found


def test_it_measures_what_it_declares() -> None:
    found = measured(model(0), model(1))
    assert_declared(found, METRICS)
    assert {metric.name for metric in METRICS} <= found.keys()


# The scenario


@pytest.fixture(scope="module")
def data(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Data:
    settings = composing(tmp_path_factory.mktemp("unused"), []).settings["dataset"]
    read: Data = build(settings, "dataset")()
    return read


def forget(data: Data, file: Path, split: int = 0, **settings: Any) -> torch.Tensor:
    scenario = build(yaml_of("scenario", "memorised") | {"scores": str(file)} | settings, "scenario")
    positions: torch.Tensor = scenario(data, Streams("scenario", split))
    return positions


def official(data: Data) -> int:
    return len(data.train) + len(data.validation)


@pytest.mark.parametrize("name", ["scores.npy", "tr_mem.npz"])
def test_images_are_chosen_by_their_rank_in_the_training_set(name: str, data: Data, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).permutation(official(data)) / 7
    (
        np.savez(tmp_path / name, tr_mem=scores, other=scores[::-1])
        if name.endswith("z")
        else np.save(tmp_path / name, scores)
    )
    own = scores[data.train_index.numpy()].tolist()
    ranked = sorted(range(len(own)), key=own.__getitem__)
    count, total = {"fraction": None, "count": 100}, len(ranked)
    wanted = {
        "least": ranked[:100], "most": ranked[-100:], "middle": ranked[total // 2 - 50 : total // 2 + 50],
        "each": ranked[:33] + ranked[(total - 33) // 2 : (total - 33) // 2 + 33] + ranked[-34:],
    }  # fmt: skip
    for which, positions in wanted.items():
        chosen = forget(data, tmp_path / name, which=which, **count)
        assert set(chosen.tolist()) ^ set(positions) <= ({ranked[total // 2 - 51], ranked[total // 2 + 50], *positions}
                                                         if which == "middle" else set())  # fmt: skip
        assert len(chosen) == 100
    assert len(forget(data, tmp_path / name)) == round(0.1 * total)
    everything = forget(data, tmp_path / name, which="each", fraction=None, count=total - 1)
    assert len(everything.unique()) == total - 1


def test_equal_scores_are_in_an_order_drawn_for_the_split_and_others_are_not(data: Data, tmp_path: Path) -> None:
    file = tmp_path / "scores.npy"
    scores = np.where(np.arange(official(data)) % 4 == 0, 0.5, 0.0)
    np.save(file, scores)
    top = set(np.flatnonzero(scores[data.train_index.numpy()] == 0.5).tolist())
    few, others = (set(forget(data, file, split, fraction=None, count=50).tolist()) for split in (0, 1))
    assert few < top
    assert others < top
    assert few != others
    many = [set(forget(data, file, split, fraction=None, count=len(top)).tolist()) for split in (0, 1)]
    assert many == [top, top]


def test_images_without_a_score_are_never_chosen(data: Data, tmp_path: Path) -> None:
    file = tmp_path / "scores.npy"
    scores = np.full(official(data), np.nan)
    known = data.train_index[:60].numpy()
    scores[known] = np.arange(60)
    np.save(file, scores)
    for which in ("most", "least", "middle", "each"):
        assert set(forget(data, file, which=which, fraction=None, count=60).tolist()) == set(range(60))
        with pytest.raises(SettingError, match=r"^scenario\.scores=.*: has scores for 60 of the 1295 .* 61 are to be"):
            forget(data, file, which=which, fraction=None, count=61)


def test_bad_files_and_numbers_are_refused(data: Data, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros(100))
    np.save(tmp_path / "table.npy", np.zeros((2000, 2)))
    for name, message in (
        ("nowhere.npy", "must be an .npy, or an .npz"),
        ("few.npy", "has 100 scores, and no image "),
        (
            "table.npy",
            "must hold finite numbers, or nan for want of one, in one dimension, and holds float64 (2000, 2)",
        ),
    ):
        with pytest.raises(SettingError) as raised:
            forget(data, tmp_path / name)
        assert raised.value.key == "scenario.scores"
        assert raised.value.allowed.startswith(message)
    with pytest.raises(SettingError, match=r"^scenario\.count=5: give either"):
        forget(data, tmp_path / "few.npy", count=5)


def test_a_row_is_identified_by_the_forget_set_and_not_by_the_place_of_the_scores(
    lab: Callable[..., Lab], tmp_path: Path
) -> None:
    scores = np.random.default_rng(0).random(1438)
    for name, its in (("a", scores), ("b", scores), ("c", -scores)):
        np.save(tmp_path / f"{name}.npy", its)
    labs = [lab("scenario=memorised", f"scenario.scores={tmp_path / name}.npy") for name in "abc"]
    rows = [identity(its, CHOICES) for its in labs]
    assert rows[0] == rows[1] != rows[2]
    assert labs[0].recipe() == labs[2].recipe()


# The files


class Written:
    """`scripts/memorisation.py` in this process, on the data and the store of a lab."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        place = [f"store={lab.store.root}", f"dataset.root={lab.settings['dataset']['root']}", "device=cpu"]
        self.words = [*place, "precision=fp32", "train.epochs=4", "train.batch_size=64", "scenario.fraction=0.3"]

    def __call__(self, *words: str) -> str:
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["memorisation.py", *self.words, *words])
            script.main()
        return self.capsys.readouterr().out.strip().splitlines()[-1]

    def refusal(self, *words: str) -> str:
        with pytest.raises(SystemExit) as raised:
            self(*words)
        return str(raised.value)


@pytest.fixture
def written(lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Written:
    return Written(lab(), monkeypatch, capsys)


def test_the_script_writes_feldmans_scores_in_the_official_order(
    written: Written, lab: Callable[..., Lab], tmp_path: Path
) -> None:
    file = tmp_path / "scores.npy"
    assert written("--references=4", f"--out={file}") == str(file)
    scores, here = np.load(file), lab("scenario.fraction=0.3")
    numbers = here.data.train_index.numpy()
    assert np.isnan(np.delete(scores, numbers)).all()
    assert len(scores) == 1438
    saw, right = [], []
    for number in range(4):
        shadow = here._shadow(number)
        outputs = here.signals(shadow.original())["train"]
        saw.append(np.isin(numbers, shadow.data.train_index.numpy()))
        right.append(outputs.correct)
    members, hits = np.array(saw), np.array(right, dtype=float)
    assert (members.sum(axis=0) == 2).all()
    inside, outside = ((hits * its).sum(axis=0) / 2 for its in (members, ~members))
    np.testing.assert_allclose(scores[numbers], inside - outside)
    assert scores[numbers].mean() > 0.02
    # What it writes is what its readers read
    chosen = lab("scenario=memorised", f"scenario.scores={file}", "scenario.fraction=0.05")
    assert scores[numbers[chosen.forget.numpy()]].min() >= np.sort(scores[numbers])[-70]
    lab("method=rum", f"method.scores={file}")


def test_the_script_writes_what_the_original_alone_says(
    written: Written, lab: Callable[..., Lab], tmp_path: Path
) -> None:
    here = lab()
    outputs = here.signals(here.original())["train"]
    for name, wanted in (("confidence", -outputs.margin), ("entropy", outputs.entropy)):
        file = written(f"--proxy={name}", f"--out={tmp_path / name}.npy")
        np.testing.assert_allclose(np.load(file)[here.data.train_index.numpy()], wanted)


def test_the_script_refuses_in_one_line(written: Written, tmp_path: Path) -> None:
    out = f"--out={tmp_path / 'x.npy'}"
    assert written.refusal("--references=3", out).startswith("error: --references=3: must be a multiple of 2")
    assert written.refusal("--references=0", out).startswith(
        "error: --references=0: must be greater than or equal to 2"
    )
    assert "must be an .npy file in a folder that exists" in written.refusal("--references=2", "--out=scores.txt")
    assert "in a folder that exists" in written.refusal("--references=2", f"--out={tmp_path / 'no' / 'x.npy'}")
    assert written.refusal("--references=2", out, "seed=-1").startswith("error: seed=-1: ")
    assert not (tmp_path / "store" / "originals").exists()


def test_rum_is_refused_at_once_where_an_image_to_forget_has_no_score(lab: Callable[..., Lab], tmp_path: Path) -> None:
    here = lab()
    scores = np.full(1438, np.nan)
    numbers = here.data.train_index[here.forget].numpy()
    scores[numbers] = np.arange(len(numbers))
    np.save(tmp_path / "enough.npy", scores)
    lab("method=rum", f"method.scores={tmp_path / 'enough.npy'}")
    scores[numbers[7]] = np.nan
    np.save(tmp_path / "less.npy", scores)
    message = rf"^method\.scores=.*less\.npy: has no score for image {numbers[7]}, which is to be forgotten$"
    with pytest.raises(SettingError, match=message):
        lab("method=rum", f"method.scores={tmp_path / 'less.npy'}")
    np.save(tmp_path / "few.npy", np.zeros(3))
    with pytest.raises(SettingError, match=r"has 3 scores, and no image"):
        lab("method=rum", f"method.scores={tmp_path / 'few.npy'}")
    assert not (tmp_path / "store" / "originals").exists()
