"""Processes that share the work of one command, one per device, started with torch's elastic multiprocessing."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.elastic import multiprocessing

from ast_lightning.errors import ConfigurationError, WorkerFailed
from ast_lightning.parallel.devices import devices_of, gpus_of

_PATIENCE = 10  # seconds in which a worker must end after SIGTERM
_POLL = 0.2  # seconds between checks of the workers


def count_processes(choice: int | str, trainer: Mapping[str, Any], *, in_sweep: bool) -> int:
    """Resolve ``expert_processes``.

    ``auto`` is the number of GPUs if nothing else determines how they are used: the Trainer has one device and may
    choose it, the run is not a job of a multirun, and no launcher has started several processes. Otherwise it is 1.

    Args:
        choice: ``expert_processes``.
        trainer: the ``trainer`` section.
        in_sweep: whether the run is a job of a multirun.

    Raises:
        ConfigurationError: both several processes and several devices per expert are set.
    """
    if choice == "auto":
        free = trainer.get("devices") in (1, "1") and trainer.get("strategy") == "auto" and devices_of(trainer) == 1
        alone = not in_sweep and "LOCAL_RANK" not in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) == 1
        return max(len(gpus_of(trainer)), 1) if free and alone else 1
    if int(choice) > 1 and devices_of(trainer) > 1:
        problem = f"trainer.devices={trainer.get('devices')} trains each expert on {devices_of(trainer)} devices"
        remedy = "set trainer.devices=1 for one device per expert, or expert_processes=1 for all devices on each expert"
        raise ConfigurationError("expert_processes", choice, problem, remedy)
    return int(choice)


def run_workers(work: Callable[..., None], arguments: tuple[Any, ...], count: int, trainer: Mapping[str, Any]) -> None:
    """Run ``work(*arguments, number, count)`` in ``count`` processes and wait for all of them.

    Their output is printed with the prefix ``[number]``. SIGTERM, Ctrl-C and the end of this process end them.

    Args:
        work: a module-level function.
        arguments: its first arguments, which must be picklable.
        count: the number of processes.
        trainer: the ``trainer`` section.

    Raises:
        WorkerFailed: one failed; the others are stopped.
        KeyboardInterrupt, SIGTERMException: this process was interrupted; all are stopped.
    """
    silence_torch()
    resource_tracker.ensure_running()  # now, because starting it later would unblock SIGINT
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, torch.get_num_threads() // count)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # the workers' lines pass through it
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # torch replaces them during the run
    handlers = {number: signal.getsignal(number) for number in handled}
    with TemporaryDirectory(prefix="ast_lightning_") as folder:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by workers until they handle it
            try:
                processes = multiprocessing.start_processes(
                    "worker",
                    _begin,
                    {number: (work, arguments, number, count, threads) for number in range(count)},
                    {number: worker_environment(trainer, number) for number in range(count)},
                    multiprocessing.DefaultLogsSpecs(folder, tee=multiprocessing.Std.ALL),
                    {number: f"[{number}] " for number in range(count)},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for ignored in (signal.SIGHUP, signal.SIGQUIT):  # torch's handlers would undo nohup
                signal.signal(ignored, handlers[ignored])
            try:
                result = processes.wait(period=_POLL)
            finally:
                processes.close(timeout=_PATIENCE)
        except multiprocessing.SignalException as received:
            raise (KeyboardInterrupt if received.sigval == signal.SIGINT else SIGTERMException) from received
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
        assert result is not None  # without a timeout
        for failure in result.failures.values():
            last = _last_line(result, failure.local_rank) if failure.exitcode > 0 else ""
            raise WorkerFailed(failure.local_rank, count, failure.exitcode, last)


def silence_torch() -> None:
    """Hide torch's own reports of failed processes, which include tracebacks."""
    for name in ("distributed.elastic.multiprocessing.api", "multiprocessing.spawn"):
        logging.getLogger(f"torch.{name}").setLevel(logging.CRITICAL)


def worker_environment(trainer: Mapping[str, Any], number: int) -> dict[str, str]:
    """The environment variables that select a worker's GPU; with fewer GPUs than workers, several share one.

    Args:
        trainer: the ``trainer`` section.
        number: the index of the worker.
    """
    gpus = gpus_of(trainer)
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}


def take_gpu(trainer: Mapping[str, Any], number: int) -> None:
    """Select one GPU for all jobs of this process, which is one of several that run jobs at the same time.

    Args:
        trainer: the ``trainer`` section of its first job.
        number: the number of that job.
    """
    if "AST_LIGHTNING_GPU" in os.environ or devices_of(trainer) != 1:
        return
    # without it torch initializes CUDA to count the GPUs, and a later choice has no effect
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if choice := worker_environment(trainer, number):
        os.environ.update(choice, AST_LIGHTNING_GPU=choice["CUDA_VISIBLE_DEVICES"])


def _begin(work: Callable[..., None], arguments: tuple[Any, ...], number: int, count: int, threads: int | None) -> None:
    """The main function of a worker process."""
    # torch makes the kernel send SIGINT when the parent ends; Ctrl-C sends it too. All files on disk are intact.
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if threads is not None:  # OMP_NUM_THREADS has no effect after torch has been imported
        torch.set_num_threads(threads)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    work(*arguments, number, count)


def _last_line(result: multiprocessing.RunProcsResult, number: int) -> str:
    """The last line that a worker printed, from its standard error if there is any.

    There are no files if it failed while it imported the main script.
    """
    for path in (result.stderrs[number], result.stdouts[number]):
        if path and Path(path).exists() and (text := Path(path).read_text(encoding="utf-8", errors="replace").strip()):
            return text.splitlines()[-1].strip()
    return ""
