"""What the tests share: configurations composed as `run.py` composes them, and labs of the size of a test."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf, open_dict

from unlearn.lab import Lab

pytest.register_assert_rewrite("laws")

CONF = Path(__file__).resolve().parents[1] / "conf"
TINY = ("device=cpu", "precision=fp32", "wandb.mode=disabled", "train.epochs=4", "train.batch_size=64")


class Composed(NamedTuple):
    """The resolved settings of a configuration, and the file chosen in each of its groups."""

    settings: dict[str, Any]
    choices: dict[str, str]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def composing(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Composed]:
    """`composing(store, overrides)`: a configuration with a training of a fifth of a second."""
    root = tmp_path_factory.mktemp("data")

    def composed(store: Path, overrides: list[str]) -> Composed:
        words = [*TINY, f"store={store}", f"dataset.root={root}", *overrides]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra_compose("config", overrides=words, return_hydra_config=True)
        with open_dict(cfg):
            job = cfg.pop("hydra")
        settings: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        return Composed(settings, dict(job.runtime.choices))

    return composed


@pytest.fixture
def compose(composing: Callable[..., Composed], tmp_path: Path) -> Callable[[list[str]], Composed]:
    """`compose(overrides)`: settings and choices, with the store in the test's own folder."""
    return partial(composing, tmp_path / "store")


@pytest.fixture
def lab(compose: Callable[[list[str]], Composed]) -> Callable[..., Lab]:
    """`lab(*overrides, show=None)`: a new lab on the test's own store."""

    def opened(*overrides: str, show: Callable[..., None] | None = None) -> Lab:
        return Lab(compose(list(overrides)).settings, show)

    return opened
