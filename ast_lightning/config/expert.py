"""What an expert is trained with; the fields are the keys of conf/expert/."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from ast_lightning.config.parts import describe_part
from ast_lightning.config.schedule import SNAPSHOT_DTYPES, Schedule
from ast_lightning.config.settings import Settings, option
from ast_lightning.errors import ConfigurationError

PENALTY_NORMS = ("pixel", "sample")
_ADDED = ("optimizer", "sam_rho", "sam_alpha", "sam_adaptive", "regularizers", "samples")
"""Options that did not exist in the first version."""


@dataclass(frozen=True)
class ExpertSettings(Settings):
    """Optimisation, clipping loss and gradient penalty of an expert; the defaults are AST's published values."""

    section: ClassVar[str] = "expert"

    epochs: int = option(
        50,
        "E; a trajectory has E + 1 snapshots, fewer with every_n_epochs or max_epoch",
        least=1,
        most=100_000,
    )
    batch_size: int = option(256, "images of a training step, over all devices", least=1)
    lr: float = option(0.003, "initial learning rate", above=0)
    momentum: float = option(0.9, "heavy-ball momentum", least=0, below=1)
    weight_decay: float = option(1e-3, "L2 coefficient", least=0, most=1000)
    lr_decay: float = option(
        0.6,
        "factor of the learning rate after lr_decay_epoch; the momentum buffers are cleared then; 1: no decay",
        above=0,
    )
    lr_decay_epoch: int | None = option(
        None, "last epoch index at the full learning rate; null: epochs // 2 + 1", least=0
    )
    clipping: bool = option(True, "clipping loss: scale down the cross-entropy of the first epochs")
    clip_start: float = option(0.5, "factor of epoch 0; it rises linearly to clip_end", least=0, most=1000)
    clip_end: float = option(
        1.0, "factor that the rise would reach in epoch clip_epochs; from this epoch on, it is 1", least=0, most=1000
    )
    clip_epochs: int = option(10, "number of epochs whose cross-entropy is scaled", least=0)
    gradient_penalty: float = option(2.0, "λ of the gradient penalty; 0: off", least=0, most=10**6)
    penalty_norm: str = option(
        "pixel", "pixel: over channels, the published code | sample: over C·H·W, WGAN-GP", choices=PENALTY_NORMS
    )
    augment: bool = option(True, "Siamese augmentation with the transforms of data.augmentation")
    snapshot_dtype: str = option(
        "float32",
        "type of the stored parameters: float32 | bfloat16 | float16 (16 bits: half the disk space)",
        choices=SNAPSHOT_DTYPES,
    )
    every_n_epochs: int = option(
        1, "n: store epochs 0, n, 2n, … and E; distill.expert_epochs must be a multiple of n", least=1, most=100_000
    )
    max_epoch: int | None = option(
        None,
        "last epoch to store, besides the final epoch, which is always stored; null: all epochs",
        least=1,
        most=100_000,
    )
    optimizer: Any = option(
        "sgd", "sgd | gsam: flat trajectories (FTD), two gradients per step", type="str | part", choices=("sgd", "gsam")
    )
    sam_rho: float = option(0.01, "ρ of gsam: how far from the parameters the gradient is taken", least=0, most=10**6)
    sam_alpha: float = option(
        0.3, "weight of gsam: how much of the first gradient's perpendicular part is subtracted", least=0, most=10**6
    )
    sam_adaptive: bool = option(True, "gsam: scale the distance of each parameter by its square (ASAM)")
    regularizers: list[Any] = option([], "terms added to the loss, each with its own weight", type="list[part]")
    samples: Any = option(
        "all",
        "the training images of an epoch: all | curriculum: first without hard, later without easy images (PAD)",
        type="str | part",
        choices=("all", "curriculum"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == "sgd":
            for each in fields(self):
                if each.name.startswith("sam_") and getattr(self, each.name) != each.metadata["neutral"]:
                    remedy = f"set expert.optimizer=gsam, or leave out expert.{each.name}"
                    raise self.refused(each.name, "it has no effect with expert.optimizer=sgd", remedy)

    def check_precision(self, precision: str) -> None:
        """Reject 16-mixed with GSAM: its gradient scaler evaluates the gradient itself, and only once per step.

        Args:
            precision: as a Trainer names it, e.g. ``32-true``.

        Raises:
            ConfigurationError: naming ``trainer.precision``.
        """
        if precision == "16-mixed" and self.optimizer == "gsam":
            problem = "its gradient scaler evaluates one gradient per step, and expert.optimizer=gsam needs two"
            raise ConfigurationError("trainer.precision", precision, problem, "set trainer.precision=bf16-mixed")

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
        """The settings that affect only how snapshots are stored."""
        return {name: getattr(self, name) for name in ("snapshot_dtype", "every_n_epochs", "max_epoch")}

    def describe(self) -> dict[str, Any]:
        """The settings as plain containers.

        Options that were added later are left out at their neutral value, so that experts that were trained before
        these options existed keep their description.
        """
        values = {name: describe_part(value) for name, value in asdict(self).items()}
        neutral = {each.name: each.metadata["neutral"] for each in fields(self) if each.name in _ADDED}
        return {name: value for name, value in values.items() if name not in neutral or value != neutral[name]}

    def clip_factor(self, epoch: int) -> float:
        """Scale of the cross-entropy in ``epoch``.

        >>> [round(ExpertSettings().clip_factor(epoch), 2) for epoch in (0, 1, 9, 10, 40)]
        [0.5, 0.55, 0.95, 1.0, 1.0]
        """
        if not self.clipping or epoch >= self.clip_epochs:
            return 1.0
        return self.clip_start + (self.clip_end - self.clip_start) * epoch / self.clip_epochs
