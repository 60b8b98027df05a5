"""Reading every byte of a store, and naming whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.storage.checksums import Damaged
from ast_lightning.storage.inspection import Finding
from ast_lightning.storage.reading import UNREADABLE
from ast_lightning.storage.torch_files import load_checked
from ast_lightning.trajectories.listing import numbered_folders, snapshot_files
from ast_lightning.trajectories.records import EXPERT_FILE, PREPROCESSING_FILE, STORE_FILE
from ast_lightning.trajectories.store import TrajectoryStore

_CHECKPOINTS = ("last.ckpt", "previous.ckpt")  # in the order in which train_experts.py tries them
_AGAIN = "run train_experts.py with the same settings"


def verify_store(folder: Path) -> list[Finding]:
    """Read every file of a store; nothing is written.

    Damage, what is missing, files that belong elsewhere, pieces of files, experts that are not complete, and damaged
    checkpoints of those. An expert that a process trains at this moment may lack what it lacks, and is a note.
    """
    found = list(_left(folder, FolderLock(folder / "store").held_by()))  # the lock of the one who makes a store
    try:
        store = TrajectoryStore.open(folder)
    except ConfigurationError as error:
        return [*found, Finding.of(folder / STORE_FILE, error)]
    try:
        store.check_preprocessing()
    except ConfigurationError as error:
        found.append(Finding.of(folder / PREPROCESSING_FILE, error))
    for expert, path in numbered_folders(folder):
        found += _expert(store, expert, path)
    return found


def _expert(store: TrajectoryStore, expert: int, folder: Path) -> Iterator[Finding]:
    left = [*_pieces(folder), *_pieces(folder / "resume")]
    holder = FolderLock(folder).held_by() if left or not store.is_complete(expert) else None
    if holder:
        yield Finding(str(folder), f"expert {expert} is being trained by {holder}, so what it lacks is no problem")
    else:
        yield from (*_left(folder, None), *_left(folder / "resume", None))
        if not store.is_complete(expert):  # nor has it been completed between the two looks
            yield from _incomplete(store, expert, folder)
    yield from _snapshots(store, expert, folder, holder)


def _snapshots(store: TrajectoryStore, expert: int, folder: Path, holder: str | None) -> Iterator[Finding]:
    wanted = store.schedule.stored()
    there = dict(snapshot_files(folder))
    for epoch, path in there.items():
        if epoch not in wanted or path != store.snapshot_path(expert, epoch):
            yield Finding(str(path), "this store keeps no snapshot of that name", "delete it")
    complete = store.is_complete(expert)
    if complete:
        try:
            store.record(expert)
        except ConfigurationError as error:
            yield Finding.of(folder / EXPERT_FILE, error)
            return  # every read of this expert fails in the same way
    for epoch in wanted:
        path = store.snapshot_path(expert, epoch)
        if complete or epoch in there:
            try:
                store.read_snapshot(expert, epoch)
            except ConfigurationError as error:
                if holder is None:
                    yield Finding.of(path, error)
                elif path.exists():  # and was not taken back meanwhile
                    yield Finding(str(path), error.problem, f"stop {holder} first, then {error.remedy}")


def _incomplete(store: TrajectoryStore, expert: int, folder: Path) -> Iterator[Finding]:
    """That an expert is incomplete, if anything is there of it, and what train_experts.py does about it."""
    damage = {path: _damage(path) for path in (folder / "resume" / name for name in _CHECKPOINTS) if path.exists()}
    usable = [path for path, problem in damage.items() if not isinstance(problem, Damaged)]
    epochs = [epoch for epoch, _ in snapshot_files(folder)]
    if not (epochs or damage):
        return
    wanted = store.schedule.stored()
    problem = f"is missing: expert {expert} is incomplete, with {len({*epochs} & {*wanted})} of {len(wanted)} snapshots"
    imported = "buffers" in (store.metadata.get("expert") or {})  # an import needs no checkpoint
    remedy = f"{_AGAIN}, which {'resumes' if usable or imported else 'starts'} this expert"
    if not usable and not imported and (damage or max(epochs) > 1):
        problem += " and no checkpoint to resume from"
        remedy = (
            f"restore a good copy of a checkpoint, or {_AGAIN}, expert_index={expert} and fresh=true, which moves "
            f"{folder} aside and trains this expert anew"
        )
    yield Finding(str(folder / EXPERT_FILE), problem, remedy)
    for path, found in damage.items():
        if isinstance(found, OSError):
            yield Finding(str(path), f"cannot be read ({found.strerror})", UNREADABLE)
        elif found:
            yield Finding(str(path), f"the checkpoint cannot be used: {found}", remedy)


def _damage(checkpoint: Path) -> Damaged | OSError | None:
    try:
        load_checked(checkpoint)
    except (Damaged, OSError) as error:
        return error
    return None


def _pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.partial"))


def _left(folder: Path, holder: str | None) -> Iterator[Finding]:
    """Pieces that are there after a look at the lock: no writer that has given it back leaves any."""
    for path in [] if holder else _pieces(folder):
        yield Finding(str(path), "it is a piece of a file that an interrupted run was writing", "delete it")
