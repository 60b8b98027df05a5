"""The command that judges a distilled dataset beside what real images give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ast_lightning.callbacks import RunProgress, is_rank_zero, say
from ast_lightning.data import LabelledImages
from ast_lightning.distillation import check_ipc, initial_images
from ast_lightning.errors import ConfigurationError
from ast_lightning.files import write_json
from ast_lightning.networks import describe_network
from ast_lightning.provenance import provenance
from ast_lightning.randomness import keyed_seed
from ast_lightning.runs.ancestry import describe_set
from ast_lightning.runs.distill import real_or_noise
from ast_lightning.runs.machine import prepare
from ast_lightning.runs.run import Run, short_hash
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.synthetic import (
    DistilledDataset,
    EvaluationModule,
    NetworkEvaluator,
    Score,
    TrainingSet,
    load_distilled,
)
from ast_lightning.trajectories import TrajectoryStore

RANDOM_DRAWS = 10
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
    prepare(run)
    dataset = load_distilled(run.synthetic_folder())
    run.data.use_preprocessing(dataset.preprocessing)
    run.data.setup("test")
    check_dataset(dataset, run)
    scores = {name: _score(run, dataset, name) for name in [*run.config["baselines"], "distilled"]}
    ordered = {name: scores[name] for name in TITLES if name in scores}
    if is_rank_zero():
        _print_table(ordered, dataset)
    metrics = {f"{name}_accuracy": score.mean for name, score in ordered.items()}
    metrics |= {f"{name}_std": score.std for name, score in ordered.items()}
    folder = evaluation_folder(run)
    if is_rank_zero() and not run.fast_dev_run:
        accuracies = {name: list(score.accuracies) for name, score in ordered.items()}
        record: dict[str, Any] = {
            "synthetic": str(run.synthetic_folder()),
            "accuracies": accuracies,
            "metrics": metrics,
        }
        record |= {"set": describe_set(dataset), **provenance(), "seed": run.seed, "config": run.config}
        write_json(folder / "results.json", record)
        say(f"results:     {folder / 'results.json'}")
    say(f"pictures:    {run.synthetic_folder() / 'images.png'}")
    say(f"TensorBoard: tensorboard --logdir {run.config['output_dir']}")
    return metrics


def evaluation_folder(run: Run) -> Path:
    """Where the results are: a name that follows from the set, the networks and the protocol."""
    synthetic = run.synthetic_folder().absolute()
    identity = {
        "synthetic": str(synthetic),
        "network": run.config["network"],
        "evaluation": asdict(run.evaluation),
    }
    identity |= {"seed": run.seed, "data": run.config["data"]}
    name = synthetic.parent.parent.name if synthetic.name in ("last", "best") else synthetic.name
    return Path(run.config["output_dir"]) / "evaluations" / f"{name}_{short_hash(identity)}"


def check_dataset(dataset: DistilledDataset, run: Run) -> None:
    """Refuse to test on images of another shape or with other classes.

    Raises:
        ConfigurationError: with both sides.
    """
    shape = (run.data.channels, *run.data.image_size)
    if tuple(dataset.images.shape[1:]) != shape:
        raise ConfigurationError(
            "synthetic",
            run.synthetic_folder(),
            f"its images are {tuple(dataset.images.shape[1:])}, and those of data={run.data.name} are {shape}",
            "choose the data and data.image_size that it was distilled from",
        )
    if dataset.class_names != run.data.class_names:
        raise ConfigurationError(
            "synthetic",
            run.synthetic_folder(),
            f"its classes are {', '.join(dataset.class_names[:5])} …, and those of data={run.data.name} are "
            f"{', '.join(run.data.class_names[:5])} …",
            "choose the data that it was distilled from",
        )


def _score(run: Run, dataset: DistilledDataset, name: str) -> Score:
    if name == "whole":
        return _score_of_experts(run)
    settings = run.evaluation
    if name == "random":
        settings = replace(settings, networks=max(settings.networks, RANDOM_DRAWS))
    splits: dict[str, LabelledImages] = {"test": run.data.test}
    evaluator = NetworkEvaluator(run.network(), settings, splits, augmentation=run.data.augmentation, seed=run.seed)
    module = EvaluationModule(evaluator, _training_sets(run, dataset, name), name)
    trainer = build_trainer(
        run.config["trainer"],
        evaluation_folder(run),
        callbacks=[],
        hyperparameters=run.config,
        progress=RunProgress(name),
        log=False,
        enable_checkpointing=False,
    )
    say(f"training {settings.networks} networks for {settings.epochs} epochs on {TITLES[name]}")
    trainer.test(module, verbose=False)
    return module.scores["test"]


def _training_sets(run: Run, dataset: DistilledDataset, name: str) -> Callable[[int], TrainingSet]:
    """What each network is trained on: a fresh draw of random images for each, one set for all otherwise."""
    if name == "distilled":
        only = TrainingSet(dataset.images, dataset.labels, dataset.learning_rate)
        return lambda index: only
    rate = run.distill.lr_teacher
    check_ipc(run.data.train.labels, run.data.class_names, dataset.ipc)
    if name == "representative":
        store = TrajectoryStore.open(run.experts_folder())
        representative = TrainingSet(*real_or_noise(store, run, "representative", run.seed), rate)
        return lambda index: representative

    def draw(index: int) -> TrainingSet:
        seed = keyed_seed(run.seed, "random real images", index)
        images, labels = initial_images("real", run.data.train, run.data.class_names, dataset.ipc, seed=seed)
        return TrainingSet(images, labels, rate)

    return draw


def _score_of_experts(run: Run) -> Score:
    store = TrajectoryStore.open(run.experts_folder())
    store.require("network", describe_network(run.network()))
    final = [100 * store.summary(index)["metrics"]["test/accuracy"] for index in store.experts()]
    if not final:
        raise ConfigurationError("experts_dir", store.folder, "it has no complete expert", "run train_experts.py first")
    return Score(tuple(final))


def _print_table(scores: dict[str, Score], dataset: DistilledDataset) -> None:
    table = Table(title=f"{dataset.ipc} image{'s' if dataset.ipc > 1 else ''} per class, real test set")
    for column in ("trained on", "accuracy %", "networks"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for name, score in scores.items():
        table.add_row(TITLES[name], f"{score.mean:.1f} ± {score.std:.1f}", str(len(score.accuracies)))
    Console().print(table)
