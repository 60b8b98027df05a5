"""How a synthetic set is evaluated; the fields are the keys of conf/evaluation/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ast_lightning.config.settings import Settings


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Training of the fresh networks that judge a synthetic set. The defaults are AST's published values.

    Args:
        networks: how many networks are trained; mean and spread are over them.
        epochs: passes over the synthetic set.
        batch_size: synthetic images of one step.
        lr: learning rate of SGD; None takes the learned student learning rate of the set.
        momentum: until the learning rate falls.
        weight_decay: L2 coefficient.
        lr_decay: factor applied to the learning rate once, after epoch index epochs // 2 + 1, with the momentum reset.
        momentum_after_decay: from there on.
        augment: whether batches are augmented with the data's Siamese families.
        at_once: how many networks are trained together, as one stacked computation.
    """

    section: ClassVar[str] = "evaluation"

    networks: int = 5
    epochs: int = 1000
    batch_size: int = 256
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-3
    lr_decay: float = 0.5
    momentum_after_decay: float = 0.8
    augment: bool = True
    at_once: int = 1

    def __post_init__(self) -> None:
        self.require_at_least_one("networks", "epochs", "batch_size", "at_once")
        self.require_positive("lr", "lr_decay")
        self.require_not_negative("weight_decay")
        self.require_momentum("momentum", "momentum_after_decay")

    @property
    def decay_after(self) -> int:
        """The last epoch index that is trained at the full learning rate."""
        return self.epochs // 2 + 1
