"""A configuration from the words of a command line, for whoever is not `run.py`, which Hydra itself composes."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from unlearn.settings import SettingError

CONF = Path(__file__).resolve().parents[1] / "conf"


def composed(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved settings that words stand for, and the file chosen in each group. Raises a `SettingError`."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=list(words), return_hydra_config=True)
        with open_dict(config):
            job = config.pop("hydra")
        settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError("words", shlex.join(words), " ".join(str(error).split())) from error
    return settings, dict(job.runtime.choices)
