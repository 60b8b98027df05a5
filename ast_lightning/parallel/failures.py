"""The processes of a run watch each other, so that none waits for one that has failed, and the failure is shown once.

A process that waits in a collective operation learns of another's end late, with an error of the network, or never. So
every process keeps a thread that gives a sign of life each second, in the key-value store through which the process
group has formed. Rank 0 watches all others, and they watch rank 0. The first failure is written there: the first
process of each node prints it with the rank where it happened, and all end with its status.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import torch.distributed
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import DistError, PrefixStore, TCPStore

from ast_lightning.commands.run import Run
from ast_lightning.errors import ConfigurationError, foreseen
from ast_lightning.parallel.devices import by_torchrun, devices_of, local_rank

ENDED_BY_SIGTERM = "error: ended by SIGTERM; the same command, without fresh=true, goes on where it was"
GOES_ON = "every file is whole, and the same command goes on from the last state"
_BEAT = 1.0  # seconds between signs of life
_GRACE = 2.5  # seconds in which the others see a failure, or this process ends by itself
_STORE = timedelta(seconds=10)  # for an answer of the store
_NETWORK = ("gloo", "NCCL", "nccl", "Connection reset by peer", "Connection closed by peer", "Broken pipe")


@dataclass(frozen=True)
class Failure:
    """What ended a run.

    Attributes:
        rank: where it happened.
        text: what to print; a traceback where it was not foreseen.
        status: of the process at its end.
    """

    rank: int
    text: str
    status: int

    def message(self, ranks: int) -> str:
        """For the person at the terminal."""
        where = f" on rank {self.rank} of {ranks}" if self.rank else ""
        return f"error{where}: {self.text}"


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Watch the other processes of the run while the block works; a run of one process has none.

    Raises:
        SystemExit: the block failed, which has been printed, or another process did.
    """
    ranks = devices_of(run.config["trainer"])
    if ranks == 1 or run.in_sweep:
        yield
        return
    peers = Peers(ranks, timeout_of(run))
    peers.start()
    try:
        yield
    except Exception as error:
        peers.fail(error)
    finally:
        peers.stop()


def timeout_of(run: Run) -> float:
    """``trainer.timeout_seconds``.

    Raises:
        ConfigurationError: it is no number from 5 on.
    """
    value = run.config["trainer"].get("timeout_seconds", 60)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 5:
        raise ConfigurationError(
            "trainer.timeout_seconds", value, "it must be at least 5", "give a number of seconds, such as 60"
        )
    return float(value)


class EndOfRank(Callback):
    """Lets SIGTERM end one of several processes at once, as SIGKILL would: every file on disk is whole.

    Lightning's own handler tells the others by a collective operation, in the middle of whichever other one was going
    on, and may wait for ever. Here they notice that one is gone.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def end(number: int, frame: FrameType | None) -> None:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.Signals(number))  # those started here
            if trainer.is_global_zero:
                os.write(2, f"{ENDED_BY_SIGTERM}\n".encode())  # print may be in use at this moment
            os._exit(128 + number)

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)  # in the place of Lightning's, which takes it back in the end

    on_validation_start = on_test_start = on_train_start


class Peers:
    """The other processes of a run, as this one sees them.

    Args:
        ranks: how many processes there are.
        timeout: seconds without a sign of life after which a process counts as lost.
    """

    def __init__(self, ranks: int, timeout: float) -> None:
        self.ranks = ranks
        self.timeout = timeout
        self._store: PrefixStore | None = None
        self._parent = os.getppid() if by_torchrun() or local_rank() else None  # of the others, people may end it
        self._ended = threading.Event()
        self._printing = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)

    @property
    def rank(self) -> int:
        return int(getattr(rank_zero_only, "rank", 0) or 0)

    def start(self) -> None:
        """Begin to watch; the store is there once the process group forms."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch of a process that has done its work; rank 0 leaves last, for the store may be in it."""
        if self._store is not None and not self._ended.is_set():
            try:
                self._store.set(f"done/{self.rank}", "")
                until = time.monotonic() + 4 * _GRACE
                others = [f"done/{rank}" for rank in range(1, self.ranks)]
                while self.rank == 0 and time.monotonic() < until and not self._store.check(others):
                    time.sleep(0.05)
            except DistError:
                pass
        self._ended.set()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self._thread.join(_STORE.total_seconds())  # a thread must not be in foreign code when Python ends

    def fail(self, error: Exception) -> NoReturn:
        """Tell the others that this process has failed, or find out that another had before; print which.

        Raises:
            SystemExit: always.
        """
        own = self._describe(error)
        until = time.monotonic() + _GRACE
        while self._store is None and "MASTER_ADDR" in os.environ and time.monotonic() < until:
            time.sleep(0.1)
        if self._store is None:  # there never was a group: nobody waits for this process
            self._tell(own)
            raise SystemExit(own.status) from error
        # what all find at once is told by rank 0; and an error of the network is the consequence of another one
        time.sleep(0 if self.rank == 0 and not of_network(error) else _BEAT)
        try:
            failure = self._claim(own)
            if local_rank() == 0:
                self._tell(failure)
            self._linger()
        except DistError:  # the store has gone, and rank 0 with it
            failure = own
            self._tell(own)
        raise SystemExit(failure.status) from error

    def _describe(self, error: Exception) -> Failure:
        if foreseen(error):
            return Failure(self.rank, str(error), 2)
        if of_network(error):
            return Failure(self.rank, f"another process of this run has ended ({_first_line(error)}); {GOES_ON}", 1)
        return Failure(self.rank, "".join(traceback.format_exception(error)).rstrip(), 1)

    def _watch(self) -> None:
        while self._store is None and not self._ended.wait(_BEAT / 5):
            self._store = self._connect()
        seen = {rank: (0, time.monotonic()) for rank in (range(1, self.ranks) if self.rank == 0 else (0,))}
        beat = time.monotonic()
        while not self._ended.is_set():
            late, beat = time.monotonic() - beat, time.monotonic()
            try:
                failure = self._look(seen, forgive=late > 5 * _BEAT)
            except DistError as error:
                failure = Failure(0, f"rank 0 cannot be reached any more ({_first_line(error)}); {GOES_ON}", 1)
                if self._ended.wait(2 * _GRACE):  # all are about to end
                    return
                if local_rank() <= 1:  # rank 0 was the first process of its node
                    self._tell(failure)
                os._exit(failure.status)
            if failure is not None:
                if local_rank() == 0:
                    self._tell(failure)
                if not self._ended.wait(_GRACE):  # in a collective operation that will never end
                    os._exit(failure.status)
                return
            self._ended.wait(_BEAT)

    def _connect(self) -> PrefixStore | None:
        host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if not host or not port:
            return None
        try:
            store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=_STORE)
        except DistError:
            return None
        return PrefixStore(f"ast_lightning/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _look(self, seen: dict[int, tuple[int, float]], *, forgive: bool) -> Failure | None:
        """Give a sign of life, and look for a failure.

        Args:
            seen: the number of signs of each watched rank and when it was new; brought up to date.
            forgive: whether this process itself was away, so that it cannot say how long others were.
        """
        assert self._store is not None
        if self._orphaned() and not by_torchrun():
            raise DistError("the process that started this one has ended")
        self._store.add(f"alive/{self.rank}", 1)
        if self._store.check(["failure"]):
            return Failure(**json.loads(self._store.get("failure")))
        if self._orphaned():
            return self._claim(Failure(self.rank, f"torchrun, which had started it, has ended; {GOES_ON}", 1))
        now = time.monotonic()
        for rank, (before, since) in seen.items():
            signs = self._store.add(f"alive/{rank}", 0)
            if signs != before or signs == 0 or forgive:
                seen[rank] = (signs, now)
            elif now - since > self.timeout and not self._store.check([f"done/{rank}"]):
                text = (
                    f"nothing was heard of it for {self.timeout:g} s (trainer.timeout_seconds): it was killed, or its "
                    f"machine or the network failed; {GOES_ON}"
                )
                return self._claim(Failure(rank, text, 1))
        return None

    def _claim(self, failure: Failure) -> Failure:
        """Make ``failure`` that of the run; the one that another process has noted before where there is one."""
        assert self._store is not None
        if not self._store.check(["failure"]):
            self._store.compare_set("failure", "", json.dumps(asdict(failure)))
        return Failure(**json.loads(self._store.get("failure")))

    def _linger(self) -> None:
        """Stay until all have seen the failure; where rank 0 started this process, until it has gone."""
        started_by_rank_0 = local_rank() > 0 and not by_torchrun()
        until = time.monotonic() + (4 * _GRACE if started_by_rank_0 else _GRACE)
        while time.monotonic() < until and not self._orphaned():
            time.sleep(0.1)

    def _orphaned(self) -> bool:
        return self._parent not in (None, os.getppid())

    def _tell(self, failure: Failure) -> None:
        """Print it, once."""
        if self._printing.acquire(blocking=False):  # and never given back
            print(failure.message(self.ranks), file=sys.stderr, flush=True)


def of_network(error: BaseException) -> bool:
    """Whether the error says no more than that another process is not there."""
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _NETWORK)
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
