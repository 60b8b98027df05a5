"""The command that trains experts and records their trajectories."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from omegaconf import OmegaConf

from ast_lightning.callbacks import RunProgress, StateOfEpochs
from ast_lightning.commands.app import execute
from ast_lightning.commands.import_experts import import_experts
from ast_lightning.commands.run import Run, short_hash
from ast_lightning.commands.stores import (
    choose_compilation,
    context_of,
    expert_results,
    incomplete,
    make_store,
    summarise,
    wanted_experts,
)
from ast_lightning.data import load_preprocessing
from ast_lightning.experts import ExpertModule, ExpertObjective, TrajectoryRecorder, check_devices, kept_in
from ast_lightning.parallel.devices import devices_of
from ast_lightning.parallel.workers import count_processes, run_workers
from ast_lightning.runs.checkpoints import RunStates
from ast_lightning.runs.expert_locks import all_locked, claim_experts, held_by_others
from ast_lightning.runs.loggers import create, log_outcome, start_loggers
from ast_lightning.runs.machine import prepare, record_machine
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.storage.files import clear_leftovers, format_bytes
from ast_lightning.storage.inspection import count
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.listing import snapshot_files
from ast_lightning.trajectories.records import IDENTITY, PREPROCESSING_FILE

PASSES_OF_A_PLAIN_STEP = 3
"""Operations of an expert's step for each image, in forward passes."""
PASSES_OF_A_PENALIZED_STEP = 9
"""The same with the gradient penalty."""


def train_experts(run: Run) -> dict[str, float]:
    """Train the missing experts, or import them if ``buffers`` is set.

    Several processes can share the work: ``expert_processes`` sets how many this command starts, and the same command
    can be run several times in parallel.

    Returns:
        Means over the experts: ``test_accuracy`` in per cent, ``movement`` per epoch, ``cross_entropy``.
    """
    prepare(run.config["trainer"], tf32=run.config["tf32"])
    if run.config["buffers"]:
        return import_experts(run)
    run.expert.check_precision(str(run.config["trainer"]["precision"]))
    if not run.fast_dev_run:  # distill.py would reject these options after the experts are trained
        run.method.check(run.distill, replace(context_of(run), ranks=1))
    processes = count_processes(run.config["expert_processes"], run.config["trainer"], in_sweep=run.in_sweep)
    run.data.setup("fit")
    check_devices(run.network(), devices_of(run.config["trainer"]))
    indices = wanted_experts(run)
    if run.fast_dev_run:
        progress = RunProgress(f"expert {indices[0]}", lines=1)
        trainer = _trainer(run, run.experts_folder(), [TrajectoryRecorder(None)], progress)
        trainer.fit(_expert(run, indices[0], _objective(run)), datamodule=run.data)
        say("fast_dev_run: nothing was written")
        return {}
    if not run.distill.uses_experts(run.config["distill"]):
        method = run.choices.get("distill", "this method")
        say(f"note: distill={method} needs no experts; evaluate.py uses them with baselines=[representative,whole]")
    store = make_store(run)
    pending = indices if run.fresh else incomplete(store, indices)
    store.check_files(set(indices) - set(pending))
    processes = min(processes, len(pending))
    _announce(run, store, indices, pending, processes)
    if is_rank_zero():
        for index in set(indices) - set(pending):  # left over if a run was killed after an expert's last file
            shutil.rmtree(_checkpoints(store, index).folder, ignore_errors=True)
        if pending:
            store.check_room(pending, anew=run.fresh)
    if processes > 1:
        if run.fresh:
            with all_locked(store, pending, fresh=True):
                run = replace(run, config={**run.config, "fresh": False})  # earlier files are moved aside by now
        config = {**run.config, "expert_processes": 1}
        config.pop("derived", None)  # the other sections contain its values already
        run_workers(_work, (config, dict(run.choices)), processes, run.config["trainer"])
        pending = held_by_others(store, incomplete(store, pending))  # trained by other commands: wait, or take over
    if pending:
        _train(run, store, pending)
    return summarise(run, store, indices)


def _work(config: dict[str, Any], choices: dict[str, str], number: int, count: int) -> None:
    """Train experts as one of several processes, until all remaining ones are being trained by other processes."""

    def train(run: Run) -> dict[str, float]:
        run = replace(run, choices=choices)
        prepare(run.config["trainer"], tf32=run.config["tf32"])
        # the parent process has fitted the preprocessing
        run.data.use_preprocessing(load_preprocessing(run.experts_folder() / PREPROCESSING_FILE))
        run.data.setup("fit")
        store = make_store(run)
        _train(run, store, incomplete(store, wanted_experts(run)), count, estimate=number == 0)
        return {}

    execute(train, OmegaConf.create(config))


def _train(run: Run, store: TrajectoryStore, pending: list[int], processes: int = 1, *, estimate: bool = True) -> None:
    objective = _objective(run)
    runs = -(-len(pending) // processes) if estimate else 0
    claims = claim_experts(store, pending, together=not run.is_alone, fresh=run.fresh, wait=processes == 1)
    with closing(claims) as claimed:  # releases the locks
        for index in claimed:
            _train_one(run, store, index, objective, runs)
            runs = 0


def _announce(run: Run, store: TrajectoryStore, indices: list[int], pending: list[int], processes: int) -> None:
    for index in indices:
        if index not in pending:
            say(f"expert {index} is already complete: {store.expert_folder(index)}")
    if pending:
        disk = format_bytes(store.bytes_to_write(pending, anew=run.fresh))
        say(
            f"training {count(len(pending), 'expert')} {f'in {processes} processes ' if processes > 1 else ''}"
            f"of {store.format.num_parameters:,} parameters for {count(run.expert.epochs, 'epoch')} of "
            f"{count(len(run.data.train_dataloader()), 'step')}; {disk} of trajectories into {store.folder}"
        )


def _train_one(run: Run, store: TrajectoryStore, index: int, objective: ExpertObjective, runs: int = 0) -> None:
    folder, checkpoints = store.expert_folder(index), _checkpoints(store, index)
    # the snapshot is written before the checkpoint to resume from: Lightning runs checkpoint callbacks last
    callbacks = [TrajectoryRecorder(store), StateOfEpochs(checkpoints.last)]
    progress = RunProgress(f"expert {index}", lines=1, runs=runs)
    trainer = _trainer(run, folder, callbacks, progress, checkpoints)
    has_work = any(epoch > 1 for epoch, _ in snapshot_files(folder))  # snapshot 1 is older than the first checkpoint
    resume = None if run.fresh else checkpoints.find(expected=has_work)
    if is_rank_zero():
        clear_leftovers(folder)
        clear_leftovers(checkpoints.folder)
        path = checkpoints.folder / "machine.json"
        record_machine(path, objective.compilation, trainer.world_size, resumed=resume is not None)
    trainer.loggers = start_loggers(run.loggers, folder, run.config)
    if resume:
        say(f"expert {index} resumes from {resume}")
    expert = _expert(run, index, objective, scores=partial(kept_in, store))
    trainer.fit(expert, datamodule=run.data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero and store.is_complete(index):  # not if max_time stopped it early
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
        log_outcome(trainer.loggers, run.config, ("expert",), expert_results(store, [index]), trainer.global_step)


def _objective(run: Run) -> ExpertObjective:
    """Create the objective. Whether to compile depends on all ``num_experts``, also if only one of them is trained."""
    passes = PASSES_OF_A_PENALIZED_STEP if run.expert.gradient_penalty > 0 else PASSES_OF_A_PLAIN_STEP
    passes *= 2 if run.expert.optimizer == "gsam" else 1
    images = len(run.data.train.labels) * run.expert.epochs * int(run.config["num_experts"])
    return ExpertObjective(run.network(), run.expert, choose_compilation(run, passes * images))


def _expert(run: Run, index: int, objective: ExpertObjective, **options: Any) -> ExpertModule:
    return ExpertModule(run.network(), run.expert, expert_index=index, seed=run.seed, objective=objective, **options)


def _trainer(
    run: Run, folder: Path, callbacks: list[Callback], progress: RunProgress, checkpoints: RunStates | None = None
) -> Trainer:
    return build_trainer(
        run.config["trainer"],
        folder,
        callbacks=[*callbacks, *create("callbacks", Callback, run.callbacks)],
        progress=progress,
        states=checkpoints,
        max_epochs=run.expert.epochs,
        reload_dataloaders_every_n_epochs=int(run.expert.samples != "all"),  # epochs may differ in length
    )


def _checkpoints(store: TrajectoryStore, index: int) -> RunStates:
    """The checkpoints of an expert. They are also valid for the same expert in another folder."""
    belongs_to = {"expert": index, "store": short_hash({key: store.metadata.get(key) for key in IDENTITY})}
    return RunStates(store.expert_folder(index) / "resume", belongs_to, f"expert_index={index} fresh=true")
