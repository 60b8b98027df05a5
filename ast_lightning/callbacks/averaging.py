"""An average of the images over the last iterations, written beside the last images."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ast_lightning.distillation import DistillModule

_WINDOW = 10


class ImageAverage(Callback):
    """Averages the images x_t with weights that grow like t¹⁰: over about the last eleventh of a run of any length.

    After iteration t the average a becomes a + (x_t − a) · 11 / (t + 10), as in polynomial-decay averaging (Shamir and
    Zhang, ICML 2013). The average restarts if a diverged run goes back to earlier images. With ``distill.ema``, the set
    keeps an average itself, and distill.py does not use this one.

    Attributes:
        images: ``[N, C, H, W]``; None before the first iteration.
    """

    def __init__(self) -> None:
        self.images: Tensor | None = None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillModule)
        images, step = pl_module.training_set().images, trainer.global_step
        events = pl_module.recovery.events
        if self.images is None or (events and events[-1]["iteration"] == step - 1):
            self.images = images.clone()
        else:
            self.images = self.images.to(images).lerp(images, (_WINDOW + 1) / (step + _WINDOW))

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images = state_dict["images"]
