"""distill.py with an error that nobody foresaw on rank 1: ``PYTHONPATH=. python tests/commands/failing.py …``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ast_lightning.commands.distill
from ast_lightning.distillation import DistillModule


class FailingModule(DistillModule):
    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        if self.global_step == 2 and self.global_rank == 1:
            raise ZeroDivisionError("nobody foresaw this")


if __name__ == "__main__":
    ast_lightning.commands.distill.DistillModule = FailingModule  # type: ignore[misc]
    script = Path(__file__).parents[2] / "distill.py"
    exec(compile(script.read_text(), str(script), "exec"))  # as this program, which is started once more for rank 1
