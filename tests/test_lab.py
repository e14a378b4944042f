"""One configuration, one row, and each thing that it needs made once: on real digits, through the store."""

import functools
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import changed, content_of, state_of

from unlearn import row as rows
from unlearn.data.images import PARTS, Images
from unlearn.lab import ROLES, Lab, total_cost
from unlearn.methods import random_label
from unlearn.request import Request
from unlearn.row import row
from unlearn.settings import SettingError
from unlearn.store import Stored, key_of

CLOCKED = {"seconds", "peak_memory_bytes", "time_ratio"}
KINDS = ("originals", "retrained", "unlearned", "signals", "audits", "rows")


class Bench:
    """A store, and rows made on it; `trained` holds the label of every training that really ran."""

    def __init__(self, compose: Callable[[list[str]], Any], root: Path) -> None:
        self.compose, self.root = compose, root
        self.trained: list[str] = []

    def show(self, label: str, line: dict[str, Any], epochs: int) -> None:
        if line["epoch"] == line["fit"] == 1:
            self.trained.append(label)

    def composed(self, *overrides: str) -> Any:
        small = ("train.epochs=2", "method.epochs=1", "auditor=[accuracy]", "objective=test_accuracy")
        words = {word.split("=")[0]: word for word in (*small, *overrides)}
        if words.get("method") == "method=retrain":
            del words["method.epochs"]  # it has none
        return self.compose(list(words.values()))

    def lab(self, *overrides: str) -> Lab:
        return Lab(self.composed(*overrides).settings, self.show)

    def row(self, *overrides: str) -> dict[str, Any]:
        settings, choices = self.composed(*overrides)
        words = list(overrides)
        document, file = row(Lab(settings, self.show), choices, words)
        assert json.loads(file.read_text()) == document
        assert file == self.root / "rows" / document["id"] / "row.json"
        return document

    def folders(self, kind: str) -> set[str]:
        """Complete things of a kind."""
        return {file.parent.name for file in (self.root / kind).glob("*/done.json")}

    def counts(self) -> dict[str, int]:
        return {kind: len(self.folders(kind)) for kind in KINDS}

    def forget_everything_but(self, *kinds: str) -> None:
        for folder in set(self.root.iterdir()) - {self.root / kind for kind in kinds}:
            shutil.rmtree(folder)


@pytest.fixture
def bench(compose: Callable[[list[str]], Any], tmp_path: Path) -> Bench:
    return Bench(compose, tmp_path / "store")


def weights(lab: Lab, stored: Stored) -> dict[str, bytes]:
    return state_of(lab.load(stored))


def unclocked(document: dict[str, Any]) -> dict[str, Any]:
    """A row without what the clock, the memory and the day had to do with."""
    rest = {key: value for key, value in document.items() if key not in ("created", "versions", "commit")}
    for part in ("metrics", "cost"):
        rest[part] = {
            role: {name: value for name, value in its.items() if name not in CLOCKED}
            for role, its in document[part].items()
        }
    return rest


# Once


def test_rows_share_what_they_have_in_common(bench: Bench) -> None:
    grid = itertools.product(("finetune", "gradient_ascent"), ("random", "class_wise"), (0, 1))
    rows = [bench.row(f"method={method}", f"scenario={scenario}", f"seed={seed}") for method, scenario, seed in grid]
    wanted = {"originals": 2, "retrained": 4, "unlearned": 8, "signals": 14, "rows": 8}
    # Of an audit the reference is a part: an original is audited beside each of its two references.
    assert bench.counts() == wanted | {"audits": 4 + 4 + 8}
    assert len(bench.trained) == 2 + 4 + 8
    assert len({document["id"] for document in rows}) == 8
    assert {document["models"]["original"][0] for document in rows} == bench.folders("originals")
    assert {document["models"]["retrained"][0] for document in rows} == bench.folders("retrained")
    assert not list(bench.root.rglob("*.partial"))


def test_the_same_row_again_is_read_and_nothing_is_written(bench: Bench) -> None:
    first = bench.row()
    before, trained = content_of(bench.root), list(bench.trained)
    assert bench.row() == first
    assert content_of(bench.root) == before
    assert bench.trained == trained
    assert first["id"] in bench.folders("rows")


def test_a_row_does_not_depend_on_what_was_in_the_store(bench: Bench) -> None:
    words = ["method=random_label", "method.epochs=2", "auditor=[standard]", "train.epochs=4"]
    torch.manual_seed(1)
    fresh = bench.row(*words)
    assert len(bench.trained) == 3
    for kinds, trained in (((), 3), (("originals",), 2), (("originals", "retrained"), 1), (KINDS[:5], 0)):
        bench.forget_everything_but(*kinds)
        bench.trained.clear()
        torch.manual_seed(2)
        np.random.seed(3)
        again = bench.row(*words)
        assert len(bench.trained) == trained
        assert unclocked(again) == unclocked(fresh)
    assert unclocked(fresh)["metrics"]["unlearned"].keys() >= {"forget_accuracy", "loss_attack_auc", "average_gap"}
    values = [(fresh["metrics"][role]["retain_accuracy"], fresh["metrics"][role]["loss_attack_auc"]) for role in ROLES]
    assert len(set(values)) == 3  # three models and not one thrice


def test_a_row_has_the_commit_that_its_process_began_with(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    began = rows.COMMIT
    monkeypatch.setattr(rows, "commit", lambda: "another, checked out meanwhile")
    assert bench.row()["commit"] == began


def test_one_more_auditor_computes_one_more_audit(bench: Bench) -> None:
    first = bench.row()
    before, counts = {kind: content_of(bench.root / kind) for kind in KINDS}, bench.counts()
    second = bench.row("auditor=[accuracy,loss_attack]")
    assert bench.counts() == counts | {"audits": counts["audits"] + 3, "rows": 2}
    assert len(bench.trained) == 3
    for kind, content in before.items():
        now = content_of(bench.root / kind)
        assert {name: now[name] for name in content} == content
        assert kind in ("audits", "rows") or now.keys() == content.keys()
    for role in ROLES:
        assert second["metrics"][role].items() > first["metrics"][role].items()
    third = bench.row("auditor=[accuracy,loss_attack]", "auditor.loss_attack.folds=5")
    assert bench.counts() == counts | {"audits": counts["audits"] + 6, "rows": 3}
    assert third["metrics"]["unlearned"]["ks_statistic"] == second["metrics"]["unlearned"]["ks_statistic"]


# What determines what


def test_seed_is_the_models_and_split_is_the_forget_set(bench: Bench) -> None:
    base, seed, split = bench.lab(), bench.lab("seed=1"), bench.lab("split=1")
    assert base.original() == split.original() != seed.original()
    assert changed(weights(base, base.original()), weights(seed, seed.original()))
    assert torch.equal(base.forget, seed.forget)
    assert not torch.equal(base.forget, split.forget)
    assert len(base.forget) == len(split.forget)
    assert len({its.retrained().key for its in (base, seed, split)}) == 3
    assert len({its.unlearned().key for its in (base, seed, split)}) == 3
    assert len(bench.trained) == 2 + 3 + 3
    assert base.original(seed=1) == seed.original()
    assert base.retrained(seed=1) == seed.retrained()
    assert base.unlearned(seed=1) == seed.unlearned()
    assert len(bench.trained) == 2 + 3 + 3


def test_original_reference_and_contestant_start_from_weights_of_their_own(bench: Bench) -> None:
    # Without a learning rate every model is still its initialisation
    labs = [bench.lab("train.lr=0", "train.epochs=1", "method=retrain", f"seed={seed}") for seed in (0, 1)]
    models = [weights(its, made) for its in labs for made in (its.original(), its.retrained(), its.unlearned())]
    for name in ("1.0.weight", "1.4.weight", "1.8.weight", "1.8.bias"):
        assert len({model[name] for model in models}) == 6, name


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["device=auto"], {"originals", "retrained", "unlearned"}),
        (["debug=true"], {"originals", "retrained", "unlearned"}),
        (["checkpoint_seconds=0"], {"originals", "retrained", "unlearned"}),
        (["objective=forget_accuracy"], {"originals", "retrained", "unlearned"}),
        (["deterministic=false"], {"originals", "retrained", "unlearned"}),
        (["method.lr=0.02"], {"originals", "retrained"}),
        (["method=neggrad_plus"], {"originals", "retrained"}),
        (["scenario.fraction=0.2"], {"originals"}),
        (["scenario=class_wise"], {"originals"}),
        (["train.lr=0.05"], set()),
        (["train=fast"], set()),
        (["model.widths=[8,8]"], set()),
        (["dataset.label_noise=0.2"], set()),
        (["dataset.validation=0.2"], set()),
        (["precision=bf16"], set()),
    ],
    ids=lambda value: ",".join(sorted(value)),
)
def test_a_recipe_holds_what_determines_it_and_no_more(words: list[str], same: set[str], bench: Bench) -> None:
    # gradient ascent on a learning rate of zero: quick, and it needs the validation part
    labs = [bench.lab("method=gradient_ascent", "method.lr=0", "train.epochs=1", *more) for more in ([], words)]
    try:
        made = [{kind: getattr(its, kind.removesuffix("s"))().key for kind in KINDS[:3]} for its in labs]
    finally:
        torch.use_deterministic_algorithms(True)
    assert {kind for kind in KINDS[:3] if made[0][kind] == made[1][kind]} == same


def test_where_the_data_lies_is_no_part_of_a_recipe(bench: Bench, tmp_path: Path) -> None:
    here, there = bench.lab(), bench.lab(f"dataset.root={tmp_path / 'elsewhere'}")
    here.original()
    assert there.original() == here.original()
    assert there.unlearned() == here.unlearned()
    assert len(bench.trained) == 2
    assert (tmp_path / "elsewhere" / "digits" / "train_images.npy").exists()


def test_a_recipe_names_the_data_by_their_content(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    digits = bench.lab("dataset.label_noise=0").data
    for part, images in (("train", digits.train), ("test", digits.test)):
        np.save(folder / f"{part}_images.npy", images.pixels.numpy())
        np.save(folder / f"{part}_labels.npy", images.labels.numpy())
    words = ["dataset=arrays", f"dataset.path={folder}", "dataset.validation=0"]
    before = bench.lab(*words)
    pixels = digits.train.pixels.clone()
    pixels[0, 0, 0] ^= 1
    np.save(folder / "train_images.npy", pixels.numpy())
    after = bench.lab(*words)
    assert key_of("originals", before.recipe()) != key_of("originals", after.recipe())
    moved = tmp_path / "moved"
    folder.rename(moved)
    again = bench.lab("dataset=arrays", f"dataset.path={moved}", "dataset.validation=0")
    assert key_of("originals", again.recipe()) == key_of("originals", after.recipe())


# Stored things


def test_a_stored_model_gives_its_stored_signals_bit_for_bit(bench: Bench) -> None:
    made = bench.lab()
    stored = made.retrained()
    signals = made.signals(stored)
    files = content_of(bench.root / "signals")

    other = bench.lab()
    model = other.load(other.retrained())
    assert not model.training
    for part in PARTS:
        images: Images = getattr(other.data, part)
        with torch.no_grad():
            x = images.pixels.permute(0, 3, 1, 2).float() / 255
            outputs = torch.cat([model(part) for part in x.split(500)]).numpy()
        np.testing.assert_array_equal(outputs, signals[part].logits)
        np.testing.assert_array_equal(images.labels.numpy(), signals[part].labels)
        assert signals[part].logits.dtype == np.float32
    np.testing.assert_array_equal(other.signals(stored)["test"].logits, signals["test"].logits)
    assert content_of(bench.root / "signals") == files


def test_a_subject_is_the_model_on_the_parts_of_its_row(bench: Bench) -> None:
    lab = bench.lab("scenario=class_wise", "scenario.classes=[3,5]")
    subject, data = lab.subject("unlearned"), lab.data
    assert set(subject.forget.labels) == {3, 5} == set(subject.forgotten_classes)
    assert not set(subject.retain.labels) & {3, 5}
    assert len(subject.forget) + len(subject.retain) == len(data.train)
    assert (len(subject.validation), len(subject.test)) == (len(data.validation), len(data.test))
    assert set(subject.held_out.labels) == {3, 5}
    assert len(subject.held_out) == int(torch.isin(data.test.labels, torch.tensor([3, 5])).sum())
    assert subject.cost == lab.unlearned().json("cost.json")
    assert lab.reference() is lab.subject("retrained")
    assert len(bench.lab().subject("original").forgotten_classes) == 0


def test_a_damaged_model_is_made_again_and_the_row_is_the_same(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method=random_label"]
    first = bench.row(*words)
    for role in ("original", "retrained", "unlearned"):
        kind = "originals" if role == "original" else role
        file = bench.root / kind / first["models"][role][0] / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        shutil.rmtree(bench.root / "rows")
        bench.trained.clear()
        capsys.readouterr()
        assert unclocked(bench.row(*words)) == unclocked(first)
        assert len(bench.trained) == 1
        assert "has a damaged model.safetensors" in capsys.readouterr().err
    assert len(list((bench.root / "set_aside").iterdir())) == 3


def test_an_interrupted_training_continues_to_the_same_bits(
    bench: Bench, compose: Callable[[list[str]], Any], tmp_path: Path
) -> None:
    words = ["train.epochs=4", "method=random_label", "method.epochs=3", "checkpoint_seconds=0"]
    plain = bench.lab(*words, f"store={tmp_path / 'undisturbed'}", "checkpoint_seconds=60")
    epochs: list[int] = []

    def dying(label: str, line: dict[str, Any], total: int) -> None:
        epochs.append(line["epoch"])
        if len(epochs) in (2, 4):
            raise KeyboardInterrupt

    for kind, total in (("original", 4), ("retrained", 4), ("unlearned", 3)):
        epochs.clear()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                getattr(Lab(compose(words).settings, dying), kind)()
        lab = Lab(compose(words).settings, dying)
        stored, wanted = getattr(lab, kind)(), getattr(plain, kind)()
        assert epochs == [1, 2, 2, 3, *range(3, total + 1)]
        assert changed(weights(lab, stored), weights(plain, wanted)) == set()
        assert content_of(stored.folder).keys() == content_of(wanted.folder).keys()
        assert stored.key == wanted.key
        assert stored.json("cost.json")["sample_gradients"] == wanted.json("cost.json")["sample_gradients"]
        losses = [[(line["epoch"], line["loss"]) for line in its.json("history.json")] for its in (stored, wanted)]
        assert losses[0] == losses[1]


def test_costs_count_images_and_add_up_over_requests(bench: Bench) -> None:
    lab = bench.lab("method=finetune", "method.epochs=2", "requests=2")
    size, forget = len(lab.data.train), [len(part) for part in lab.requests]
    assert lab.original().json("cost.json")["sample_gradients"] == 2 * size
    assert lab.retrained().json("cost.json")["sample_gradients"] == 2 * (size - sum(forget))
    costs = [stored.json("cost.json") for stored in lab.stored("unlearned")]
    assert [cost["sample_gradients"] for cost in costs] == [2 * (size - forget[0]), 2 * (size - sum(forget))]
    total = lab.subject("unlearned").cost
    assert total["sample_gradients"] == sum(cost["sample_gradients"] for cost in costs)
    assert total["seconds"] == sum(cost["seconds"] for cost in costs)
    assert total["peak_memory_bytes"] == max(cost["peak_memory_bytes"] for cost in costs)
    nothing = {"seconds": 1.0, "sample_gradients": 1, "peak_memory_bytes": None}
    assert total_cost([nothing, nothing]) == {"seconds": 2.0, "sample_gradients": 2, "peak_memory_bytes": None}


# Several requests


def identities(images: Images) -> set[bytes]:
    """The images themselves; no two digits have the same pixels."""
    found = {pixels.contiguous().numpy().tobytes() for pixels in images.pixels}
    assert len(found) == len(images)
    return found


def test_requests_are_met_in_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[dict[str, bytes], Request, dict[str, bytes]]] = []
    method = random_label.random_label

    @functools.wraps(method)
    def watched(model: torch.nn.Module, request: Request, streams: Any, **settings: Any) -> torch.nn.Module:
        before = state_of(model)
        result = method(model, request, streams, **settings)
        calls.append((before, request, state_of(result)))
        return result

    monkeypatch.setattr(random_label, "random_label", watched)
    words = ["method=random_label", "requests=3"]
    lab = bench.lab(*words)
    original = weights(lab, lab.original())
    lab.unlearned(request=0)
    assert len(calls) == 1
    lab = bench.lab(*words)
    lab.unlearned()
    assert len(calls) == 3  # the first request was met before, and is not met again
    lab.unlearned(request=1)
    assert len(calls) == 3
    stored = lab.stored("unlearned")
    assert len({its.key for its in stored}) == 3 == len(bench.folders("unlearned"))

    train, whole = identities(lab.data.train), identities(lab.data.train[lab.forget])
    parent, gone = original, set[bytes]()
    for number, (before, request, after) in enumerate(calls):
        forget = identities(request.forget)
        assert before == parent
        assert not forget & gone
        gone |= forget
        assert identities(request.retain) == train - gone
        assert len(request.validation) == 0  # random_label did not ask for it
        assert weights(lab, stored[number]) == after
        parent = after
    assert gone == whole
    assert max(len(part) for part in lab.requests) - min(len(part) for part in lab.requests) <= 1

    alone = bench.lab("method=random_label")
    assert torch.equal(alone.forget, lab.forget)
    assert alone.retrained() == lab.retrained()
    assert alone.unlearned().key not in {its.key for its in stored}


def test_a_row_of_several_requests_audits_the_last_model(bench: Bench) -> None:
    words = ["method=random_label", "requests=3"]
    document = bench.row(*words)
    lab = bench.lab(*words)
    assert document["requests"] == 3
    assert document["models"]["unlearned"] == [its.key for its in lab.stored("unlearned")]
    outputs = lab.signals(lab.unlearned())["train"][lab.forget.numpy()]
    assert document["metrics"]["unlearned"]["forget_accuracy"] == outputs.accuracy
    assert document["id"] != bench.row(words[0])["id"]
    assert bench.row(*words, "split=1")["forget"]["sha256"] != document["forget"]["sha256"]


# What a row says


def test_a_row_says_what_it_was_made_of(bench: Bench) -> None:
    words = ["scenario=class_wise", "scenario.classes=[7]", "method=gradient_ascent", "seed=3", "split=2"]
    document = bench.row(*words)
    lab = bench.lab(*words)
    wanted = {"dataset": "digits", "model": "convnet", "train": "standard", "scenario": "class_wise"}
    wanted |= {"method": "gradient_ascent", "auditors": ["accuracy"], "seed": 3, "split": 2, "schema": 1}
    assert {key: document[key] for key in wanted} == wanted
    assert document["overrides"] == words
    assert document["config"]["scenario"]["classes"] == [7]
    assert document["forget"] == {"count": int((lab.data.train.labels == 7).sum()), "sha256": lab.hash(lab.forget)}
    assert document["metrics"].keys() == document["cost"].keys() == set(ROLES)
    for role in ROLES:
        outputs = lab.signals(lab.stored(role)[-1])
        known = document["metrics"][role]
        assert known["test_accuracy"] == outputs["test"].accuracy
        sevens = outputs["test"].labels == 7
        assert known["test_accuracy_forgotten_classes"] == outputs["test"][sevens].accuracy
        assert known["test_accuracy_remaining_classes"] == outputs["test"][~sevens].accuracy
    assert (
        document["metrics"]["retrained"]["forget_accuracy"] < 0.2 < document["metrics"]["original"]["forget_accuracy"]
    )


# Refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective=accuracy"], r"objective=accuracy: not measured by the auditors chosen \(accuracy\)"),
        (["auditor=[gap]", "objective=average_gap"], r"auditor\.gap\.metrics=forget_accuracy: not measured by"),
        (["seed=-1"], r"seed=-1: must be greater than or equal to 0"),
        (["split=x"], r"split=x: must be a valid integer"),
        (["requests=0"], r"requests=0: must be greater than 0"),
        (["requests=500"], r"requests=500: must be at most the 130 images to forget"),
        (["device=tpu"], r"device=tpu: not on this machine; allowed: auto, cpu"),
        (["precision=fp16"], r"precision=fp16: must be auto, fp32 or bf16"),
        (["method.lr=-1"], r"method\.lr=-1: must be greater than or equal to 0"),
        (["method.epochs=1.5"], r"method\.epochs=1\.5: must be a valid integer"),
        (["method=random_label", "method.order=both"], r"method\.order=both: must be 'sequential' or 'mixed'"),
        (["train.momentum=1.1"], r"train\.momentum=1\.1: must be less than or equal to 1"),
        (["train.milestones=[1,-2]"], r"train\.milestones\.1=-2: must be greater than or equal to 0"),
        (["train.lr=inf"], r"train\.lr=inf: must be a finite number"),
        (["train.clip=inf"], r"train\.clip=inf: must be a finite number"),
        (["train.lr=nan"], r"train\.lr=nan: must be "),
        (["model=vit_tiny", "model.depth=0"], r"model\.depth=0: must be greater than 0"),
        (["method=amun", "method.compat=yes"], r"method\.compat=yes: must be 'released', or null$"),
        (["method.epochs=null"], r"method\.epochs=None: must be a valid integer$"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_before_anything_is_trained(words: list[str], message: str, bench: Bench) -> None:
    settings, _ = bench.composed(*words)
    with pytest.raises(SettingError, match=f"^{message}") as raised:
        Lab(settings, bench.show)
    assert "\n" not in str(raised.value)
    assert bench.counts() == dict.fromkeys(KINDS, 0)
    assert bench.trained == []


def test_nesterov_without_momentum_is_refused_with_its_name(bench: Bench) -> None:
    with pytest.raises(SettingError, match=r"^train\.nesterov=True: needs a train\.momentum above 0$"):
        bench.lab("train.nesterov=true", "train.momentum=0").original()
    assert bench.trained == []


def test_a_batch_of_one_image_that_norm_layers_cannot_take_is_one_line(bench: Bench) -> None:
    words = ("model=resnet18", "scenario.fraction=null", "scenario.count=1", "train.batch_size=512")
    settings = bench.composed(*words, "method=gradient_ascent", "train.epochs=1", "train.milestones=[]").settings
    with pytest.raises(SettingError, match=r"scenario=random: leaves a batch of one image, and model=resnet18"):
        Lab(settings).unlearned()
