"""Which epochs of an expert are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SNAPSHOT_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Schedule:
    """Epochs 0, n, 2n, … up to ``max_epoch``, and always the final one.

    Args:
        epochs: E, the final epoch.
        every_n_epochs: n.
        max_epoch: beyond this epoch, only the final one is stored; None: no such bound.
    """

    epochs: int
    every_n_epochs: int = 1
    max_epoch: int | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Schedule:
        """The schedule of a store, from the content of its ``store.json``."""
        expert = metadata.get("expert") or {}
        return cls(int(metadata["epochs"]), int(expert.get("every_n_epochs") or 1), expert.get("max_epoch"))

    @property
    def last(self) -> int:
        """The last epoch at which a window can end. Beyond it, at most the final epoch is stored."""
        bound = self.epochs if self.max_epoch is None else min(self.epochs, self.max_epoch)
        return bound - bound % self.every_n_epochs

    def stored(self) -> list[int]:
        """The stored epochs in ascending order.

        >>> Schedule(50, every_n_epochs=10, max_epoch=30).stored()
        [0, 10, 20, 30, 50]
        """
        return sorted({*range(0, self.last + 1, self.every_n_epochs), self.epochs})

    def holds(self, epoch: float) -> bool:
        """Whether ``epoch`` is stored."""
        return epoch == self.epochs or (0 <= epoch <= self.last and epoch % self.every_n_epochs == 0)
