"""How a synthetic set is evaluated; the fields are the keys of conf/evaluation/."""

from __future__ import annotations

from dataclasses import dataclass

from ast_lightning.errors import ConfigurationError


@dataclass(frozen=True)
class EvaluationSettings:
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
        for name in ("networks", "epochs", "batch_size", "at_once"):
            if getattr(self, name) < 1:
                raise _refused(name, getattr(self, name), "it must be at least 1", "give a positive whole number")
        for name in ("lr", "lr_decay"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise _refused(name, value, "it must be positive", "give a number above 0")
        for name in ("momentum", "momentum_after_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise _refused(name, getattr(self, name), "it must lie in [0, 1)", "give 0 for no momentum")
        if not self.weight_decay >= 0:
            raise _refused("weight_decay", self.weight_decay, "it must not be negative", "give 0 to turn it off")

    @property
    def decay_after(self) -> int:
        """The last epoch index that is trained at the full learning rate."""
        return self.epochs // 2 + 1


def _refused(name: str, value: object, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"evaluation.{name}", value, problem, remedy)
