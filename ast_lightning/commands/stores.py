"""The trajectory store of a run: made by one process, opened by the others; which experts it has, and how good."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any

from ast_lightning.commands.run import Run
from ast_lightning.data import save_preprocessing
from ast_lightning.networks import describe_network
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.storage.disk_space import writing
from ast_lightning.storage.files import clear_leftovers
from ast_lightning.storage.provenance import provenance
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.records import PREPROCESSING_FILE, STORE_FILE


def experts_to_distil(run: Run, store: TrajectoryStore) -> list[int]:
    """All that are complete in a folder that is named, or the ``num_experts`` of this run, whether complete or not."""
    return store.experts() if run.config["experts_dir"] else list(range(run.config["num_experts"]))


def wanted_experts(run: Run) -> list[int]:
    """The experts that this run is to train or import: ``expert_index``, or all of ``num_experts``."""
    index = run.config["expert_index"]
    return list(range(run.config["num_experts"])) if index is None else [index]


def incomplete(store: TrajectoryStore, experts: Sequence[int]) -> list[int]:
    """Those of ``experts`` that are not complete."""
    return [expert for expert in experts if not store.is_complete(expert)]


def expert_results(store: TrajectoryStore, experts: Sequence[int]) -> dict[str, float]:
    """Means over complete experts: ``test_accuracy`` in per cent, ``movement`` of an epoch and, of experts that were
    trained here, ``cross_entropy`` of the last epoch.
    """
    summaries = [store.summary(expert) for expert in experts]
    metrics = [summary["metrics"] for summary in summaries]
    movement = [row["trajectory/movement"] for summary in summaries for row in summary["history"]]
    results = {
        "test_accuracy": 100 * fsum(each["test/accuracy"] for each in metrics) / len(metrics),
        "movement": fsum(movement) / len(movement),
    }
    if all("train/cross_entropy" in each for each in metrics):
        results["cross_entropy"] = fsum(each["train/cross_entropy"] for each in metrics) / len(metrics)
    return results


def summarise(run: Run, store: TrajectoryStore, experts: Sequence[int]) -> dict[str, float]:
    """Print and return :func:`expert_results` of those that are complete; nothing where none is."""
    missing = incomplete(store, experts)
    if missing:  # max_time of the Trainer ended them, or another rank writes them at this moment
        say(f"{len(missing)} of {len(experts)} experts are incomplete: rerun the command to resume")
    complete = [expert for expert in experts if expert not in missing]
    if not complete:
        return {}
    results = expert_results(store, complete)
    say(
        f"{len(complete)} experts: test accuracy {results['test_accuracy']:.1f} %, movement {results['movement']:.3f} "
        "per epoch"
    )
    say(f"trajectories: {store.folder}")
    if run.config["trainer"].get("logger") == "tensorboard" and not run.config["buffers"]:
        say(f"TensorBoard:  tensorboard --logdir {store.folder}")
    return results


def make_store(run: Run, **differs: Any) -> TrajectoryStore:
    """Make or open the store of this run; rank 0 writes.

    Args:
        run: with its data set up.
        differs: keys of the store's description that differ from those of experts that are trained here.

    Raises:
        ConfigurationError: the folder holds trajectories of something else, or cannot be written.
    """
    folder = run.experts_folder()
    data = run.data.describe()
    # whitening matrices differ in their last bits between machines and numbers of threads: noted, and not compared
    fingerprint = data.pop("preprocessing_fingerprint")
    metadata = {
        "network": describe_network(run.network()),
        "data": data,
        "preprocessing_fingerprint": fingerprint,
        "expert": run.expert.describe(),
        "epochs": run.expert.epochs,
        "seed": run.seed,
        "arithmetic": run.arithmetic(),
        **provenance(),
        "config": run.config,
        **differs,
    }
    if not is_rank_zero():
        return TrajectoryStore(folder, metadata)
    preprocessing = folder / PREPROCESSING_FILE
    if (folder / STORE_FILE).exists() and preprocessing.exists():
        return TrajectoryStore.create(folder, metadata)  # nothing to write
    with FolderLock(folder / "store") as lock:  # kept inside: the folder may be all that this user can write to
        lock.take(seconds=-1)
        clear_leftovers(folder)
        store = TrajectoryStore.create(folder, metadata)
        if not preprocessing.exists():
            writing(preprocessing, lambda: save_preprocessing(preprocessing, run.data.preprocessing))
    return store
