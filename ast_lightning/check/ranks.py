"""Average gradients over processes, one per device, as distillation on several devices does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes
from torch.nn.parallel import DistributedDataParallel

from ast_lightning.check.steps import Iteration, relative_error
from ast_lightning.parallel.workers import silence_torch

PATIENCE = 90.0
"""Seconds after which processes that have not finished count as failed."""


def gradient_error(backend: str, devices: list[str], patience: float = PATIENCE) -> float:
    """Compare the gradients that ranks average, one window per rank, with the average that one process computes.

    Args:
        backend: ``gloo`` or ``nccl``.
        devices: the device of each rank.
        patience: timeout in seconds.

    Returns:
        The largest relative error of any rank, in float64.

    Raises:
        RuntimeError: a rank failed (the message has its error) or did not finish in time.
    """
    silence_torch()
    with TemporaryDirectory() as folder:
        store = (Path(folder) / "rendezvous").as_uri()
        arguments = {rank: (backend, devices, rank, store, patience) for rank in range(len(devices))}
        logs = DefaultLogsSpecs(folder, redirects=Std.ALL)
        processes = start_processes("rank", _error_of_rank, arguments, {rank: {} for rank in arguments}, logs)
        try:
            result = processes.wait(patience, period=0.1)
        finally:
            processes.close(timeout=2)
    if result is None:
        raise RuntimeError(f"{len(devices)} processes did not answer within {patience:.0f} s")
    for rank, failure in result.failures.items():
        reason = failure.error_file_data["message"]  # a mapping if the function raised
        raise RuntimeError(f"process {rank}: {reason['message'] if isinstance(reason, dict) else failure.message}")
    return float(max(result.return_values.values()))


def _error_of_rank(backend: str, devices: list[str], rank: int, rendezvous: str, patience: float) -> float:
    device = torch.device(devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    distributed.init_process_group(
        backend, init_method=rendezvous, rank=rank, world_size=len(devices), timeout=timedelta(seconds=patience)
    )
    try:
        module = Iteration(device, torch.float64)
        alone = torch.stack([module.gradient(window) for window in range(len(devices))]).mean(0)
        wrapped = DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
        wrapped(rank).backward()  # averages only while ``wrapped`` exists
        averaged = [each.grad.reshape(-1) for each in module.parameters() if each.grad is not None]
        return relative_error(torch.cat(averaged), alone)
    finally:
        distributed.destroy_process_group()
