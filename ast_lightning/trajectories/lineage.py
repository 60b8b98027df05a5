"""What is recorded of the experts that something was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ast_lightning.storage.checksums import bytes_checksum
from ast_lightning.trajectories.store import TrajectoryStore

_OF_STORE = ("epochs", "seed", "expert", "preprocessing_fingerprint", "versions", "git", "command", "time")


def experts_checksum(store: TrajectoryStore, experts: Sequence[int]) -> str:
    """16 hexadecimal digits of all snapshots of these experts, from the checksums in their records.

    Raises:
        ConfigurationError: a record is missing or damaged.
    """
    snapshots = [sorted(store.record(expert).snapshots.items()) for expert in experts]
    return bytes_checksum(json.dumps(snapshots).encode())[:16]


def describe_experts(store: TrajectoryStore, experts: Sequence[int]) -> dict[str, Any]:
    """Plain containers for the lineage of a distilled dataset: which experts, and what they were trained with."""
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
