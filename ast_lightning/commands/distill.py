"""The command that distils a dataset into synthetic images with the configured method."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from ast_lightning.callbacks import (
    ArtifactWriter,
    ImageAverage,
    MakeDataset,
    RunProgress,
    StateOfIterations,
    SyntheticImageLogger,
)
from ast_lightning.commands.measurement import check_network
from ast_lightning.commands.run import Run
from ast_lightning.commands.stores import context_of, how_to_resume
from ast_lightning.compilation import Compilation
from ast_lightning.config.distill import check_precision
from ast_lightning.config.evaluation import EvaluationSettings
from ast_lightning.config.identity import complete_record
from ast_lightning.data.sources import BUILT_IN
from ast_lightning.distillation import Context, DistillModule, Method, starting_point
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import NetworkEvaluator
from ast_lightning.networks import describe_network
from ast_lightning.runs.checkpoints import RunStates, begin_anew, require_same
from ast_lightning.runs.expert_locks import sole_writer
from ast_lightning.runs.loggers import create, log_outcome, start_loggers, uses_tensorboard
from ast_lightning.runs.machine import prepare, record_machine
from ast_lightning.runs.results import describe_set, iteration_of, read_result, write_result
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.storage.files import clear_leftovers, write_json
from ast_lightning.storage.inspection import count
from ast_lightning.synthetic import DistilledDataset, load_distilled
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories.lineage import experts_checksum
from ast_lightning.trajectories.records import first_difference


def distill(run: Run) -> dict[str, float]:
    """Distil a dataset; resume from this run's checkpoint if there is one.

    Returns:
        The results of the last evaluation: ``test_accuracy`` and ``test_accuracy_std`` in per cent (with a validation
        split also ``validation_accuracy`` and ``validation_accuracy_std``), and ``student_lr``.
    """
    check_precision(str(run.config["trainer"].get("precision", "32-true")), run.experts_folder())
    method_class, settings, context = run.method, run.distill, context_of(run)
    method_class.check(settings, context)
    folder = run.distill_folder()
    result = None if run.fresh or run.fast_dev_run else read_result(folder)
    if result is not None and result["iteration"] >= settings.max_steps:
        _check_result(run, context, result)
        say(f"already finished, {result['iteration']} iterations: {folder}")
        _report(run, result["metrics"])
        return dict(result["metrics"])
    prepare(run.config["trainer"], tf32=run.config["tf32"])
    method = method_class.build(settings, context)
    run.data.setup("fit")
    synthetic = method.synthetic_set(*starting_point(settings, context))
    check_network(run, synthetic.shape[0])
    evaluator = _evaluator(run)
    module = DistillModule(synthetic, method, evaluator=evaluator)
    inputs = _inputs(run, context)
    identity = {"distillation": run.distill_key(), **inputs}
    states = None if run.fast_dev_run else RunStates(folder / "checkpoints", identity)
    saver = None if states is None else StateOfIterations(states.last, settings.save_every, settings.eval_every)
    make = dataset_maker(run, method)
    average = ImageAverage() if settings.ema is None else None  # else the dataset itself is an average
    select = run.data.validation is not None
    writer = ArtifactWriter(folder / "synthetic", make, select=select, average=average, states=saver)
    trainer = build_trainer(
        run.config["trainer"],
        folder,
        callbacks=[
            *([] if saver is None else [*([average] if average else []), SyntheticImageLogger(make), writer, saver]),
            *create("callbacks", Callback, run.callbacks),
        ],
        progress=RunProgress("distilling", runs=1, evaluator=evaluator),
        states=states,
        max_steps=settings.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=1,  # the method determines the size of an iteration
        val_check_interval=settings.eval_every,
        check_val_every_n_epoch=None,
    )
    _announce(run, method, synthetic.shape[0])
    if states is None:
        trainer.fit(module)
        say("fast_dev_run: nothing was written")
        return {}
    with sole_writer(folder):
        metrics = _distil(run, trainer, module, states, writer)
        if trainer.is_global_zero:
            write_result(folder, trainer.global_step, metrics, inputs, run.config)
    _report(run, metrics)
    return metrics


def _distil(
    run: Run, trainer: Trainer, module: DistillModule, states: RunStates, writer: ArtifactWriter
) -> dict[str, float]:
    """Run the distillation and write its files. The caller holds the lock of the run's folder."""
    folder, compilation = run.distill_folder(), module.compilation
    if run.fresh:
        begin_anew(folder)
    written = iteration_of(writer.folder / "last")
    expected = written != 0 and ((folder / "result.json").exists() or os.path.lexists(writer.folder / "last"))
    resume = None if run.fresh else states.find(expected=expected)
    if is_rank_zero():
        clear_leftovers(folder)
        clear_leftovers(states.folder)
        write_json(folder / "config.json", run.config)
        _record(folder, compilation, trainer, resumed=resume is not None)
    trainer.loggers = start_loggers(run.loggers, folder, run.config)
    if resume:
        say(f"resuming from {resume}")
    say(f"into {folder}")
    trainer.fit(module, ckpt_path=resume, weights_only=True)
    _check_length(run, trainer.global_step)
    if module.skipped:
        bound = getattr(run.distill, "max_loss", None)
        say(f"note: {module.skipped} of {trainer.global_step} iterations changed nothing: distill.max_loss={bound}")
    if is_rank_zero() and module.compilation != compilation:  # compilation failed during the run
        _record(folder, module.compilation, trainer, resumed=False)
    evaluated = writer.last is not None and writer.last["iteration"] == trainer.global_step
    if not evaluated or not (writer.has_written or written is not None):
        trainer.validate(module, verbose=False)
    found = {} if writer.last is None else writer.last["metrics"]
    metrics = {name.replace("/", "_"): value for name, value in found.items()}
    metrics["student_lr"] = module.training_set().learning_rate
    log_outcome(trainer.loggers, run.config, ("expert", "distill", "evaluation"), metrics, trainer.global_step)
    return metrics


def _inputs(run: Run, context: Context) -> dict[str, Any]:
    """The inputs of a distillation besides its settings: checksums of the files in the folders that these name.

    Raises:
        ConfigurationError: an input is missing or damaged.
    """
    found = run.method.inputs(run.distill, context)
    if not run.distill.needs_experts:  # otherwise the experts' store is checked against the data
        found["data"] = run.data.fingerprint
        if run.distill.starts_from_experts:
            found["experts"] = experts_checksum(*context.open_experts())
    if run.distill.warm_start:
        found["warm_start"] = load_distilled(run.distill.warm_start, "distill.warm_start").checksum()
    return found


def _check_result(run: Run, context: Context, result: dict[str, Any]) -> None:
    """Check a finished result against the present inputs and evaluation options.

    If the accuracies were measured with other evaluation options, print a note. In a sweep, reject the result instead,
    because the table would not show the difference.

    Raises:
        ConfigurationError: the inputs have changed, or in a sweep, the options of the result differ from the job's.
    """
    try:
        inputs = _inputs(run, context)
        if run.config["data"]["source"] not in tuple(BUILT_IN):
            run.data.setup()
    except ConfigurationError as error:  # the inputs may have been deleted
        say(f"note: its inputs cannot be compared with the current ones: {error.option}: {error.problem}")
    else:
        require_same(run.distill_folder(), result["materials"], inputs)
        if run.distill.needs_experts and run.config["data"]["source"] not in tuple(BUILT_IN):
            context.experts()  # a user's files can change in place
    _check_length(run, result["iteration"])
    difference = first_difference(_protocol(result["config"]), _protocol(run.config))
    if difference:
        name, before, now = difference
        if run.in_sweep:
            problem = f"this run was finished and evaluated with {before}"
            raise ConfigurationError(name, now, problem, "sweep over it with evaluate.py")
        say(f"note: evaluated with {name}={before}, not {now}: evaluate.py uses the options of this command")


def _check_length(run: Run, iteration: int) -> None:
    """Print a note if a run has more or fewer iterations than configured; in a sweep, reject a run with more."""
    wanted = run.distill.max_steps
    if iteration < wanted:  # stopped by the Trainer's max_time
        say(f"incomplete: {iteration} of {wanted} iterations; {how_to_resume(run)}")
    elif iteration > wanted and not run.in_sweep:
        say(f"note: this run has completed {iteration} iterations, more than distill.max_steps={wanted}")
    elif iteration > wanted:
        problem = (
            f"this run has completed {iteration} iterations, and jobs that differ only in their number are the same run"
        )
        remedy = "leave it out of the sweep: TensorBoard has the accuracy after every distill.eval_every iterations"
        raise ConfigurationError("distill.max_steps", run.distill.max_steps, problem, remedy)


def _protocol(config: dict[str, Any]) -> dict[str, Any]:
    """The options that affect the measured accuracy, by name."""
    options = complete_record("evaluation", config["evaluation"], asdict(EvaluationSettings()))
    protocol = {name: value for name, value in options.items() if name not in ("at_once", "baseline_lr")}
    return {"evaluation": {**protocol, "networks": config["distill"]["eval_networks"] or protocol["networks"]}}


def _record(folder: Path, compilation: Compilation, trainer: Trainer, *, resumed: bool) -> None:
    record_machine(folder / "machine.json", compilation, trainer.world_size, resumed=resumed)


def _evaluator(run: Run) -> NetworkEvaluator:
    """The evaluator, which tests networks on the test split and, if there is one, on the validation split."""
    splits = {"test": run.data.test, "validation": run.data.validation}
    return NetworkEvaluator(
        run.network(),
        run.evaluation,
        {name: split for name, split in splits.items() if split is not None},
        augmentation=run.data.augmentation,
        seed=run.seed,
        purpose="evaluation while distilling",
    )


def dataset_maker(run: Run, method: Method) -> MakeDataset:
    """Return a function that creates the distilled dataset from the module and records its origin."""
    lineage = {
        "network": describe_network(run.network()),
        "evaluation": asdict(run.evaluation),
        **method.lineage(),
        "seed": run.seed,
        "config": run.config,
    }
    if run.distill.warm_start:
        earlier = load_distilled(run.distill.warm_start, "distill.warm_start")
        lineage["warm_start"] = {"folder": run.distill.warm_start, **describe_set(earlier)}

    def make(module: DistillModule, found: dict[str, Any]) -> DistilledDataset:
        events: dict[str, Any] = {"recoveries": module.recovery.events} if module.recovery.events else {}
        events |= {"skipped": module.skipped} if module.skipped else {}
        return DistilledDataset.from_training(module.training_set(), run.data, {**found, **events, **lineage})

    return make


def _announce(run: Run, method: Method, images: int) -> None:
    if derived := run.config["derived"]:
        words = (
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in derived.items()
        )
        say(f"not given, and derived: {' '.join(words)}")
    settings = run.distill
    networks = count(settings.eval_networks or run.evaluation.networks, "network")
    kind = "image" if settings.canvas == 1 else "canvas"
    say(
        f"distilling {count(images, kind)}: {method.announce()}; an evaluation of {networks} every "
        f"{count(settings.eval_every, 'iteration')}"
    )


def _report(run: Run, metrics: dict[str, float]) -> None:
    folder = run.distill_folder()
    for split in ("test", "validation"):
        if f"{split}_accuracy" in metrics:
            accuracy, spread = metrics[f"{split}_accuracy"], metrics.get(f"{split}_accuracy_std", 0.0)
            shown = f"{accuracy:.1f} ± {spread:.1f} %" if spread else f"{accuracy:.1f} %"  # 0: a single network
            shown = "none, as networks diverged" if math.isnan(accuracy) else shown
            say(f"{split} accuracy of the last images: {shown}")
    say(f"distilled dataset: {folder / 'synthetic' / 'last'}")
    say(f"pictures:          {folder / 'synthetic' / 'last' / 'images.png'}")
    if uses_tensorboard(run.loggers):
        say(f"TensorBoard:       tensorboard --logdir {folder}")
