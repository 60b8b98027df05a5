"""ExpertModule: the expert objective in a LightningModule."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from ast_lightning.config.expert import ExpertSettings
from ast_lightning.data import ImageDataModule, SiameseAugmentation, TrainingBatch
from ast_lightning.experts.objective import ExpertObjective
from ast_lightning.networks import NetworkFactory, build_network
from ast_lightning.randomness import keyed_generator, keyed_global_state


class ExpertModule(LightningModule):
    """One expert. Train it with a Trainer of ``max_epochs=settings.epochs`` and a TrajectoryRecorder callback.

    Its initial parameters, batch order and augmentation depend on (seed, expert_index) alone. On several devices the
    ranks share each batch, and the average of their gradients is the gradient of the whole batch.

    Args:
        network: builds the network.
        settings: optimisation and regularisers.
        expert_index: which expert of the family this is.
        seed: the seed of the family.
        augmentation: the Siamese augmentation of the training batches; None takes the data module's.
        objective: of the family, from the same network and settings; give one to all its experts where it is
            compiled. None makes one that is not.

    Logged: ``train/loss``, ``train/cross_entropy``, ``train/penalty``, ``train/accuracy``, ``train/clip_factor``,
    ``train/lr`` and ``test/accuracy``, each by epoch.
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
    ) -> None:
        super().__init__()
        self.settings = settings or ExpertSettings()
        self.expert_index = expert_index
        self.seed = seed
        self.augmentation = augmentation
        self.network = build_network(network, seed, "expert", expert_index)
        self.objective = objective or ExpertObjective(network, self.settings)
        self.train_accuracy: MulticlassAccuracy | None = None
        self.test_accuracy: MulticlassAccuracy | None = None

    @property
    def key(self) -> tuple[int, str, int]:
        """What every draw of this expert is keyed by."""
        return (self.seed, "expert", self.expert_index)

    def setup(self, stage: str) -> None:
        data = self._data()
        data.shuffle_key = self.key
        if self.augmentation is None:
            self.augmentation = data.augmentation if self.settings.augment else SiameseAugmentation(None)
        if self.train_accuracy is None:
            self.train_accuracy = MulticlassAccuracy(data.num_classes, average="micro")
            self.test_accuracy = MulticlassAccuracy(data.num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.settings
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [settings.decay_after + 1], settings.lr_decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.settings.decay_after + 1 and self.settings.lr_decay != 1:
            optimizer = self.trainer.optimizers[0]
            optimizer.state.clear()  # the published code builds a fresh optimiser here: momentum starts from zero

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the values as they are: a Trainer of 64-true loads them before it converts the module."""
        self.to(next(value.dtype for value in checkpoint["state_dict"].values() if value.is_floating_point()))

    def training_step(self, batch: TrainingBatch, batch_index: int) -> Tensor:
        assert self.augmentation is not None
        assert self.train_accuracy is not None
        draw = self.augmentation.draw(
            batch.batch_size, self._data().image_size, keyed_generator(*self.key, "augment", self.global_step)
        )
        clip_factor = self.settings.clip_factor(self.current_epoch)
        with keyed_global_state(*self.key, "dropout", self.global_step, self.global_rank):
            augmented = self.augmentation.apply(batch.images, draw.rows(batch.rows))
            loss = self.objective(self.network, augmented, batch.images, batch.labels, clip_factor)
        self.train_accuracy(loss.logits, batch.labels)
        size = len(batch.labels)
        for name, value in (
            ("loss", loss.total),
            ("cross_entropy", loss.cross_entropy),
            ("penalty", loss.penalty),
        ):
            self.log(f"train/{name}", value.detach(), on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        self.log("train/clip_factor", clip_factor, on_step=False, on_epoch=True, batch_size=size)
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/lr", learning_rate, on_step=False, on_epoch=True, batch_size=size)
        # ranks hold parts of unequal size of a last batch: weight them so that the mean over ranks is the batch's mean
        return loss.total * (size * self.trainer.world_size / batch.batch_size)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        assert self.test_accuracy is not None
        images, labels = batch
        self.test_accuracy(self.network(images), labels)
        self.log("test/accuracy", self.test_accuracy, on_step=False, on_epoch=True)

    def _data(self) -> ImageDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise TypeError("train an ExpertModule with trainer.fit(expert, datamodule=<ImageDataModule>)")
        return data
