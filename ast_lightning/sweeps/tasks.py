"""The tasks of a job that submitit started: one process per device, started before the job begins.

This module does not import torch, because the ranks must be known before Lightning is imported.
"""

from __future__ import annotations

import os
from typing import Any


def tasks_of_job() -> int:
    """The number of processes that run this job, including this one; 1 outside of submitit."""
    return int(_job().num_tasks) if _in_submitit() else 1


def number_of_task() -> int:
    """The index of this process among them; process 0 writes the results of the job."""
    return int(_job().global_rank) if _in_submitit() else 0


def join_tasks() -> None:
    """Set the environment variables by which Lightning finds the other tasks of this job; SLURM sets them itself."""
    if _in_submitit() and _job().name() == "local" and tasks_of_job() > 1 and "LOCAL_RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ["MASTER_ADDR"] = "127.0.0.1"  # the machine's host name may not resolve


def _in_submitit() -> bool:
    return "SUBMITIT_EXECUTOR" in os.environ


def _job() -> Any:
    from submitit import JobEnvironment  # of the extra "sweep"; installed if submitit started this process

    return JobEnvironment()
