"""Lightning Trainers from the ``trainer`` section, which is passed on as it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ast_lightning.callbacks import RunProgress
from ast_lightning.errors import ConfigurationError
from ast_lightning.runs.states import RunStates
from ast_lightning.runs.tasks import environment_plugins

LOGGERS = ("tensorboard", "csv", "none", "false")


def build_logger(choice: Any, folder: Path) -> Logger | bool:
    """The logger that ``trainer.logger`` asks for, writing into ``folder``.

    Raises:
        ConfigurationError: there is no such logger.
    """
    name = str(choice).lower()
    if name not in LOGGERS:
        raise ConfigurationError(
            "trainer.logger", choice, "there is no such logger", f"take one of {', '.join(LOGGERS)}"
        )
    if name in ("none", "false"):
        return False
    if name == "csv":  # a file a sitting: Lightning would delete that of the sitting before
        versions = (f"csv_{number}" if number > 1 else "csv" for number in itertools.count(1))
        free = next(version for version in versions if not (folder / version / "metrics.csv").exists())
        return CSVLogger(folder.parent, name=folder.name, version=free)
    return TensorBoardLogger(folder.parent, name=folder.name, version="tensorboard", default_hp_metric=False)


def build_trainer(
    options: Mapping[str, Any],
    folder: Path,
    *,
    callbacks: Sequence[Callback],
    progress: RunProgress | None = None,
    states: RunStates | None = None,
    log: bool = True,
    **fixed: Any,
) -> Trainer:
    """A Trainer whose files are in ``folder``; nothing is written before it is used.

    Args:
        options: the ``trainer`` section; everything but ``logger`` is an argument of Lightning's Trainer.
        folder: for logs.
        callbacks: of this run; the progress bar is added where ``options`` enable it.
        progress: the bar.
        states: writes and reads the states of the run; None where none are kept.
        log: whether this run logs at all.
        fixed: arguments that the command itself determines.

    Raises:
        ConfigurationError: Lightning does not accept the options.
    """
    arguments = {key: value for key, value in options.items() if key != "logger"}
    bar = [progress] if progress is not None and arguments.get("enable_progress_bar", True) else []
    log = log and not arguments.get("fast_dev_run")
    logger = build_logger(options.get("logger"), folder) if log else False
    try:
        return Trainer(
            **{
                **arguments,
                "logger": logger,
                "callbacks": [*callbacks, *bar],
                "default_root_dir": folder,
                "num_sanity_val_steps": 0,
                "inference_mode": False,  # networks are trained inside validation and test
                "use_distributed_sampler": False,  # the loaders divide batches over ranks themselves
                "enable_model_summary": False,
                "enable_progress_bar": bool(bar),
                "enable_checkpointing": states is not None,
                "plugins": [
                    *(arguments.get("plugins") or []),
                    *environment_plugins(),
                    *([] if states is None else [states]),
                ],
                **fixed,
            }
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigurationError(
            "trainer", "…", f"Lightning's Trainer refuses it ({error})", "correct the option that this message names"
        ) from error


def log_configuration(trainer: Trainer, configuration: Mapping[str, Any]) -> None:
    """Give the loggers the configuration, as plain containers."""
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(configuration))
