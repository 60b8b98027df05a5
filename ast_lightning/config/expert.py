"""What an expert is trained with; the fields are the keys of conf/expert/."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from ast_lightning.config.parts import check_part, describe_part
from ast_lightning.config.schedule import SNAPSHOT_DTYPES, Schedule
from ast_lightning.config.settings import Settings, option

PENALTY_NORMS = ("pixel", "sample")
_PARTS = ("optimizer", "regularizers", "samples")


@dataclass(frozen=True)
class ExpertSettings(Settings):
    """Optimisation, clipping loss and gradient penalty of an expert; the defaults are AST's published values."""

    section: ClassVar[str] = "expert"

    epochs: int = option(50, "E; a trajectory has E + 1 snapshots, or as many as every_n_epochs and max_epoch leave")
    batch_size: int = option(256, "images of a training step, over all devices")
    lr: float = option(0.003, "initial learning rate")
    momentum: float = option(0.9, "heavy-ball momentum")
    weight_decay: float = option(1e-3, "L2 coefficient")
    lr_decay: float = option(0.6, "factor of the learning rate, once, with the momentum reset; 1: constant")
    lr_decay_epoch: int | None = option(None, "last epoch index at the full learning rate; null: epochs // 2 + 1")
    clipping: bool = option(True, "scale the cross-entropy of the first epochs down")
    clip_start: float = option(0.5, "factor of epoch 0; it rises linearly to clip_end")
    clip_end: float = option(1.0, "factor that epoch clip_epochs reaches; later epochs have factor 1")
    clip_epochs: int = option(10, "epochs whose cross-entropy is scaled")
    gradient_penalty: float = option(2.0, "λ of the gradient penalty; 0: off")
    penalty_norm: str = option("pixel", "pixel: over channels, the published code | sample: over C·H·W, WGAN-GP")
    augment: bool = option(True, "Siamese augmentation with the families of the data")
    snapshot_dtype: str = option("float32", "of the stored parameters: float32 | bfloat16 | float16 (half the disk)")
    every_n_epochs: int = option(1, "n: store epochs 0, n, 2n, … and E; distill.expert_epochs must be a multiple of n")
    max_epoch: int | None = option(None, "store nothing beyond this epoch but the last; training runs to the end")
    optimizer: Any = option("sgd", "the optimiser of an expert: sgd, or {_target_: …} for one of your own")
    regularizers: list[Any] = option([], "terms added to the loss: a list of {_target_: …}, each with its own weight")
    samples: Any = option("all", "the training images of an epoch: all, or {_target_: …} for a curriculum")

    def __post_init__(self) -> None:
        self.require_at_least(1, "epochs", "batch_size", "every_n_epochs", "max_epoch")
        self.require_positive("lr", "lr_decay")
        self.require_not_negative("weight_decay", "clip_start", "clip_end", "clip_epochs")
        self.require_not_negative("gradient_penalty", "lr_decay_epoch")
        self.require_momentum("momentum")
        self.require_choice("penalty_norm", PENALTY_NORMS)
        self.require_choice("snapshot_dtype", SNAPSHOT_DTYPES)
        self.require_part("optimizer", "sgd")
        self.require_part("samples", "all")
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
        neutral = {each.name: each.metadata["neutral"] for each in fields(self) if each.name in _PARTS}
        return {name: value for name, value in values.items() if name not in neutral or value != neutral[name]}

    def clip_factor(self, epoch: int) -> float:
        """Scale of the cross-entropy in ``epoch``.

        >>> [round(ExpertSettings().clip_factor(epoch), 2) for epoch in (0, 1, 9, 10, 40)]
        [0.5, 0.55, 0.95, 1.0, 1.0]
        """
        if not self.clipping or epoch >= self.clip_epochs:
            return 1.0
        return self.clip_start + (self.clip_end - self.clip_start) * epoch / self.clip_epochs
