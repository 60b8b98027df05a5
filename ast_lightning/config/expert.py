"""What an expert is trained with; the fields are the keys of conf/expert/."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from ast_lightning.config.parts import describe_part
from ast_lightning.config.schedule import SNAPSHOT_DTYPES, Schedule
from ast_lightning.config.settings import Settings, option

PENALTY_NORMS = ("pixel", "sample")
_PARTS = ("optimizer", "regularizers", "samples")


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
        1.0, "end of the linear rise; epochs from clip_epochs on have factor 1", least=0, most=1000
    )
    clip_epochs: int = option(10, "number of epochs whose cross-entropy is scaled", least=0)
    gradient_penalty: float = option(2.0, "λ of the gradient penalty; 0: off", least=0, most=10**6)
    penalty_norm: str = option(
        "pixel", "pixel: over channels, the published code | sample: over C·H·W, WGAN-GP", choices=PENALTY_NORMS
    )
    augment: bool = option(True, "Siamese augmentation with the families of the data")
    snapshot_dtype: str = option(
        "float32",
        "type of the stored parameters: float32 | bfloat16 | float16 (half the disk)",
        choices=SNAPSHOT_DTYPES,
    )
    every_n_epochs: int = option(
        1, "n: store epochs 0, n, 2n, … and E; distill.expert_epochs must be a multiple of n", least=1, most=100_000
    )
    max_epoch: int | None = option(
        None, "last epoch to store besides the final one; training continues to the end", least=1, most=100_000
    )
    optimizer: Any = option("sgd", "the optimiser of an expert", type="str | part", choices=("sgd",))
    regularizers: list[Any] = option([], "terms added to the loss, each with its own weight", type="list[part]")
    samples: Any = option("all", "the training images of an epoch", type="str | part", choices=("all",))

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

        Parts at their neutral value are left out, so that experts that were trained before parts existed keep their
        description.
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
