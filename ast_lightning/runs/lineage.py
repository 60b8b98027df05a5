"""What a distilled dataset and its evaluation record of where they come from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ast_lightning.commands.run import Run
from ast_lightning.commands.stores import experts_to_distil
from ast_lightning.networks import describe_network
from ast_lightning.synthetic import DistilledDataset, load_distilled
from ast_lightning.trajectories import TrajectoryStore

_OF_STORE = ("epochs", "seed", "expert", "preprocessing_fingerprint", "versions", "git", "command", "time")


def ancestry_of(run: Run, store: TrajectoryStore) -> dict[str, Any]:
    """What a set that this run distils was made from, beside the data, as plain containers."""
    record = {
        "network": describe_network(run.network()),
        "evaluation": asdict(run.evaluation),
        "trajectories": _trajectories(run, store),
        "seed": run.seed,
        "config": run.config,
    }
    if run.distill.warm_start:
        earlier = load_distilled(run.distill.warm_start, "distill.warm_start")
        record["warm_start"] = {"folder": run.distill.warm_start, **describe_set(earlier)}
    return record


def describe_set(dataset: DistilledDataset) -> dict[str, Any]:
    """What names a distilled dataset, for those that are made from it."""
    origin = dataset.metadata.get("trajectories") or {}
    return {
        "checksum": dataset.checksum(),
        "iteration": dataset.metadata.get("iteration"),
        "trajectories": origin.get("id"),
    }


def _trajectories(run: Run, store: TrajectoryStore) -> dict[str, Any]:
    data = store.metadata.get("data") or {}
    experts = experts_to_distil(run, store)
    imported = {str(expert): store.summary(expert).get("source") for expert in experts}
    return {
        "id": store.id,
        "folder": str(store.folder),
        "experts": experts,
        "sources": {expert: source for expert, source in imported.items() if source},
        "data": {key: data.get(key) for key in ("name", "fingerprint")},
        **{key: store.metadata.get(key) for key in _OF_STORE},
    }
