"""Every preset composes, and every word of it is one that its groups know."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from laws import ROOT
from omegaconf import OmegaConf, open_dict

from unlearn.lab import GROUPS
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
