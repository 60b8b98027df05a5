"""Lists and descriptions of stores, as plain containers; snapshots are not read.

This module does not import torch, so that the command line starts fast.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from ast_lightning.config.schedule import Schedule
from ast_lightning.errors import ConfigurationError
from ast_lightning.trajectories.records import EXPERT_FILE, OPTION, STORE_FILE, read_expert_record, read_store_record


def find_stores(folder: Path) -> list[Path]:
    """The stores in ``folder`` and its subfolders, including stores without ``store.json``.

    Symbolic links are followed; a store with several paths is listed once.

    Raises:
        ConfigurationError: there is no store.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        here, real = Path(name), os.path.realpath(name)
        is_store = STORE_FILE in files or bool(expert_folders(here))
        if is_store and real not in seen:
            found.append(here)
        visible = [] if is_store or real in seen else [each for each in folders if not each.startswith(".")]
        folders[:] = sorted(visible, key=lambda each, here=here: ((here / each).is_symlink(), each))  # type: ignore[misc]
        seen.add(real)
    if not found:
        what = "it holds no trajectories" if folder.is_dir() else "there is no such folder"
        raise ConfigurationError(OPTION, folder, what, "name a store, or a folder of stores such as runs/experts")
    return sorted(found)


def expert_folders(folder: Path) -> list[tuple[int, Path]]:
    """The experts of a store that have a snapshot or a record, with their folders, in ascending order."""
    there = numbered_folders(folder)
    return [(number, path) for number, path in there if (path / EXPERT_FILE).exists() or snapshot_files(path)]


def numbered_folders(folder: Path) -> list[tuple[int, Path]]:
    """All folders of a store whose name is that of an expert, including empty ones, in ascending order."""
    return _numbered(folder, "expert_", "")


def snapshot_files(folder: Path) -> list[tuple[int, Path]]:
    """The epochs and files of the snapshots in the folder of an expert, in ascending order."""
    return _numbered(folder, "epoch_", ".safetensors")


def _numbered(folder: Path, before: str, after: str) -> list[tuple[int, Path]]:
    found = {path: path.name.removeprefix(before).removesuffix(after) for path in folder.glob(f"{before}*{after}")}
    return sorted((int(number), path) for path, number in found.items() if number.isdecimal())


def list_experts(folder: Path) -> list[dict[str, Any]]:
    """The experts of a store.

    Returns:
        For each expert, ``expert``: its index; ``complete``: whether its training is complete; ``epochs``: epochs of
        its snapshots; ``bytes``: size of its snapshots; ``test_accuracy``: of the final network, in per cent;
        ``problem``: a problem with its record or snapshots, or None.

    Raises:
        ConfigurationError: ``store.json`` is damaged.
    """
    store = read_store_record(folder)["id"]
    return [_expert(expert, path, store) for expert, path in expert_folders(folder)]


def _expert(expert: int, folder: Path, store: str) -> dict[str, Any]:
    epochs = [epoch for epoch, _ in snapshot_files(folder)]
    complete, accuracy, problem = (folder / EXPERT_FILE).exists(), None, None
    if complete:
        try:
            record = read_expert_record(folder, expert, store)
            accuracy = record.summary.get("metrics", {}).get("test/accuracy")
            missing = sorted({*record.snapshots} - {*epochs})
            problem = f"snapshots {missing} are missing" if missing else None
        except ConfigurationError as error:
            problem = error.problem
    return {
        "expert": expert,
        "complete": complete,
        "epochs": epochs,
        "bytes": _size(folder),
        "test_accuracy": None if accuracy is None else 100 * accuracy,
        "problem": problem,
    }


def list_store(folder: Path) -> dict[str, Any]:
    """Summary of a store.

    Returns:
        ``folder``; ``network``: its class; ``data``: name of the dataset; ``seed``; ``epochs``: E; ``stored``: number
        of snapshots of a complete expert; ``complete`` and ``incomplete``: numbers of experts; ``bytes``: size of all
        snapshots; ``problem``: a problem with ``store.json``, or None. If ``store.json`` is damaged, the values that
        depend on it are None.
    """
    experts = [path for _, path in expert_folders(folder)]
    complete = sum((path / EXPERT_FILE).exists() for path in experts)
    metadata, problem = None, None
    try:
        metadata = read_store_record(folder)
    except ConfigurationError as error:
        problem = error.problem
    known = metadata or {}
    return {
        "folder": str(folder),
        "network": str(metadata["network"].get("target")).rpartition(".")[2] if metadata else None,
        "data": (known.get("data") or {}).get("name"),
        "seed": known.get("seed"),
        "epochs": known.get("epochs"),
        "stored": len(Schedule.of(metadata).stored()) if metadata else None,
        "complete": complete,
        "incomplete": len(experts) - complete,
        "bytes": sum(map(_size, experts)),
        "problem": problem,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for _, path in snapshot_files(folder))


def describe_store(folder: Path) -> dict[str, Any]:
    """The content of ``store.json``, with the size of the store and its numbers of experts.

    Raises:
        ConfigurationError: there is no store, or it is damaged.
    """
    metadata = read_store_record(folder)
    row = list_store(folder)
    return {
        "folder": str(folder),
        "parameters": sum(math.prod(shape) for _, shape in metadata["network"]["parameters"]),
        "stored_epochs": Schedule.of(metadata).stored(),
        **{key: row[key] for key in ("complete", "incomplete", "bytes")},
        **metadata,
    }
