"""Lightning Trainers from the ``trainer`` section, which is passed on as it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ast_lightning.callbacks import RunProgress
from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.devices import devices_of
from ast_lightning.parallel.failures import EndOfRank, strategy_of
from ast_lightning.runs.checkpoints import RunStates

LOGGERS = ("tensorboard", "csv", "none", "false")
_OURS = ("logger", "timeout_seconds")
_OPTIONS_OF = {  # arguments of Lightning's Trainer by what sets them here
    "max_epochs": "set expert.epochs, evaluation.epochs or distill.max_steps",
    "max_steps": "set distill.max_steps",
}


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
        options: the ``trainer`` section; everything but ``logger`` and ``timeout_seconds`` is an argument of
            Lightning's Trainer.
        folder: for logs.
        callbacks: of this run; the progress bar is added where ``options`` enable it.
        progress: the bar.
        states: writes and reads the states of the run; None where none are kept.
        log: whether this run logs at all.
        fixed: arguments that the command itself determines.

    Raises:
        ConfigurationError: Lightning does not accept the options, the command sets one of them itself, or the
            processes that there are are not those that the options name.
    """
    arguments = {key: value for key, value in options.items() if key not in _OURS}
    bar = [progress] if progress is not None and arguments.get("enable_progress_bar", True) else []
    rank = [EndOfRank()] if devices_of(options) > 1 else []
    log = log and not arguments.get("fast_dev_run")
    logger = build_logger(options.get("logger"), folder) if log else False
    own = {
        "callbacks": [*callbacks, *bar, *rank],
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # networks are trained inside validation and test
        "use_distributed_sampler": False,  # the loaders divide batches over ranks themselves
        "enable_model_summary": False,
        "enable_checkpointing": states is not None,
        **fixed,
    }
    for name in sorted(set(own) & set(arguments)):
        remedy = _OPTIONS_OF.get(name, "leave it out")
        raise ConfigurationError(f"trainer.{name}", arguments[name], "the command sets this itself", remedy)
    plugins = [*(arguments.get("plugins") or []), *_cluster(options), *([] if states is None else [states])]
    shown = {"strategy": strategy_of(options), "logger": logger, "enable_progress_bar": bool(bar), "plugins": plugins}
    try:
        trainer = Trainer(**{**arguments, **shown, **own})
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigurationError(
            "trainer", "…", f"Lightning's Trainer refuses it ({error})", "correct the option that this message names"
        ) from error
    if trainer.world_size != devices_of(options):
        raise ConfigurationError(
            "trainer.devices",
            options.get("devices"),
            f"with trainer.num_nodes={options.get('num_nodes', 1)} it means {devices_of(options)} processes, and "
            f"{trainer.world_size} are there",
            "start one a device: srun with trainer=slurm, torchrun with trainer=torchrun, or let Lightning start them "
            "outside of SLURM or in a job named interactive",
        )
    return trainer


def _cluster(options: Mapping[str, Any]) -> list[ClusterEnvironment]:
    """Under SLURM, an environment that leaves states and the queue to us: Lightning would keep states of its own.

    A run of one process is none of SLURM's tasks, whatever else the job runs beside it.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [LightningEnvironment() if devices_of(options) == 1 else SLURMEnvironment(auto_requeue=False)]


def log_configuration(trainer: Trainer, configuration: Mapping[str, Any]) -> None:
    """Give the loggers the configuration, as plain containers."""
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(configuration))
