"""The start of the three scripts: what cannot work is rejected in one line, before torch is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import TracebackType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import ast_lightning.sweeps.table  # noqa: F401  it registers the resolver ${sweep_name:}
from ast_lightning.config.check import checked
from ast_lightning.config.composition import is_rejection, rejection
from ast_lightning.errors import ConfigurationError


def start(main: Callable[[], object]) -> None:
    """Call a function of ``hydra.main``; end with status 2 and one line where the overrides do not compose.

    Exceptions of a command keep their traceback, without the frames of Hydra above it.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or Hydra would print its own advice, and exit
    try:
        main()
    except Exception as error:
        inside = _inside_command(error.__traceback__)
        if inside is not None:
            raise error.with_traceback(inside) from error.__cause__
        if not is_rejection(error):
            raise
        print(f"error: {rejection(error, sys.argv[1:])}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


def run_command(name: str, config: DictConfig) -> dict[str, float]:
    """Check a composed configuration, then import the command and run it.

    Args:
        name: of the command, and of its module in this package.
        config: as Hydra composed it.
    """
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if not in_sweep:  # whose jobs have been checked before the first began
            checked(config)
    except ConfigurationError as error:
        if not int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0):  # once for each machine
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    from ast_lightning.commands.app import execute

    metrics: dict[str, float] = execute(getattr(import_module(f"ast_lightning.commands.{name}"), name), config)
    return metrics


def _inside_command(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in :func:`run_command`."""
    while trace is not None and trace.tb_frame.f_code is not run_command.__code__:
        trace = trace.tb_next
    return trace
