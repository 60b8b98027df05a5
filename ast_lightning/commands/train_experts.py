"""The command that trains experts and records their trajectories."""

from __future__ import annotations

import math
import shutil
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from omegaconf import OmegaConf

from ast_lightning.callbacks import RunEstimate, RunProgress, StateOfEpochs
from ast_lightning.commands.app import execute
from ast_lightning.commands.import_experts import import_experts
from ast_lightning.commands.run import Run, short_hash
from ast_lightning.commands.stores import make_store
from ast_lightning.data import load_preprocessing
from ast_lightning.experts import ExpertModule, ExpertObjective, TrajectoryRecorder
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.parallel.workers import count_processes, run_workers
from ast_lightning.runs.checkpoints import RunStates
from ast_lightning.runs.expert_locks import all_locked, claim_experts, held_by_others
from ast_lightning.runs.hparams import log_outcome
from ast_lightning.runs.machine import compile_experts, prepare, record_machine
from ast_lightning.runs.trainer import build_trainer, log_configuration
from ast_lightning.storage.files import clear_leftovers, format_bytes
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.records import IDENTITY, PREPROCESSING_FILE


def train_experts(run: Run) -> dict[str, float]:
    """Train the experts that are not there yet, or import them where ``buffers`` is set.

    Several processes may share the work: this one starts some where ``expert_processes`` says so, and others may run
    the same command.

    Returns:
        Means over these experts: ``test_accuracy`` in per cent, ``movement`` of an epoch, ``cross_entropy``.
    """
    prepare(run)
    if run.config["buffers"]:
        return import_experts(run)
    processes = count_processes(run.config["expert_processes"], run.config["trainer"], in_sweep=run.in_sweep)
    run.data.setup("fit")
    indices = _wanted(run)
    if run.fast_dev_run:
        _train_one(run, None, indices[0], ExpertObjective(run.network(), run.expert, compile_experts(run)), None)
        say("fast_dev_run: nothing was written")
        return {}
    store = make_store(run, expert=asdict(run.expert))
    pending = indices if run.fresh else _incomplete(store, indices)
    processes = min(processes, len(pending))
    _announce(run, store, indices, pending, processes)
    _drop_states_of_complete(store, [index for index in indices if index not in pending])
    if pending and is_rank_zero():
        store.check_room(pending, anew=run.fresh)
    if processes > 1:
        if run.fresh:
            with all_locked(store, pending, fresh=True):
                run = replace(run, config={**run.config, "fresh": False})  # they are moved aside, and begin anew
        config = {**run.config, "expert_processes": 1}
        run_workers(_work, (config, dict(run.choices)), processes, run.config["trainer"])
        pending = held_by_others(store, _incomplete(store, pending))  # by other commands: wait for those, or take over
    if pending:
        _train(run, store, pending)
    return _summarise(store, indices)


def _work(config: dict[str, Any], choices: dict[str, str], number: int, count: int) -> None:
    """Train experts as one of several processes, until there is none left that no other process trains."""

    def train(run: Run) -> dict[str, float]:
        run = replace(run, choices=choices)
        prepare(run)
        run.data.use_preprocessing(
            load_preprocessing(run.experts_folder() / PREPROCESSING_FILE)
        )  # fitted by the parent
        run.data.setup("fit")
        store = make_store(run, expert=asdict(run.expert))
        _train(run, store, _incomplete(store, _wanted(run)), count, estimate=number == 0)
        return {}

    execute(train, OmegaConf.create(config))


def _train(run: Run, store: TrajectoryStore, pending: list[int], processes: int = 1, *, estimate: bool = True) -> None:
    objective = ExpertObjective(run.network(), run.expert, compile_experts(run))
    first = RunEstimate(runs=-(-len(pending) // processes)) if estimate else None
    claims = claim_experts(store, pending, together=not run.is_alone, fresh=run.fresh, wait=processes == 1)
    with closing(claims) as claimed:  # gives locks back
        for index in claimed:
            _train_one(run, store, index, objective, first)
            first = None


def _incomplete(store: TrajectoryStore, indices: list[int]) -> list[int]:
    return [index for index in indices if not store.is_complete(index)]


def _wanted(run: Run) -> list[int]:
    index = run.config["expert_index"]
    if run.fast_dev_run:
        return [index or 0]
    return list(range(run.config["num_experts"])) if index is None else [index]


def _announce(run: Run, store: TrajectoryStore, indices: list[int], pending: list[int], processes: int) -> None:
    for index in indices:
        if index not in pending:
            say(f"expert {index} is complete already: {store.expert_folder(index)}")
    if pending:
        parameters = sum(math.prod(shape) for _, shape in store.layout)
        disk = store.bytes_to_write(pending, anew=run.fresh)
        say(
            f"training {len(pending)} experts {f'in {processes} processes ' if processes > 1 else ''}"
            f"of {parameters:,} parameters for {run.expert.epochs} epochs of "
            f"{len(run.data.train_dataloader())} steps; {format_bytes(disk)} of trajectories into {store.folder}"
        )


def _train_one(
    run: Run, store: TrajectoryStore | None, index: int, objective: ExpertObjective, estimate: RunEstimate | None
) -> None:
    expert = ExpertModule(run.network(), run.expert, expert_index=index, seed=run.seed, objective=objective)
    folder = run.experts_folder() if store is None else store.expert_folder(index)
    states = None if store is None else _states_of(store, index)
    callbacks = [
        # the snapshot is written first, the state to go on from after it: Lightning runs checkpoints last
        TrajectoryRecorder(store),
        estimate,
        None if states is None else StateOfEpochs(states.last),
    ]
    trainer = build_trainer(
        run.config["trainer"],
        folder,
        callbacks=[callback for callback in callbacks if callback is not None],
        progress=RunProgress(f"expert {index}", lines=1),
        states=states,
        max_epochs=run.expert.epochs,
    )
    if store is None or states is None:
        trainer.fit(expert, datamodule=run.data)
        return
    resume = None if run.fresh else states.find(expected=_has_work(store, index))
    if is_rank_zero():
        clear_leftovers(folder)
        clear_leftovers(states.folder)
        path = states.folder / "machine.json"
        record_machine(path, objective.compilation, trainer.world_size, resumed=resume is not None)
    log_configuration(trainer, run.config)
    if resume:
        say(f"expert {index} goes on from {resume}")
    trainer.fit(expert, datamodule=run.data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero and store.is_complete(index):  # not where max_time ended it before its time
        shutil.rmtree(states.folder, ignore_errors=True)
        log_outcome(trainer.loggers, run.config, ("expert",), _results(store, index))


def _results(store: TrajectoryStore, index: int) -> dict[str, float]:
    """Of one expert, by the names of :func:`_summarise`."""
    history = store.summary(index)["history"]
    return {
        "test_accuracy": 100 * history[-1]["test/accuracy"],
        "movement": sum(row["trajectory/movement"] for row in history) / len(history),
        "cross_entropy": history[-1]["train/cross_entropy"],
    }


def _drop_states_of_complete(store: TrajectoryStore, complete: list[int]) -> None:
    """What a kill between the last file of an expert and the deletion of its state leaves."""
    for index in complete if is_rank_zero() else []:
        states = _states_of(store, index).folder
        if states.exists():
            with FolderLock(store.expert_folder(index)) as lock:
                if lock.take():
                    shutil.rmtree(states, ignore_errors=True)


def _has_work(store: TrajectoryStore, index: int) -> bool:
    """Whether a state must have been written: the snapshot after the first epoch is there before its state."""
    snapshots = store.expert_folder(index).glob("epoch_*.safetensors")
    return any(int(path.stem.removeprefix("epoch_")) > 1 for path in snapshots)


def _states_of(store: TrajectoryStore, index: int) -> RunStates:
    """The states of an expert: those of the same expert in another folder are the same."""
    made_from = short_hash({key: store.metadata.get(key) for key in IDENTITY})
    belongs_to = {"expert": index, "store": made_from}
    return RunStates(store.expert_folder(index) / "resume", belongs_to, f"expert_index={index} fresh=true")


def _summarise(store: TrajectoryStore, indices: list[int]) -> dict[str, float]:
    histories = [store.summary(index)["history"] for index in indices if store.is_complete(index)]
    if len(histories) < len(indices):  # max_time or max_steps of the Trainer ended them, or another rank writes them
        say(f"{len(indices) - len(histories)} of {len(indices)} experts are incomplete: the same command goes on")
    if not histories:
        return {}
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
