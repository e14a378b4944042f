"""The lab: everything one configuration can ask for, made once, kept in the store, and handed out again.

Three nouns: the `original`, the `retrained` reference and the `unlearned` model; then what each answers on every image
(its signals), and its audits.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from unlearn.attacks import Adversarial, Norm, search_in_parts
from unlearn.checks import (
    check_auditors,
    check_groups,
    check_layers,
    check_method,
    check_metrics,
    check_model,
    name_of,
)
from unlearn.data.images import PARTS, Data, Images
from unlearn.files import write, write_array, write_arrays
from unlearn.hardware import choose_device, choose_precision, use_deterministic_algorithms, use_full_precision
from unlearn.layers import scope
from unlearn.loop import DivergedError, warm_up
from unlearn.methods.retrain import retrain
from unlearn.metrics import Measured, Metric
from unlearn.models.normalise import Normalise
from unlearn.replay import replay
from unlearn.request import Of, Recipe, Request, Searched, needed
from unlearn.session import apart, current, peak_memory_bytes, reset_peak_memory, session
from unlearn.settings import Count, Index, NotNegative, SettingError, build, check, checked, companion
from unlearn.signals import Signals, logits
from unlearn.store import BusyError, Store, Stored, with_content, without_waiting, write_json
from unlearn.streams import Streams
from unlearn.subject import Shadow, Subject, total_cost

T = TypeVar("T")
Seed = int | str  # text where one number of the user's stands for several models
ROLES = ("original", "retrained", "unlearned")
GROUPS = ("method", "train", "model", "scenario", "dataset")


class Lab:
    """One configuration at work. Raises `SettingError` for whatever in it cannot work, before anything is trained."""

    def __init__(self, settings: Mapping[str, Any], show: Callable[..., None] | None = None) -> None:
        self.show = show
        check_groups(settings)
        self.seed: Seed = check(Index, "seed", settings["seed"])
        self.split: int = check(Index, "split", settings["split"])
        self.half: int | None = None
        self.device = choose_device(settings["device"])
        self.precision = choose_precision(settings["precision"], self.device)
        self.layers = check(str | list[str], "layers", settings["layers"])
        use_full_precision()
        use_deterministic_algorithms(check(bool, "deterministic", settings["deterministic"]))
        self.checkpoint_seconds = check(NotNegative, "checkpoint_seconds", settings["checkpoint_seconds"])
        check(Literal["offline", "online", "disabled"], "wandb.mode", settings["wandb"]["mode"])
        built = {group: build(settings[group], group) for group in GROUPS}
        self.auditors = {name: build(its, f"auditor.{name}") for name, its in settings.get("auditor", {}).items()}
        self.settings: dict[str, Any] = {
            **settings,
            **{group: checked(settings[group], its) for group, its in built.items()},
            "auditor": {name: checked(settings["auditor"][name], its) for name, its in self.auditors.items()},
        }
        self.method, self.train, self._net, self._scenario, dataset = (built[group] for group in GROUPS)
        self.metrics: dict[str, tuple[str, Metric]] = {
            metric.name: (name, metric)
            for name, auditor in self.auditors.items()
            for metric in companion(auditor, "METRICS")
        }
        check_metrics(self)
        self.store = Store(Path(settings["store"]).expanduser())
        self.data: Data = dataset()
        self.streams = Streams("lab", self.seed, self.split)
        self.requests = self._requests(check(Count, "requests", settings["requests"]))
        self.forget = torch.cat(self.requests).sort().values
        self.labels = self._relabelled()
        check_model(self)
        check_method(self)
        check_layers(self)
        check_auditors(self)
        self.data = self.data.to(self.device)
        self._subjects: dict[str, Subject] = {}

    def _requests(self, count: int) -> list[Tensor]:
        """Positions in the training set, one tensor a request, in the order of the requests."""
        forget: Tensor = self._scenario(self.data, Streams("scenario", self.split))
        total = len(self.data.train)
        if len(forget) == total:
            raise SettingError(
                "scenario", self.settings["scenario"], f"forgets all {total} training images; some must stay"
            )
        if count > len(forget):
            raise SettingError("requests", count, f"must be at most the {len(forget)} images to forget")
        shuffled = forget[torch.randperm(len(forget), generator=Streams("requests", self.split)("order"))]
        return [part.sort().values for part in shuffled.tensor_split(count)]

    def _relabelled(self) -> str | None:
        """Give the images to forget the labels that the scenario's `relabelled` says; the sha256 of all labels then."""
        relabelled = companion(self._scenario, "relabelled", None)
        if relabelled is None:
            return None
        labels = self.data.train.labels.clone()
        labels[self.forget] = relabelled(labels[self.forget], **self._scenario.keywords)
        self.data = replace(self.data, train=self.data.train.relabelled(labels))
        return hashlib.sha256(labels.numpy().tobytes()).hexdigest()

    def build_model(self) -> nn.Module:
        """The architecture on the device, normalisation first; its weights come from torch's global generator."""
        net = partial(self._net, self.data.shape, self.data.class_count)
        first = Normalise(self.data.shape[0], self.data.mean, self.data.std)
        architecture = companion(self.train, "architecture", None)
        trained = architecture(net, **self.train.keywords) if architecture else net()
        return nn.Sequential(first, trained).to(self.device)

    @property
    def training(self) -> Recipe:
        """How models are made from scratch."""
        return Recipe(self.build_model, self.train)

    def original(self, seed: Seed | None = None) -> Stored:
        """The model trained on the whole training set."""
        recipe = self.recipe(seed)
        train = partial(self.training.trained, streams=Streams("original", recipe["seed"]))
        return self._model("originals", f"original, seed {recipe['seed']}", recipe, lambda: self.data.train, train)

    def retrained(self, seed: Seed | None = None) -> Stored:
        """The reference: trained from scratch, by the same recipe, on what remains after all requests."""
        recipe = self.recipe(seed) | {"forget": self.hash(self.forget)}
        recipe.pop("labels", None)  # those that were changed are of images that it does not see
        train = partial(self.training.trained, streams=Streams("retrained", recipe["seed"]))
        label = f"retrained, seed {recipe['seed']}, split {self.split}"
        return self._model("retrained", label, recipe, lambda: self.data.train[self._rest(self.forget)], train)

    def unlearned(self, seed: Seed | None = None, request: int = -1, repeat: int = 0) -> Stored:
        """The method's model after a request, the last one by default; each starts from the model before it.

        Repeats differ in nothing but the method's own random streams.
        """
        number = request % len(self.requests)
        original = self.recipe(seed)
        recipe = {
            "original": original,
            "forget": [self.hash(part) for part in self.requests[: number + 1]],
            "method": self.method_recipe(),
            "split": self.split,
        }
        if self.layers != "all":
            recipe["layers"] = self.layers
        if repeat:
            recipe["repeat"] = repeat
        streams = Streams("unlearned", original["seed"], self.split, number, *([repeat] if repeat else []))

        def given() -> tuple[nn.Module, Request]:
            parent = self.unlearned(seed, number - 1, repeat) if number else self.original(seed)
            return self.load(parent), self.request(number, seed, repeat).limited_to(needed(self.method))

        def unlearn(given: tuple[nn.Module, Request]) -> nn.Module:
            try:
                with scope(given[0], self.layers):
                    return self.method(*given, streams)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                allowed = f"leaves a batch of one image, and model={name_of(self, 'model')} normalises over a batch"
                raise SettingError("scenario", name_of(self, "scenario"), allowed) from error

        label = f"{self.method.func.__name__}, seed {original['seed']}, split {self.split}"
        return self._model("unlearned", label, recipe, given, unlearn)

    def load(self, stored: Stored) -> nn.Module:
        """A stored model, on the device, in eval mode."""
        with Streams("load").seeded("model"):
            model = self.build_model()
        model.load_state_dict(load_file(stored.folder / "model.safetensors", device=str(self.device)))
        return model.eval()

    def request(self, number: int, seed: Seed | None = None, repeat: int = 0) -> Request:
        """What a method may see when request `number` arrives: the requests before it have been met, by that repeat."""
        met = torch.cat(self.requests[: number + 1])

        def neighbours(of: Of, searched: Searched, norm: Norm, eps: float, steps: int) -> Adversarial:
            met_before = number and of == "current"
            model = self.unlearned(seed, number - 1, repeat) if met_before else self.original(seed)
            forget = self.requests[number]
            around = forget if searched == "forget" else torch.arange(len(self.data.train))
            found = self.adversarial(model, around, norm, eps, steps)
            found = found if searched == "forget" else found[forget]
            for name in ("labels", "norms", "found"):
                current().arrays[f"neighbours_{name}"] = getattr(found, name).cpu().numpy()
            return found

        return Request(
            forget=self.data.train[self.requests[number]],
            forget_numbers=self.data.train_index[self.requests[number]],
            retain=self.data.train[self._rest(met)],
            validation=self.data.validation,
            class_count=self.data.class_count,
            recipe=self.training,
            neighbours=neighbours,
            replay=partial(replay, self, met, seed),
        )

    def adversarial(self, stored: Stored, positions: Tensor, norm: Norm, eps: float, steps: int) -> Adversarial:
        """The nearest adversarial images, on a stored model, of training images; searched for once.

        The search is charged to the session in force, whether it is done now or was done for somebody else.
        """
        recipe = {
            "model": stored.key,
            "content": stored.content,
            "images": self.hash(positions),
            "search": {"norm": norm, "eps": eps, "steps": steps},
        }

        def make(folder: Path) -> None:
            search_in_parts(folder, self.load(stored), self.data.train[positions], norm, eps, steps, self.show)

        with apart():
            kept = self.store.get("adversarial", recipe, make)
        current().charge(kept.json("cost.json"))
        return Adversarial.load(kept.folder / "adversarial.npz").to(self.data.train.pixels.device)

    @property
    def forgotten_classes(self) -> NDArray[np.int64]:
        """Classes with images in the training set of which none is retained."""
        labels = self.data.train.labels.cpu().numpy()
        return np.setdiff1d(labels, labels[self._rest(self.forget).numpy()])

    def hash(self, positions: Tensor) -> str:
        """The sha256 of a forget set: its images' numbers in the official training order."""
        official = self.data.train_index[positions].sort().values
        return hashlib.sha256(official.numpy().tobytes()).hexdigest()

    def recipe(self, seed: Seed | None = None) -> dict[str, Any]:
        """What determines an original, files by their content and not by where they lie."""
        data = {key: value for key, value in self.settings["dataset"].items() if key not in ("root", "sha256", "path")}
        return {
            "dataset": data | {"content": self.data.content},
            "model": with_content(self.settings["model"], "weights"),
            "train": self.settings["train"],
            "precision": self.precision,
            "seed": self.seed if seed is None else seed,
            **({} if self.half is None else {"half": self.half}),
            **({} if self.labels is None else {"labels": self.labels}),
        }

    def method_recipe(self) -> dict[str, Any]:
        """The method's settings; those that its `FILES` names are files, and stand for their content."""
        return with_content(self.settings["method"], *companion(self.method, "FILES", ()))

    def _rest(self, forget: Tensor) -> Tensor:
        rest = torch.ones(len(self.data.train), dtype=torch.bool)
        rest[forget] = False
        return rest.nonzero().flatten()

    def _model(
        self, kind: str, label: str, recipe: dict[str, Any], given: Callable[[], T], run: Callable[[T], nn.Module]
    ) -> Stored:
        """A stored model: `given()` fetches what the work starts from, and only `run` of it is measured."""

        def make(folder: Path) -> None:
            start = given()
            with Streams("warm-up").seeded("model"):
                warm_up(self.build_model(), self.data.train, self.precision)
            reset_peak_memory(self.device)
            unfinished = {"checkpoint": folder / "checkpoints", "checkpoint_seconds": self.checkpoint_seconds}
            with session(label=label, precision=self.precision, show=self.show, **unfinished) as done:
                model = run(start)
                seconds = done.seconds(self.device)
            memory = peak_memory_bytes(self.device)
            cost = {"seconds": seconds, "sample_gradients": done.sample_gradients, "peak_memory_bytes": memory}
            weights = {name: value.contiguous() for name, value in model.state_dict().items()}
            write(folder / "model.safetensors", as_bytes(weights))
            if self.half is not None:  # so that a reference model says itself what it has seen
                write_array(folder / "half.npy", self.data.train_index.numpy())
            for name, array in done.arrays.items():
                write_array(folder / f"{name}.npy", array)
            write_json(folder / "cost.json", cost)
            write_json(folder / "history.json", done.history)

        return self.store.get(kind, recipe, make)

    def signals(self, stored: Stored) -> dict[str, Signals]:
        """A stored model's outputs on the training, validation and test images, from one forward pass ever."""

        def make(folder: Path) -> None:
            model = self.load(stored)
            for part in PARTS:
                outputs = logits(model, getattr(self.data, part))
                if not np.isfinite(outputs).all():
                    raise DivergedError(f"{stored.kind} {stored.key}: the model's outputs are not finite numbers")
                write_array(folder / f"{part}.npy", outputs)

        kept = self.store.get("signals", {"model": stored.key, "content": stored.content}, make)
        return {
            part: Signals(np.load(kept.folder / f"{part}.npy"), getattr(self.data, part).labels.cpu().numpy())
            for part in PARTS
        }

    def legend(self) -> dict[str, NDArray[np.int32]]:
        """What the signals' images are: each part's labels, and the `request` that forgets a training image, or -1."""
        request = torch.full((len(self.data.train),), -1)
        for number, positions in enumerate(self.requests):
            request[positions] = number
        labels = {part: getattr(self.data, part).labels for part in PARTS}
        return {name: its.cpu().numpy().astype(np.int32) for name, its in (labels | {"request": request}).items()}

    @property
    def roles(self) -> tuple[str, ...]:
        """The models of the row: the three roles, and `independent` for an auditor that audits with `EVERY` other."""
        checking = any(companion(auditor, "EVERY", False) for auditor in self.auditors.values())
        return (*ROLES, "independent") if checking else ROLES

    def stored(self, role: str) -> list[Stored]:
        """The models behind a role; more than one when several requests were met in turn.

        Besides the row's three roles there is `independent`: a second retrained model, which is the contestant of
        `method=retrain`.
        """
        if role == "unlearned":
            return [self.unlearned(request=number) for number in range(len(self.requests))]
        if role == "independent":
            return self._by_retraining().stored("unlearned")[-1:]
        return [self.original() if role == "original" else self.retrained()]

    def subject(self, role: str) -> Subject:
        """The model of a role, ready for the auditors."""
        if role not in self._subjects:
            self._subjects[role] = self._subject(role, self.stored(role))
        return self._subjects[role]

    def reference(self) -> Subject:
        """The retrained model, ready for the auditors."""
        return self.subject("retrained")

    def oracles(self, count: int) -> Iterator[Subject]:
        """`count` retrained models, independent of the reference."""
        return self._subjects_of("retrained", [partial(self.retrained, self._own("oracle", i)) for i in range(count)])

    def repeats(self, role: str, count: int, *, same_original: bool) -> Iterator[Subject]:
        """`count` models made as that of `role` was; see `subject.Laboratory`."""
        self._can_be_made_again(role)
        if role == "independent":  # made as a contestant is: what it is held against are the reference's repeats
            return self._by_retraining().repeats("unlearned", count, same_original=same_original)
        own = [self._own("repeat", i) for i in range(count)]
        if role == "retrained":
            makes = [partial(self.retrained, seed) for seed in own]
        elif role == "original":
            makes = [partial(self.original, None if same_original else seed) for seed in own]
        elif same_original:
            makes = [partial(self.unlearned, repeat=i) for i in range(count)]
        else:
            makes = [partial(self.unlearned, seed) for seed in own]
        return self._subjects_of(role, makes)

    def references(self, count: int) -> Iterator[Shadow]:
        """`count` models, each trained on half of all training and test images; see `subject.Laboratory`."""
        return self.shadows("original", count)

    def shadows(self, role: str, count: int) -> Iterator[Shadow]:
        """`count` reference models after a request, met as the model of `role` met it; see `subject.Laboratory`."""
        self._can_be_made_again(role)
        test = torch.arange(len(self.data.test)) + self.data.official_count
        numbers = {"test": test, "validation": torch.full((len(self.data.validation),), -1)}
        numbers |= {
            "forget": self.data.train_index[self.forget],
            "retain": self.data.train_index[self._rest(self.forget)],
        }

        def make(number: int) -> tuple[Stored, Tensor]:
            half = self._shadow(number)  # one at a time, because each has its images in memory
            return half.stored(role)[-1], half.data.train_index

        for stored, seen in self._together([partial(make, number) for number in range(count)]):
            members = {part: torch.isin(its, seen).numpy() for part, its in numbers.items()}
            yield Shadow(**self._parts(stored), members=members)

    def _shadow(self, number: int) -> "Lab":
        """This lab on one random half of its training and test images, with what lies in it of the forget set."""
        train, test = self.data.train, self.data.test
        numbers = torch.cat([self.data.train_index, torch.arange(len(test)) + self.data.official_count])
        order = torch.randperm(len(numbers), generator=Streams("halves", number // 2)("order"))
        half = order.tensor_split(2)[number % 2].sort().values
        shadow = copy(self)
        shadow.data = replace(self.data, train=train.joined(test)[half], train_index=numbers[half])
        shadow.half, shadow.seed, shadow._subjects = number, f"half/{number}", {}
        shadow.forget = torch.isin(half, self.forget).nonzero().flatten()
        shadow.requests = [shadow.forget]
        return shadow

    def _can_be_made_again(self, role: str) -> None:
        """Raise `SettingError` if the model of a role is the only one, as the `ONE_MODEL` of its method says."""
        if role == "unlearned" and companion(self.method, "ONE_MODEL", False):
            allowed = "is one model, and an audit that was chosen needs others made as it was"
            raise SettingError("method", name_of(self, "method"), allowed)

    def _by_retraining(self) -> "Lab":
        """This lab with `method=retrain`."""
        lab = copy(self)
        settings = {"_target_": f"{retrain.__module__}.{retrain.__name__}"}
        lab.method, lab.settings, lab.layers = build(settings, "method"), self.settings | {"method": settings}, "all"
        return lab

    def _own(self, purpose: str, number: int) -> str:
        return f"{self.seed}/{purpose}/{number}"

    def _together(self, makes: Sequence[Callable[[], T]]) -> Iterator[T]:
        """What each of `makes` gives, in their order; first of all those are made that no other process is making."""
        for make in makes:
            with suppress(BusyError), without_waiting():
                make()
        return (make() for make in makes)

    def _subjects_of(self, role: str, makes: Sequence[Callable[[], Stored]]) -> Iterator[Subject]:
        return (self._subject(role, [stored]) for stored in self._together(makes))

    def _subject(self, role: str, stored: list[Stored]) -> Subject:
        return Subject(
            role=role,
            **self._parts(stored[-1]),
            forgotten_classes=self.forgotten_classes,
            cost=total_cost([its.json("cost.json") for its in stored]),
            model=lambda: self.load(stored[-1]),
            images=self._images,
        )

    def _parts(self, stored: Stored) -> dict[str, Signals]:
        """A model's signals, those of the training images as `forget` and `retain`."""
        outputs = self.signals(stored)
        train = outputs.pop("train")
        rest = self._rest(self.forget).numpy()
        return {"forget": train[self.forget.numpy()], "retain": train[rest], **outputs}

    def _images(self, part: str) -> Images:
        index = {"forget": self.forget, "retain": self._rest(self.forget)}
        return self.data.train[index[part]] if part in index else getattr(self.data, part)

    def audit(self, name: str, subject: Subject) -> Measured:
        """All metrics of one auditor for a subject, computed once."""
        return dict(self._audited(name, subject).json("metrics.json"))

    def refused(self, name: str, subject: Subject) -> dict[str, str]:
        """The metrics that an auditor refuses to give for a subject, each with the reason."""
        kept = self._audited(name, subject)
        return dict(kept.json("refused.json")) if (kept.folder / "refused.json").exists() else {}

    def _audited(self, name: str, subject: Subject) -> Stored:
        def make(folder: Path) -> None:
            answer = self.auditors[name](subject, self)
            arrays = {key: value for key, value in answer.items() if isinstance(value, np.ndarray)}
            refused = {key: value for key, value in answer.items() if isinstance(value, str)}
            measured = {key: value for key, value in answer.items() if key not in arrays | refused}
            odd = {key: value for key, value in measured.items() if not np.isfinite(value)}
            refused |= {key: f"comes out as {value}" for key, value in odd.items() if key in self.metrics}
            write_json(folder / "metrics.json", measured | dict.fromkeys(odd))
            if refused:
                write_json(folder / "refused.json", refused)
            if arrays:
                write_arrays(folder / "arrays.npz", arrays)

        uses, known = {name}, set[str]()
        while new := uses - known:
            known |= new
            built_on = [metric for its in new for metric in self.auditors[its].keywords.get("metrics", [])]
            uses |= {self.metrics[metric][0] for metric in built_on}
        if companion(self.auditors[name], "EVERY", False):
            uses = set(self.auditors)
        recipe = {
            "subject": [its.content for its in self.stored(subject.role)],
            "reference": [its.content for its in self.stored("retrained")],
            "forget": self.hash(self.forget),
            "auditor": {used: self.settings["auditor"][used] for used in sorted(uses)},
            "streams": self.streams.root,
            **({} if self.labels is None else {"labels": self.labels}),
        }
        return self.store.get("audits", recipe | {"name": name}, make)

    def measure(self, metric: str, subject: Subject) -> float:
        """One metric of whichever chosen auditor declares it."""
        value = self.audit(self.metrics[metric][0], subject).get(metric)
        if value is None:
            raise SettingError("auditor", metric, f"has no value for the {subject.role} model, and is built on")
        return value
