"""Progress over a whole run (rate, remaining time, loss, accuracy), and an estimate once time is measured."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ast_lightning.parallel.devices import peak_memory
from ast_lightning.storage.files import format_bytes
from ast_lightning.terminal import format_seconds, say


class RunProgress(ProgressBar):
    """One bar for all optimiser steps of a run; on something that is no terminal, a few plain lines instead.

    Args:
        description: what is running, e.g. ``expert 3``.
        lines: how many lines are printed where there is no terminal.
    """

    def __init__(self, description: str, lines: int = 10) -> None:
        super().__init__()
        self.description = description
        self.lines = lines
        self._enabled = True
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total = 0
        self._first_step = 0
        self._started = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        self._total = int(trainer.estimated_stepping_batches)
        self._first_step = trainer.global_step
        self._started = time.monotonic()
        console = Console()
        if console.is_terminal:
            rate = TextColumn("{task.fields[rate]}")
            metrics = TextColumn("{task.fields[metrics]}")
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                rate,
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, metrics, console=console)
            self._progress.start()
            self._task = self._progress.add_task(
                self.description, total=self._total, completed=self._first_step, rate="", metrics=""
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        step = trainer.global_step
        done = max(step - self._first_step, 1)
        rate = done / (time.monotonic() - self._started)
        rate_text = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, rate=rate_text, metrics=self._metrics(trainer))
        elif step * self.lines // self._total > (step - 1) * self.lines // self._total:
            remaining = format_seconds((self._total - step) / rate)
            metrics = self._metrics(trainer)
            say(f"{self.description}: {step}/{self._total}, {rate_text}, {remaining} left, {metrics}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @staticmethod
    def _metrics(trainer: Trainer) -> str:
        shown = ("train/loss", "test/accuracy", "validation/accuracy")
        values = {name: trainer.callback_metrics[name] for name in shown if name in trainer.callback_metrics}
        return ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())


class RunEstimate(Callback):
    """Prints how long the run will take, once a few steps are measured, and how much memory it needs.

    Args:
        runs: how many runs like this one follow each other, this one included.
        after: steps to measure.
    """

    def __init__(self, runs: int = 1, after: int = 5) -> None:
        self.runs = runs
        self.after = after
        self._first_step = 0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.global_step - self._first_step
        if done == 1:
            self._started = time.monotonic()  # the first step also allocates and compiles
        if done != self.after + 1:
            return
        seconds = (time.monotonic() - self._started) / self.after
        total = int(trainer.estimated_stepping_batches)
        remaining = seconds * (total * self.runs - trainer.global_step)
        memory = format_bytes(peak_memory(pl_module.device))
        say(f"estimate: {format_seconds(remaining)} of training, evaluations not counted; peak memory so far {memory}")
