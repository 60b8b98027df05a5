"""The tasks of a job that submitit started: processes that exist when the job begins, one on each device.

Nothing here imports torch: the ranks must be known before Lightning is imported.
"""

from __future__ import annotations

import os
from typing import Any


def tasks_of_job() -> int:
    """How many processes run the same job as this one, itself included; 1 outside of submitit."""
    return int(_job().num_tasks) if _in_submitit() else 1


def number_of_task() -> int:
    """Which of them this process is; 0 reports for the job."""
    return int(_job().global_rank) if _in_submitit() else 0


def join_tasks() -> None:
    """Set the environment by which Lightning finds the other tasks of this job; SLURM sets its own."""
    if _in_submitit() and _job().name() == "local" and tasks_of_job() > 1 and "LOCAL_RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ["MASTER_ADDR"] = "127.0.0.1"  # the name of a machine need not resolve


def _in_submitit() -> bool:
    return "SUBMITIT_EXECUTOR" in os.environ


def _job() -> Any:
    from submitit import JobEnvironment  # of the extra "sweep", which is there where submitit started this process

    return JobEnvironment()
