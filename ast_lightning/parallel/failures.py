"""The first failure among the processes of a run is printed once, with its rank, and ends all of them.

A process that waits in a collective operation learns of another's failure late: gloo reports a closed connection, NCCL
waits for ``trainer.timeout_seconds``. Therefore a process that fails writes the failure to the key-value store through
which the process group was formed, and a thread of every process looks there once a second.
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
_LOOK = 1.0  # seconds between looks at the store
_GRACE = 2.5  # seconds in which the others see a failure, or this process ends by itself
_STORE = timedelta(seconds=10)  # for an answer of the store
_NETWORK = ("gloo", "NCCL", "nccl", "Connection reset by peer", "Connection closed by peer", "Broken pipe")


@dataclass(frozen=True)
class Failure:
    """What ended a run.

    Attributes:
        rank: where it happened.
        text: what to print.
        status: the exit status of the process.
    """

    rank: int
    text: str
    status: int


@contextmanager
def shared_failures(ranks: int) -> Iterator[None]:
    """End this process if another of the ``ranks`` processes fails while the block runs, and the other way round.

    Raises:
        SystemExit: the block failed, which has been printed, or another process did.
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
    """``trainer.strategy``; that of ``ddp`` waits for other processes for ``trainer.timeout_seconds``."""
    strategy, seconds = trainer.get("strategy", "auto"), trainer.get("timeout_seconds")
    return DDPStrategy(timeout=timedelta(seconds=seconds)) if strategy == "ddp" and seconds else strategy


class EndOfRank(Callback):
    """Lets SIGTERM end one of several processes at once, as SIGKILL would: all files on disk are intact.

    Lightning's own handler tells the other processes by a collective operation, in the middle of another one, and may
    wait for ever.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def end(number: int, frame: FrameType | None) -> None:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.Signals(number))  # those started here
            if trainer.is_global_zero:
                os.write(2, f"{ENDED_BY_SIGTERM}\n".encode())  # print may be in use at this moment
            os._exit(128 + number)

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)  # replaces Lightning's, which Lightning removes at the end

    on_validation_start = on_test_start = on_train_start


class _Failures(threading.Thread):
    """The failures of the processes of a run, as this process learns of them."""

    def __init__(self, ranks: int) -> None:
        super().__init__(name="failures", daemon=True)
        self._ranks = ranks
        self._store: PrefixStore | None = None
        self._parent = os.getppid() if by_torchrun() or local_rank() else None  # a user may end that of the others
        self._ended = threading.Event()
        self._printed = threading.Lock()

    def stop(self) -> None:
        """End the thread; it must not be in a call of the store when Python ends."""
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
        # rank 0 is the first to write what all find; an error of the network is the consequence of another failure
        time.sleep(_LOOK if self._store is not None and (rank() or of_network(error)) else 0)
        try:
            failure = self._first(failure)
        except DistError:  # rank 0 has ended, and the store with it
            self._print(failure)
        if local_rank() == 0 or self._store is None:
            self._print(failure)
        if self._store is not None:  # others look; Lightning complains in rank 0 if one that it started ends before
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
        """Make ``failure`` that of the run, and return it, or the one that another process has written before."""
        if self._store is None:
            return failure
        return Failure(**json.loads(self._store.compare_set("failure", "", json.dumps(asdict(failure)))))

    def _describe(self, error: Exception) -> Failure:
        if of_network(error):
            return Failure(rank(), f"another process has ended or does not answer ({_first_line(error)}); {_RERUN}", 1)
        return Failure(rank(), *outcome(error))

    def _print(self, failure: Failure) -> None:
        if self._printed.acquire(blocking=False):  # and never released: once
            where = f" on rank {failure.rank} of {self._ranks}" if failure.rank else ""
            print(f"error{where}: {failure.text}", file=sys.stderr, flush=True)


def of_network(error: BaseException) -> bool:
    """Whether the error is only the consequence of another process that has ended or does not answer."""
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _NETWORK)
    )


def _connect() -> PrefixStore | None:
    """The store, once it exists."""
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
