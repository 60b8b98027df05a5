"""What TensorBoard's tab for hyper-parameters shows of a run: its settings beside its final results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

_OF_DATA = ("name", "preprocessing", "image_size", "per_class", "validation_fraction", "augmentation")


def log_outcome(
    loggers: Sequence[Logger], config: Mapping[str, Any], sections: Sequence[str], results: Mapping[str, float]
) -> None:
    """Write settings and results where TensorBoard looks for them; the first rank writes.

    Args:
        loggers: of a run that is over; those for TensorBoard take it.
        config: the whole configuration, as plain containers.
        sections: of the configuration, that matter to this run, beside data, network and seed.
        results: final ones; they are shown as ``result/<name>``.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            metrics = {f"result/{name}": float(value) for name, value in results.items()}
            logger.log_hyperparams(hyperparameters(config, sections), metrics)
            logger.finalize("success")  # Lightning has closed the file already, and this is a new one


def hyperparameters(config: Mapping[str, Any], sections: Sequence[str]) -> dict[str, int | float | str]:
    """The settings that matter, by the names that they have on the command line, as scalars and words."""
    chosen = {"seed": config["seed"], "num_experts": config["num_experts"]}
    chosen |= {f"data.{name}": config["data"].get(name) for name in _OF_DATA}
    for section in ("network", *sections):
        chosen |= {f"{section}.{name}": value for name, value in config[section].items()}
    return {name: _scalar(value) for name, value in chosen.items()}


def _scalar(value: Any) -> int | float | str:
    """A number, or a word as on the command line: TensorBoard would show true as 1."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return value if isinstance(value, str) else json.dumps(value)
