"""distill.py with an error that nobody foresaw on rank 1: ``PYTHONPATH=. python tests/runs/failing.py …``."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule

from ast_lightning.distillation import DistillModule
from distill import main


class FailingModule(DistillModule):
    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        if self.global_step == 2 and self.global_rank == 1:
            raise ZeroDivisionError("nobody foresaw this")


if __name__ == "__main__":
    import ast_lightning.runs.distill

    replacement: type[LightningModule] = FailingModule
    ast_lightning.runs.distill.DistillModule = replacement  # type: ignore[misc, assignment]
    main()
