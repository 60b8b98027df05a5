"""The result of a finished distillation: reused only if the images beside it and its inputs are unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import seal, unseal
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.synthetic import DistilledDataset, load_distilled
from ast_lightning.terminal import say


def write_result(
    folder: Path, iteration: int, metrics: dict[str, float], inputs: dict[str, Any], config: dict[str, Any]
) -> None:
    """Write ``result.json``.

    Args:
        folder: the folder of the distillation.
        iteration: the number of completed iterations.
        metrics: the results of the evaluation after them.
        inputs: the inputs of the distillation besides its settings.
        config: the whole configuration.
    """
    content = {"iteration": iteration, "metrics": metrics, "materials": inputs, "config": config}
    write_json(folder / "result.json", seal(json.loads(json.dumps(content))))  # checksum of the values as they are read


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read what :func:`write_result` wrote; None if it is missing, damaged, or does not match the images beside it."""
    try:
        result = unseal(read_json(folder / "result.json"))
    except (OSError, ValueError):
        return None
    return result if iteration_of(folder / "synthetic" / "last") == result["iteration"] else None


def iteration_of(dataset: Path) -> int | None:
    """The iteration after which a distilled dataset was written; None if it is missing or cannot be used."""
    try:
        iteration = load_distilled(dataset).metadata.get("iteration")
    except ConfigurationError as error:
        if dataset.exists():
            say(f"{dataset} cannot be used, {error.problem}: it is written again from the checkpoint")
        return None
    return int(iteration) if isinstance(iteration, int) else None


def describe_set(dataset: DistilledDataset) -> dict[str, Any]:
    """Identify a distilled dataset, for the record of results that are computed from it."""
    origin = dataset.metadata.get("trajectories") or {}
    return {
        "checksum": dataset.checksum(),
        "iteration": dataset.metadata.get("iteration"),
        "trajectories": origin.get("id"),
    }
