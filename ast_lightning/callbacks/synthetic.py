"""What happens to the synthetic images at every evaluation: pictures for TensorBoard, the artifact on disk."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from ast_lightning.distillation import DistillModule
from ast_lightning.files import point_to
from ast_lightning.synthetic import DistilledDataset, picture, save_distilled

MakeDataset = Callable[[DistillModule, dict[str, Any]], DistilledDataset]
"""(module, what an evaluation found) → the dataset as it is to be written."""


class SyntheticImageLogger(Callback):
    """Shows grids of the images (raw, and with the preprocessing inverted) and a histogram of pixels in TensorBoard.

    Args:
        make: see ``MakeDataset``.
    """

    def __init__(self, make: MakeDataset) -> None:
        self._make = make

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dataset = self._make(_distillation(pl_module), {})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                board, step = logger.experiment, trainer.global_step
                board.add_image("synthetic/pictures", picture(dataset.pictures(), dataset.ipc), step)
                board.add_image("synthetic/raw", picture(dataset.images, dataset.ipc, stretch=True), step)
                # TensorBoard's bins end at 1e20, and it raises an error where all values lie beyond
                board.add_histogram("synthetic/pixels", dataset.images.clamp(-1e19, 1e19), step)


class ArtifactWriter(Callback):
    """Writes the distilled dataset at every evaluation, as ``last`` and, where a validation split selects, ``best``.

    ``<folder>/last`` and ``<folder>/best`` point to ``<folder>/step_<iteration>``; a step that nothing points to any
    more is deleted.

    Args:
        folder: where the datasets are.
        make: see ``MakeDataset``.
        select: whether ``validation/accuracy`` exists and selects.
    """

    def __init__(self, folder: Path, make: MakeDataset, *, select: bool) -> None:
        self.folder = folder
        self.select = select
        self.best: float | None = None
        self._make = make

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _distillation(pl_module)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "accuracy" in name}
        accuracy = metrics.get("validation/accuracy")
        is_best = self.select and accuracy is not None and (self.best is None or accuracy > self.best)
        if is_best:
            self.best = accuracy
        if not trainer.is_global_zero:
            return
        step = _fresh(self.folder / f"step_{trainer.global_step:06d}")
        save_distilled(step, self._make(module, {"iteration": trainer.global_step, "accuracy": metrics}))
        point_to(self.folder / "last", step)
        if is_best:
            point_to(self.folder / "best", step)
        kept = {(self.folder / name).resolve() for name in ("last", "best")}
        for old in self.folder.glob("step_*"):
            if old.resolve() not in kept:
                shutil.rmtree(old)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def _fresh(folder: Path) -> Path:
    """A name that is not taken: a resumed run may evaluate once more at a step whose dataset is pointed to."""
    again = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(1))
    return next(name for name in itertools.chain([folder], again) if not name.exists())


def _distillation(module: LightningModule) -> DistillModule:
    if not isinstance(module, DistillModule):
        raise TypeError(f"this callback follows a DistillModule, not a {type(module).__name__}")
    return module
