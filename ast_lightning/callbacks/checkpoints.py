"""Callbacks that save checkpoints: after each epoch of an expert, or every few outer iterations of a distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class StateOfEpochs(Checkpoint):
    """Saves a checkpoint after every epoch; Lightning calls it after all callbacks that are not a ``Checkpoint``.

    Args:
        path: the file of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class StateOfIterations(Checkpoint):
    """Saves a checkpoint every few outer iterations and after the last, also if ``max_time`` ends the run.

    If an evaluation is due, no checkpoint is saved before it: Lightning would skip that evaluation on resuming. The
    callback that stores the result of the evaluation calls :meth:`save`.

    Args:
        path: the file of the checkpoint.
        every: iterations between checkpoints.
        evaluated_every: iterations between evaluations.
    """

    def __init__(self, path: Path, every: int, evaluated_every: int) -> None:
        self.path = path
        self.every = every
        self.evaluated_every = evaluated_every
        self._saved = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.is_evaluated(step) and trainer.enable_validation:
            return
        if step % self.every == 0 or step == trainer.max_steps:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved:
            self.save(trainer)

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation is due after iteration ``step``, regardless of where the run ends."""
        return step % self.evaluated_every == 0

    def save(self, trainer: Trainer) -> None:
        """Save a checkpoint now; all ranks must call this method."""
        trainer.save_checkpoint(self.path)
        self._saved = trainer.global_step
