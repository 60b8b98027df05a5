"""Progress over a whole run: rate, remaining time, loss and accuracy, and an estimate after the first steps."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from ast_lightning.data import ImageDataModule
from ast_lightning.evaluation import NetworkEvaluator
from ast_lightning.parallel.devices import peak_memory
from ast_lightning.storage.files import format_bytes
from ast_lightning.terminal import format_seconds, say

_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_WIDE_SHARED = "{desc} {percentage:3.0f} % |{bar}| {elapsed}<{remaining}"
_NARROW_SHARED = "{percentage:3.0f} % |{bar}| {remaining} left"
_SHARED = "{desc}: {percentage:.0f} % [{elapsed}<{remaining}]"
_NARROW = "{desc} |{bar}| {n_fmt}/{total_fmt} {remaining} left"
_MINUTE = 60  # without a terminal: seconds after which an additional line is printed
_MEASURED = 5  # steps of the estimate; the first is left out, because it also allocates and compiles
_QUIET = 30.0  # without a terminal: seconds between the lines of an evaluation
_SHOWN: tuple[str, ...] = ("train/loss", "test/accuracy", "validation/accuracy")


class RunProgress(Callback):
    """Shows one bar over all optimiser steps of a run, and one over the epochs of all networks of an evaluation.

    If standard output is not a terminal, a few plain lines are printed instead.

    Args:
        description: what is running, e.g. ``expert 3``.
        lines: how many lines are printed without a terminal; a long run prints at least one per minute.
        runs: the number of consecutive runs like this one, including this one. After a few steps, an estimate of their
            total time is printed; 0 prints none.
        evaluator: trains the networks of each validation or test; None if these train none.
    """

    def __init__(
        self, description: str, lines: int = 10, runs: int = 0, evaluator: NetworkEvaluator | None = None
    ) -> None:
        self.description = description
        self.lines = lines
        self.runs = runs
        self._evaluator = evaluator
        self._unit, self._shown = "step", _SHOWN
        self._evaluation: RunProgress | None = None
        self._bar: tqdm | None = None
        self._total = self._first_step = self._step = 0
        self._started = self._printed = self._measured_from = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total, data = int(trainer.estimated_stepping_batches), getattr(trainer, "datamodule", None)
        if isinstance(data, ImageDataModule) and data.samples and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            total = data.count_steps(trainer.max_epochs or 0)  # Lightning assumes that all epochs are equally long
        self._start(trainer, total, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:  # an epoch's last line is printed after its evaluation
            self._advance(trainer, trainer.global_step)
        if self.runs:
            self._estimate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._advance(trainer, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, "evaluating", trainer.num_val_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_evaluation()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, self.description, trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_evaluation()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_evaluation()
        self._stop()

    def _start_evaluation(self, trainer: Trainer, description: str, groups: Sequence[float]) -> None:
        if self._evaluator is None:
            return
        total = int(sum(groups)) * self._evaluator.settings.epochs
        self._evaluation = bar = RunProgress(description, lines=total)
        bar._unit, bar._shown = "epoch", ()
        bar._start(trainer, total, 0, leave=not trainer.training)
        done, printed = 0, time.monotonic()

        def advance() -> None:
            nonlocal done, printed
            done, now = done + 1, time.monotonic()
            if bar._bar is not None or now - printed >= _QUIET:
                bar._advance(trainer, done)
                printed = now

        self._evaluator.on_epoch = advance

    def _stop_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation._stop()

    def _start(self, trainer: Trainer, total: int, step: int, leave: bool = True) -> None:
        self._total, self._first_step, self._step = total, step, step
        self._started = self._printed = time.monotonic()
        if trainer.is_global_zero and sys.stdout.isatty():
            options: dict[str, Any] = {"unit": self._unit, "file": sys.stdout, "dynamic_ncols": True, "leave": leave}
            if (columns := shutil.get_terminal_size().columns) < 80:
                options |= {"bar_format": _NARROW, "dynamic_ncols": False, "ncols": columns - 1}
            self._bar = tqdm(desc=self.description, total=total, initial=step, **options)

    def _advance(self, trainer: Trainer, step: int) -> None:
        before, self._step, total = self._step, step, self._total
        if self._bar is not None:
            if self._bar.update(step - before) or step == total:
                self._bar.set_postfix_str(self._metrics(trainer), refresh=False)  # seldom, because it syncs the GPU
        elif (
            self.lines
            and trainer.is_global_zero
            and (
                step * self.lines // total > before * self.lines // total or time.monotonic() - self._printed > _MINUTE
            )
        ):
            self._printed = time.monotonic()
            elapsed = self._printed - self._started
            options = {"unit": self._unit, "initial": self._first_step, "bar_format": _LINE}
            options["postfix"] = self._metrics(trainer)
            say(tqdm.format_meter(step, total, elapsed, prefix=self.description, **options))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _estimate(self, trainer: Trainer, module: LightningModule) -> None:
        done = trainer.global_step - self._first_step
        if done == 1:
            self._measured_from = time.monotonic()
        elif done == _MEASURED + 1:
            seconds = (time.monotonic() - self._measured_from) / _MEASURED
            left = format_seconds(seconds * (self._total * self.runs - trainer.global_step))
            memory = format_bytes(peak_memory(module.device))
            say(f"estimate: {left} of training, evaluations not counted; peak memory so far {memory}")

    def _metrics(self, trainer: Trainer) -> str:
        values = {name: trainer.callback_metrics[name] for name in self._shown if name in trainer.callback_metrics}
        return ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())


class SharedProgress(Callback):
    """One bar over several evaluations whose networks take different times, as a Trainer's callback in each of them.

    Args:
        work: the work of all evaluations together, in any unit.
    """

    def __init__(self, work: float) -> None:
        self._total, self._done, self._part, self._work = work, 0.0, "", 0.0
        self._evaluator: NetworkEvaluator | None = None
        self._bar: tqdm | None = None
        self._started, self._printed = time.monotonic(), time.monotonic()

    def part(self, description: str, evaluator: NetworkEvaluator, work: float) -> SharedProgress:
        """Prepare for the next evaluation and its share of the work."""
        self._part, self._evaluator, self._work = description, evaluator, work
        return self

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._evaluator is None or not trainer.is_global_zero:
            return
        if self._bar is None and sys.stdout.isatty():
            narrow = shutil.get_terminal_size().columns < 80
            options: dict[str, Any] = {"file": sys.stdout, "dynamic_ncols": True}
            self._bar = tqdm(total=self._total, bar_format=_NARROW_SHARED if narrow else _WIDE_SHARED, **options)
        epochs = int(sum(trainer.num_test_batches)) * self._evaluator.settings.epochs
        self._evaluator.on_epoch = partial(self._advance, self._work / epochs)
        self._advance(0.0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _advance(self, work: float) -> None:
        self._done = min(self._done + work, self._total)
        if self._bar is not None:
            self._bar.set_description_str(self._part, refresh=False)
            self._bar.update(work)
        elif work and time.monotonic() - self._printed >= _QUIET:
            self._printed = time.monotonic()
            elapsed = self._printed - self._started
            say(tqdm.format_meter(self._done, self._total, elapsed, prefix=self._part, bar_format=_SHARED))
