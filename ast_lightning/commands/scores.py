"""The scores of one network: those that are stored are reused, the others are measured and stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ast_lightning.commands.measurement import TITLES, Evaluation, rates_of, train
from ast_lightning.commands.run import Run
from ast_lightning.commands.stores import experts_in_use
from ast_lightning.evaluation import Score
from ast_lightning.evaluation.baselines import NEED_EXPERTS, whole_score
from ast_lightning.runs.checkpoints import begin_anew
from ast_lightning.runs.expert_locks import sole_writer
from ast_lightning.runs.loggers import log_outcome, start_loggers
from ast_lightning.runs.results import describe_set
from ast_lightning.storage.checksums import seal, unseal
from ast_lightning.storage.files import clear_leftovers, read_json, set_aside, write_json
from ast_lightning.storage.provenance import provenance
from ast_lightning.synthetic import DistilledDataset
from ast_lightning.terminal import is_rank_zero
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.lineage import experts_checksum


def measure(evaluation: Evaluation) -> dict[str, Score]:
    """Scores of the distilled images and the baselines, in the table's order; those with the same inputs are reused."""
    run = evaluation.run
    if run.fast_dev_run:
        return _scores(evaluation)
    with sole_writer(evaluation.folder, wait=True):
        if run.fresh:
            begin_anew(evaluation.folder)
        return _scores(evaluation)


def remaining_seconds(evaluation: Evaluation) -> float:
    """The estimated seconds of the scores that have to be measured, for the progress of several evaluations."""
    fresh = evaluation.run.fresh or evaluation.run.fast_dev_run
    results = _reusable({} if fresh else _read(evaluation.folder / "results.json"), _all_inputs(evaluation))
    return sum(map(evaluation.seconds_of, _missing(evaluation, results)))


def _scores(evaluation: Evaluation) -> dict[str, Score]:
    """Each score is written once it is measured."""
    run, folder, store, names = evaluation.run, evaluation.folder, evaluation.store, evaluation.names
    path, writes = folder / "results.json", is_rank_zero() and not run.fast_dev_run
    inputs = _all_inputs(evaluation)
    record = {} if run.fast_dev_run else _read(path)
    results = _reusable(record, inputs)
    missing = _missing(evaluation, results)
    # report an invalid baseline before any network is trained
    whole = whole_score(store, experts_in_use(store, run)) if store is not None and "whole" in missing else None
    sets = {name: evaluation.sets(name) for name in missing if name != "whole"}
    if len(missing) < len(names):
        reused = ", ".join(TITLES[name] for name in names if name not in missing)
        evaluation.say(f"already {'evaluated' if missing else 'finished'}, with the same inputs: {reused}")
    if writes and missing:
        clear_leftovers(folder)
        if path.exists() and record.get("accuracies", {"damaged": []}).keys() != results["accuracies"].keys():
            evaluation.say(f"earlier results do not match the current inputs; they were moved to {set_aside(path)}")
    for name in missing:
        score, rates = (whole, {}) if name == "whole" and whole else train(evaluation, name, sets[name])
        results["accuracies"][name] = [None if math.isnan(each) else each for each in score.accuracies]
        results["inputs"][name], results["learning_rates"][name] = inputs[name], rates
        if writes:
            _write(evaluation, path, results)
    scores = {name: _score(results["accuracies"][name]) for name in names}
    if writes and missing:
        log_outcome(start_loggers(run.loggers, folder, run.config), run.config, ("evaluation",), metrics_of(scores))
    return scores


def _missing(evaluation: Evaluation, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    # several processes reuse nothing: they read the file separately and could disagree about what to train
    known = set(results["accuracies"]) if evaluation.run.is_alone else set()
    return [name for name in evaluation.names if name not in known]


def _all_inputs(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    return {name: _inputs(evaluation.run, evaluation.dataset, evaluation.store, name) for name in TITLES}


def _inputs(run: Run, dataset: DistilledDataset, store: TrajectoryStore | None, name: str) -> dict[str, Any]:
    """The inputs of a score besides the options in the folder's name; experts only if the baseline needs them."""
    found: dict[str, Any] = {"data": run.data.fingerprint, "preprocessing": run.data.preprocessing.fingerprint()}
    if name == "distilled":
        return {**found, "set": dataset.checksum()}
    if name in NEED_EXPERTS and store is not None:
        experts = experts_in_use(store, run)
        found["experts"] = experts_checksum(store, experts if name == "whole" else experts[:1])
    if name == "representative":
        found["clusters"] = run.distill.init_clusters
    return found if name == "whole" else {**found, "ipc": dataset.ipc, "learning_rates": list(rates_of(run))}


def _read(path: Path) -> dict[str, Any]:
    """The content of ``results.json``; empty if it is missing or damaged."""
    try:
        return unseal(read_json(path))
    except (OSError, ValueError):
        return {}


def _reusable(record: Mapping[str, Any], inputs: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recorded scores whose inputs are unchanged; none if an earlier version recorded no inputs."""
    recorded = record.get("inputs", {})
    same = [name for name, now in inputs.items() if now.items() <= recorded.get(name, {}).items()]
    return {kind: {name: record[kind][name] for name in same} for kind in ("accuracies", "inputs", "learning_rates")}


def _score(accuracies: Sequence[float | None]) -> Score:
    return Score(tuple(math.nan if each is None else each for each in accuracies))


def _write(evaluation: Evaluation, path: Path, results: Mapping[str, dict[str, Any]]) -> None:
    run = evaluation.run
    metrics = metrics_of({name: _score(each) for name, each in results["accuracies"].items()})
    record: dict[str, Any] = {
        "synthetic": str(run.synthetic_folder()),
        **results,
        "metrics": {name: None if math.isnan(each) else each for name, each in metrics.items()},
        "set": describe_set(evaluation.dataset),
        **provenance(),
        "seed": run.seed,
        "config": run.config,
    }
    write_json(path, seal(record))


def metrics_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """``<name>_accuracy`` and ``<name>_std`` of each score, in per cent."""
    means = {f"{name}_accuracy": score.mean for name, score in scores.items()}
    return means | {f"{name}_std": score.std for name, score in scores.items()}
