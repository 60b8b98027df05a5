"""The command that trains experts and records their trajectories."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict

from lightning.pytorch.callbacks import ModelCheckpoint

from ast_lightning.callbacks import RunEstimate, RunProgress, is_rank_zero, say
from ast_lightning.data import save_preprocessing
from ast_lightning.experts import ExpertModule, ExpertObjective, TrajectoryRecorder
from ast_lightning.files import format_bytes
from ast_lightning.networks import describe_network
from ast_lightning.runs.machine import compile_experts, prepare
from ast_lightning.runs.run import Run, versions
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.records import PREPROCESSING_FILE
from ast_lightning.trajectories.room import writing


def train_experts(run: Run) -> dict[str, float]:
    """Train the experts that are not there yet.

    Returns:
        Means over these experts: ``test_accuracy`` in per cent, ``movement`` of an epoch, ``cross_entropy``.
    """
    prepare(run)
    run.data.setup("fit")
    indices = _wanted(run)
    store = None if run.fast_dev_run else open_store(run)
    pending = indices if store is None else [index for index in indices if not store.is_complete(index)]
    _announce(run, store, indices, pending)
    if pending:
        if store is not None and is_rank_zero():
            store.check_room(pending)
        objective = ExpertObjective(run.network(), run.expert, compile_experts(run))
    for position, index in enumerate(pending):
        _train_one(run, store, index, objective, RunEstimate(runs=len(pending)) if position == 0 else None)
    if store is None:
        say("fast_dev_run: nothing was written")
        return {}
    return _summarise(store, indices)


def open_store(run: Run) -> TrajectoryStore:
    """Make or open the store of this run; rank 0 writes."""
    folder = run.experts_folder()
    data = run.data.describe()
    # whitening matrices differ in their last bits between machines and numbers of threads: noted, and not compared
    fingerprint = data.pop("preprocessing_fingerprint")
    metadata = {
        "network": describe_network(run.network()),
        "data": data,
        "preprocessing_fingerprint": fingerprint,
        "expert": asdict(run.expert),
        "epochs": run.expert.epochs,
        "seed": run.seed,
        "versions": versions(),
        "config": run.config,
    }
    if is_rank_zero():
        store = TrajectoryStore.create(folder, metadata)
        path = folder / PREPROCESSING_FILE
        if not path.exists():
            writing(path, lambda: save_preprocessing(path, run.data.preprocessing))
        return store
    return TrajectoryStore(folder, metadata)


def _wanted(run: Run) -> list[int]:
    index = run.config["expert_index"]
    if run.fast_dev_run:
        return [index or 0]
    return list(range(run.config["num_experts"])) if index is None else [index]


def _announce(run: Run, store: TrajectoryStore | None, indices: list[int], pending: list[int]) -> None:
    if store is None:
        return
    for index in indices:
        if index not in pending:
            say(f"expert {index} is complete already: {store.expert_folder(index)}")
    if pending:
        parameters = sum(math.prod(shape) for _, shape in store.layout)
        disk = store.bytes_to_write(pending)
        say(
            f"training {len(pending)} experts of {parameters:,} parameters for {run.expert.epochs} epochs of "
            f"{len(run.data.train_dataloader())} steps; {format_bytes(disk)} of trajectories into {store.folder}"
        )


def _train_one(
    run: Run, store: TrajectoryStore | None, index: int, objective: ExpertObjective, estimate: RunEstimate | None
) -> None:
    expert = ExpertModule(run.network(), run.expert, expert_index=index, seed=run.seed, objective=objective)
    folder = run.experts_folder() if store is None else store.expert_folder(index)
    resume = folder / "resume"
    callbacks = [
        # the snapshot is written first, the state to resume from after it: Lightning runs checkpoints last
        TrajectoryRecorder(store),
        estimate,
        None if store is None else ModelCheckpoint(resume, "last", enable_version_counter=False, save_top_k=1),
    ]
    trainer = build_trainer(
        run.config["trainer"],
        folder,
        callbacks=[callback for callback in callbacks if callback is not None],
        hyperparameters=run.config,
        progress=RunProgress(f"expert {index}", lines=1),
        max_epochs=run.expert.epochs,
        enable_checkpointing=store is not None,
    )
    state = resume / "last.ckpt"
    trainer.fit(expert, datamodule=run.data, ckpt_path=state if state.exists() else None, weights_only=True)
    if store is not None and trainer.is_global_zero:
        shutil.rmtree(resume, ignore_errors=True)


def _summarise(store: TrajectoryStore, indices: list[int]) -> dict[str, float]:
    histories = [store.summary(index)["history"] for index in indices if store.is_complete(index)]
    if not histories:
        return {}  # another rank writes them
    rows = [row for history in histories for row in history]
    result = {
        "test_accuracy": 100 * sum(history[-1]["test/accuracy"] for history in histories) / len(histories),
        "movement": sum(row["trajectory/movement"] for row in rows) / len(rows),
        "cross_entropy": sum(history[-1]["train/cross_entropy"] for history in histories) / len(histories),
    }
    say(
        f"{len(histories)} experts: test accuracy {result['test_accuracy']:.1f} %, movement "
        f"{result['movement']:.3f} an epoch"
    )
    say(f"trajectories: {store.folder}")
    say(f"TensorBoard:  tensorboard --logdir {store.folder}")
    return result
