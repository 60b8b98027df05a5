"""Measure one score: networks are trained on the distilled images or on those of a baseline, and tested."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from ast_lightning.callbacks import RunProgress, SharedProgress
from ast_lightning.commands.run import Run, evaluation_folder
from ast_lightning.data import LabelledImages
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationModule, EvaluationSettings, NetworkEvaluator, Score
from ast_lightning.evaluation.baselines import (
    LEARNING_RATES,
    MOST_HELD_OUT,
    RANDOM_DRAWS,
    expert_logits,
    held_out,
    random_sets,
    representative_set,
)
from ast_lightning.networks import FunctionalNetwork, has_batch_of_one
from ast_lightning.parallel.devices import device_type
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.storage.inspection import count
from ast_lightning.synthetic import DistilledDataset, TrainingSet
from ast_lightning.terminal import say
from ast_lightning.trajectories import TrajectoryStore

TITLES = {
    "random": "random real images",
    "representative": "representative real images",
    "distilled": "distilled images",
    "whole": "whole dataset (the experts)",
}
TrainingSets = Callable[[int], TrainingSet]
"""The training set of the network with a given index."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one network.

    Attributes:
        run: the options, the data, and the network that is trained.
        dataset: the distilled images.
        store: the experts that baselines need; None if they need none.
        sets: the training sets of a baseline or of ``distilled``, by name, see :func:`training_sets`.
        label: the name of the network in messages; empty if it is the only one.
        of_experts: whether the experts in ``store`` have this network.
        progress: the bar of several evaluations; None if this is the only one.
    """

    run: Run
    dataset: DistilledDataset
    store: TrajectoryStore | None
    sets: Callable[[str], TrainingSets]
    label: str = ""
    of_experts: bool = True
    progress: SharedProgress | None = None

    @property
    def folder(self) -> Path:
        return evaluation_folder(self.run)

    @property
    def names(self) -> list[str]:
        """The scores to measure, in the order of the table. ``whole`` is a score of the experts' network only."""
        wanted = [name for name in (*self.run.config["baselines"], "distilled") if self.of_experts or name != "whole"]
        return [name for name in TITLES if name in wanted]

    def say(self, text: str) -> None:
        say(f"{self.label}: {text}" if self.label else text)

    def check(self) -> None:
        """Reject a network that cannot be trained on these images.

        Raises:
            ConfigurationError: see :func:`check_network`.
        """
        check_network(self.run, len(self.dataset))

    def seconds_of(self, name: str) -> float:
        """Estimated seconds to measure a score, with the comparison of learning rates."""
        if name == "whole":
            return 0.0
        seconds = self.seconds_of_test(_settings(self.run, name), len(self.run.data.test))
        if _is_compared(self.run, name):
            held = min(MOST_HELD_OUT, len(self.run.data.train))
            seconds += self.seconds_of_test(_settings_of_comparison(self.run), held)
        return seconds

    def seconds_of_test(self, settings: EvaluationSettings, real: int) -> float:
        """Estimated seconds to train networks and test them; a training step takes three forward passes."""
        return self._epoch * settings.networks * (settings.epochs + real / len(self.dataset.images) / 3)

    @cached_property
    def _epoch(self) -> float:
        """Seconds of an epoch of one network, measured after a first epoch."""
        settings, times = replace(self.run.evaluation, networks=1, epochs=2), []
        evaluator = NetworkEvaluator(self.run.network(), settings, {}, augmentation=self.run.data.augmentation)
        evaluator.on_epoch = lambda: times.append(time.perf_counter())
        evaluator.run([0], self.sets("distilled"), torch.device(device_type(self.run.config["trainer"])))
        return times[1] - times[0]


def check_network(run: Run, images: int) -> None:
    """Reject a network that cannot be trained on a set of ``images`` images, or canvases.

    Raises:
        ConfigurationError: it cannot be built, does not return logits, or cannot be trained on a last batch of one.
    """
    network, data, size = FunctionalNetwork(run.network()), run.data, run.evaluation.batch_size
    image = torch.zeros(data.channels, *data.image_size)
    network.require_logits(image, data.num_classes)
    if has_batch_of_one(images, size):
        try:
            network.require_logits(image, data.num_classes, batch=1)
        except ConfigurationError as error:
            problem = f"of {images} images, the last batch has one, and {error.problem}"
            raise ConfigurationError("evaluation.batch_size", size, problem, "choose another size") from error


def training_sets(run: Run, dataset: DistilledDataset, store: TrajectoryStore | None, name: str) -> TrainingSets:
    """The images that networks are trained on.

    Args:
        run: its network is that of the experts in ``store``, which select the representative images.
        dataset: the distilled images.
        store: the experts; None if ``name`` needs none.
        name: ``distilled``, ``random`` or ``representative``.
    """
    real = run.data.train, run.data.class_names, dataset.ipc, run.seed, run.distill.lr_teacher
    if name == "random":
        return random_sets(*real)
    if name == "distilled":
        training_set = TrainingSet(dataset.images, dataset.labels, dataset.learning_rate, dataset.crop_size)
    else:
        assert store is not None
        training_set = representative_set(*real, expert_logits(run.network(), store), run.distill.init_clusters)
    return lambda index: training_set


def train(evaluation: Evaluation, name: str, training_sets: TrainingSets) -> tuple[Score, dict[str, float | None]]:
    """Return the score of networks on these sets, and the accuracy of each compared learning rate (None: diverged)."""
    run, sets, compared = evaluation.run, training_sets, {}
    settings = _settings(run, name)
    if _is_compared(run, name):
        rates = rates_of(run)
        compared = dict(zip(rates, _compare(evaluation, name, training_sets(0)), strict=False))  # fast_dev_run: fewer
        best = max(compared, key=lambda rate: -1 if math.isnan(compared[rate]) else compared[rate])
        shown = ", ".join(f"{rate:g} {accuracy:.1f} %" for rate, accuracy in compared.items())
        evaluation.say(f"learning rate {best:g} for {TITLES[name]}: the best on held-out training images ({shown})")

        def sets(index: int) -> TrainingSet:
            return training_sets(index)._replace(learning_rate=best)

    networks = count(settings.networks, "network")
    evaluation.say(f"training {networks} for {count(settings.epochs, 'epoch')} on {TITLES[name]}")
    score = _test(evaluation, name, settings, sets, run.data.test, "evaluation")
    return score, {f"{rate:g}": None if math.isnan(each) else each for rate, each in compared.items()}


def _settings(run: Run, name: str) -> EvaluationSettings:
    networks = run.evaluation.networks
    return replace(run.evaluation, networks=max(networks, RANDOM_DRAWS) if name == "random" else networks)


def _is_compared(run: Run, name: str) -> bool:
    """Whether several learning rates are compared before the networks of a score are trained."""
    return name != "distilled" and len(rates_of(run)) > 1


def _settings_of_comparison(run: Run) -> EvaluationSettings:
    """One network for each learning rate, with half of the epochs."""
    return replace(run.evaluation, networks=len(rates_of(run)), epochs=-(-run.evaluation.epochs // 2))


def _compare(evaluation: Evaluation, name: str, training_set: TrainingSet) -> tuple[float, ...]:
    """The accuracy of each learning rate on held-out training images."""
    run = evaluation.run
    others, rates = held_out(run.data.train, training_set.images, run.seed), rates_of(run)

    def sets(index: int) -> TrainingSet:
        return training_set._replace(learning_rate=rates[index])

    title, purpose = f"{name}, learning rates", "learning rate of a baseline"
    return _test(evaluation, title, _settings_of_comparison(run), sets, others, purpose).accuracies


def _test(
    evaluation: Evaluation,
    title: str,
    settings: EvaluationSettings,
    training_sets: TrainingSets,
    real: LabelledImages,
    purpose: str,
) -> Score:
    """Train networks and return their score on real images."""
    run, shared = evaluation.run, evaluation.progress
    evaluator = NetworkEvaluator(
        run.network(), settings, {"test": real}, augmentation=run.data.augmentation, seed=run.seed, purpose=purpose
    )
    module = EvaluationModule(evaluator, training_sets, title)
    if shared is None:
        progress: RunProgress | SharedProgress = RunProgress(title, evaluator=evaluator)
    else:
        seconds = evaluation.seconds_of_test(settings, len(real))
        progress = shared.part(f"{evaluation.label}, {title}", evaluator, seconds)
    trainer = build_trainer(run.config["trainer"], evaluation.folder, callbacks=[], progress=progress)
    trainer.test(module, verbose=False)
    return module.scores["test"]


def rates_of(run: Run) -> tuple[float, ...]:
    """Candidate learning rates of the networks that are trained on real images."""
    given = run.evaluation.lr or (run.distill.lr_teacher if run.evaluation.baseline_lr == "same" else None)
    return LEARNING_RATES if given is None else (given,)
