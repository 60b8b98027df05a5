"""Description of the experts that a distilled dataset was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ast_lightning.storage.checksums import bytes_checksum
from ast_lightning.trajectories.store import TrajectoryStore

_OF_STORE = ("epochs", "seed", "expert", "preprocessing_fingerprint", "versions", "git", "command", "time")


def experts_checksum(store: TrajectoryStore, experts: Sequence[int]) -> str:
    """Checksum of all snapshots of these experts, 16 hexadecimal digits, computed from the checksums in their records.

    Raises:
        ConfigurationError: a record is missing or damaged.
    """
    snapshots = [sorted(store.record(expert).snapshots.items()) for expert in experts]
    return bytes_checksum(json.dumps(snapshots).encode())[:16]


def describe_experts(store: TrajectoryStore, experts: Sequence[int]) -> dict[str, Any]:
    """Experts and their training settings, as plain containers for the lineage of a distilled dataset."""
    data = store.metadata.get("data") or {}
    imported = {str(expert): store.summary(expert).get("source") for expert in experts}
    return {
        "id": store.id,
        "folder": str(store.folder),
        "experts": list(experts),
        "sources": {expert: source for expert, source in imported.items() if source},
        "data": {key: data.get(key) for key in ("name", "fingerprint")},
        **{key: store.metadata.get(key) for key in _OF_STORE},
    }
