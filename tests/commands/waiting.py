"""What workers do that train nothing; ``python -m tests.commands.waiting FOLDER`` starts two that wait."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from ast_lightning.parallel.workers import run_workers

from .holding import leave_name


def wait(folder: Path, number: int, count: int) -> None:
    """Write what a worker finds, leave its name in ``folder/held``, and wait to be ended."""
    (folder / f"{number}.txt").write_text(f"{torch.get_num_threads()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {count}")
    print(f"line of {number}")
    leave_name(folder / "held")
    while True:
        time.sleep(0.05)


if __name__ == "__main__":
    run_workers(wait, (Path(sys.argv[1]),), 2, {"accelerator": "cpu", "devices": 1})
