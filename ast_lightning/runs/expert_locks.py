"""Who does what, where several processes work in the same folders."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ast_lightning.commands.run import Run
from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.devices import devices_of
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.runs.checkpoints import begin_anew
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore

_WAIT = 1.0  # seconds between looks at locks that others hold


@contextmanager
def sole_writer(folder: Path, run: Run, *, wait: bool = False) -> Iterator[None]:
    """Write into ``folder`` as the only process; the first rank speaks for all.

    Args:
        folder: need not exist.
        run: of this process.
        wait: whether to wait for another process, instead of refusing to be the second.

    Raises:
        ConfigurationError: with the process that writes already.
    """
    if not is_rank_zero():
        yield
        return
    with FolderLock(folder) as lock:
        if not lock.take():
            if not wait:
                raise ConfigurationError(
                    "output_dir",
                    run.config["output_dir"],
                    f"{lock.holder()} writes into {folder} at this moment",
                    "let it finish, or change a setting",
                )
            say(f"waiting for {lock.holder()}, which writes into {folder}")
            lock.take(seconds=-1)
        yield


def claim_experts(
    run: Run, store: TrajectoryStore, pending: list[int], *, wait: bool = True
) -> Generator[int, None, None]:
    """The experts that this process is to train, one after the other, each locked while it is trained.

    A process by itself takes the next expert that no other process trains, and waits in the end for those that others
    train, to take over where one dies. The ranks of a run of several processes train the same experts: the first
    rank locks all of them beforehand. So does a process that begins anew: it must not take what another has just made.

    Args:
        run: of this process.
        store: of its experts.
        pending: the experts that are not complete.
        wait: whether to wait for the experts that others train.

    Raises:
        ConfigurationError: another process trains one of the experts that are to be locked beforehand.
    """
    if not is_rank_zero():
        yield from pending
    elif run.fresh or devices_of(run.config["trainer"]) > 1:
        with all_locked(run, store, pending):
            yield from pending
    else:
        yield from _claim_one_by_one(store, pending, wait)


@contextmanager
def all_locked(run: Run, store: TrajectoryStore, pending: list[int]) -> Iterator[None]:
    """Hold the locks of all these experts, and move aside what is there of them where the run begins anew.

    Raises:
        ConfigurationError: another process trains one of them, or has just completed it.
    """
    with ExitStack() as locks:
        for index in pending:
            _lock_or_refuse(run, locks.enter_context(FolderLock(store.expert_folder(index))))
        for index in pending:
            if run.fresh:
                begin_anew(store.expert_folder(index))
            elif store.is_complete(index):
                raise ConfigurationError(
                    "expert_index", index, "another process has completed it just now", "say the same command again"
                )
        yield


def held_by_others(store: TrajectoryStore, indices: list[int]) -> list[int]:
    """Those of the experts that another process trains at this moment."""
    held = []
    for index in indices:
        with FolderLock(store.expert_folder(index)) as lock:
            if not lock.take():
                held.append(index)
    return held


def _claim_one_by_one(store: TrajectoryStore, pending: list[int], wait: bool) -> Generator[int, None, None]:
    rest = list(pending)
    told: set[int] = set()
    while rest:
        taken = _take_next(store, rest, told, wait)
        if taken is None:
            return
        index, lock = taken
        rest.remove(index)
        with lock:
            if not store.is_complete(index):
                yield index
            elif wait:
                say(f"expert {index} was trained by another process")


def _take_next(store: TrajectoryStore, rest: list[int], told: set[int], wait: bool) -> tuple[int, FolderLock] | None:
    """The next expert that no other process trains, locked; waits where there is none, or gives up."""
    while True:
        for index in rest:
            lock = FolderLock(store.expert_folder(index))
            if lock.take():
                return index, lock
        if not wait:
            return None
        for index in sorted(set(rest) - told):
            say(f"waiting for expert {index}, which {FolderLock(store.expert_folder(index)).holder()} trains")
            told.add(index)
        time.sleep(_WAIT)


def _lock_or_refuse(run: Run, lock: FolderLock) -> None:
    if not lock.take():
        raise ConfigurationError(
            "output_dir" if run.config["experts_dir"] is None else "experts_dir",
            lock.folder.parent,
            f"{lock.holder()} trains {lock.folder.name} at this moment",
            "let it finish; only processes with one device and without fresh=true can share the work",
        )
