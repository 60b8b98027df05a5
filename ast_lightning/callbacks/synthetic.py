"""Callbacks at every evaluation: log pictures of the synthetic images, and write the distilled dataset to disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torchvision.transforms.functional import to_pil_image

from ast_lightning.callbacks.averaging import ImageAverage
from ast_lightning.callbacks.checkpoints import StateOfIterations
from ast_lightning.distillation import DistillModule
from ast_lightning.storage.files import clear_leftovers, point_to
from ast_lightning.synthetic import DistilledDataset, picture, save_distilled
from ast_lightning.synthetic.dataset import AVERAGE

_AVERAGED = {"average": True, "accuracy": None}

MakeDataset = Callable[[DistillModule, dict[str, Any]], DistilledDataset]
"""(module, results of an evaluation) → the distilled dataset to write."""


class SyntheticImageLogger(Callback):
    """Logs grids of the images (raw, and with the preprocessing inverted) and a histogram of pixels to TensorBoard.

    Loggers with a method ``log_image``, such as that of Weights & Biases, receive the pictures.

    Args:
        make: see ``MakeDataset``.
    """

    def __init__(self, make: MakeDataset) -> None:
        self._make = make

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillModule)
        dataset, step = self._make(pl_module, {}), trainer.global_step
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                board = logger.experiment
                board.add_image("synthetic/pictures", picture(dataset.pictures(), dataset.ipc), step)
                board.add_image("synthetic/raw", picture(dataset.images, dataset.ipc, stretch=True), step)
                # TensorBoard's bins end at 1e20, and it raises an error if all values are larger
                board.add_histogram("synthetic/pixels", dataset.images.clamp(-1e19, 1e19), step)
            elif hasattr(logger, "log_image"):
                shown = to_pil_image(picture(dataset.pictures(), dataset.ipc))
                logger.log_image("synthetic/pictures", [shown], step)


class Evaluated(TypedDict):
    """An evaluation: the outer iteration after which it ran, and its metrics, e.g. ``{"test/accuracy": 93.1}``."""

    iteration: int
    metrics: dict[str, float]


class ArtifactWriter(Callback):
    """Writes the distilled dataset at every evaluation, as ``last`` and, if there is a validation split, as ``best``.

    ``<folder>/last`` and ``<folder>/best`` point to ``<folder>/step_<iteration>``; a step without a link to it is
    deleted. The dataset is written first, then the checkpoint, then the links. A run that resumes from a checkpoint
    therefore finds every dataset that the checkpoint refers to, and writes later ones again.

    Args:
        folder: the folder of the datasets.
        make: see ``MakeDataset``.
        select: whether ``validation/accuracy`` exists and selects ``best``.
        average: the average of the images, written into the folder ``average`` of each dataset; None for none.
        states: saves the checkpoints of the run; None: no checkpoints. The evaluation of the last iteration, if it is
            not in the schedule, changes only the links: a run that is made longer selects as if it had not taken place.

    Attributes:
        last: the last evaluation.
        best: the best evaluation of the schedule.
        has_written: whether this process has written a dataset.
    """

    def __init__(
        self,
        folder: Path,
        make: MakeDataset,
        *,
        select: bool,
        average: ImageAverage | None = None,
        states: StateOfIterations | None = None,
    ) -> None:
        self.folder = folder
        self.select = select
        self.last: Evaluated | None = None
        self.best: Evaluated | None = None
        self.has_written = False
        self._make = make
        self._average = average
        self._states = states

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.folder.exists():
            clear_leftovers(self.folder)
            if self.best is not None and self._step(self.best).exists():
                point_to(self.folder / "best", self._step(self.best))
            self._drop_steps()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillModule)
        iteration = trainer.global_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "accuracy" in name}
        self.last = found = Evaluated(iteration=iteration, metrics=metrics)
        is_best = self.select and _selector(found) > _selector(self.best)
        if is_best and (self._states is None or self._states.is_evaluated(iteration)):
            self.best = found
        if trainer.is_global_zero:
            accuracy = {name: None if math.isnan(value) else value for name, value in metrics.items()}  # null in JSON
            dataset = self._make(pl_module, {"iteration": iteration, "accuracy": accuracy})
            step = save_distilled(self._step(found), dataset)
            if self._average is not None and self._average.images is not None:
                images = self._average.images.to("cpu", dataset.images.dtype)
                save_distilled(step / AVERAGE, replace(dataset, images=images, metadata=dataset.metadata | _AVERAGED))
        self.has_written = True
        if self._states is not None and trainer.state.fn == TrainerFn.FITTING:
            self._states.save(trainer)
        if trainer.is_global_zero:
            point_to(self.folder / "last", self._step(found))
            if is_best:
                point_to(self.folder / "best", self._step(found))
            self._drop_steps()

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last, self.best = state_dict["last"], state_dict["best"]

    def _step(self, found: Evaluated) -> Path:
        return self.folder / f"step_{found['iteration']:06d}"

    def _drop_steps(self) -> None:
        kept = {(self.folder / name).resolve() for name in ("last", "best")}
        if self.best is not None:
            kept.add(self._step(self.best).resolve())
        for step in self.folder.glob("step_*"):
            if step.resolve() not in kept:
                shutil.rmtree(step)


def _selector(found: Evaluated | None) -> float:
    return -math.inf if found is None else found["metrics"].get("validation/accuracy", -math.inf)
