"""Entry point of the three scripts: an invalid configuration is rejected in one line, before torch is imported."""

from __future__ import annotations

from ast_lightning.reporting import boundary, take_over

take_over()

import sys
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import ast_lightning.sweeps.table  # noqa: F401  it registers the resolver ${sweep_name:}
from ast_lightning.config.check import checked
from ast_lightning.config.composition import check_choices, hide_deprecations, is_rejection, rejection
from ast_lightning.config.schema import CONFIGURATION
from ast_lightning.runs.output import prepare_output


def command(name: str) -> None:
    """Run a command from the command line: Hydra composes the configuration, and :func:`run_command` runs it.

    If the overrides cannot be composed, the process prints one line and exits with status 2. Other exceptions end the
    process as described in :func:`~ast_lightning.reporting.boundary`.

    Args:
        name: ``train_experts``, ``distill`` or ``evaluate``.
    """

    def main(config: DictConfig) -> dict[str, float]:
        return run_command(name, config)

    main.__module__ = f"{__package__}.{name}"  # Hydra names its job after it
    hide_deprecations()
    with boundary():
        try:
            hydra.main(version_base="1.3", config_path=str(CONFIGURATION), config_name="config")(main)()
        except Exception as error:
            if not is_rejection(error):
                raise
            raise rejection(error, sys.argv[1:]) from error


def run_command(name: str, config: DictConfig) -> dict[str, float]:
    """Check a composed configuration and the output folder, then import the command and run it.

    Args:
        name: the name of the command and of its module in this package.
        config: the configuration composed by Hydra.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:  # the jobs of a multirun are checked before the first begins
        with boundary():  # handled here, because Hydra would add a line to the message
            check_choices(HydraConfig.get().runtime.choices)
            prepare_output(Path(checked(config)["output_dir"]))
    from ast_lightning.commands.app import execute

    metrics: dict[str, float] = execute(getattr(import_module(f"ast_lightning.commands.{name}"), name), config)
    return metrics
