"""What stores there are, and what made them: for people and programs, without reading a snapshot.

This module starts without torch, for the command line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ast_lightning.config.schedule import Schedule
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import Damaged
from ast_lightning.trajectories.records import EXPERT_FILE, OPTION, STORE_FILE, ExpertRecord, read_store_record


@dataclass(frozen=True)
class ExpertRow:
    """An expert as its folder shows it.

    Attributes:
        expert: its index.
        complete: whether it was trained to its end.
        epochs: the stored epochs that are there.
        bytes: of its snapshots.
        test_accuracy: of the final network, in per cent; None where nothing says.
        problem: what is wrong with its record; None where nothing is.
    """

    expert: int
    complete: bool
    epochs: list[int]
    bytes: int
    test_accuracy: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class StoreRow:
    """A store at a glance.

    Attributes:
        folder: where it is.
        network: its class.
        data: the name of its images.
        seed: of the family.
        epochs: E.
        stored: how many snapshots a complete expert has.
        complete: how many experts are.
        incomplete: how many are not.
        bytes: of all snapshots.
        problem: what is wrong with ``store.json``; None where nothing is.
    """

    folder: str
    network: str | None
    data: str | None
    seed: int | None
    epochs: int | None
    stored: int | None
    complete: int
    incomplete: int
    bytes: int
    problem: str | None = None


def find_stores(folder: Path) -> list[Path]:
    """The stores at and below ``folder``, also those that lost their ``store.json``.

    Symbolic links are followed; a store that can be reached in several ways is listed once, where possible by the way
    without links.

    Raises:
        ConfigurationError: there is none.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting = [folder]
    for start in waiting:  # grows meanwhile: links come after all that is there without them
        for name, folders, files in os.walk(start):
            here, real = Path(name), os.path.realpath(name)
            if real in seen:
                folders.clear()
            elif STORE_FILE in files or expert_folders(here):
                found.append(here)
                folders.clear()
            seen.add(real)
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            waiting += [here / each for each in folders if (here / each).is_symlink()]
    if not found:
        what = "no trajectories are there" if folder.is_dir() else "there is no such folder"
        raise ConfigurationError(OPTION, folder, what, "name a store, or a folder of stores such as runs/experts")
    return sorted(found)


def expert_folders(folder: Path) -> list[tuple[int, Path]]:
    """The experts of a store that have any snapshot or record, with their folders, in ascending order."""
    there = numbered_folders(folder)
    return [(number, path) for number, path in there if (path / EXPERT_FILE).exists() or snapshot_files(path)]


def numbered_folders(folder: Path) -> list[tuple[int, Path]]:
    """The folders of a store that are named as those of experts, whatever they hold, in ascending order."""
    found = ((path.name.removeprefix("expert_"), path) for path in folder.glob("expert_*"))
    return sorted((int(number), path) for number, path in found if number.isdecimal())


def snapshot_files(folder: Path) -> list[tuple[int, Path]]:
    """The epochs and files of the snapshots in the folder of an expert, in ascending order."""
    found = ((path.stem.removeprefix("epoch_"), path) for path in folder.glob("epoch_*.safetensors"))
    return sorted((int(number), path) for number, path in found if number.isdecimal())


def list_experts(folder: Path) -> list[ExpertRow]:
    """The experts of a store."""
    try:
        store = read_store_record(folder)["id"]
    except ConfigurationError:
        store = None
    return [_expert(expert, path, store) for expert, path in expert_folders(folder)]


def _expert(expert: int, folder: Path, store: str | None) -> ExpertRow:
    files = snapshot_files(folder)
    epochs, size = [epoch for epoch, _ in files], sum(path.stat().st_size for _, path in files)
    if not (folder / EXPERT_FILE).exists():
        return ExpertRow(expert, False, epochs, size)
    try:
        record = ExpertRecord.read(folder, expert, store or "")
    except (Damaged, OSError) as error:
        return ExpertRow(expert, True, epochs, size, problem=f"{EXPERT_FILE}: {error}" if store else None)
    accuracy = record.summary.get("metrics", {}).get("test/accuracy")
    missing = sorted({*record.snapshots} - {*epochs})
    problem = f"snapshots {missing} are missing" if missing else None
    return ExpertRow(expert, True, epochs, size, None if accuracy is None else 100 * accuracy, problem)


def list_store(folder: Path) -> StoreRow:
    """A store at a glance."""
    experts = [(path, (path / EXPERT_FILE).exists()) for _, path in expert_folders(folder)]
    size = sum(file.stat().st_size for path, _ in experts for _, file in snapshot_files(path))
    complete = sum(finished for _, finished in experts)
    counts = (complete, len(experts) - complete, size)
    try:
        metadata = read_store_record(folder)
    except ConfigurationError as error:
        return StoreRow(str(folder), None, None, None, None, None, *counts, problem=error.problem)
    return StoreRow(
        str(folder),
        str(metadata["network"].get("target")).rpartition(".")[2],
        (metadata.get("data") or {}).get("name"),
        metadata.get("seed"),
        int(metadata["epochs"]),
        len(Schedule.of(metadata).stored()),
        *counts,
    )


def describe_store(folder: Path) -> dict[str, Any]:
    """All that a store says of itself, with its size and experts.

    Raises:
        ConfigurationError: it is none, or damaged.
    """
    metadata = read_store_record(folder)
    row = list_store(folder)
    parameters = sum(math.prod(shape) for _, shape in metadata["network"]["parameters"])
    return {
        "folder": str(folder),
        "parameters": parameters,
        "stored_epochs": Schedule.of(metadata).stored(),
        "complete": row.complete,
        "incomplete": row.incomplete,
        "bytes": row.bytes,
        **metadata,
    }


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested containers by their dotted names."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows |= flattened(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = value
    return rows


def as_json(rows: list[ExpertRow] | list[StoreRow]) -> list[dict[str, Any]]:
    """Rows as plain containers."""
    return [asdict(row) for row in rows]
