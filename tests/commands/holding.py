"""Processes that stop where a test wants them to be when a signal comes, and waiting for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tests import PATIENCE


def wait_for(happens: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def leave_name(folder: Path) -> None:
    """Leave a file that is named after this process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(os.getpid())).touch()


def names_in(folder: Path) -> list[int]:
    """The processes that have left their names."""
    return sorted(int(path.name) for path in folder.glob("*"))


def holding(folder: Path, step: int) -> tuple[str, ...]:
    """The words that let the processes of a command hold, see :class:`Hold`."""
    target = f"+callbacks.hold._target_={__name__}.Hold"
    return target, f"+callbacks.hold.folder={folder}", f"+callbacks.hold.step={step}"


class Hold(Callback):
    """Every process of a run leaves its name and waits, until a signal ends it.

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
            leave_name(self.folder)
            while not trainer.received_sigterm:
                time.sleep(0.02)
