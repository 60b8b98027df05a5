"""Loggers and callbacks of the configuration groups ``logger`` and ``callbacks``, and the values that runs log."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from ast_lightning.errors import ConfigurationError
from ast_lightning.terminal import is_rank_zero

Factories = Mapping[str, Callable[..., Any]]
"""Functions that create the loggers or callbacks of a run, by their names in the configuration."""

_EXTRAS = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
_OF_DATA = ("name", "preprocessing", "image_size", "per_class", "validation_fraction", "augmentation")


def check_packages(loggers: Iterable[str]) -> None:
    """Reject loggers whose package is not installed.

    Raises:
        ConfigurationError: naming ``logger`` and the extra to install.
    """
    for name in loggers:
        missing = [package for package in _EXTRAS.get(name, ()) if find_spec(package) is None]
        if missing:
            remedy = f"pip install 'ast-lightning[{name}]'"
            raise ConfigurationError("logger", name, f"{missing[0]} is not installed", remedy)


def create(section: str, kind: type[Any], factories: Factories, **arguments: Any) -> list[Any]:
    """Create the objects of a configuration group.

    Args:
        section: ``logger`` or ``callbacks``.
        kind: the class of which each must be an instance.
        factories: functions that create the objects, by name.
        arguments: passed to each factory.

    Raises:
        ConfigurationError: a factory returns an object of another class.
    """
    created = {name: factory(**arguments) for name, factory in factories.items()}
    for name, each in created.items():
        if not isinstance(each, kind):
            problem = f"it is not a {kind.__module__}.{kind.__name__}"
            raise ConfigurationError(f"{section}.{name}", type(each).__name__, problem, "give a subclass of it")
    return list(created.values())


def start_loggers(factories: Factories, folder: Path, configuration: Mapping[str, Any]) -> list[Logger]:
    """Create the loggers of a run that write into ``folder``, and log the configuration as plain containers."""
    loggers: list[Logger] = create("logger", Logger, factories, save_dir=str(folder))
    for logger in loggers:
        logger.log_hyperparams(dict(configuration))
    return loggers


def uses_tensorboard(factories: Factories) -> bool:
    """Whether one of the loggers writes files for TensorBoard."""
    targets = [factory.func if isinstance(factory, partial) else factory for factory in factories.values()]
    return any(isinstance(target, type) and issubclass(target, TensorBoardLogger) for target in targets)


class TensorBoard(TensorBoardLogger):
    """Logs the epoch once per step, although Lightning adds it to the metrics of both training and testing."""

    _epoch_at: int | None = None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        known = "epoch" in metrics and step == self._epoch_at
        self._epoch_at = step if "epoch" in metrics else self._epoch_at
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch" or not known}, step)


def csv_logger(save_dir: str) -> Logger:
    """A table ``csv/metrics.csv``. A later session writes ``csv_2`` …, because Lightning deletes an existing table."""
    names = (f"csv_{number}" if number > 1 else "csv" for number in itertools.count(1))
    free = next(name for name in names if not (Path(save_dir) / name / "metrics.csv").exists())
    return CSVLogger(save_dir, name="", version=free)


def wandb_logger(save_dir: str, **options: Any) -> Logger:
    """A run of Weights & Biases, named after the folder unless ``name`` is given."""
    return WandbLogger(save_dir=save_dir, **{"name": Path(save_dir).name, **options})


def mlflow_logger(save_dir: str, tracking_uri: str | None = None, **options: Any) -> Logger:
    """A run of MLflow in ``tracking_uri`` (default: ``mlflow.db`` in the folder), named after the folder."""
    if not is_rank_zero():  # each client creates the tables of a new store, and two would conflict
        return DummyLogger()
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    store = tracking_uri or f"sqlite:///{Path(save_dir).absolute()}/mlflow.db"
    return MLFlowLogger(tracking_uri=store, **{"run_name": Path(save_dir).name, **options})


def log_outcome(
    loggers: Sequence[Logger],
    config: Mapping[str, Any],
    sections: Sequence[str],
    results: Mapping[str, float],
    step: int = 0,
) -> None:
    """Log the final results as ``result/<name>`` (in TensorBoard's hyperparameter table), and close the loggers.

    Args:
        loggers: the loggers of a finished run.
        config: the whole configuration, as plain containers.
        sections: the sections of the configuration that affect this run, besides data, network and seed.
        results: the final results, by name.
        step: the number of the last optimiser step.
    """
    metrics = {f"result/{name}": float(value) for name, value in results.items()}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(hyperparameters(config, sections), metrics)
        else:
            logger.log_metrics(metrics, step)
        logger.finalize("success")
        if isinstance(logger, WandbLogger) and is_rank_zero():
            logger.experiment.finish()


def hyperparameters(config: Mapping[str, Any], sections: Sequence[str]) -> dict[str, int | float | str]:
    """The settings to log, by option name. TensorBoard accepts numbers and strings only; other values become JSON."""
    chosen = {"seed": config["seed"], "num_experts": config["num_experts"]}
    chosen |= {f"data.{name}": config["data"].get(name) for name in _OF_DATA}
    chosen |= {f"{part}.{name}": value for part in ("network", *sections) for name, value in config[part].items()}
    return {name: value if type(value) in (int, float, str) else json.dumps(value) for name, value in chosen.items()}
