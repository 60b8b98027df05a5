"""Processes that share the experts of one command: one for each device.

The parent prepares data and store, starts its workers and passes on what they print. A worker is one process with one
device, and takes the next expert that no other process trains (claims.py). One that fails ends them all: what is on
disk is whole at every instant, and the same command goes on. No worker outlives its parent, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from omegaconf import OmegaConf

from ast_lightning.commands.app import execute
from ast_lightning.commands.run import Config, Run
from ast_lightning.data import load_preprocessing
from ast_lightning.errors import ConfigurationError, WorkerFailed
from ast_lightning.parallel.devices import devices_of, gpus_of
from ast_lightning.trajectories.records import PREPROCESSING_FILE

Share = Callable[[Run, int, int], None]
"""(run, number of this process, number of processes): what a worker does; a function of a module."""

_PATIENCE = 10.0  # seconds that a worker has to end in once it is asked to


def count_processes(run: Run) -> int:
    """How many processes ``expert_processes`` means here.

    ``auto`` is the number of GPUs where there are several and nothing else says how they are used: the Trainer has
    one device that it may choose, the run is no job of a multirun, and no launcher has started it as one of several.

    Raises:
        ConfigurationError: several processes, and several devices for each expert.
    """
    choice, trainer = run.config["expert_processes"], run.config["trainer"]
    if choice == "auto":
        free = trainer.get("devices") in (1, "1") and trainer.get("strategy") == "auto" and devices_of(trainer) == 1
        alone = not run.in_sweep and "LOCAL_RANK" not in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) == 1
        return max(len(gpus_of(trainer)), 1) if free and alone else 1
    if choice > 1 and devices_of(trainer) > 1:
        raise ConfigurationError(
            "expert_processes",
            choice,
            f"trainer.devices={trainer.get('devices')} has every expert on {devices_of(trainer)} devices at once",
            "set trainer.devices=1 for a device an expert, or expert_processes=1 for all devices on each expert",
        )
    return int(choice)


def run_workers(run: Run, share: Share, count: int) -> None:
    """Run ``share`` in ``count`` processes, to the end of all of them.

    Raises:
        WorkerFailed: one has failed; the others are stopped by then.
    """
    with _ended_by_sigterm():
        workers: list[_Worker] = []
        try:
            for number in range(count):
                workers.append(_Worker.start(run, share, number, count))
            _watch(workers)
        finally:
            _stop(workers)


@dataclass(frozen=True)
class _Worker:
    number: int
    process: SpawnProcess
    relay: _Relay

    @classmethod
    def start(cls, run: Run, share: Share, number: int, count: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        config = {**run.config, "expert_processes": 1, "fresh": False}
        arguments = (share, config, dict(run.choices), number, count, theirs)
        process = context.Process(target=_work, args=arguments, name=f"expert worker {number}")
        with _environment(worker_environment(run.config["trainer"], number, count)):
            process.start()
        theirs.close()
        return cls(number, process, _Relay(ours, f"[{number}] "))


class _Relay(threading.Thread):
    """Passes on whole lines of a worker, each with a prefix, and remembers the last."""

    def __init__(self, source: Connection, prefix: str) -> None:
        super().__init__(daemon=True)
        self.last = ""
        self._source, self._prefix = source, prefix
        self.start()

    def run(self) -> None:
        with open(os.dup(self._source.fileno()), encoding="utf-8", errors="replace") as lines:
            self._source.close()
            for line in lines:
                self.last = line.strip() or self.last
                sys.stdout.write(f"{self._prefix}{line.rstrip()}\n")
                sys.stdout.flush()


def worker_environment(trainer: Mapping[str, Any], number: int, count: int) -> dict[str, str]:
    """What the environment of a worker has beside that of its parent: its device, and its share of the threads.

    Args:
        trainer: the ``trainer`` section.
        number: of the worker.
        count: of all workers; where there are fewer GPUs, several workers share one.
    """
    gpus = gpus_of(trainer)
    changes = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
    if "OMP_NUM_THREADS" not in os.environ:
        changes["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
    return changes


def take_gpu(trainer: Mapping[str, Any], number: int) -> None:
    """Give this process, one of several that run jobs at the same time, a GPU of its own for all of its jobs.

    Args:
        trainer: the ``trainer`` section of its first job.
        number: of that job.
    """
    if "AST_LIGHTNING_GPU" in os.environ or devices_of(trainer) != 1:
        return
    # torch's other way of counting starts CUDA, for which the choice would come too late
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if gpus := gpus_of(trainer):
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["AST_LIGHTNING_GPU"] = gpus[number % len(gpus)]


def _watch(workers: Sequence[_Worker]) -> None:
    running: dict[Any, _Worker] = {worker.process.sentinel: worker for worker in workers}
    while running:
        for sentinel in wait(list(running)):
            worker = running.pop(sentinel)
            worker.process.join()
            worker.relay.join(_PATIENCE)
            if worker.process.exitcode:
                raise WorkerFailed(worker.number, len(workers), worker.process.exitcode, worker.relay.last)


def _stop(workers: Sequence[_Worker]) -> None:
    """End what still runs, within seconds."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_PATIENCE)
        worker.process.kill()
        worker.process.join()
        worker.relay.join(_PATIENCE)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process by an exception, so that it ends its workers first."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # where no handler can be set, the workers notice that their parent is gone
        return
    earlier = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """What processes started inside the block inherit: libraries read some of it before any line of ours."""
    earlier = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(share: Share, config: Config, choices: dict[str, str], number: int, count: int, output: Connection) -> None:
    """The whole life of a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent is the one to act on it
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    execute(partial(_with_own_run, share, choices, number, count), OmegaConf.create(config))


def _with_own_run(share: Share, choices: dict[str, str], number: int, count: int, run: Run) -> dict[str, float]:
    run = replace(run, choices=choices)
    run.data.use_preprocessing(load_preprocessing(_preprocessing(run)))  # fitted once, by the parent
    share(run, number, count)
    return {}


def _preprocessing(run: Run) -> Path:
    return run.experts_folder() / PREPROCESSING_FILE


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # as a kill would: every file on disk is whole
