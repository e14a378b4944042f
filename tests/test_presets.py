"""Every preset composes, and every word of it is one that its groups know."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from laws import ROOT
from omegaconf import OmegaConf, open_dict

from unlearn.lab import GROUPS
from unlearn.report.published import PUBLISHED, find, paper
from unlearn.settings import build

PLAIN = ("seed", "split", "layers", "scenario.fraction")  # nothing else is composed by these: one value will do


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (ROOT / "conf" / group).glob("*.yaml"))


def composed(*words: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(words), return_hydra_config=True)
    with open_dict(config):
        swept = config.pop("hydra").sweeper.get("params") or {}
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return settings | {"swept": dict(swept)}


def assert_buildable(settings: dict[str, Any]) -> None:
    for group in GROUPS:
        build(settings[group], group)
    for name, its in settings["auditor"].items():
        build(its, f"auditor.{name}")


@pytest.mark.parametrize("name", names("experiment"))
def test_experiment_composes_and_its_file_says_how_to_run_it(name: str) -> None:
    assert_buildable(composed(f"experiment={name}"))
    assert f"python run.py experiment={name}" in (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()


PRESETS = sorted((ROOT / "conf" / "preset").rglob("*.yaml"))


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_methods_settings_in_an_experiment_are_used_there_and_only_there(file: Path) -> None:
    wanted: Any = OmegaConf.to_container(OmegaConf.load(file))
    assert file.parent.name in names("experiment")
    settings, plain = (composed(f"method={file.stem}", *words) for words in ([f"experiment={file.parent.name}"], []))
    assert_buildable(settings)
    assert settings["method"] == plain["method"] | wanted
    assert wanted.keys() <= plain["method"].keys()
    assert settings["method"] != plain["method"]
    assert file.read_text().startswith("# ")
    word = f"method.{next(iter(wanted))}=null"
    assert composed(f"experiment={file.parent.name}", f"method={file.stem}", word)["method"] != settings["method"]


@pytest.mark.parametrize("name", names("sweep"))
def test_every_job_of_a_sweep_composes(name: str) -> None:
    swept = composed(f"sweep={name}")["swept"]
    choices = [values(key, value) for key, value in swept.items()]
    jobs = list(product(*(words[:1] if key in PLAIN else words for key, words in zip(swept, choices, strict=True))))
    assert jobs
    for job in jobs:
        assert_buildable(composed(f"sweep={name}", *job))
    assert f"python run.py sweep={name}" in (ROOT / "conf" / "sweep" / f"{name}.yaml").read_text()


def values(key: str, value: object) -> list[str]:
    """Each word that a line of a sweep stands for."""
    override = OverridesParser.create().parse_override(f"{key}={value}")
    if isinstance(override.value(), Glob):
        return [f"{key}={name}" for name in override.value().filter(names(key))]
    if not override.is_sweep_override():
        return [f"{key}={value}"]
    return [f"{key}={element}" for element in override.sweep_string_iterator()]


# Tables of results/published without a sweep, and why
NOT_RUN = {
    "amun/table7": "models trained by TRADES",
    "amun/table8": "adversarial examples of other models",
    "amun/table9": "adversarial examples of a weak attack",
    "amun/worst_case": "no unlearning",
    "amun/issue1": "one user's run",
    "cola/times": "times on an unknown GPU; sweep=salun_random10 has the methods",
    "munba/clip_pets": "no classifier of images alone",
    "munba/diffusion_imagenette": "no classifier",
    "munba/diffusion_nudity": "no classifier",
    "munba/replication_muksb": "a third party's run",
    "munba/replication_cifar100": "a third party's run",
    "munba/replication_subclass": "a third party's run",
    "munba/replication_noisy_labels": "a third party's run",
    "salun/times": "times on an unknown GPU; sweep=salun_random10 has the methods",
    "salun/issue7": "one user's run",
    "sg_unlearn/logs_2023_cifar100": "another method under the same name",
}
ABSENT = {f"amun/table{number}": {"random_label", "salun"} for number in (2, 5, 11)}  # the paper's own variants
OWN = {"sg_unlearn": {"sg_unlearn"}}  # the paper's method, whose row in it has not been read
TABLES = [
    f"{file.stem}/{name}"
    for file in sorted(PUBLISHED.glob("*.yaml"))
    for name in yaml.safe_load(file.read_text())["tables"]
]


def test_the_time_of_a_sweep_that_has_no_rows_here_is_an_estimate() -> None:
    run = {folder.name for folder in (ROOT / "results" / "rows").iterdir()}
    for name in names("sweep"):
        head = (ROOT / "conf" / "sweep" / f"{name}.yaml").read_text().splitlines()[1]
        if name.endswith("_small") and "hour" in head:
            assert ("estimate" in head) == (name not in run), name


def test_every_published_table_has_a_sweep_or_a_reason() -> None:
    swept = {table for table in TABLES if table.replace("/", "_") in names("sweep")}
    assert swept | NOT_RUN.keys() == set(TABLES)
    assert not swept & NOT_RUN.keys()
    text = (ROOT / "docs" / "tables.md").read_text()
    for table in TABLES:
        assert f"`{table}`" in text


@pytest.mark.parametrize("table", sorted(set(TABLES) - NOT_RUN.keys()))
def test_a_tables_sweep_is_in_its_setting_and_has_its_methods(table: str) -> None:
    sweep, name = table.replace("/", "_"), table.split("/")[0]
    settings = composed(f"sweep={sweep}")
    parts = [part for part in find(table) if part.dataset.startswith(("cifar", "tiny"))]
    theirs = {method for part in parts for method in part.rows if paper(name).methods[method].ours}
    if name == "munba":  # its other rows have not been read; they are named in `unread`
        theirs |= {"finetune", "gradient_ascent", "influence", "boundary_expand", "boundary_shrink", "l1_sparse"}
    wanted = theirs - ABSENT.get(table, set()) | {"none", "retrain"} | OWN.get(name, set())
    swept = settings["swept"]["method"].split(",")
    assert set(swept) == wanted
    assert swept[:2] == ["none", "retrain"]
    small = composed(f"sweep={sweep}_small")
    assert small["swept"]["method"] == settings["swept"]["method"]
    for part in parts:
        made = {group: settings[group]["_target_"].rpartition(".")[2] for group in ("dataset", "model", "scenario")}
        assert made == {"dataset": part.dataset, "model": part.model, "scenario": part.scenario}
        fractions = settings["swept"].get("scenario.fraction", str(settings["scenario"]["fraction"]))
        assert str(part.fraction) in fractions.split(",")
        for path, value in part.recipe.items():
            group, setting = path.split(".")
            assert settings[group][setting] == value or path in {"dataset.validation", "train.batch_size"}, path
