"""The trajectory store of a run: made by one process, opened by the others."""

from __future__ import annotations

from typing import Any

from ast_lightning.commands.run import Run
from ast_lightning.data import save_preprocessing
from ast_lightning.networks import describe_network
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.storage.disk_space import writing
from ast_lightning.storage.files import clear_leftovers
from ast_lightning.storage.provenance import provenance
from ast_lightning.terminal import is_rank_zero
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.records import PREPROCESSING_FILE, STORE_FILE


def experts_to_distil(run: Run, store: TrajectoryStore) -> list[int]:
    """All that are complete in a folder that is named, or the ``num_experts`` of this run, whether complete or not."""
    return store.experts() if run.config["experts_dir"] else list(range(run.config["num_experts"]))


def make_store(run: Run, **differs: Any) -> TrajectoryStore:
    """Make or open the store of this run; rank 0 writes.

    Args:
        run: with its data set up.
        differs: what the store's description says otherwise than that of experts trained here.

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
            with writing(preprocessing):
                save_preprocessing(preprocessing, run.data.preprocessing)
    return store
