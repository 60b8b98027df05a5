"""Locks on the folders that commands write into, and on the experts that processes share."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.runs.checkpoints import begin_anew
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore

_WAIT = 1.0  # seconds between attempts to take locks of other processes


@contextmanager
def sole_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of ``folder``, which need not exist; rank 0 holds it for all ranks.

    Args:
        folder: the folder that the block writes into.
        wait: whether to wait for another process that holds the lock.

    Raises:
        ConfigurationError: another process holds the lock.
    """
    if not is_rank_zero():
        yield
        return
    with FolderLock(folder) as lock:
        if not lock.take():
            if not wait:
                raise _locked(lock, "output_dir", folder)
            say(f"waiting for {lock.holder()}, which writes into {folder}")
            lock.take(seconds=-1)
        yield


def claim_experts(
    store: TrajectoryStore, pending: list[int], *, together: bool, fresh: bool, wait: bool = True
) -> Generator[int, None, None]:
    """Yield the experts that this process trains, each locked during its training.

    Args:
        store: the store of the experts.
        pending: the experts that are not complete.
        together: lock all of them first, for ranks that train the same experts. Otherwise take the next expert that is
            not locked, and at the end wait for those of other processes, because these may be killed.
        fresh: move existing files of the experts aside; implies ``together``.
        wait: whether to wait for the experts that other processes train.

    Raises:
        ConfigurationError: with ``together``, another process is training one of the experts.
    """
    if not is_rank_zero():
        yield from pending
    elif together or fresh:
        with all_locked(store, pending, fresh=fresh):
            yield from pending
    else:
        yield from _claim_one_by_one(store, pending, wait)


@contextmanager
def all_locked(store: TrajectoryStore, pending: list[int], *, fresh: bool) -> Iterator[None]:
    """Hold the locks of all these experts; with ``fresh``, move their existing files aside.

    Raises:
        ConfigurationError: another process is training one of them, or has just completed it.
    """
    with ExitStack() as locks:
        for index in pending:
            lock = locks.enter_context(FolderLock(store.expert_folder(index)))
            if not lock.take():
                raise _locked(lock, "expert_index", index)
        for index in pending:
            if fresh:
                begin_anew(store.expert_folder(index))
            elif store.is_complete(index):
                raise ConfigurationError(
                    "expert_index", index, "another process has completed it just now", "rerun the command"
                )
        yield


def held_by_others(store: TrajectoryStore, indices: list[int]) -> list[int]:
    """The experts that another process is training at this moment."""
    return [index for index in indices if FolderLock(store.expert_folder(index)).held_by()]


def _claim_one_by_one(store: TrajectoryStore, pending: list[int], wait: bool) -> Generator[int, None, None]:
    rest, told = list(pending), set[int]()
    while rest:
        taken = False
        for index in list(rest):
            with FolderLock(store.expert_folder(index)) as lock:
                if lock.take():
                    taken = True
                    rest.remove(index)
                    if not store.is_complete(index):
                        yield index
                    elif wait:
                        say(f"expert {index} was trained by another process")
        if not taken:
            if not wait:
                return
            for index in sorted(set(rest) - told):
                say(f"waiting for expert {index}, which {FolderLock(store.expert_folder(index)).holder()} trains")
            told.update(rest)
            time.sleep(_WAIT)


def _locked(lock: FolderLock, option: str, value: object) -> ConfigurationError:
    return ConfigurationError(
        option, value, f"{lock.holder()} writes into {lock.folder} at this moment", "let it finish"
    )
