"""The command that judges a distilled dataset beside what real images give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.table import Table

from ast_lightning.callbacks import RunProgress
from ast_lightning.commands.distill import check_store, real_or_noise
from ast_lightning.commands.run import Run, short_hash
from ast_lightning.data import LabelledImages
from ast_lightning.distillation import check_ipc, initial_images
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationModule, EvaluationSettings, NetworkEvaluator, Score
from ast_lightning.randomness import keyed_seed
from ast_lightning.runs.checkpoints import begin_anew
from ast_lightning.runs.expert_locks import sole_writer
from ast_lightning.runs.hparams import log_outcome
from ast_lightning.runs.lineage import describe_set
from ast_lightning.runs.machine import prepare
from ast_lightning.runs.trainer import build_logger, build_trainer
from ast_lightning.storage.checksums import seal, tensor_checksum, unseal
from ast_lightning.storage.files import clear_leftovers, read_json, write_json
from ast_lightning.storage.provenance import provenance, versions
from ast_lightning.synthetic import DistilledDataset, TrainingSet, load_distilled
from ast_lightning.terminal import is_rank_zero, say
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
    if {"whole", "representative"} & set(run.config["baselines"]):
        check_store(TrajectoryStore.open(run.experts_folder()), run)
    if run.fast_dev_run:
        return _report(run, dataset, _judge(run, dataset))
    folder = evaluation_folder(run)
    logger = build_logger(run.config["trainer"].get("logger"), folder)
    with sole_writer(folder, wait=True):
        if run.fresh:
            begin_anew(folder)
        if is_rank_zero():
            clear_leftovers(folder)
        scores = _judge(run, dataset)
        metrics = _report(run, dataset, scores)
        if is_rank_zero():
            accuracies = {name: list(score.accuracies) for name, score in scores.items()}
            record: dict[str, Any] = {
                "synthetic": str(run.synthetic_folder()),
                "accuracies": accuracies,
                "metrics": metrics,
            }
            record |= {"set": describe_set(dataset), **provenance(), "seed": run.seed, "config": run.config}
            write_json(folder / "results.json", record)
            log_outcome([logger] if isinstance(logger, Logger) else [], run.config, ("evaluation",), metrics)
            say(f"results:     {folder / 'results.json'}")
    return metrics


def _judge(run: Run, dataset: DistilledDataset) -> dict[str, Score]:
    """The scores of all that is asked for, in the order of the table."""
    scores = {name: _score(run, dataset, name) for name in [*run.config["baselines"], "distilled"]}
    return {name: scores[name] for name in TITLES if name in scores}


def _report(run: Run, dataset: DistilledDataset, scores: dict[str, Score]) -> dict[str, float]:
    """Print the table, and where pictures are; the numbers by name."""
    if is_rank_zero():
        _print_table(scores, dataset)
    say(f"pictures:    {run.synthetic_folder() / 'images.png'}")
    say(f"TensorBoard: tensorboard --logdir {run.config['output_dir']}")
    means = {f"{name}_accuracy": score.mean for name, score in scores.items()}
    return means | {f"{name}_std": score.std for name, score in scores.items()}


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
    training_sets = _training_sets(run, dataset, name)
    judged = JudgedSets(evaluation_folder(run) / "judged.json")
    key = judgement_key(run, settings, [training_sets(index) for index in range(settings.networks)])
    # several processes must all train or all find the numbers, and each would look by itself
    known = None if run.fast_dev_run or not run.is_alone else judged.find(name, key)
    if known is not None:
        say(f"networks on {TITLES[name]} were trained already")
        return known
    evaluator = NetworkEvaluator(run.network(), settings, splits, augmentation=run.data.augmentation, seed=run.seed)
    module = EvaluationModule(evaluator, training_sets, name)
    trainer = build_trainer(
        run.config["trainer"],
        evaluation_folder(run),
        callbacks=[],
        progress=RunProgress(name),
        log=False,
    )
    say(f"training {settings.networks} networks for {settings.epochs} epochs on {TITLES[name]}")
    trainer.test(module, verbose=False)
    if is_rank_zero() and not run.fast_dev_run:
        judged.add(name, key, module.scores["test"])
    return module.scores["test"]


def judgement_key(run: Run, settings: EvaluationSettings, training_sets: Sequence[TrainingSet]) -> str:
    """What determines the accuracies of networks: the values that they see, the protocol, the versions."""
    tensors = {"test images": run.data.test.images, "test labels": run.data.test.labels}
    for index, each in enumerate(training_sets):
        tensors |= {f"images {index}": each.images, f"labels {index}": each.labels}
    about = {
        "rates": [each.learning_rate for each in training_sets],
        "network": run.config["network"],
        "evaluation": asdict(settings),
        "augmentation": run.data.augmentation.families,
        **run.arithmetic(),
        "seed": run.seed,
        "versions": versions(),
    }
    return tensor_checksum(tensors, {"about": short_hash(about)})


class JudgedSets:
    """The accuracies that are known already, so that an evaluation that was killed trains the other networks only.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, name: str, key: str) -> Score | None:
        """The score of what :meth:`add` was given the same ``key`` for."""
        entry = self._read().get(name, {})
        return Score(tuple(entry["accuracies"])) if entry.get("key") == key else None

    def add(self, name: str, key: str, score: Score) -> None:
        """Note a score, in the place of an earlier one of this name."""
        write_json(self.path, seal({**self._read(), name: {"key": key, "accuracies": list(score.accuracies)}}))

    def _read(self) -> dict[str, Any]:
        try:
            return unseal(read_json(self.path))
        except (OSError, ValueError):  # none yet, or a damaged one: networks are trained once more
            return {}


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
    final = [store.summary(index)["metrics"].get("test/accuracy") for index in store.experts()]
    if not final:
        raise ConfigurationError("experts_dir", store.folder, "it has no complete expert", "run train_experts.py first")
    if None in final:
        raise ConfigurationError(
            "experts_dir", store.folder, "its experts were trained without being tested", "leave whole out of baselines"
        )
    return Score(tuple(100 * accuracy for accuracy in final))


def _print_table(scores: dict[str, Score], dataset: DistilledDataset) -> None:
    table = Table(title=f"{dataset.ipc} image{'s' if dataset.ipc > 1 else ''} per class, real test set")
    for column in ("trained on", "accuracy %", "networks"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for name, score in scores.items():
        table.add_row(TITLES[name], f"{score.mean:.1f} ± {score.std:.1f}", str(len(score.accuracies)))
    Console().print(table)
