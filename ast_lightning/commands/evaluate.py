"""The command that evaluates a distilled dataset and compares it with real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ast_lightning.callbacks import RunProgress
from ast_lightning.commands.run import Run, short_hash
from ast_lightning.commands.stores import check_store, open_store
from ast_lightning.config.identity import evaluation_identity
from ast_lightning.data import LabelledImages
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationModule, EvaluationSettings, NetworkEvaluator, Score
from ast_lightning.evaluation.baselines import (
    LEARNING_RATES,
    NEED_EXPERTS,
    RANDOM_DRAWS,
    expert_logits,
    held_out,
    random_sets,
    representative_set,
    whole_score,
)
from ast_lightning.runs.checkpoints import begin_anew
from ast_lightning.runs.expert_locks import sole_writer
from ast_lightning.runs.loggers import log_outcome, start_loggers, uses_tensorboard
from ast_lightning.runs.machine import prepare
from ast_lightning.runs.results import describe_set
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.storage.checksums import seal, unseal
from ast_lightning.storage.files import clear_leftovers, read_json, set_aside, write_json
from ast_lightning.storage.provenance import provenance
from ast_lightning.synthetic import DistilledDataset, TrainingSet, load_distilled
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.lineage import experts_checksum

TITLES = {
    "random": "random real images",
    "representative": "representative real images",
    "distilled": "distilled images",
    "whole": "whole dataset (the experts)",
}


def evaluate(run: Run) -> dict[str, float]:
    """Train new networks on the distilled images and on the real images of ``baselines``, and print a table.

    Scores in ``results.json`` that were measured with the same inputs are reused.

    Returns:
        ``<name>_accuracy`` and ``<name>_std`` in per cent for ``distilled`` and every baseline.
    """
    prepare(run.config["trainer"], tf32=run.config["tf32"])
    dataset = _dataset(run)
    run.data.use_preprocessing(dataset.preprocessing)
    run.data.setup("test")
    check_dataset(dataset, run)
    store = experts_of_baselines(run)
    folder = evaluation_folder(run)
    if run.fast_dev_run:
        scores = _scores(run, folder, dataset, store)
    else:
        with sole_writer(folder, wait=True):
            if run.fresh:
                begin_anew(folder)
            scores = _scores(run, folder, dataset, store)
    if is_rank_zero():
        _print_table(scores, dataset)
    if run.evaluation.lr and any(score.diverged for score in scores.values()):
        say(f"note: lower evaluation.lr={run.evaluation.lr:g}, with which networks diverged")
    say(f"pictures:    {run.synthetic_folder() / 'images.png'}")
    if uses_tensorboard(run.loggers):
        say(f"TensorBoard: tensorboard --logdir {run.config['output_dir']}")
    if not run.fast_dev_run:
        say(f"results:     {folder / 'results.json'}")
    return _metrics(scores)


def _dataset(run: Run) -> DistilledDataset:
    """Load the set; print a note if it is the one of this run, and the run is not finished.

    Raises:
        ConfigurationError: it does not exist, or is damaged.
    """
    folder, own = run.synthetic_folder(), not run.config["synthetic"]
    if own and not folder.exists() and any((run.distill_folder() / "checkpoints").glob("*.ckpt")):
        problem = "the distillation was interrupted before its first evaluation"
        raise ConfigurationError("synthetic", folder, problem, "rerun distill.py to resume")
    dataset = load_distilled(folder)
    if own and (iteration := dataset.metadata["iteration"]) < run.distill.max_steps:
        say(f"note: these images are from iteration {iteration} of {run.distill.max_steps}; rerun distill.py to resume")
    return dataset


def _scores(run: Run, folder: Path, dataset: DistilledDataset, store: TrajectoryStore | None) -> dict[str, Score]:
    """Scores of the distilled images and the baselines, in the table's order; each is written once it is measured."""
    path, writes = folder / "results.json", is_rank_zero() and not run.fast_dev_run
    names = [name for name in TITLES if name in (*run.config["baselines"], "distilled")]
    inputs = {name: _inputs(run, dataset, store, name) for name in TITLES}
    record = {} if run.fast_dev_run else _read(path)
    results = _reusable(record, inputs)
    # several processes reuse nothing: they read the file separately and could disagree about what to train
    known = set(results["accuracies"]) if run.is_alone else set()
    missing = [name for name in names if name not in known]
    # report an invalid baseline before any network is trained
    whole = whole_score(store) if store is not None and "whole" in missing else None
    sets = {name: _training_sets(run, dataset, store, name) for name in missing if name != "whole"}
    if len(missing) < len(names):
        reused = ", ".join(TITLES[name] for name in names if name in known)
        say(f"already {'evaluated' if missing else 'finished'}, with the same inputs: {reused}")
    if writes and missing:
        clear_leftovers(folder)
        if path.exists() and record.get("accuracies", {"damaged": []}).keys() != results["accuracies"].keys():
            say(f"earlier results do not match the current inputs; they were moved to {set_aside(path)}")
    for name in missing:
        score, rates = (whole, {}) if name == "whole" and whole else _train(run, name, sets[name])
        results["accuracies"][name] = [None if math.isnan(each) else each for each in score.accuracies]
        results["inputs"][name], results["learning_rates"][name] = inputs[name], rates
        if writes:
            _write(run, path, dataset, results)
    scores = {name: _score(results["accuracies"][name]) for name in names}
    if writes and missing:
        log_outcome(start_loggers(run.loggers, folder, run.config), run.config, ("evaluation",), _metrics(scores))
    return scores


def _inputs(run: Run, dataset: DistilledDataset, store: TrajectoryStore | None, name: str) -> dict[str, Any]:
    """The inputs of a score besides the options in the folder's name; experts only if the baseline needs them."""
    found: dict[str, Any] = {"data": run.data.fingerprint, "preprocessing": run.data.preprocessing.fingerprint()}
    if name == "distilled":
        return {**found, "set": dataset.checksum()}
    if name in NEED_EXPERTS and store is not None:
        experts = store.experts()
        found["experts"] = experts_checksum(store, experts if name == "whole" else experts[:1])
    if name == "representative":
        found["clusters"] = run.distill.init_clusters
    return found if name == "whole" else {**found, "ipc": dataset.ipc, "learning_rates": list(_rates(run))}


def _rates(run: Run) -> tuple[float, ...]:
    """Candidate learning rates of the networks that are trained on real images."""
    given = run.evaluation.lr or (run.distill.lr_teacher if run.evaluation.baseline_lr == "same" else None)
    return LEARNING_RATES if given is None else (given,)


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


def _write(run: Run, path: Path, dataset: DistilledDataset, results: Mapping[str, dict[str, Any]]) -> None:
    metrics = _metrics({name: _score(each) for name, each in results["accuracies"].items()})
    record: dict[str, Any] = {
        "synthetic": str(run.synthetic_folder()),
        **results,
        "metrics": {name: None if math.isnan(each) else each for name, each in metrics.items()},
        "set": describe_set(dataset),
        **provenance(),
        "seed": run.seed,
        "config": run.config,
    }
    write_json(path, seal(record))


def _metrics(scores: Mapping[str, Score]) -> dict[str, float]:
    means = {f"{name}_accuracy": score.mean for name, score in scores.items()}
    return means | {f"{name}_std": score.std for name, score in scores.items()}


def evaluation_folder(run: Run) -> Path:
    """The folder of the results. Its name depends on the synthetic set, the network and the evaluation options."""
    synthetic = run.synthetic_folder().absolute()
    identity = {"synthetic": str(synthetic), **evaluation_identity(run.config)}
    name = synthetic.parent.parent.name if synthetic.name in ("last", "best") else synthetic.name
    return Path(run.config["output_dir"]) / "evaluations" / f"{name}_{short_hash(identity)}"


def check_dataset(dataset: DistilledDataset, run: Run) -> None:
    """Reject a distilled dataset whose image shape or classes differ from those of the data.

    Raises:
        ConfigurationError: they differ; the message gives both.
    """
    theirs, ours = dataset.image_shape, (run.data.channels, *run.data.image_size)
    if theirs != ours:
        problem = f"its images are {theirs}, and those of data={run.data.name} are {ours}"
    elif dataset.class_names != run.data.class_names:
        names, others = (", ".join(each[:5]) for each in (dataset.class_names, run.data.class_names))
        problem = f"its classes are {names} …, and those of data={run.data.name} are {others} …"
    else:
        recorded = dataset.metadata
        images, options = (recorded.get("data") or {}), (recorded.get("config") or {})
        same_options = options.get("data") == run.config["data"]
        if same_options and images.get("fingerprint") not in (None, run.data.fingerprint):
            say("warning: the images of data.root have changed since this dataset was distilled")
        return
    remedy = "choose the data and data.image_size that it was distilled from"
    raise ConfigurationError("synthetic", run.synthetic_folder(), problem, remedy)


def experts_of_baselines(run: Run) -> TrajectoryStore | None:
    """Open the store of the experts if a baseline needs it; return None otherwise.

    Raises:
        ConfigurationError: there are no experts, or they were trained with another network or other data.
    """
    baselines = run.config["baselines"]
    needing = [name for name in baselines if name in NEED_EXPERTS]
    if not needing:
        return None
    try:
        store = open_store(run)
        if not store.experts():
            raise ConfigurationError("experts_dir", store.folder, "no expert is complete", "run train_experts.py first")
        check_store(store, run)
    except ConfigurationError as error:
        problem = f"experts are needed, and {error.option}={error.value} has none to use ({error.problem})"
        others = ",".join(name for name in baselines if name not in needing)
        remedy = f"leave {','.join(needing)} out: baselines=[{others}], or {error.remedy}"
        raise ConfigurationError("baselines", ",".join(needing), problem, remedy) from error
    return store


def _training_sets(
    run: Run, dataset: DistilledDataset, store: TrajectoryStore | None, name: str
) -> Callable[[int], TrainingSet]:
    """Return a function that maps the index of a network to its training set."""
    real = run.data.train, run.data.class_names, dataset.ipc, run.seed, run.distill.lr_teacher
    if name == "random":
        return random_sets(*real)
    if name == "distilled":
        training_set = TrainingSet(dataset.images, dataset.labels, dataset.learning_rate, dataset.crop_size)
    else:
        assert store is not None
        training_set = representative_set(*real, expert_logits(run.network(), store), run.distill.init_clusters)
    return lambda index: training_set


def _train(run: Run, name: str, training_sets: Callable[[int], TrainingSet]) -> tuple[Score, dict[str, float | None]]:
    """Return the score of networks on these sets, and the accuracy of each compared learning rate (None: diverged)."""
    settings, sets, compared = run.evaluation, training_sets, {}
    if name == "random":
        settings = replace(settings, networks=max(settings.networks, RANDOM_DRAWS))
    if name != "distilled" and len(rates := _rates(run)) > 1:
        compared = dict(zip(rates, _compare(run, name, training_sets(0), rates), strict=False))  # fast_dev_run: fewer
        best = max(compared, key=lambda rate: -1 if math.isnan(compared[rate]) else compared[rate])
        shown = ", ".join(f"{rate:g} {accuracy:.1f} %" for rate, accuracy in compared.items())
        say(f"learning rate {best:g} for {TITLES[name]}: the best on held-out training images ({shown})")

        def sets(index: int) -> TrainingSet:
            return training_sets(index)._replace(learning_rate=best)

    say(f"training {settings.networks} networks for {settings.epochs} epochs on {TITLES[name]}")
    score = _test(run, name, settings, sets, run.data.test, "evaluation")
    return score, {f"{rate:g}": None if math.isnan(each) else each for rate, each in compared.items()}


def _compare(run: Run, name: str, training_set: TrainingSet, rates: Sequence[float]) -> tuple[float, ...]:
    """The accuracy of each learning rate on held-out training images, with one network and half of the epochs."""
    others = held_out(run.data.train, training_set.images, run.seed)
    settings = replace(run.evaluation, networks=len(rates), epochs=-(-run.evaluation.epochs // 2))

    def sets(index: int) -> TrainingSet:
        return training_set._replace(learning_rate=rates[index])

    return _test(run, f"{name}, learning rates", settings, sets, others, "learning rate of a baseline").accuracies


def _test(
    run: Run,
    title: str,
    settings: EvaluationSettings,
    training_sets: Callable[[int], TrainingSet],
    real: LabelledImages,
    purpose: str,
) -> Score:
    """Train networks and return their score on real images."""
    evaluator = NetworkEvaluator(
        run.network(), settings, {"test": real}, augmentation=run.data.augmentation, seed=run.seed, purpose=purpose
    )
    module, progress = EvaluationModule(evaluator, training_sets, title), RunProgress(title, evaluator=evaluator)
    trainer = build_trainer(run.config["trainer"], evaluation_folder(run), callbacks=[], progress=progress)
    trainer.test(module, verbose=False)
    return module.scores["test"]


def _print_table(scores: Mapping[str, Score], dataset: DistilledDataset) -> None:
    console = Console()
    spread = "±" if console.encoding.startswith("utf") else "+-"
    table = Table(title=f"{dataset.ipc} image{'s' if dataset.ipc > 1 else ''} per class, real test set")
    for column in ("trained on", "accuracy %", "networks"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for name, score in scores.items():
        shown = f"{score.diverged} diverged" if score.diverged else str(score).removesuffix(" %").replace("±", spread)
        table.add_row(TITLES[name], shown, str(len(score.accuracies)))
    console.print(table)
