"""The commands, inside this process or as the scripts that users run."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ast_lightning.commands.app import build_run
from ast_lightning.commands.run import Run
from ast_lightning.config.composition import is_rejection, rejection
from tests import PATIENCE
from tests.forks import python

ROOT = Path(__file__).parents[2]
SMALL = (
    "experiment=digits_quickstart",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "num_experts=2",
    "network.width=8",
    "network.depth=1",
    "data.per_class=20",
    "expert.epochs=4",
    "distill.syn_steps=4",
    "distill.max_start_epoch=2",
    "distill.max_steps=4",
    "distill.eval_every=2",
    "evaluation.epochs=4",
    "evaluation.networks=2",
    "evaluation.at_once=2",
)

Command = Callable[..., dict[str, float]]
Script = Callable[..., subprocess.CompletedProcess[str]]


def composed(*overrides: str) -> DictConfig:
    """The configuration of these overrides, as a script would see it; a copy, each time."""
    config = _composed(overrides)
    HydraConfig.instance().set_config(config)
    plain = {key: value for key, value in config.items() if key != "hydra"}
    return OmegaConf.create({**plain}, flags={"struct": True})


@functools.lru_cache(maxsize=64)  # a test often asks for the same folders again
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def run_of(*overrides: str) -> Run:
    """The run of these overrides, rejected as the scripts reject them."""
    try:
        config = composed(*overrides)
    except Exception as error:
        if is_rejection(error):
            raise rejection(error, overrides) from error
        raise
    return build_run(config)


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trajectories of the small setting, which tests share."""
    folder = tmp_path_factory.mktemp("output")
    _command("train_experts", *SMALL, f"output_dir={folder}")
    return folder


@pytest.fixture(scope="session")
def command() -> Command:
    """Run a command of the small setting in this process: ``command("distill", folder, "distill.ipc=2")``."""

    def call(name: str, folder: Path, *overrides: str) -> dict[str, float]:
        return _command(name, *SMALL, f"output_dir={folder}", *overrides)

    return call


@pytest.fixture(scope="session")
def script() -> Script:
    """Run a script of the small setting in a process of its own: ``script("distill", folder, "distill.ipc=2")``."""

    def call(name: str, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        flags = [word for word in overrides if word.startswith("-")]
        words = [*python(), f"{name}.py", *flags, *SMALL, f"output_dir={folder}"]
        words += [word for word in overrides if word not in flags]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)

    return call


def _command(name: str, *overrides: str) -> dict[str, float]:
    task = getattr(import_module(f"ast_lightning.commands.{name}"), name)
    metrics: dict[str, float] = task(run_of(*overrides))
    return metrics
