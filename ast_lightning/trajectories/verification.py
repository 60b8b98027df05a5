"""Verification of a store: read every byte and list all problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.storage.inspection import Finding
from ast_lightning.storage.reading import reading
from ast_lightning.storage.torch_files import load_checked
from ast_lightning.trajectories.listing import numbered_folders, snapshot_files
from ast_lightning.trajectories.records import EXPERT_FILE, OPTION, PREPROCESSING_FILE, SCORES_FILE, STORE_FILE
from ast_lightning.trajectories.store import TrajectoryStore

_RERUN = "run train_experts.py with the same settings: it resumes this expert, or prints why it cannot"


def verify_store(folder: Path) -> list[Finding]:
    """Read every file of a store, without writing anything.

    Reports damaged, missing, misplaced and partially written files, incomplete experts, and their damaged checkpoints.
    An expert that is being trained by another process is not read and is reported as a note.
    """
    made_by = FolderLock(folder / "store").held_by()
    found = [] if made_by else _pieces(folder)
    try:
        store = TrajectoryStore.open(folder)
    except ConfigurationError as error:
        return [*found, Finding.of(folder / STORE_FILE, error)]
    found += _problem(folder / PREPROCESSING_FILE, store.check_preprocessing)
    if (folder / SCORES_FILE).exists():
        found += _problem(folder / SCORES_FILE, store.read_scores)
    for expert, path in numbered_folders(folder):
        found += _expert(store, expert, path)
    return found


def _expert(store: TrajectoryStore, expert: int, folder: Path) -> Iterator[Finding]:
    holder = None if store.is_complete(expert) else FolderLock(folder).held_by()
    if holder:
        yield Finding(str(folder), f"expert {expert} is being trained by {holder}, and was not verified")
        return
    yield from (*_pieces(folder), *_pieces(folder / "resume"))
    complete, stored = store.is_complete(expert), store.schedule.stored()
    paths = {store.snapshot_path(expert, epoch): epoch for epoch in stored}
    there = [path for _, path in snapshot_files(folder)]
    for path in there:
        if path not in paths:
            yield Finding(str(path), "this store keeps no snapshot of that name", "delete it")
    checkpoints = [path for name in ("last.ckpt", "previous.ckpt") if (path := folder / "resume" / name).exists()]
    if complete:
        damaged = _problem(folder / EXPERT_FILE, store.record, expert)
        if damaged:  # every read of this expert would report the same problem
            yield from damaged
            return
    elif there or checkpoints:
        count = f"{len(paths.keys() & there)} of {len(stored)}"
        problem = f"is missing: expert {expert} is incomplete, with {count} snapshots"
        yield Finding(str(folder / EXPERT_FILE), problem, _RERUN)
        for path in checkpoints:
            yield from _problem(path, _read_checkpoint, path)
    for path, epoch in paths.items():
        if complete or path in there:
            yield from _problem(path, store.read_snapshot, expert, epoch)


def _read_checkpoint(path: Path) -> None:
    with reading(path, _RERUN, OPTION, path):
        load_checked(path)


def _problem(path: Path, read: Callable[..., object], *arguments: object) -> list[Finding]:
    try:
        read(*arguments)
    except ConfigurationError as error:
        return [Finding.of(path, error)]
    return []


def _pieces(folder: Path) -> list[Finding]:
    """Partially written files. Check the lock first: a writer that has released it leaves none."""
    what = "it is a partial file of an interrupted run"
    return [Finding(str(path), what, "delete it") for path in sorted(folder.glob(".*.partial"))]
