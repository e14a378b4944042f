"""Bad words on the command line: whatever they are, one line says what is wrong, before anything is trained.

`make test` tries a tenth of them, `make faults` all 300.
"""

import os
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import ROOT, yaml_of
from test_cli import Commands

from unlearn.settings import build

EXAMPLES = int(os.environ.get("UNLEARN_FAULTS", "30"))
GROUPS = {"dataset": "digits", "model": "convnet", "train": "standard", "scenario": "random", "method": "finetune"}
NAMES = st.from_regex(r"[a-z][a-z_]{2,11}", fullmatch=True)
TOP = {
    "seed": (-1, "x", 1.5, "[1]", "true", "\u0661", "9" * 19, "${nope}", "${seed}", "${oc.env:NOPE}"),
    "split": (-3, "none", "{a:1}"),
    "requests": (0, -1, "x", 100000, "true"),
}
TOP |= {"device": ("cud", 3, "[cpu]", "meta", "cpu:5", "cuda:", "${nope}"), "layers": ("middle", 7, "[nothing.here]")}
TOP |= {"precision": ("fp64", 32), "deterministic": ("maybe", 3, 1), "debug": (1, "x", "${nope}")}
TOP |= {"objective": ("accuracy", 1, "[a]"), "store": ("/proc/nowhere", "[1]", "{a:1}", "", "''", f"/tmp/{'x' * 300}")}
TOP |= {"wandb.mode": ("on", 1), "wandb": ("false", 3), "wandb.dir": ("[1]", ""), "wandb.project": (1, "''")}
TOP |= {"auditor": ("[]", "[accuracy", "everything", "[accuracy,no]", "{a:1}"), "checkpoint_seconds": (-1, "x", "true")}
TOP |= {"dataset.root": ("", "/proc/nowhere", f"/tmp/{'x' * 300}"), "train.lr": ("1e308", "9" * 400, "9" * 5000)}
TOP |= {"hydra.run.dir": ("/proc/x", "/proc/x/y", f"/tmp/{'x' * 300}", "${nope}"), "hydra.mode": ("x",)}
TOP |= {"method": ("x" * 5000, "", "[]"), "method._target_": (3, "os.system", "unlearn.nope"), "hydra/launcher": ("x",)}
BROKEN = ("=", "=1", "seed", "method==finetune", "train.lr=[", "scenario={", "seed=1,2", "a b=c", "~seed")
BROKEN += (
    "~wandb.mode",
    "~debug",
    "~method._target_",
    "~method",
    "~auditor",
    "--resolve",
    "--config-name=x",
    "+method=x",
)
SEVERAL = (  # words that are bad only together
    "-m seed=range(0,0)", "-m method=glob(zzz*)", "-m cluster=local hydra.launcher.n_jobs=0",
    "-m cluster=local hydra.launcher.n_jobs=x", "cluster=local hydra.launcher.nope=1",
    "scenario=indices scenario.path=x", "cluster=slurm hydra.launcher.nope=1",
    "scenario=class_wise scenario.classes=[0,0]", "scenario=class_wise scenario.classes=[-1]",
    "scenario=class_wise scenario.classes=[true]", "method=sg_unlearn method.compat=[Q9]",
)  # fmt: skip
HYDRAS = ("_args_=[1]", "_partial_=false", "_convert_=x", "_recursive_=false")


def outside(kind: Any) -> Iterator[object]:
    """Values that an annotation refuses."""
    text = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    if text in (int, float):
        yield from ("abc", "[1,2]", "{a:1}", "true", "9" * 400, "${nope}")
    if text is float:
        yield from ("1e39", "-1e308", "nan", "inf")
    if text is int:
        yield 0.5
    if text is bool:
        yield from ("perhaps", 7)
    for bound in getattr(kind, "__metadata__", ()):
        if isinstance(bound, Gt):
            yield from (bound.gt, bound.gt - 1)  # type: ignore[operator]
        elif isinstance(bound, Ge):
            yield bound.ge - 1  # type: ignore[operator]
        elif isinstance(bound, Lt):
            yield from (bound.lt, bound.lt + 3)  # type: ignore[operator]
        elif isinstance(bound, Le):
            yield bound.le + 1  # type: ignore[operator]


def refused_values() -> list[str]:
    """Words that give a setting of the default configuration a value that it cannot have."""
    words = []
    for group, choice in GROUPS.items():
        made = build(yaml_of(group, choice), group)
        hints = typing.get_type_hints(made.func, include_extras=True)
        words += [f"{group}.{key}={value}" for key in made.keywords for value in outside(hints[key])]
    return words


WORDS = st.one_of(
    st.sampled_from(refused_values()),
    st.sampled_from([f"{key}={value}" for key, values in TOP.items() for value in values]),
    st.sampled_from(BROKEN),
    st.sampled_from(SEVERAL),
    st.builds("+{}.{}".format, st.sampled_from([*GROUPS, "auditor.gap"]), st.sampled_from(HYDRAS)),
    st.builds("{}={}".format, st.sampled_from([*GROUPS, "auditor", "experiment", "sweep", "cluster"]), NAMES),
    st.builds("{}{}.{}=1".format, st.sampled_from(["", "+"]), st.sampled_from([*GROUPS]), NAMES),
    st.builds("{}{}=1".format, st.sampled_from(["", "+"]), NAMES),
    st.builds("~{}.{}".format, st.sampled_from(["train", "method"]), st.sampled_from(["lr", "epochs", "momentum"])),
)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    opened = Commands(tmp_path_factory.mktemp("bad"))
    yield opened
    opened.close()


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(word=WORDS)
def test_a_bad_word_is_one_line_before_any_training(word: str, commands: Commands) -> None:
    known = {file.stem for folder in (ROOT / "conf").iterdir() if folder.is_dir() for file in folder.glob("*.yaml")}
    if word.partition("=")[2] in known:
        return  # a choice that there is
    store = commands.folder / f"store{commands.count}"
    words = word.split(" ") if word in SEVERAL else [word]
    options = [each for each in words if each.startswith("-m")]
    usual = ["train.epochs=1", "wandb.mode=disabled", f"store={store}"]
    if "method=" not in word:
        usual.append("method.epochs=1")
    finished = commands(*options, *usual, *words[len(options) :])
    assert finished.status not in (0, None), word
    assert "Traceback" not in finished.err, (word, finished.err)
    lines = finished.err.splitlines()
    assert len(lines) == 1, (word, finished.err)
    assert lines[0].startswith(("error: ", "usage: ")), (word, lines)
    for folder in (store, commands.folder / "outputs" / "store"):
        assert not list(folder.glob("*/*")), word


def test_there_are_enough_kinds_of_bad_words() -> None:
    assert len(refused_values()) > 40
    assert len({word.partition("=")[0] for word in refused_values()}) > 15
