"""Create the objects of a Hydra configuration, run a command with them, and set the exit status."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ast_lightning.commands.networks import class_of, network_factory
from ast_lightning.commands.run import Run
from ast_lightning.config.check import checked, settings_from
from ast_lightning.config.composition import hide_deprecations
from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.network import ConvNetSettings
from ast_lightning.config.parts import locate
from ast_lightning.config.schema import kind_of
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationSettings
from ast_lightning.experts import ExpertSettings
from ast_lightning.parallel.devices import by_torchrun, device_type, devices_of
from ast_lightning.parallel.failures import ENDED_BY_SIGTERM, shared_failures
from ast_lightning.reporting import boundary, check_interrupted, describe, keep_logs_in, local_rank
from ast_lightning.runs.loggers import check_packages
from ast_lightning.runs.output import DISK_REMEDIES, disk_trouble
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.sweeps.tasks import tasks_of_job
from ast_lightning.terminal import is_rank_zero

Metrics = dict[str, float]

_LEVELS = {
    "lightning.pytorch": logging.WARNING,
    "lightning.fabric": logging.WARNING,
    "lightning.pytorch.profilers": logging.INFO,  # the level of the reports of trainer.profiler
    "torch.utils.cpp_extension": logging.ERROR,  # it warns if CUDA is missing, which a CPU does not need
}


def execute(task: Callable[[Run], Metrics], config: DictConfig) -> Metrics:
    """Run a command; on an error, end the process as :func:`~ast_lightning.reporting.boundary` does.

    If one of several processes fails, all of them exit with its status. After SIGTERM the status is 143. In a multirun
    the error is raised instead, so that the other jobs of the sweep still run.
    """
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    # an error before shared_failures starts occurs in all processes: one of them prints it
    prints = local_rank() == 0 or config.trainer.get("devices") == 1
    try:
        with quiet(), nullcontext() if in_sweep else boundary(prints=prints):
            run = build_run(config, in_sweep)
            keep_logs_in(Path(run.config["output_dir"]) / "errors")
            if run.is_alone:
                LightningEnvironment().set_global_rank(0)  # this run is one process: ignore a launcher's ranks
            check_interrupted()
            with shared_failures(1 if in_sweep else devices_of(run.config["trainer"])), _disk_trouble_named(run):
                return task(run)
    except SIGTERMException as error:  # Lightning would exit with status 0, as after a completed run
        if is_rank_zero() and multiprocessing.parent_process() is None:
            print(ENDED_BY_SIGTERM, file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGTERM) from error


@contextmanager
def _disk_trouble_named(run: Run) -> Iterator[None]:
    """Convert the system's write errors to messages. Files are written atomically, so every file is intact.

    Raises:
        ConfigurationError: the disk is full, or the folder read-only.
    """
    try:
        yield
    except OSError as error:
        path = Path(error.filename or run.config["output_dir"]).absolute()
        folders = {name: run.config[name] for name in ("experts_dir", "output_dir")}
        folders = {"data.cache": run.config["data"].get("cache"), **folders}
        written = [name for name, folder in folders.items() if folder and path.is_relative_to(Path(folder).absolute())]
        if error.errno not in DISK_REMEDIES or not written:
            raise
        raise disk_trouble(written[0], folders[written[0]], error) from error


def build_run(config: DictConfig, in_sweep: bool = False, choices: Mapping[str, Any] | None = None) -> Run:
    """Create the objects that a configuration describes.

    Args:
        config: the configuration composed by Hydra.
        in_sweep: whether the run is a job of a multirun.
        choices: the chosen file of each configuration group; None: those of this process's Hydra job.

    Raises:
        ConfigurationError: an option is missing or has an invalid value.
    """
    plain = checked(config)
    check_packages(plain.get("logger") or {})
    _check_processes(plain["trainer"], in_sweep)
    build_trainer(plain["trainer"], Path(plain["output_dir"]))  # rejects invalid arguments before data are read
    distill = _method_settings(plain["distill"])
    plain["distill"] = {**plain["distill"], **asdict(distill)}
    expert = ExpertSettings(**plain["expert"])
    for settings in (expert, distill):
        settings.find_parts()
    if choices is None:
        choices = dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}
    if choices.get("network") == "convnet" and plain["network"]["_target_"] != ConvNetSettings._target_:
        choices = {**choices, "network": "custom"}  # the class of the default file was replaced
    return Run(
        config=plain,
        data=_instantiate("data", plain["data"]),
        make_network=network_factory(plain["network"]),
        expert=expert,
        distill=distill,
        evaluation=EvaluationSettings(**plain["evaluation"]),
        choices={group: str(choice) for group, choice in choices.items()},
        in_sweep=in_sweep,
        loggers=_factories("logger", plain.get("logger"), Logger, save_dir=""),
        callbacks=_factories("callbacks", plain.get("callbacks"), Callback),
    )


def _check_processes(trainer: dict[str, Any], in_sweep: bool) -> None:
    """Check that the devices exist and that there is one process per device.

    The processes may have been started by torchrun or by a Hydra launcher.

    Raises:
        ConfigurationError: naming ``trainer.accelerator`` or ``trainer.devices``.
    """
    accelerator, on_cpu = trainer.get("accelerator", "auto"), device_type(trainer) == "cpu"
    if on_cpu and accelerator not in ("auto", "cpu"):
        raise ConfigurationError("trainer.accelerator", accelerator, "this machine has none", "set trainer=cpu")
    if on_cpu and isinstance(trainer.get("devices"), list):
        problem, remedy = "a list names GPUs, but this run uses the CPU", "give a number of processes"
        raise ConfigurationError("trainer.devices", trainer["devices"], problem, remedy)
    devices, processes = devices_of(trainer), int(os.environ.get("WORLD_SIZE", "1"))
    if by_torchrun() and processes > 1 and devices == 1:
        problem = f"torchrun has started {processes} processes, and each would compute the whole run"
        remedy = "set trainer=torchrun, or run the command without torchrun"
        raise ConfigurationError("trainer.devices", trainer.get("devices"), problem, remedy)
    if in_sweep and devices != (tasks := tasks_of_job()):
        problem = f"the launcher starts one process per device of a job (tasks={tasks}); a job cannot start others"
        remedy = (
            f"set hydra/launcher=submitit_local or submitit_slurm with hydra.launcher.tasks_per_node={devices}, or "
            f"trainer.devices={tasks}, or run the settings one after another without -m"
        )
        raise ConfigurationError("trainer.devices", trainer.get("devices"), problem, remedy)


def _method_settings(section: dict[str, Any]) -> DistillSettings:
    """The options of the chosen method. A third-party class gives their dataclass as its attribute ``Settings``."""
    target = section["_target_"]
    kind = kind_of("distill", section) or getattr(class_of("distill", target), "Settings", None)
    if not (isinstance(kind, type) and issubclass(kind, DistillSettings)):
        remedy = "give the class an attribute Settings, a dataclass that extends DistillSettings"
        raise ConfigurationError("distill._target_", target, "its options are not known", remedy)
    own = {field.name for field in fields(kind)}
    return settings_from(kind, {name: value for name, value in section.items() if name != "_target_" or name in own})


def _factories(
    group: str, nodes: dict[str, Any] | None, kind: type[Any], **arguments: Any
) -> dict[str, Callable[..., Any]]:
    """Return a factory for each object of a configuration group, by name. Classes are imported now, called later."""
    factories = {}
    for name, node in (nodes or {}).items():
        if not isinstance(node, dict) or "_target_" not in node:
            remedy = f"add +{group}.{name}._target_=my_package.MyClass"
            raise ConfigurationError(f"{group}.{name}", node, "it has no _target_", remedy)
        option = f"{group}.{name}"
        factory = _instantiate(option, node, _partial_=True, _convert_="all")
        target = getattr(factory, "func", factory)
        if isinstance(target, type) and not issubclass(target, kind):
            problem, remedy = f"it is not a {kind.__module__}.{kind.__name__}", "give a subclass of it"
            raise ConfigurationError(option, target.__name__, problem, remedy)
        try:  # report wrong arguments before an earlier run is moved aside
            inspect.signature(factory).bind(**arguments)
        except TypeError as error:
            raise ConfigurationError(
                option, node["_target_"], str(error), f"correct its arguments: {option}.…"
            ) from error
        factories[name] = factory
    return factories


def _instantiate(section: str, values: dict[str, Any], **options: Any) -> Any:
    nodes = {section: values, **{f"{section}.{name}": value for name, value in values.items()}}
    for option, node in nodes.items():
        if isinstance(node, dict) and "_target_" in node:
            locate(str(node["_target_"]), f"{option}._target_")
    try:
        return instantiate(values, **options)
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigurationError):
            raise error.__cause__ from error
        option, problem = f"{section}._target_", describe(error.__cause__ or error)
        raise ConfigurationError(option, values.get("_target_"), problem, f"check the options of {section}") from error
    except OmegaConfBaseException as error:  # Hydra resolves values again that are resolved already
        problem = f"a text in {section} looks like an interpolation ({str(error).splitlines()[0]})"
        raise ConfigurationError(section, "…", problem, "leave ${ out of it") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's start-up messages; warnings that require an action are still shown."""
    earlier = {name: logging.getLogger(name).level for name in _LEVELS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own use of a deprecated torch function
        hide_deprecations()
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)  # torch's own use
        if not is_rank_zero():
            warnings.filterwarnings("ignore")
        try:
            for name, level in _LEVELS.items():
                logging.getLogger(name).setLevel(level)
            yield
        finally:
            for name, level in earlier.items():
                logging.getLogger(name).setLevel(level)
