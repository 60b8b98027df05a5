"""The command that evaluates a distilled dataset beside what real images give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ast_lightning.callbacks import RunProgress
from ast_lightning.commands.run import Run, short_hash
from ast_lightning.commands.stores import check_store, open_store
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationModule, NetworkEvaluator, Score
from ast_lightning.evaluation.baselines import (
    NEED_EXPERTS,
    RANDOM_DRAWS,
    expert_logits,
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
from ast_lightning.storage.checksums import seal
from ast_lightning.storage.files import clear_leftovers, write_json
from ast_lightning.storage.provenance import provenance
from ast_lightning.synthetic import DistilledDataset, TrainingSet, load_distilled
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore

TITLES = {
    "random": "random real images",
    "representative": "representative real images",
    "distilled": "distilled images",
    "whole": "whole dataset (the experts)",
}


def evaluate(run: Run) -> dict[str, float]:
    """Train fresh networks on the distilled images, and on the real images that ``baselines`` name; print a table.

    Returns:
        ``<name>_accuracy`` and ``<name>_std`` in per cent for ``distilled`` and every baseline.
    """
    prepare(run.config["trainer"], tf32=run.config["tf32"])
    dataset = load_distilled(run.synthetic_folder())
    run.data.use_preprocessing(dataset.preprocessing)
    run.data.setup("test")
    check_dataset(dataset, run)
    store = experts_of_baselines(run)
    folder = evaluation_folder(run)
    if run.fast_dev_run:
        scores = _train_all(run, dataset, store)
    else:
        with sole_writer(folder, wait=True):
            if run.fresh:
                begin_anew(folder)
            scores = _train_all(run, dataset, store)
            if is_rank_zero():
                _write(run, folder, dataset, scores)
    if is_rank_zero():
        _print_table(scores, dataset)
    say(f"pictures:    {run.synthetic_folder() / 'images.png'}")
    if uses_tensorboard(run.loggers):
        say(f"TensorBoard: tensorboard --logdir {run.config['output_dir']}")
    if not run.fast_dev_run:
        say(f"results:     {folder / 'results.json'}")
    return _metrics(scores)


def _write(run: Run, folder: Path, dataset: DistilledDataset, scores: Mapping[str, Score]) -> None:
    clear_leftovers(folder)
    record: dict[str, Any] = {
        "synthetic": str(run.synthetic_folder()),
        "accuracies": {name: list(score.accuracies) for name, score in scores.items()},
        "metrics": _metrics(scores),
        "set": describe_set(dataset),
        **provenance(),
        "seed": run.seed,
        "config": run.config,
    }
    write_json(folder / "results.json", seal(record))
    log_outcome(start_loggers(run.loggers, folder, run.config), run.config, ("evaluation",), _metrics(scores))


def _metrics(scores: Mapping[str, Score]) -> dict[str, float]:
    means = {f"{name}_accuracy": score.mean for name, score in scores.items()}
    return means | {f"{name}_std": score.std for name, score in scores.items()}


def evaluation_folder(run: Run) -> Path:
    """Where the results are: a name that follows from the set, the networks and the protocol."""
    synthetic = run.synthetic_folder().absolute()
    identity = {
        "synthetic": str(synthetic),
        "network": run.config["network"],
        "evaluation": asdict(run.evaluation),
        "seed": run.seed,
        "data": run.config["data"],
    }
    name = synthetic.parent.parent.name if synthetic.name in ("last", "best") else synthetic.name
    return Path(run.config["output_dir"]) / "evaluations" / f"{name}_{short_hash(identity)}"


def check_dataset(dataset: DistilledDataset, run: Run) -> None:
    """Reject a set of images of another shape or with other classes than the data.

    Raises:
        ConfigurationError: with both sides.
    """
    theirs, ours = tuple(dataset.images.shape[1:]), (run.data.channels, *run.data.image_size)
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
    """The store of the experts, where a baseline needs one.

    Raises:
        ConfigurationError: there are no experts, or they are of another network or other data.
    """
    needing = ",".join(name for name in NEED_EXPERTS if name in run.config["baselines"])
    if not needing:
        return None
    try:
        store = open_store(run)
        if not store.experts():
            raise ConfigurationError("experts_dir", store.folder, "no expert is complete", "run train_experts.py first")
    except ConfigurationError as error:
        problem = f"experts are needed, and {error.option}={error.value} has none to use ({error.problem})"
        remedy = f"leave {needing} out of baselines, or {error.remedy}"
        raise ConfigurationError("baselines", needing, problem, remedy) from error
    check_store(store, run)
    return store


def _train_all(run: Run, dataset: DistilledDataset, store: TrajectoryStore | None) -> dict[str, Score]:
    """The scores of all that is asked for, in the order of the table."""
    names = [name for name in TITLES if name in (*run.config["baselines"], "distilled")]
    # what can be wrong with a baseline is found before a network is trained
    whole = {"whole": whole_score(store)} if store is not None and "whole" in names else {}
    sets = {name: _training_sets(run, dataset, store, name) for name in names if name != "whole"}
    return {name: _train(run, name, each) for name, each in sets.items()} | whole


def _training_sets(
    run: Run, dataset: DistilledDataset, store: TrajectoryStore | None, name: str
) -> Callable[[int], TrainingSet]:
    """What the network of a given index is trained on."""
    real = run.data.train, run.data.class_names, dataset.ipc, run.seed, run.distill.lr_teacher
    if name == "random":
        return random_sets(*real)
    if name == "distilled":
        training_set = TrainingSet(dataset.images, dataset.labels, dataset.learning_rate)
    else:
        assert store is not None
        training_set = representative_set(*real, expert_logits(run.network(), store), run.distill.init_clusters)
    return lambda index: training_set


def _train(run: Run, name: str, training_sets: Callable[[int], TrainingSet]) -> Score:
    settings = run.evaluation
    if name == "random":
        settings = replace(settings, networks=max(settings.networks, RANDOM_DRAWS))
    splits = {"test": run.data.test}
    evaluator = NetworkEvaluator(run.network(), settings, splits, augmentation=run.data.augmentation, seed=run.seed)
    module = EvaluationModule(evaluator, training_sets, name)
    trainer = build_trainer(run.config["trainer"], evaluation_folder(run), callbacks=[], progress=RunProgress(name))
    say(f"training {settings.networks} networks for {settings.epochs} epochs on {TITLES[name]}")
    trainer.test(module, verbose=False)
    return module.scores["test"]


def _print_table(scores: Mapping[str, Score], dataset: DistilledDataset) -> None:
    console = Console()
    spread = "±" if console.encoding.startswith("utf") else "+-"
    table = Table(title=f"{dataset.ipc} image{'s' if dataset.ipc > 1 else ''} per class, real test set")
    for column in ("trained on", "accuracy %", "networks"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for name, score in scores.items():
        table.add_row(TITLES[name], f"{score.mean:.1f} {spread} {score.std:.1f}", str(len(score.accuracies)))
    console.print(table)
