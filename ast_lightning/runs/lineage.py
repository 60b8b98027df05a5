"""What a distilled dataset and its evaluation record of where they come from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ast_lightning.commands.run import Run
from ast_lightning.distillation import Method
from ast_lightning.networks import describe_network
from ast_lightning.synthetic import DistilledDataset, load_distilled


def lineage_of(run: Run, method: Method) -> dict[str, Any]:
    """What a set that this run distils is made from, beside the data, as plain containers."""
    record = {
        "network": describe_network(run.network()),
        "evaluation": asdict(run.evaluation),
        **method.lineage(),
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
