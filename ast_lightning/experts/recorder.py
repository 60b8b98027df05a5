"""The callback that records the trajectory of an expert."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ast_lightning.errors import ConfigurationError
from ast_lightning.experts.module import ACCURACIES, ExpertModule
from ast_lightning.trajectories import TrajectoryStore


class TrajectoryRecorder(Callback):
    """Writes the parameters before the first epoch and after each epoch, and logs the movement of each epoch.

    Only the epochs in the store's schedule are written. Buffers of the network, such as the statistics of batch
    normalisation, are written with the parameters.

    ``movement`` is ‖θ_{t+1} − θ_t‖₂. Clipping loss and gradient penalty are designed to make it small.

    Args:
        store: the store, written by rank 0. None only records the movement.

    Raises:
        ConfigurationError: during training, if the parameters are no longer finite after an epoch; its snapshot is not
            written.
    """

    def __init__(self, store: TrajectoryStore | None) -> None:
        self.store = store
        self._history: list[dict[str, float]] = []
        self._previous: Tensor | None = None

    @property
    def movement(self) -> list[float]:
        """Movement of each epoch, including epochs of earlier sessions."""
        return [row["trajectory/movement"] for row in self._history]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        expert = _expert(pl_module)
        self._previous = _flat(expert)
        if trainer.current_epoch == 0:
            self._history = []
        if self.store is not None and trainer.is_global_zero:
            self.store.drop_snapshots_after(expert.expert_index, trainer.current_epoch)
            if trainer.current_epoch == 0:
                self._write(expert, 0)
            # otherwise damaged or missing snapshots would be found only when the expert is finished
            self.store.check_snapshots(expert.expert_index, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        expert = _expert(pl_module)
        current = _flat(expert)
        assert self._previous is not None
        movement = float((current - self._previous).norm())
        if not math.isfinite(movement):
            where = f"expert {expert.expert_index} diverged in epoch {trainer.current_epoch + 1}"
            problem = f"{where}, its parameters are no longer finite"
            remedy = "lower expert.lr or expert.gradient_penalty"
            raise ConfigurationError("expert.lr", expert.settings.lr, problem, remedy)
        self._previous = current
        expert.log("trajectory/movement", movement, rank_zero_only=True)
        logged = trainer.callback_metrics.items()
        metrics = {name: float(value) / (100 if name in ACCURACIES else 1) for name, value in logged}
        self._history.append({**metrics, "trajectory/movement": movement})
        if self.store is not None and trainer.is_global_zero:
            self._write(expert, trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        expert = _expert(pl_module)
        # the history covers the whole trajectory, including earlier sessions
        if self.store is not None and trainer.is_global_zero and len(self._history) == self.store.epochs:
            self.store.finish(
                expert.expert_index,
                {
                    "expert_index": expert.expert_index,
                    "seed": expert.seed,
                    "compile": str(expert.objective.compilation),
                    "metrics": self._history[-1],
                    "history": self._history,
                },
            )

    def state_dict(self) -> dict[str, Any]:
        return {"history": [dict(row) for row in self._history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._history = list(state_dict["history"])

    def _write(self, expert: ExpertModule, epoch: int) -> None:
        assert self.store is not None
        if self.store.schedule.holds(epoch):
            tensors = {**dict(expert.network.named_parameters()), **dict(expert.network.named_buffers())}
            self.store.write_snapshot(expert.expert_index, epoch, tensors)


def _flat(expert: ExpertModule) -> Tensor:
    """The parameters as a flat copy; on the CPU, a detached parameter shares memory with the original."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in expert.network.parameters()]).clone()


def _expert(module: LightningModule) -> ExpertModule:
    if not isinstance(module, ExpertModule):
        raise TypeError(f"a TrajectoryRecorder records an ExpertModule, not a {type(module).__name__}")
    return module
