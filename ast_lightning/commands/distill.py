"""The command that distils trajectories into synthetic images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from ast_lightning.callbacks import (
    ArtifactWriter,
    MakeDataset,
    RunEstimate,
    RunProgress,
    StateOfIterations,
    SyntheticImageLogger,
)
from ast_lightning.commands.run import Run, short_hash
from ast_lightning.commands.stores import experts_to_distil
from ast_lightning.compilation import Compilation
from ast_lightning.data import ImageDataModule, LabelledImages, load_preprocessing
from ast_lightning.distillation import (
    DistillModule,
    TrajectoryMatchingSettings,
    TrajectoryWindows,
    check_ipc,
    check_precision,
    check_window,
    initial_images,
)
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import NetworkEvaluator
from ast_lightning.networks import FunctionalNetwork, describe_network
from ast_lightning.parallel.devices import devices_of
from ast_lightning.runs.checkpoints import RunStates, begin_anew
from ast_lightning.runs.expert_locks import sole_writer
from ast_lightning.runs.hparams import log_outcome
from ast_lightning.runs.lineage import ancestry_of
from ast_lightning.runs.machine import compile_student, prepare, record_machine
from ast_lightning.runs.results import (
    check_length,
    finished_result,
    iteration_of,
    materials_of,
    write_result,
)
from ast_lightning.runs.trainer import build_trainer, log_configuration
from ast_lightning.storage.files import clear_leftovers, write_json
from ast_lightning.synthetic import DistilledDataset, load_distilled
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.records import PREPROCESSING_FILE


def distill(run: Run) -> dict[str, float]:
    """Distil, going on from this run's own state where there is one.

    Returns:
        What the last evaluation found: ``test_accuracy``, ``test_accuracy_std`` (and of ``validation`` where data
        hold it out), in per cent, with ``student_lr``.
    """
    check_precision(str(run.config["trainer"].get("precision", "32-true")), run.experts_folder())
    ranks = devices_of(run.config["trainer"])
    run.distill.windows_of_a_device(ranks)
    folder = run.distill_folder()
    result = None if run.fresh or run.fast_dev_run else finished_result(run)
    if result is not None:
        say(f"finished already, {result['iteration']} iterations: {folder}")
        _report(folder, result["metrics"])
        return dict(result["metrics"])
    if not run.config["experts_dir"]:  # a folder that is named says itself how long its trajectories are
        check_window(run.distill.expert_epochs, run.distill.max_start_epoch, run.expert.schedule)
    prepare(run)
    store = TrajectoryStore.open(run.experts_folder())
    run.data.setup("fit")
    check_store(store, run)
    windows = build_windows(store, run)
    images, labels, settings = starting_point(store, run)
    settings.check_batch(len(images))
    compilation = compile_student(run, len(images))
    module = build_module(run, images, labels, windows, settings, compilation)
    materials = materials_of(run, store)
    identity = {"distillation": short_hash(run.distill_identity()), **materials}
    states = None if run.fast_dev_run else RunStates(folder / "checkpoints", identity)
    saver = None if states is None else StateOfIterations(states.last, settings.save_every, settings.eval_every)
    make = dataset_maker(run, store)
    writer = ArtifactWriter(folder / "synthetic", make, select=run.data.validation is not None, states=saver)
    trainer = build_trainer(
        run.config["trainer"],
        folder,
        callbacks=[RunEstimate()] if saver is None else [SyntheticImageLogger(make), writer, saver, RunEstimate()],
        progress=RunProgress("distilling"),
        states=states,
        max_steps=settings.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=1,  # an iteration has distill.windows_per_step windows
        val_check_interval=settings.eval_every,
        check_val_every_n_epoch=None,
    )
    _announce(run, store, windows, len(images), ranks)
    if states is None:
        trainer.fit(module)
        say("fast_dev_run: nothing was written")
        return {}
    with sole_writer(folder):
        metrics = _distil(run, trainer, module, states, writer, compilation)
        if trainer.is_global_zero:
            write_result(folder, trainer.global_step, metrics, run, materials)
    _report(folder, metrics)
    return metrics


def _distil(
    run: Run,
    trainer: Trainer,
    module: DistillModule,
    states: RunStates,
    writer: ArtifactWriter,
    compilation: Compilation,
) -> dict[str, float]:
    """The part that writes, for the process that alone may write into the folder of the run."""
    folder = run.distill_folder()
    resume = None
    if run.fresh:
        begin_anew(folder)
    else:
        resume = states.find(expected=(folder / "result.json").exists() or (writer.folder / "last").is_symlink())
    dataset_is_there = iteration_of(writer.folder / "last") is not None
    if is_rank_zero():
        clear_leftovers(folder)
        clear_leftovers(states.folder)
        write_json(folder / "config.json", run.config)
        record_machine(folder / "machine.json", compilation, trainer.world_size, resumed=resume is not None)
    log_configuration(trainer, run.config)
    if resume:
        say(f"going on from {resume}")
    say(f"into {folder}")
    trainer.fit(module, ckpt_path=resume, weights_only=True)
    check_length(run, trainer.global_step)
    if is_rank_zero() and module.compilation != compilation:  # it failed on the way
        record_machine(folder / "machine.json", module.compilation, trainer.world_size, resumed=False)
    evaluated = writer.last is not None and writer.last["iteration"] == trainer.global_step
    if not evaluated or not (writer.has_written or dataset_is_there):
        trainer.validate(module, verbose=False)
    found = {} if writer.last is None else writer.last["metrics"]
    metrics = {name.replace("/", "_"): value for name, value in found.items()}
    metrics["student_lr"] = float(module.learning_rate.detach())
    log_outcome(trainer.loggers, run.config, ("expert", "distill", "evaluation"), metrics)
    return metrics


def check_store(store: TrajectoryStore, run: Run) -> None:
    """Refuse trajectories of another network, of other data or of other preprocessing.

    Raises:
        ConfigurationError: naming what differs.
    """
    store.require("network", describe_network(run.network()))
    described = run.data.describe()
    for ignored in ("preprocessing_fingerprint", "augmentation"):
        described.pop(ignored)
    stored = {key: value for key, value in store.metadata["data"].items() if key in described}
    TrajectoryStore(store.folder, {**store.metadata, "data": stored}).require("data", described)
    store.check_preprocessing()
    path = store.folder / PREPROCESSING_FILE
    if not path.exists():
        raise ConfigurationError(
            "experts_dir",
            store.folder,
            "it was made from Python, without the statistics of the preprocessing",
            f"write them there: save_preprocessing({str(path)!r}, data.preprocessing)",
        )
    different = run.data.preprocessing.difference(load_preprocessing(path))
    if different:
        raise ConfigurationError(
            "data.preprocessing",
            run.data.preprocessing.kind,
            f"its {different} differs from that of the trajectories in {store.folder}",
            "use the data and preprocessing options that the experts were trained with",
        )


def build_windows(store: TrajectoryStore, run: Run) -> TrajectoryWindows:
    """The stream of windows: over all experts of ``experts_dir``, or over the ``num_experts`` of this run.

    Raises:
        ConfigurationError: some of them are not complete.
    """
    complete = store.experts()
    if run.config["experts_dir"] and (incomplete := store.incomplete()):
        count = "1 incomplete expert" if len(incomplete) == 1 else f"{len(incomplete)} incomplete experts"
        say(f"leaving out {count} of {store.folder}, the first is expert {incomplete[0]}")
    wanted = experts_to_distil(run, store)
    missing = [index for index in wanted if index not in complete]
    if missing:
        raise ConfigurationError(
            "num_experts",
            run.config["num_experts"],
            f"{len(missing)} of them are not complete in {store.folder}, the first is expert {missing[0]}",
            f"let train_experts.py finish, or set num_experts={missing[0]}" if missing[0] else "run train_experts.py",
        )
    return TrajectoryWindows(
        store,
        expert_epochs=run.distill.expert_epochs,
        max_start_epoch=run.distill.max_start_epoch,
        seed=run.seed,
        experts=wanted,
    )


def starting_point(store: TrajectoryStore, run: Run) -> tuple[Tensor, Tensor, TrajectoryMatchingSettings]:
    """X and Y before distillation, and the settings with the initial α that belongs to them."""
    settings = run.distill
    if settings.warm_start:
        earlier = load_distilled(settings.warm_start, "distill.warm_start")
        _check_warm_start(earlier, run.data, settings)
        return earlier.images, earlier.labels, replace(settings, lr_teacher=earlier.learning_rate)
    if settings.init != "noise":
        check_ipc(run.data.train.labels, run.data.class_names, settings.ipc)
    images, labels = real_or_noise(store, run, settings.init, run.seed)
    return images, labels, settings


def real_or_noise(store: TrajectoryStore, run: Run, init: str, seed: int) -> tuple[Tensor, Tensor]:
    """An initial set; the representative one is chosen by the first expert of the store."""
    logits = None
    if init == "representative":
        network, theta = (
            FunctionalNetwork(run.network()),
            store.read_snapshot(store.experts()[0], store.epochs),
        )

        def logits(images: Tensor) -> Tensor:
            with torch.no_grad():
                return network(theta, images)

    settings = run.distill
    return initial_images(
        init,
        run.data.train,
        run.data.class_names,
        settings.ipc,
        seed=seed,
        logits=logits,
        clusters=settings.init_clusters,
    )


def build_module(
    run: Run,
    images: Tensor,
    labels: Tensor,
    windows: TrajectoryWindows,
    settings: TrajectoryMatchingSettings,
    compilation: Compilation,
) -> DistillModule:
    """The module, with an evaluator over the test split and, where there is one, the validation split."""
    splits: dict[str, LabelledImages] = {"test": run.data.test}
    if run.data.validation is not None:
        splits["validation"] = run.data.validation
    evaluator = NetworkEvaluator(
        run.network(),
        run.evaluation,
        splits,
        augmentation=run.data.augmentation,
        seed=run.seed,
        purpose="evaluation while distilling",
    )
    return DistillModule(
        run.network(),
        images,
        labels,
        windows,
        settings,
        augmentation=run.data.augmentation,
        evaluator=evaluator,
        seed=run.seed,
        compilation=compilation,
    )


def _check_warm_start(earlier: DistilledDataset, data: ImageDataModule, settings: TrajectoryMatchingSettings) -> None:
    shape = (data.num_classes * settings.ipc, data.channels, *data.image_size)
    if tuple(earlier.images.shape) != shape or earlier.class_names != data.class_names:
        raise ConfigurationError(
            "distill.warm_start",
            settings.warm_start,
            f"its images {tuple(earlier.images.shape)} of {len(earlier.class_names)} classes are not the "
            f"{shape} of this run",
            "set distill.ipc and the data options to those of the earlier distillation",
        )
    different = data.preprocessing.difference(earlier.preprocessing)
    if different:
        raise ConfigurationError(
            "distill.warm_start",
            settings.warm_start,
            f"the {different} of its preprocessing ({earlier.preprocessing.kind}) is not that of this run "
            f"({data.preprocessing.kind})",
            "set the data and preprocessing options to those of the earlier distillation",
        )


def dataset_maker(run: Run, store: TrajectoryStore) -> MakeDataset:
    """What turns the module into a distilled dataset that says where it comes from."""
    ancestry = ancestry_of(run, store)

    def make(module: DistillModule, found: dict[str, Any]) -> DistilledDataset:
        return DistilledDataset.from_training(module.training_set(), run.data, {**found, **ancestry})

    return make


def _announce(run: Run, store: TrajectoryStore, windows: TrajectoryWindows, count: int, ranks: int) -> None:
    settings = run.distill
    networks = settings.eval_networks or run.evaluation.networks
    several = settings.windows_per_step
    over = f" over {several} windows" if several > 1 else ""
    divided = f", {'batches' if settings.splits_batches(ranks) else 'windows'} divided by {ranks} devices"
    say(
        f"distilling {count} images from {len(windows.experts)} experts in {store.folder}: {settings.max_steps} "
        f"iterations{over} of {settings.syn_steps} inner steps{divided if ranks > 1 else ''}; an evaluation of "
        f"{networks} networks every {settings.eval_every}"
    )


def _report(folder: Path, metrics: dict[str, float]) -> None:
    for split in ("test", "validation"):
        if f"{split}_accuracy" in metrics:
            spread = metrics.get(f"{split}_accuracy_std", 0.0)
            say(f"{split} accuracy of the last images: {metrics[f'{split}_accuracy']:.1f} ± {spread:.1f} %")
    say(f"distilled dataset: {folder / 'synthetic' / 'last'}")
    say(f"pictures:          {folder / 'synthetic' / 'last' / 'images.png'}")
    say(f"TensorBoard:       tensorboard --logdir {folder}")
