"""Reading every byte of a store, and naming whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.storage.checksums import Damaged
from ast_lightning.storage.torch_files import check_seal
from ast_lightning.trajectories.listing import numbered_folders, snapshot_files
from ast_lightning.trajectories.records import EXPERT_FILE, PREPROCESSING_FILE, STORE_FILE, UNREADABLE
from ast_lightning.trajectories.store import TrajectoryStore

_STATES = ("last.ckpt", "previous.ckpt")  # in the order in which train_experts.py tries them
_AGAIN = "run train_experts.py with the same settings"


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


@dataclass(frozen=True)
class Note:
    """Something to know that is no problem.

    Attributes:
        file: of which file or folder.
        note: a sentence without a full stop.
    """

    file: str
    note: str


def verify_store(folder: Path) -> list[Finding | Note]:
    """Read every file of a store; nothing is written.

    Damage, what is missing, files that belong elsewhere, pieces of files, experts that are not complete, and damaged
    states of those. An expert that a process trains at this moment may lack what it lacks, and is a note.
    """
    try:
        store = TrajectoryStore.open(folder)
    except ConfigurationError as error:
        return [_finding(folder / STORE_FILE, error), *_pieces_of_store(folder)]
    found: list[Finding | Note] = [*_preprocessing(store), *_pieces_of_store(folder)]
    for expert, path in numbered_folders(folder):
        found += _expert(store, expert, path)
    return found


def _expert(store: TrajectoryStore, expert: int, folder: Path) -> Iterator[Finding | Note]:
    pieces = [*_pieces(folder), *_pieces(folder / "resume")]
    holder = None
    if pieces or not store.is_complete(expert):
        holder = FolderLock(folder).held_by()
    if holder:
        yield Note(str(folder), f"expert {expert} is being trained by {holder}, so what it lacks is no problem")
    else:
        yield from _left(pieces)
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
            yield _finding(folder / EXPERT_FILE, error)
            return  # every read of this expert is refused with the same words
    for epoch in wanted:
        path = store.snapshot_path(expert, epoch)
        if complete or epoch in there:
            try:
                store.read_snapshot(expert, epoch)
            except ConfigurationError as error:
                if holder is None:
                    yield _finding(path, error)
                elif path.exists():  # and was not taken back meanwhile
                    yield Finding(str(path), error.problem, f"stop {holder} first, then {error.remedy}")


def _incomplete(store: TrajectoryStore, expert: int, folder: Path) -> Iterator[Finding]:
    """That an expert is incomplete, if anything is there of it, and what train_experts.py does about it."""
    states = {path: _damage(path) for path in (folder / "resume" / name for name in _STATES) if path.exists()}
    usable = [path for path, damage in states.items() if not isinstance(damage, Damaged)]
    epochs = [epoch for epoch, _ in snapshot_files(folder)]
    if not (epochs or states):
        return
    imported = "buffers" in (store.metadata.get("expert") or {})  # an import needs no state
    lost = not usable and not imported and bool(states or max(epochs, default=0) > 1)
    remedy = f"{_AGAIN}, which {'goes on with' if usable or imported else 'begins'} this expert"
    if lost:
        remedy = (
            f"put back a good copy of a state, or {_AGAIN}, expert_index={expert} and fresh=true, which moves {folder} "
            "aside and trains this expert anew"
        )
    wanted = store.schedule.stored()
    kept = len({*epochs} & {*wanted})
    problem = f"is missing: expert {expert} is incomplete, with {kept} of {len(wanted)} snapshots"
    yield Finding(str(folder / EXPERT_FILE), f"{problem} and no state to go on from" if lost else problem, remedy)
    for path, damage in states.items():
        if isinstance(damage, OSError):
            yield Finding(str(path), f"cannot be read ({damage.strerror})", UNREADABLE)
        elif damage:
            other = f"{_AGAIN}, which goes on from {usable[0].name}" if usable else remedy
            yield Finding(str(path), f"the state cannot be used: {damage}", other)


def _damage(state: Path) -> Damaged | OSError | None:
    try:
        check_seal(state)
    except (Damaged, OSError) as error:
        return error
    return None


def _preprocessing(store: TrajectoryStore) -> Iterator[Finding]:
    try:
        store.check_preprocessing()
    except ConfigurationError as error:
        yield _finding(store.folder / PREPROCESSING_FILE, error)


def _pieces_of_store(folder: Path) -> Iterator[Finding]:
    pieces = _pieces(folder)
    if pieces and FolderLock(folder / "store").held_by() is None:  # the lock of the one who makes a store
        yield from _left(pieces)


def _pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.partial"))


def _left(pieces: list[Path]) -> Iterator[Finding]:
    """Those that are still there, after a look at the lock: no writer that has given it back leaves any."""
    for path in pieces:
        if path.exists():
            yield Finding(str(path), "it is a piece of a file that a killed run was writing", "delete it")


def _finding(path: Path, error: ConfigurationError) -> Finding:
    return Finding(str(path), error.problem, error.remedy)
