"""Create Lightning Trainers from the ``trainer`` section, whose options are passed on unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.devices import devices_of
from ast_lightning.parallel.failures import EndOfRank, strategy_of
from ast_lightning.runs.checkpoints import RunStates

_OURS = ("timeout_seconds", "enable_progress_bar")
_LENGTHS = {  # arguments of Lightning's Trainer that some commands set, and what to set instead
    "max_epochs": "set expert.epochs or distill.max_steps",
    "max_steps": "set distill.max_steps",
}


def build_trainer(
    options: Mapping[str, Any],
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    progress: Callback | None = None,
    states: RunStates | None = None,
    **fixed: Any,
) -> Trainer:
    """Create a Trainer without loggers; the command sets ``trainer.loggers`` once it has locked the run's folder.

    Args:
        options: the ``trainer`` section; everything but ``timeout_seconds`` is an argument of Lightning's Trainer.
        folder: the folder of the run.
        callbacks: the callbacks of this run.
        progress: the progress bar, added unless ``enable_progress_bar`` is false.
        states: writes and reads the checkpoints of the run; None: no checkpoints.
        fixed: arguments that the command sets itself.

    Raises:
        ConfigurationError: Lightning rejects an option, the command sets it itself, or the number of running processes
            differs from the configured one.
    """
    for name, remedy in _LENGTHS.items():
        if name in fixed and options.get(name) is not None:
            raise ConfigurationError(f"trainer.{name}", options[name], "the command sets this itself", remedy)
    bar = [progress] if progress is not None and options.get("enable_progress_bar", True) else []
    rank = [EndOfRank()] if devices_of(options) > 1 else []
    arguments = {
        "enable_model_summary": False,
        **{key: value for key, value in options.items() if key not in _OURS},
        "strategy": strategy_of(options),
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
    except Exception as error:  # also if an accelerator lacks a package
        problem = f"Lightning's Trainer rejects it ({error})"
        raise ConfigurationError("trainer", "…", problem, "correct the option that this message names") from error
    if trainer.world_size != devices_of(options):
        expected = f"{devices_of(options)} processes are expected (trainer.num_nodes={options.get('num_nodes', 1)})"
        remedy = (
            "start one per device: srun with trainer=slurm, torchrun with trainer=torchrun, or let Lightning start "
            "them outside of SLURM or in a job named interactive"
        )
        problem = f"{expected}, but there are {trainer.world_size}"
        raise ConfigurationError("trainer.devices", options.get("devices"), problem, remedy)
    return trainer


def _cluster(options: Mapping[str, Any]) -> list[ClusterEnvironment]:
    """Under SLURM, an environment without Lightning's own checkpoints and requeueing.

    A run of one process ignores SLURM's task environment.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [LightningEnvironment() if devices_of(options) == 1 else SLURMEnvironment(auto_requeue=False)]
