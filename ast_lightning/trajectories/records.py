"""The records of a store and of its experts: ``store.json`` and ``expert.json``, with a checksum of their content.

This module does not import torch, so that the command line starts fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import Damaged, bytes_checksum, seal, unseal
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.storage.reading import reading

FORMAT_VERSION = 2
OPTION = "experts_dir"
STORE_FILE = "store.json"
EXPERT_FILE = "expert.json"
PREPROCESSING_FILE = "preprocessing.safetensors"
SCORES_FILE = "scores.safetensors"
IDENTITY = ("network", "data", "expert", "epochs", "seed", "arithmetic")
"""The keys of ``store.json`` that determine the trajectories: if they are equal, two stores hold the same experts."""


def identity(metadata: Mapping[str, Any]) -> str:
    """Checksum of the keys ``IDENTITY``, 16 hexadecimal digits; the same on every machine."""
    content = {key: metadata.get(key) for key in IDENTITY}
    return bytes_checksum(json.dumps(content, sort_keys=True).encode())[:16]


def write_store_record(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write ``store.json``."""
    _write_sealed(folder / STORE_FILE, {"format": FORMAT_VERSION, "id": identity(metadata), **metadata})


def read_store_record(folder: Path) -> dict[str, Any]:
    """The content of ``store.json``.

    Raises:
        ConfigurationError: it is missing or damaged, or another version of this package wrote it.
    """
    path = folder / STORE_FILE
    if not path.exists():
        problem = f"it holds no trajectories: it has no {STORE_FILE}"
        raise ConfigurationError(OPTION, folder, problem, "run train_experts.py with the same settings first")
    remedy = (
        f"restore a copy of it, or delete it and run train_experts.py with the same settings: that writes it anew and "
        f"keeps the complete experts of {folder}"
    )
    with reading(path, remedy, OPTION, folder):
        content = read_json(path)
        found = content.get("format")
        if isinstance(found, int) and found != FORMAT_VERSION:
            problem = f"its format is {found} and this version reads {FORMAT_VERSION}"
            remedy = "install the version of ast_lightning that wrote it, or train these experts in another folder"
            raise ConfigurationError(OPTION, folder, problem, remedy)
        return _described(unseal(content))


def _described(content: dict[str, Any]) -> dict[str, Any]:
    """Check that the content has the required entries, and return it."""
    sections = content["network"], content.get("data") or {}, content.get("expert") or {}
    fits = all(isinstance(each, dict) for each in sections) and isinstance(sections[0]["parameters"], list)
    pairs = sections[0]["parameters"] if fits else [None]
    fits = all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], list) for pair in pairs)
    if not fits or not isinstance(content["epochs"], int) or not isinstance(content["id"], str):
        raise Damaged("it does not describe trajectories")
    return content


class ExpertRecord(NamedTuple):
    """The content of ``expert.json``. An expert is complete if this file exists.

    Attributes:
        snapshots: the checksum of each stored snapshot, by epoch.
        summary: results of the training, such as metrics.
    """

    snapshots: dict[int, str]
    summary: dict[str, Any]


def write_expert_record(folder: Path, expert: int, store: str, record: ExpertRecord) -> None:
    """Write ``expert.json`` into the folder of an expert of the store with the id ``store``."""
    _write_sealed(folder / EXPERT_FILE, {"expert": expert, "store": store, **record._asdict()})


def read_expert_record(folder: Path, expert: int, store: str) -> ExpertRecord:
    """Read ``expert.json``, and check that it belongs to ``expert`` of the store with the id ``store``.

    Raises:
        ConfigurationError: it was changed, belongs to another expert or store, or cannot be read.
    """
    with reading(folder / EXPERT_FILE, expert_remedy(folder), OPTION, folder.parent):
        content = unseal(read_json(folder / EXPERT_FILE))
        if (content["expert"], content["store"]) != (expert, store):
            theirs = f"expert {content['expert']} of store {content['store']}"
            raise Damaged(f"it belongs to {theirs}, not to expert {expert} of store {store}")
        return ExpertRecord({int(epoch): each for epoch, each in content["snapshots"].items()}, content["summary"])


def expert_remedy(folder: Path) -> str:
    """The remedy for a missing or damaged file in the folder of an expert."""
    return f"restore a copy of it, or delete {folder} and run train_experts.py again"


def _write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    write_json(path, seal(json.loads(json.dumps(content))))  # converted as JSON does: lists, string keys


def first_difference(stored: Any, wanted: Any, field: str = "") -> tuple[str, Any, Any] | None:
    """The first leaf in which two trees of plain containers differ, as (path, stored, wanted)."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        # a class before its arguments
        for key in sorted({*stored, *wanted}, key=lambda name: (name != "target", name)):
            difference = first_difference(stored.get(key), wanted.get(key), f"{field}.{key}" if field else str(key))
            if difference:
                return difference
        return None
    stored, wanted = _plain(stored), _plain(wanted)
    return None if stored == wanted else (field, stored, wanted)


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
