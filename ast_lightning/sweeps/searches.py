"""Checks of a multirun before it starts, and the objective of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from ast_lightning.config.check import checked
from ast_lightning.config.composition import check_choices, is_rejection, rejection
from ast_lightning.config.identity import depends_on_length
from ast_lightning.errors import ConfigurationError

OBJECTIVE = "validation_accuracy"
"""The result that a search maximises, in per cent."""
WORST = 0.0
"""The objective of a trial in which the distillation or the evaluated networks diverged."""

_SAME = "this option does not change the distilled images"
_SAME_RUN = {
    "evaluation.": (_SAME, "distil once, and list the values for evaluate.py"),
    "distill.eval_networks": (_SAME, "distil once, and list the values for evaluate.py"),
    "distill.max_steps": (
        "distillations that differ only in their length are the same run",
        "give the largest: the accuracy is logged every distill.eval_every iterations",
    ),
}
"""Options (or their prefixes) that do not make another run: why, and what to do instead of listing values."""

_CHECKED_VALUES = 16  # of each list, because composing takes 0.1 s; further values are checked when their jobs begin


def is_search(config: Any) -> bool:
    """Whether the sweeper chooses settings by earlier results: true for every sweeper except Hydra's own."""
    return not str(config.hydra.sweeper.get("_target_")).endswith(".BasicSweeper")


def check_multirun(config: Any) -> None:
    """Reject an invalid multirun, or one that would select settings on the test set, before any job begins.

    Args:
        config: Hydra's configuration of the whole multirun.

    Raises:
        ConfigurationError: the multirun is rejected; the message names the option.
    """
    launcher = config.hydra.launcher
    if str(launcher.get("_target_")).endswith(".LocalLauncher") and not launcher.get("gpus_per_node"):
        from ast_lightning.parallel.devices import device_type  # late: loads torch

        if device_type(config.trainer) == "cuda":
            option, problem = "hydra.launcher.gpus_per_node", "the jobs would not see the GPUs of this machine"
            remedy = f"set {option}=1, the number of devices of a job, or trainer=cpu"
            raise ConfigurationError(option, launcher.get("gpus_per_node"), problem, remedy)
    check_jobs(config)
    if is_search(config):
        _check_search(config)
    elif str(config.hydra.job.name) == "distill":
        _check_listed(config)


def check_jobs(config: Any) -> None:
    """Compose and check the jobs of a multirun: each value of each override, with the first value of the others.

    Trials of a search may fail. Therefore only names and types are checked after the first one.

    Args:
        config: Hydra's configuration of the whole multirun.

    Raises:
        ConfigurationError: a job is invalid; the first such job is reported.
    """
    if not GlobalHydra.instance().is_initialized():  # the callback was not called by Hydra: there is nothing to compose
        return
    search = config.hydra.sweeper.get("params") or {}
    words = [*(f"{name}={value}" for name, value in search.items()), *config.hydra.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    listed = [_values(override) for override in OverridesParser.create(loader).parse_overrides(words)]
    first = [values[0] for values in listed]
    others = [
        [*first[:place], value, *first[place + 1 :]]
        for place, values in enumerate(listed)
        for value in values[1:_CHECKED_VALUES]
    ]
    for job in [first, *others]:
        try:
            composed = loader.load_sweep_config(config, job)
            if job is first or not is_search(config):
                check_choices(composed.hydra.runtime.choices)
                checked(composed)
        except Exception as error:
            if is_rejection(error):
                raise rejection(error, job) from error
            raise


def _values(override: Override) -> list[str]:
    """Expand an override of a multirun to the overrides of its jobs; an interval is expanded to its two ends."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.is_interval_sweep():
        interval: Any = override.value()
        return [f"{key}={interval.start}", f"{key}={interval.end}"]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def objective(results: Mapping[str, float]) -> float:
    """The objective of a search: the accuracy on the validation split, in per cent.

    Raises:
        ConfigurationError: the job has no validation accuracy.
    """
    if OBJECTIVE not in results:
        remedy = "hold out data.validation_fraction=0.1"
        raise ConfigurationError(OBJECTIVE, "null", "the job does not report this value", remedy)
    value = float(results[OBJECTIVE])
    return value if math.isfinite(value) else WORST


def _check_listed(config: Any) -> None:
    """Reject a list of values of an option that does not make another run."""
    for override in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
        name = override.get_key_element().lstrip("+")
        if name == "distill.max_steps" and depends_on_length(config.distill):
            continue
        reasons = [reason for start, reason in _SAME_RUN.items() if name.startswith(start)]
        if reasons and override.is_sweep_override():
            value = str(override.input_line).partition("=")[2]
            raise ConfigurationError(name, value, *reasons[0])


def _check_search(config: Any) -> None:
    script = str(config.hydra.job.name)
    if script != "distill":
        problem = f"{script}.py evaluates on the test set only, which must not guide a search"
        remedy = "search with distill.py, or leave the sweeper out and list the values: -m option=1,2,3"
        raise ConfigurationError("hydra/sweeper", config.hydra.runtime.choices.get("hydra/sweeper"), problem, remedy)
    fraction = config.data.validation_fraction
    if not isinstance(fraction, float) or not fraction > 0:
        problem = "nothing is held out of the training data, so the test set would guide the search"
        remedy = "set data.validation_fraction=0.2 or so, for train_experts.py as well"
        raise ConfigurationError("data.validation_fraction", fraction, problem, remedy)
    direction = config.hydra.sweeper.get("direction", "maximize")
    direction = getattr(direction, "name", direction)  # an enumeration in Optuna's sweeper
    if direction != "maximize":
        problem, option = "more validation accuracy is better", "hydra.sweeper.direction"
        raise ConfigurationError(option, direction, problem, f"set {option}=maximize")
