"""How a synthetic set is evaluated; the fields are the keys of conf/evaluation/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ast_lightning.config.settings import Settings, option


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """How fresh networks are trained on a synthetic set; the defaults are AST's published values."""

    section: ClassVar[str] = "evaluation"

    networks: int = option(
        5, "networks to train; the result is the mean and standard deviation of their accuracies", least=1, most=10_000
    )
    epochs: int = option(
        None, "passes over the synthetic set; null: 6 / distill.lr_teacher, from 300 to 1000", neutral=1000, least=1
    )
    batch_size: int = option(256, "synthetic images of a training step", least=1)
    lr: float | None = option(None, "learning rate; null: the learned learning rate of the distilled dataset", above=0)
    baseline_lr: str = option(
        "searched",
        "learning rate of networks on real images where lr is null: searched (the best of five, 0.001 … 0.1, on "
        "held-out training images, each with one network and half of the epochs) | same (distill.lr_teacher)",
        choices=("searched", "same"),
        neutral="same",
    )
    momentum: float = option(0.9, "momentum until lr_decay is applied", least=0, below=1)
    weight_decay: float = option(1e-3, "L2 coefficient", least=0, most=1000)
    lr_decay: float = option(
        0.5, "factor by which the learning rate is multiplied once, after epoch index epochs // 2 + 1", above=0
    )
    momentum_after_decay: float = option(0.8, "momentum after lr_decay is applied", least=0, below=1)
    augment: bool = option(True, "Siamese augmentation with the transforms of data.augmentation")
    at_once: int = option(1, "networks trained together, as one computation", least=1, most=10_000, result=False)

    @property
    def decay_after(self) -> int:
        """The last epoch index that is trained at the full learning rate."""
        return self.epochs // 2 + 1
