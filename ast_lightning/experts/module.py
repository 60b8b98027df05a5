"""ExpertModule: expert training as a LightningModule."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.classification import MulticlassAccuracy

from ast_lightning.config.expert import ExpertSettings
from ast_lightning.config.parts import resolve
from ast_lightning.data import ImageDataModule, SiameseAugmentation, TrainingBatch
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts.curriculum import curriculum, difficulty
from ast_lightning.experts.objective import ExpertLoss, ExpertObjective
from ast_lightning.experts.optimizers import SingleDecay, build_optimizer
from ast_lightning.networks import NetworkFactory, build_network
from ast_lightning.randomness import keyed_generator, keyed_global_state

ACCURACIES = ("train/accuracy", "test/accuracy")
"""Metrics that are logged in per cent and stored as fractions."""


class _PerCent(MulticlassAccuracy):
    """Accuracy in per cent."""

    def compute(self) -> Tensor:
        return 100 * super().compute()


def check_devices(network: NetworkFactory, ranks: int) -> None:
    """Reject batch normalisation on several devices: each would use the statistics of its part of the batch.

    Raises:
        ConfigurationError: the network has such a layer, which the message names.
    """
    for name, module in build_network(network, 0, "skeleton").named_modules() if ranks > 1 else ():
        if isinstance(module, _BatchNorm):
            problem = f"each device would compute the statistics of {name} ({type(module).__name__}) over its part"
            remedy = "set trainer.devices=1; expert_processes trains several experts at the same time"
            raise ConfigurationError("trainer.devices", ranks, problem, remedy)


class ExpertModule(LightningModule):
    """One expert. Train it with a Trainer with ``max_epochs=settings.epochs`` and a TrajectoryRecorder callback.

    Initial parameters, batch order and augmentation depend only on (seed, expert_index). On several devices, each batch
    is divided among the ranks, and the average of their gradients is the gradient of the whole batch.

    Args:
        network: builds the network.
        settings: optimisation and regularisers.
        expert_index: index of this expert.
        seed: seed shared by all experts of a set.
        augmentation: the Siamese augmentation of the training batches; None uses that of the data module.
        objective: an objective for the same network and settings. Share one between experts to compile it only once.
            None creates an uncompiled objective.
        scores: receives the function that computes the difficulty of the training images ``[N]``, and returns its
            result, or one that it has kept. Called only if ``settings.samples`` needs scores. None computes them.

    Raises:
        ConfigurationError: in ``fit``, if the Trainer cannot train this expert as the settings say.

    Logged per epoch: ``train/loss``, ``train/cross_entropy``, ``train/penalty``, ``train/accuracy``,
    ``train/clip_factor``, ``train/lr`` and ``test/accuracy``; ``train/regularization`` if there are further
    regularisers. Accuracies are in per cent.
    """

    def __init__(
        self,
        network: NetworkFactory,
        settings: ExpertSettings | None = None,
        *,
        expert_index: int = 0,
        seed: int = 0,
        augmentation: SiameseAugmentation | None = None,
        objective: ExpertObjective | None = None,
        scores: Callable[[Callable[[], Tensor]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings or ExpertSettings()
        self.expert_index = expert_index
        self.seed = seed
        self.augmentation = augmentation
        self.network = build_network(network, seed, "expert", expert_index)
        self.objective = objective or ExpertObjective(network, self.settings)
        self._factory = network
        self._scores = scores or (lambda compute: compute())
        self.train_accuracy: _PerCent | None = None
        self.test_accuracy: _PerCent | None = None
        self._evaluated = False

    @property
    def key(self) -> tuple[int, str, int]:
        """Prefix of the keys of all random draws of this expert."""
        return (self.seed, "expert", self.expert_index)

    def setup(self, stage: str) -> None:
        data = self._data()
        self.settings.check_precision(str(self.trainer.precision))
        check_devices(self._factory, self.trainer.world_size)
        data.shuffle_key = self.key
        data.samples = self._samples()
        if self.augmentation is None:
            self.augmentation = data.augmentation if self.settings.augment else SiameseAugmentation(None)
        if self.train_accuracy is None:
            self.train_accuracy = _PerCent(data.num_classes, average="micro")
            self.test_accuracy = _PerCent(data.num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return build_optimizer(list(self.network.parameters()), self.settings)

    def on_train_epoch_start(self) -> None:
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, SingleDecay):
            scheduler.begin_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: TrainingBatch, batch_index: int) -> None:
        self._evaluated = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stored dtype: with ``precision=64-true``, Lightning loads values before it converts the module."""
        self.to(next(value.dtype for value in checkpoint["state_dict"].values() if value.is_floating_point()))

    def training_step(self, batch: TrainingBatch, batch_index: int) -> Tensor:
        """The loss of a batch.

        An optimiser may evaluate it several times in a step. Random draws are keyed by the step, and only the first
        evaluation is logged and updates running statistics.
        """
        assert self.augmentation is not None
        draw = self.augmentation.draw(
            batch.batch_size, self._data().image_size, keyed_generator(*self.key, "augment", self.global_step)
        )
        clip_factor, again = self.settings.clip_factor(self.current_epoch), self._evaluated
        with keyed_global_state(*self.key, "dropout", self.global_step, self.global_rank):
            augmented = self.augmentation.apply(batch.images, draw.rows(batch.rows))
            loss = self.objective(
                self.network, augmented, batch.images, batch.labels, clip_factor, self.current_epoch, keep_buffers=again
            )
        if not again:
            self._log_training(loss, batch.labels, clip_factor)
        self._evaluated = True
        # the parts of the last batch may differ in size: weight them so that the mean over ranks is that of the batch
        return loss.total * (len(batch.labels) * self.trainer.world_size / batch.batch_size)

    def _log_training(self, loss: ExpertLoss, labels: Tensor, clip_factor: float) -> None:
        assert self.train_accuracy is not None
        self.train_accuracy(loss.logits, labels)
        values = {"loss": loss.total, "cross_entropy": loss.cross_entropy, "penalty": loss.penalty}
        if loss.regularization is not None:
            values["regularization"] = loss.regularization
        size = len(labels)
        for name, value in values.items():
            self.log(f"train/{name}", value.detach(), on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        self.log("train/clip_factor", clip_factor, on_step=False, on_epoch=True, batch_size=size)
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/lr", learning_rate, on_step=False, on_epoch=True, batch_size=size)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        assert self.test_accuracy is not None
        images, labels = batch
        self.test_accuracy(self.network(images), labels)
        self.log("test/accuracy", self.test_accuracy, on_step=False, on_epoch=True)

    def _samples(self) -> Callable[[int, Tensor], Tensor] | None:
        """The function that selects the images of an epoch; None uses all images."""
        if self.settings.samples == "all":
            return None
        if self.trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            problem = "epochs may have different numbers of steps, but this Trainer uses that of the first for all"
            remedy = "give the Trainer reload_dataloaders_every_n_epochs=1"
            raise ConfigurationError("expert.samples", self.settings.samples, problem, remedy)
        built_in = {"curriculum": functools.partial(curriculum, epochs=self.settings.epochs)}
        samples = resolve(self.settings.samples, built_in, "expert.samples")
        wanted = inspect.signature(samples).parameters.get("scores")
        if wanted is None or wanted.default is not inspect.Parameter.empty:
            return samples
        # one rank reads or computes them, so that all have the same
        scores = self._scores(self._difficulty) if self.trainer.is_global_zero else None
        return functools.partial(samples, scores=self.trainer.strategy.broadcast(scores))

    def _difficulty(self) -> Tensor:
        device, short = self.trainer.strategy.root_device, bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        length = {"networks": 1, "epochs": 0} if short else {}
        return difficulty(self._factory, self._data().train, self.settings, self.seed, device, **length)

    def _data(self) -> ImageDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise TypeError("train an ExpertModule with trainer.fit(expert, datamodule=<ImageDataModule>)")
        return data
