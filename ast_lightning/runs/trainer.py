"""Lightning Trainers from the ``trainer`` section, which is passed on as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
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
from ast_lightning.parallel.failures import EndOfRank
from ast_lightning.runs.checkpoints import RunStates

_OURS = ("logger", "timeout_seconds", "enable_progress_bar")
_SET_ELSEWHERE = {  # arguments of Lightning's Trainer that the commands set, and what to do instead
    "logger": "use logger=tensorboard, csv, wandb, mlflow or none",
    "callbacks": "use +callbacks.mine._target_=my_package.MyCallback",
    "default_root_dir": "set output_dir",
    "enable_checkpointing": "leave it out",
    "inference_mode": "leave it out",
    "num_sanity_val_steps": "leave it out",
    "use_distributed_sampler": "leave it out",
}
_LENGTHS = {  # the same, each of some commands
    "max_epochs": "set expert.epochs or distill.max_steps",
    "max_steps": "set distill.max_steps",
}


def check_trainer(options: Mapping[str, Any], fixed: Collection[str] = ()) -> None:
    """Reject options of the ``trainer`` section that every command sets itself, or this one as one of ``fixed``.

    Raises:
        ConfigurationError: with the option to use instead.
    """
    lengths = {name: remedy for name, remedy in _LENGTHS.items() if name in fixed}
    for name, remedy in {**_SET_ELSEWHERE, **lengths}.items():
        if options.get(name) is not None:
            raise ConfigurationError(f"trainer.{name}", options[name], "the command sets this itself", remedy)


def build_trainer(
    options: Mapping[str, Any],
    folder: Path,
    *,
    callbacks: Sequence[Callback],
    progress: RunProgress,
    states: RunStates | None = None,
    **fixed: Any,
) -> Trainer:
    """A Trainer without loggers; the command sets ``trainer.loggers`` once it may write into the folder of the run.

    Args:
        options: the ``trainer`` section; everything but ``timeout_seconds`` is an argument of Lightning's Trainer.
        folder: of the run.
        callbacks: of this run.
        progress: added unless ``enable_progress_bar`` is false.
        states: writes and reads the checkpoints of the run; None where none are kept.
        fixed: arguments that the command itself determines.

    Raises:
        ConfigurationError: Lightning or :func:`check_trainer` rejects an option, or another number of
            processes is running than they name.
    """
    check_trainer(options, fixed)
    bar = [progress] if options.get("enable_progress_bar", True) else []
    rank = [EndOfRank()] if devices_of(options) > 1 else []
    arguments = {
        "enable_model_summary": False,
        **{key: value for key, value in options.items() if key not in _OURS},
        "callbacks": [*callbacks, *bar, *rank],
        "plugins": [*(options.get("plugins") or []), *_cluster(options), *([states] if states else [])],
        "logger": False,
        "enable_progress_bar": False,  # Lightning's own
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # networks are trained inside validation and test
        "use_distributed_sampler": False,  # the loaders divide batches over ranks themselves
        "enable_checkpointing": states is not None,
        **fixed,
    }
    try:
        trainer = Trainer(**arguments)
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        problem = f"Lightning's Trainer rejects it ({error})"
        raise ConfigurationError("trainer", "…", problem, "correct the option that this message names") from error
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
    """Under SLURM, an environment without Lightning's own checkpoints and requeueing.

    A run of one process ignores SLURM's task environment.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [LightningEnvironment() if devices_of(options) == 1 else SLURMEnvironment(auto_requeue=False)]
