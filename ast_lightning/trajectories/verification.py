"""Reading every byte of a store, and naming whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.trajectories.listing import expert_folders, snapshot_files
from ast_lightning.trajectories.records import EXPERT_FILE, PREPROCESSING_FILE, STORE_FILE
from ast_lightning.trajectories.store import TrajectoryStore


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        file: which file or folder.
        problem: what is wrong with it, as a sentence without a full stop.
        remedy: what to do, as a sentence without a full stop.
    """

    file: str
    problem: str
    remedy: str


def verify_store(folder: Path) -> list[Finding]:
    """Read every file of a store.

    Damage, what is missing, files that belong elsewhere, pieces of files, and experts that are not complete.
    """
    try:
        store = TrajectoryStore.open(folder)
    except ConfigurationError as error:
        return [_finding(folder / STORE_FILE, error), *_pieces(folder)]
    findings = [*_preprocessing(store), *_pieces(folder)]
    for expert, path in expert_folders(folder):
        findings += [*_expert(store, expert, path), *_pieces(path)]
    return findings


def _expert(store: TrajectoryStore, expert: int, folder: Path) -> Iterator[Finding]:
    wanted = store.schedule.stored()
    there = dict(snapshot_files(folder))
    for epoch, path in there.items():
        if epoch not in wanted or path != store.snapshot_path(expert, epoch):
            yield Finding(str(path), "this store keeps no snapshot of that name", "delete it")
    if store.is_complete(expert):
        try:
            store.record(expert)
        except ConfigurationError as error:
            yield _finding(folder / EXPERT_FILE, error)
            return  # every read of this expert is refused with the same words
    else:
        kept = sum(epoch in wanted for epoch in there)
        yield Finding(
            str(folder / EXPERT_FILE),
            f"is missing: expert {expert} is incomplete, with {kept} of {len(wanted)} snapshots",
            "run train_experts.py with the same settings, which goes on with this expert",
        )
    for epoch in wanted:
        if store.is_complete(expert) or epoch in there:
            try:
                store.read_snapshot(expert, epoch)
            except ConfigurationError as error:
                yield _finding(store.snapshot_path(expert, epoch), error)


def _preprocessing(store: TrajectoryStore) -> Iterator[Finding]:
    try:
        store.check_preprocessing()
    except ConfigurationError as error:
        yield _finding(store.folder / PREPROCESSING_FILE, error)


def _pieces(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob(".*.partial")):
        yield Finding(str(path), "it is a piece of a file that a killed run was writing", "delete it")


def _finding(path: Path, error: ConfigurationError) -> Finding:
    return Finding(str(path), error.problem, error.remedy)
