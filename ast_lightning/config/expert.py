"""What an expert is trained with; the fields are the keys of conf/expert/."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ast_lightning.config.parts import check_part, describe_part
from ast_lightning.config.schedule import SNAPSHOT_DTYPES, Schedule
from ast_lightning.config.settings import Settings, option

PENALTY_NORMS = ("pixel", "sample")
_PARTS = {"optimizer": "sgd", "regularizers": [], "samples": "all"}
"""Options that hold parts, and their neutral values."""


@dataclass(frozen=True)
class ExpertSettings(Settings):
    """Optimisation, clipping loss and gradient penalty of an expert. The defaults are AST's published values.

    Args:
        epochs: E; the trajectory has E + 1 snapshots, or as many as ``every_n_epochs`` and ``max_epoch`` leave.
        batch_size: images of one step, over all devices together.
        lr: initial learning rate of SGD.
        momentum: heavy-ball momentum in [0, 1).
        weight_decay: L2 coefficient.
        lr_decay: factor applied to the learning rate once, with the momentum reset; 1 keeps it constant.
        lr_decay_epoch: last epoch index at the full rate; None is E // 2 + 1, as published.
        clipping: whether the cross-entropy is scaled down during the first epochs.
        clip_start: factor of epoch 0; it rises linearly to ``clip_end``.
        clip_end: factor that epoch ``clip_epochs`` reaches; later epochs have factor 1.
        clip_epochs: how many epochs are scaled.
        gradient_penalty: λ; 0 turns the penalty off.
        penalty_norm: ``pixel`` (norm over the channel axis, the published code) or ``sample`` (over C·H·W, WGAN-GP).
        augment: whether batches are augmented with the data's Siamese families.
        snapshot_dtype: of the stored parameters: ``float32``, ``bfloat16`` or ``float16``; training does not see it.
        every_n_epochs: n; epochs 0, n, 2n, … are stored, and E.
        max_epoch: nothing beyond it is stored but E; training still runs to E. None stores all.
        optimizer: ``sgd``, or a function of (parameters, settings), see :mod:`ast_lightning.experts.optimizers`.
        regularizers: functions of (apply, parameters, augmented, raw, labels, epoch), see
            :data:`ast_lightning.experts.objective.Regularizer`.
        samples: ``all``, or a function of (epoch, labels) that returns the indices of the training images of an epoch.

    A part is given by name, as a callable, or as a mapping with ``_target_``, see
    :func:`ast_lightning.config.parts.resolve`.
    """

    section: ClassVar[str] = "expert"

    epochs: int = 50
    batch_size: int = 256
    lr: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 1e-3
    lr_decay: float = 0.6
    lr_decay_epoch: int | None = None
    clipping: bool = True
    clip_start: float = 0.5
    clip_end: float = 1.0
    clip_epochs: int = 10
    gradient_penalty: float = 2.0
    penalty_norm: str = "pixel"
    augment: bool = True
    snapshot_dtype: str = "float32"
    every_n_epochs: int = 1
    max_epoch: int | None = None
    optimizer: Any = option("sgd", "The optimizer of an expert: sgd, or {_target_: …} for one of your own.")
    regularizers: Any = option([], "Terms added to the loss: a list of {_target_: …}, each with its own weight.")
    samples: Any = option("all", "The training images of an epoch: all, or {_target_: …} for a curriculum.")

    def __post_init__(self) -> None:
        self.require_at_least_one("epochs", "batch_size", "every_n_epochs", "max_epoch")
        self.require_positive("lr", "lr_decay")
        self.require_not_negative("weight_decay", "clip_start", "clip_end", "clip_epochs")
        self.require_not_negative("gradient_penalty", "lr_decay_epoch")
        self.require_momentum("momentum")
        self.require_choice("penalty_norm", PENALTY_NORMS)
        self.require_choice("snapshot_dtype", SNAPSHOT_DTYPES)
        for name in ("optimizer", "samples"):
            check_part(getattr(self, name), (str(_PARTS[name]),), f"{self.section}.{name}")
        if not isinstance(self.regularizers, list | tuple):
            raise self.refused("regularizers", "it must be a list", "give [{_target_: package.module.name}]")
        for each in self.regularizers:
            check_part(each, (), f"{self.section}.regularizers")

    @property
    def decay_after(self) -> int:
        """The last epoch index that is trained at the full learning rate."""
        return self.epochs // 2 + 1 if self.lr_decay_epoch is None else self.lr_decay_epoch

    @property
    def schedule(self) -> Schedule:
        """Which epochs are stored."""
        return Schedule(self.epochs, self.every_n_epochs, self.max_epoch)

    @property
    def snapshot_options(self) -> dict[str, str | int | None]:
        """What of the settings concerns storing alone."""
        return {name: getattr(self, name) for name in ("snapshot_dtype", "every_n_epochs", "max_epoch")}

    def describe(self) -> dict[str, Any]:
        """The settings as plain containers. Parts at their neutral value are left out: experts that were trained
        before there were parts keep their description.
        """
        values = {name: describe_part(value) for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if name not in _PARTS or value != _PARTS[name]}

    def clip_factor(self, epoch: int) -> float:
        """Scale of the cross-entropy in ``epoch``.

        >>> [round(ExpertSettings().clip_factor(epoch), 2) for epoch in (0, 1, 9, 10, 40)]
        [0.5, 0.55, 0.95, 1.0, 1.0]
        """
        if not self.clipping or epoch >= self.clip_epochs:
            return 1.0
        return self.clip_start + (self.clip_end - self.clip_start) * epoch / self.clip_epochs
