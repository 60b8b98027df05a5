"""Print the first failure among the processes of a run once, with its rank, and end all of them.

A process in a collective operation detects the failure of another one late: gloo reports a closed connection, NCCL
waits for ``trainer.timeout_seconds``. Therefore a process that fails writes the failure to the key-value store of the
process group, and a thread of every process checks this store once a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import torch.distributed
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import DistError, PrefixStore, TCPStore

from ast_lightning.parallel.devices import by_torchrun
from ast_lightning.reporting import local_rank, outcome
from ast_lightning.terminal import rank

ENDED_BY_SIGTERM = "error: ended by SIGTERM; rerun the command without fresh=true to resume"
_RERUN = "all files are intact; rerun the command to resume"
_LOOK = 1.0  # seconds between checks of the store
_GRACE = 2.5  # seconds for the other processes to see a failure, or for this process to end by itself
_STORE = timedelta(seconds=10)  # timeout of the store
_NETWORK = ("gloo", "NCCL", "nccl", "Connection reset by peer", "Connection closed by peer", "Broken pipe")


@dataclass(frozen=True)
class Failure:
    """What ended a run.

    Attributes:
        rank: the rank that failed.
        text: what to print.
        status: the exit status of the process.
    """

    rank: int
    text: str
    status: int


@contextmanager
def shared_failures(ranks: int) -> Iterator[None]:
    """End all of the ``ranks`` processes if one of them fails while the block runs.

    Raises:
        SystemExit: the block or another process failed; the failure has been printed.
    """
    if ranks == 1:
        yield
        return
    failures = _Failures(ranks)
    failures.start()
    try:
        yield
    except Exception as error:
        failures.fail(error)
    finally:
        failures.stop()


def strategy_of(trainer: Mapping[str, Any]) -> Any:
    """``trainer.strategy``; for ``ddp``, a strategy with the timeout ``trainer.timeout_seconds``."""
    strategy, seconds = trainer.get("strategy", "auto"), trainer.get("timeout_seconds")
    return DDPStrategy(timeout=timedelta(seconds=seconds)) if strategy == "ddp" and seconds else strategy


class EndOfRank(Callback):
    """Ends one of several processes at once on SIGTERM, as SIGKILL would; all files on disk stay intact.

    Lightning's own handler notifies the other processes by a collective operation, possibly during another one, and may
    block forever.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def end(number: int, frame: FrameType | None) -> None:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.Signals(number))  # the processes started by this one
            if trainer.is_global_zero:
                os.write(2, f"{ENDED_BY_SIGTERM}\n".encode())  # the signal may interrupt a print
            os._exit(128 + number)

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)  # replaces Lightning's handler, which Lightning removes at the end

    on_validation_start = on_test_start = on_train_start


class _Failures(threading.Thread):
    """A thread that detects failures of the other processes of a run, and reports those of this process."""

    def __init__(self, ranks: int) -> None:
        super().__init__(name="failures", daemon=True)
        self._ranks = ranks
        self._store: PrefixStore | None = None
        self._parent = os.getppid() if by_torchrun() or local_rank() else None  # a user's shell may end earlier
        self._ended = threading.Event()
        self._printed = threading.Lock()

    def stop(self) -> None:
        """End the thread. It must not be in a call of the store when Python exits."""
        self._ended.set()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self.join(_STORE.total_seconds())

    def fail(self, error: Exception) -> NoReturn:
        """Write ``error`` to the store, unless another process has failed before, and print the first failure."""
        failure = self._describe(error)
        until = time.monotonic() + _GRACE
        while self._store is None and "MASTER_ADDR" in os.environ and time.monotonic() < until:
            time.sleep(0.1)
        # rank 0 writes first, as all ranks may have the same error; a network error is a consequence of another failure
        time.sleep(_LOOK if self._store is not None and (rank() or of_network(error)) else 0)
        try:
            failure = self._first(failure)
        except DistError:  # rank 0 has ended, and the store with it
            self._print(failure)
        if local_rank() == 0 or self._store is None:
            self._print(failure)
        if self._store is not None:  # let the others see it; Lightning in rank 0 reports its children that end first
            time.sleep(2 * _GRACE if rank() else _GRACE)
        raise SystemExit(failure.status) from error

    def run(self) -> None:
        while not self._ended.wait(_LOOK if self._store is not None else _LOOK / 5):
            try:
                failure = self._look()
            except DistError as error:
                failure = Failure(0, f"rank 0 cannot be reached any more ({_first_line(error)}); {_RERUN}", 1)
                if self._ended.wait(2 * _GRACE):  # the run has ended
                    return
                first = local_rank() <= 1  # rank 0 was the first process of its node
            else:
                first = local_rank() == 0
            if failure is not None:
                if first:
                    self._print(failure)
                if not self._ended.wait(_GRACE):  # in a collective operation that will never end
                    os._exit(failure.status)

    def _look(self) -> Failure | None:
        if self._store is None:
            self._store = _connect()
        elif self._parent not in (None, os.getppid()):
            return self._first(Failure(rank(), f"the process that started it has ended; {_RERUN}", 1))
        elif self._store.check(["failure"]):
            return Failure(**json.loads(self._store.get("failure")))
        return None

    def _first(self, failure: Failure) -> Failure:
        """Write ``failure`` to the store unless another process has written one; return the failure in the store."""
        if self._store is None:
            return failure
        return Failure(**json.loads(self._store.compare_set("failure", "", json.dumps(asdict(failure)))))

    def _describe(self, error: Exception) -> Failure:
        if of_network(error):
            return Failure(rank(), f"another process has ended or does not answer ({_first_line(error)}); {_RERUN}", 1)
        return Failure(rank(), *outcome(error))

    def _print(self, failure: Failure) -> None:
        if self._printed.acquire(blocking=False):  # never released, so that it prints once
            where = f" on rank {failure.rank} of {self._ranks}" if failure.rank else ""
            print(f"error{where}: {failure.text}", file=sys.stderr, flush=True)


def of_network(error: BaseException) -> bool:
    """Whether the error is only a consequence of another process that has ended or does not respond."""
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _NETWORK)
    )


def _connect() -> PrefixStore | None:
    """Connect to the store; None if it does not exist yet."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        return None
    try:
        store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=_STORE)
    except DistError:
        return None
    return PrefixStore(f"ast_lightning/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
