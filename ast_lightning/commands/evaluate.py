"""The command that evaluates a distilled dataset and compares it with real images, with one network or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial

from rich.console import Console
from rich.table import Table

from ast_lightning.callbacks import SharedProgress
from ast_lightning.commands.measurement import TITLES, Evaluation, training_sets
from ast_lightning.commands.networks import architectures
from ast_lightning.commands.run import Run, evaluation_folder
from ast_lightning.commands.scores import measure, metrics_of, remaining_seconds
from ast_lightning.commands.stores import check_store, experts_in_use, open_store
from ast_lightning.config.distill import PRECISIONS
from ast_lightning.config.identity import data_identity
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import Score
from ast_lightning.evaluation.baselines import NEED_EXPERTS, RANDOM_DRAWS
from ast_lightning.runs.loggers import uses_tensorboard
from ast_lightning.runs.machine import prepare
from ast_lightning.storage.inspection import count
from ast_lightning.synthetic import DistilledDataset, load_distilled
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore


def evaluate(run: Run) -> dict[str, float]:
    """Train new networks on the distilled images and on the real images of ``baselines``, and print a table.

    With ``architectures``, this is done for each of them, and the table has one row for each. Scores in
    ``results.json`` that were measured with the same inputs are reused.

    Returns:
        ``<name>_accuracy`` and ``<name>_std`` in per cent for ``distilled`` and every baseline; with ``architectures``
        each of them as ``<architecture>/<name>_accuracy``.
    """
    prepare(run.config["trainer"], tf32=run.config["tf32"])
    if (precision := str(run.config["trainer"].get("precision", PRECISIONS[0]))) not in PRECISIONS:
        remedy = f"set trainer.precision={PRECISIONS[0]}"
        raise ConfigurationError("trainer.precision", precision, "evaluation needs float32 or float64", remedy)
    others = architectures(run)
    dataset = _dataset(run)
    run.data.use_preprocessing(dataset.preprocessing)
    run.data.setup("test")
    check_dataset(dataset, run)
    if (own := run.config["data"]["preprocessing"]) != (kind := dataset.preprocessing.kind):
        say(f"note: images are preprocessed like the distilled ones, by {kind}: data.preprocessing={own} has no effect")
    store = experts_of_baselines(run)
    sets = cache(partial(training_sets, run, dataset, store))
    if others:
        rows = {
            label: Evaluation(each, dataset, store, sets, label, each.config["network"] == run.config["network"])
            for label, each in others.items()
        }
        scores = _compare_architectures(run, rows)
        metrics = {f"{label}/{name}": each for label in rows for name, each in metrics_of(scores[label]).items()}
    else:
        alone = Evaluation(run, dataset, store, sets)
        alone.check()
        scores = {"": measure(alone)}
        metrics = metrics_of(scores[""])
    if is_rank_zero():
        if others:
            _print_architectures(scores, dataset, run)
        else:
            _print_table(scores[""], dataset)
    if run.evaluation.lr and any(score.diverged for row in scores.values() for score in row.values()):
        say(f"note: networks diverged: lower evaluation.lr={run.evaluation.lr:g}")
    say(f"pictures:    {run.synthetic_folder() / 'images.png'}")
    if uses_tensorboard(run.loggers):
        say(f"TensorBoard: tensorboard --logdir {run.config['output_dir']}")
    for each in [] if run.fast_dev_run else [*others.values()] or [run]:
        say(f"results:     {evaluation_folder(each) / 'results.json'}")
    return metrics


def _compare_architectures(run: Run, rows: Mapping[str, Evaluation]) -> dict[str, dict[str, Score]]:
    """The scores of each network, measured one after the other under one progress bar.

    Raises:
        ConfigurationError: a network cannot be built for these images, or gives no logits; before any is trained.
    """
    if "whole" in run.config["baselines"] and not any(each.of_experts for each in rows.values()):
        say("note: no accuracy of the experts (baselines=[whole]): their network is not among the architectures")
    for label, row in rows.items():
        try:
            row.check()
        except ConfigurationError as error:
            remedy = f"leave {label} out of architectures"
            if error.option == "evaluation.batch_size":
                remedy += f", or choose another {error.option}"
            raise ConfigurationError("architectures", label, error.problem, remedy) from error
    progress = SharedProgress(sum(map(remaining_seconds, rows.values())) if is_rank_zero() else 1.0)
    try:
        return {label: measure(replace(row, progress=progress)) for label, row in rows.items()}
    finally:
        progress.close()


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
        if isinstance(options.get("data"), Mapping) and images.get("fingerprint") not in (None, run.data.fingerprint):
            fractions = [each["data"].get("test_fraction") for each in (options, run.config)]
            if data_identity(options) == data_identity(run.config):
                say("warning: the images of data.root have changed since this dataset was distilled")
            elif fractions[0] != fractions[1]:
                shown = "data.test_fraction={} (here {})".format(*map(json.dumps, fractions))
                say(f"warning: the set was distilled with {shown}: it may contain information of test images")
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
        complete = experts_in_use(store, run)
        if not complete:
            raise ConfigurationError("experts_dir", store.folder, "no expert is complete", "run train_experts.py first")
        check_store(store, run)
    except ConfigurationError as error:
        problem = f"experts are required, but {error.option}={error.value} has none that can be used ({error.problem})"
        others = ",".join(name for name in baselines if name not in needing)
        remedy = f"leave {','.join(needing)} out: baselines=[{others}], or {error.remedy}"
        raise ConfigurationError("baselines", ",".join(needing), problem, remedy) from error
    if "whole" in needing and not run.config["experts_dir"] and len(complete) < (wanted := run.config["num_experts"]):
        say(f"note: {len(complete)} of {count(wanted, 'expert')} are complete, and the others are left out of whole")
    return store


def _size(dataset: DistilledDataset) -> str:
    return f"{count(dataset.ipc, 'image' if dataset.crop_size is None else 'canvas')} per class"


def _print_table(scores: Mapping[str, Score], dataset: DistilledDataset) -> None:
    console = Console()
    table = Table(title=f"{_size(dataset)}, real test set")
    for column in ("trained on", "accuracy %", "networks"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for name, score in scores.items():
        table.add_row(TITLES[name], _shown(score, console), str(len(score.accuracies)))
    console.print(table)


def _print_architectures(rows: Mapping[str, Mapping[str, Score]], dataset: DistilledDataset, run: Run) -> None:
    console = Console()
    names = [name for name in TITLES if any(name in scores for scores in rows.values())]
    table = Table(title=f"{_size(dataset)}, accuracy % on the real test set")
    table.add_column("network", justify="left", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    for label, scores in rows.items():
        table.add_row(label, *(_shown(scores[name], console) if name in scores else "" for name in names))
    console.print(table)
    networks = run.evaluation.networks
    experts = "; whole: the experts" if "whole" in names else ""
    say(f"mean and standard deviation of {count(networks, 'network')}{experts}")
    if "random" in names:
        say(f"random: {max(networks, RANDOM_DRAWS)} networks, each on its own draw of real images")


def _shown(score: Score, console: Console) -> str:
    spread = "±" if console.encoding.startswith("utf") else "+-"
    return f"{score.diverged} diverged" if score.diverged else str(score).removesuffix(" %").replace("±", spread)
