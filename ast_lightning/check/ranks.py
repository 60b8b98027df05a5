"""Processes that average gradients, one for each device: what distillation over devices rests on."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ast_lightning.check.steps import Iteration, relative_error

PATIENCE = 90.0
"""Seconds after which processes that do not answer count as failed."""


class _Images(nn.Module):
    """X and α as a module, for DistributedDataParallel to wrap."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._iteration = Iteration(device, torch.float64)
        self.images = nn.Parameter(self._iteration.images.clone())
        self.learning_rate = nn.Parameter(torch.tensor(0.01, device=device, dtype=torch.float64))

    def forward(self, window: int) -> Tensor:
        return self._iteration.loss(self.images, self.learning_rate, window)

    def gradients(self) -> Tensor:
        return torch.cat([each.grad.reshape(-1) for each in (self.images, self.learning_rate) if each.grad is not None])


def gradient_error(backend: str, devices: list[str], patience: float = PATIENCE) -> float:
    """How far the averaged gradients of one window a rank are from the average that one process computes.

    Args:
        backend: ``gloo`` or ``nccl``.
        devices: of each rank.
        patience: in seconds.

    Returns:
        The largest relative error of any rank, in float64.

    Raises:
        RuntimeError: a rank failed, with its traceback, or did not answer.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        processes: list[Any] = []
        answers: list[Connection] = []
        try:
            for rank in range(len(devices)):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (backend, devices, rank, rendezvous, patience, theirs)
                processes.append(context.Process(target=_rank, args=arguments, daemon=True))
                processes[-1].start()
                theirs.close()
                answers.append(ours)
            return _largest(answers, patience)
        finally:
            for process in processes:
                process.join(2)
                process.kill()
                process.join()


def _largest(answers: list[Connection], patience: float) -> float:
    rest, largest, end = list(answers), 0.0, time.monotonic() + patience
    while rest:
        ready = wait(rest, max(0.0, end - time.monotonic()))
        if not ready:
            raise RuntimeError(f"{len(rest)} of {len(answers)} processes gave no answer in {patience:.0f} s")
        for answer in ready:
            assert isinstance(answer, Connection)
            rest.remove(answer)
            try:
                found = answer.recv()
            except EOFError:
                raise RuntimeError(f"process {answers.index(answer)} ended without an answer") from None
            if isinstance(found, str):
                raise RuntimeError(f"process {answers.index(answer)}: {found}")
            largest = max(largest, found)
    return largest


def _rank(backend: str, devices: list[str], rank: int, rendezvous: str, patience: float, answer: Connection) -> None:
    try:
        answer.send(_error_of_rank(backend, devices, rank, rendezvous, patience))
    except Exception:
        answer.send(traceback.format_exc().strip().splitlines()[-1])


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
        alone = torch.stack([_alone(device, window) for window in range(len(devices))]).mean(0)
        module = _Images(device)
        wrapped = DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
        wrapped(rank).backward()
        return relative_error(module.gradients(), alone)
    finally:
        distributed.destroy_process_group()


def _alone(device: torch.device, window: int) -> Tensor:
    module = _Images(device)
    module(window).backward()
    return module.gradients()
