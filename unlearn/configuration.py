"""A configuration from the words of a command line, for whoever is not `run.py`, which Hydra itself composes."""

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from unlearn.checks import CHOSEN, check_word
from unlearn.settings import SettingError, build, checked

CONF = Path(__file__).resolve().parents[1] / "conf"


def composed(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved settings that words stand for, and the file chosen in each group. Raises a `SettingError`."""
    for word in words:
        check_word(word)
    config = _config(words)
    with open_dict(config):
        job = config.pop("hydra")
    return resolved(config), dict(job.runtime.choices)


def as_written(words: Sequence[str]) -> Any:
    """The settings that words stand for, Hydra's own among them, nothing resolved. Raises a `SettingError`."""
    return OmegaConf.to_container(_config(words))


def _config(words: Sequence[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError("words", shlex.join(words), " ".join(str(error).split())) from error


def resolved(config: DictConfig) -> Any:
    """The settings of a configuration, each with its value. Raises a `SettingError`."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise SettingError(str(error.full_key), "???", "must be given") from error
    except OmegaConfBaseException as error:
        written: Any = OmegaConf.to_container(config)
        for part in str(error.full_key).split("."):
            written = written.get(part) if isinstance(written, dict) else written
        raise SettingError(str(error.full_key), written, str(error).splitlines()[0]) from error


def debugging(config: DictConfig) -> bool:
    """Whether `debug` is true, whatever else may be wrong with a configuration."""
    written: Any = OmegaConf.to_container(config)
    return written.get("debug") is True


def check_swept(words: Sequence[str]) -> None:
    """Every word that stands for several values stands for one at least. Raises a `SettingError`."""
    several = [word for word in words if re.search(r"\b(range|glob)\(", word)]
    if not several:
        return
    with initialize_config_dir(str(CONF), version_base="1.3"), suppress(HydraException):  # which Hydra itself will say
        parse = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        for each in parse.parse_overrides(several):
            if each.is_sweep_override() and not any(True for _ in values(each)):
                raise SettingError(each.get_key_element(), each.get_value_string(), "stands for no value at all")


def normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose groups have the types that their callables ask for, as a row's configuration has."""
    groups = {group: checked(settings[group], build(settings[group], group)) for group in CHOSEN if group != "auditor"}
    auditors = {name: checked(its, build(its, f"auditor.{name}")) for name, its in settings["auditor"].items()}
    return {**settings, **groups, "auditor": auditors}


def jobs(words: Sequence[str]) -> list[list[str]]:
    """The words of each job of a sweep, as Hydra's sweeper makes them. Raises a `SettingError`."""
    for word in words:
        check_word(word)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            parse = OverridesParser.create(config_loader=loader)
            given = parse.parse_overrides(list(words))
            single = [each.input_line for each in given if each.input_line and not each.is_sweep_override()]
            first = [next(values(each)) if each.is_sweep_override() else each.input_line for each in given]
            config = compose("config", overrides=[word for word in first if word], return_hydra_config=True)
            params: Any = OmegaConf.to_container(config.hydra.sweeper.params or OmegaConf.create(), resolve=False)
            own = parse.parse_overrides([f"{key}={value}" for key, value in (params or {}).items()])
            named = {each.key_or_group for each in given}
            swept = [each for each in given if each.is_sweep_override()]
            swept += [each for each in own if each.key_or_group not in named]
            products = itertools.product(*(list(values(each)) for each in swept))
            return [[*single, *chosen] for chosen in products]
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError("words", shlex.join(words), " ".join(str(error).split())) from error


def values(override: Override) -> Iterator[str]:
    """`key=value` for each value of a word, swept over or not."""
    if not override.is_sweep_override():
        yield override.input_line or ""
        return
    for value in override.sweep_string_iterator():
        yield f"{override.get_key_element()}={value}"
