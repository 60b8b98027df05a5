"""The result of a finished distillation: it counts while it fits the images beside it and what they were made from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ast_lightning.commands.run import Run
from ast_lightning.config.evaluation import EvaluationSettings
from ast_lightning.config.identity import complete_record
from ast_lightning.distillation import Context
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import seal, unseal
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.synthetic import load_distilled
from ast_lightning.terminal import say
from ast_lightning.trajectories.records import first_difference

Inputs = dict[str, Any]


def inputs_of(run: Run, context: Context) -> Inputs:
    """What a distillation is made from beside its settings, which name folders: what was in them.

    Returns:
        What the method names (trajectory matching: ``experts``, ``trajectories``), and ``warm_start``, the checksum of
        the set.

    Raises:
        ConfigurationError: some of it is missing or damaged.
    """
    found: Inputs = run.method.inputs(run.distill, context)
    if run.distill.warm_start:
        found["warm_start"] = load_distilled(run.distill.warm_start, "distill.warm_start").checksum()
    return found


def write_result(folder: Path, iteration: int, metrics: dict[str, float], run: Run, inputs: Inputs) -> None:
    """Write ``result.json``.

    Args:
        folder: of the distillation.
        iteration: how many it has had.
        metrics: what the evaluation after them found.
        run: what was configured.
        inputs: see :func:`inputs_of`.
    """
    content = {"iteration": iteration, "metrics": metrics, "materials": inputs, "config": run.config}
    write_json(folder / "result.json", seal(json.loads(json.dumps(content))))  # sealed as it will be read


def finished_result(run: Run, context: Context) -> dict[str, Any] | None:
    """The result of this run where it has as many iterations; one that does not fit the images is made again.

    Raises:
        ConfigurationError: it was made from other trajectories, or another set to start from, than are there now.
    """
    folder = run.distill_folder()
    try:
        result = unseal(read_json(folder / "result.json"))
        iteration, metrics, made_from = result["iteration"], result["metrics"], result["materials"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if iteration < run.distill.max_steps or not isinstance(metrics, dict):
        return None
    if iteration_of(folder / "synthetic" / "last") != iteration:
        return None
    _check_inputs(run, context, folder, made_from)
    check_length(run, iteration)
    _check_protocol(run, result["config"])
    return result


def check_length(run: Run, iteration: int) -> None:
    """Refuse, in a sweep, the numbers of a run that has had more iterations than this job asks for.

    Raises:
        ConfigurationError: naming ``distill.max_steps``.
    """
    if run.in_sweep and iteration > run.distill.max_steps:
        raise ConfigurationError(
            "distill.max_steps",
            run.distill.max_steps,
            f"this run has had {iteration} iterations, and jobs that differ in their number alone are one run",
            "leave it out of the sweep: TensorBoard has the accuracy after every distill.eval_every iterations",
        )


def _check_protocol(run: Run, earlier: dict[str, Any]) -> None:
    """Say that the accuracies were measured otherwise; in a sweep, whose table would not show it, refuse them."""
    theirs, ours = (_protocol(each) for each in (earlier, run.config))
    difference = first_difference(theirs, ours)
    if not difference:
        return
    name, before, now = difference
    if run.in_sweep:
        raise ConfigurationError(
            name, now, f"this run was finished and measured with {before}", "sweep over it with evaluate.py"
        )
    say(f"note: measured with {name}={before}, not {now}: evaluate.py measures with the options of this command")


def _protocol(config: dict[str, Any]) -> dict[str, Any]:
    """What decides how accurate images are found to be, by the names of the options."""
    options = complete_record("evaluation", config["evaluation"], asdict(EvaluationSettings()))
    protocol = {name: value for name, value in options.items() if name != "at_once"}
    return {"evaluation": {**protocol, "networks": config["distill"]["eval_networks"] or protocol["networks"]}}


def iteration_of(dataset: Path) -> int | None:
    """After how many iterations a distilled dataset was written; None where it is not there or cannot be used."""
    try:
        iteration = load_distilled(dataset).metadata.get("iteration")
    except ConfigurationError as error:
        if dataset.exists():
            say(f"{dataset} cannot be used, {error.problem}: it is written again from the state")
        return None
    return int(iteration) if isinstance(iteration, int) else None


def _check_inputs(run: Run, context: Context, folder: Path, made_from: Inputs) -> None:
    try:
        there = inputs_of(run, context)
    except ConfigurationError:
        return  # they may have been deleted since
    difference = first_difference(made_from, there)
    if difference:
        name, before, now = difference
        raise ConfigurationError(
            "fresh",
            "false",
            f"{folder} was distilled with {name} = {before}, and there it is {now} now",
            "put back what it was made from, or distil anew with fresh=true, which moves the earlier folder aside",
        )
