"""A callback of a run that stops where a test wants it to be when a signal comes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


def holding(folder: Path, step: int) -> tuple[str, ...]:
    """The words that let the processes of a command hold, see :class:`Hold`."""
    target = f"+callbacks.hold._target_={__name__}.Hold"
    return target, f"+callbacks.hold.folder={folder}", f"+callbacks.hold.step={step}"


class Hold(Callback):
    """Every process of a run leaves a file named after it and waits, until a signal ends it.

    Args:
        folder: of these files.
        step: the number of steps, or outer iterations, before it.
        rank: the only rank that waits; None: all.
    """

    def __init__(self, folder: str, step: int, rank: int | None = None) -> None:
        self.folder = Path(folder)
        self.step = step
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and self.rank in (None, trainer.global_rank):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / str(os.getpid())).touch()
            while not trainer.received_sigterm:
                time.sleep(0.02)
