"""Parts as a user would write them; ``python -m tests.experts.parts FILE`` trains as one of several ranks."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn

from ast_lightning.data import ImageDataModule
from ast_lightning.experts import ExpertModule, ExpertSettings, TrajectoryRecorder, with_decay
from ast_lightning.experts.objective import Apply, Tensors
from ast_lightning.networks import ConvNet


class Impossible:
    """A matching loss at a step after the last one."""

    def __init__(self, guide: Any, settings: Any) -> None:
        self.match_at = [settings.syn_steps + 1]


class Sam(torch.optim.SGD):
    """Sharpness-aware minimisation: the gradient is taken a step of length ``rho`` uphill."""

    def __init__(self, parameters: Sequence[nn.Parameter], rho: float, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.rho = rho

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        parameters = self.param_groups[0]["params"]
        norm = torch.stack([each.grad.norm() for each in parameters]).norm()
        before = [each.clone() for each in parameters]
        for each in parameters:
            each.add_(each.grad, alpha=float(self.rho / (norm + 1e-12)))
        with torch.enable_grad():
            closure()
        for each, old in zip(parameters, before, strict=True):
            each.copy_(old)
        super().step()
        return loss


def sam(parameters: Sequence[nn.Parameter], settings: ExpertSettings, *, rho: float = 0.05) -> Any:
    options = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return with_decay(Sam(parameters, rho, **options), settings)


def adam(parameters: Sequence[nn.Parameter], settings: ExpertSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, settings.lr)


def nothing(parameters: Sequence[nn.Parameter], settings: ExpertSettings) -> None:
    return None


def l2(apply: Apply, parameters: Tensors, *batch: Tensor, weight: float) -> Tensor:
    return torch.stack([weight / 2 * each.square().sum() for each in parameters.values()]).sum()


def consistency(
    apply: Apply,
    parameters: Tensors,
    augmented: Tensor,
    raw: Tensor,
    labels: Tensor,
    epoch: Tensor,
    *,
    weight: float,
    epochs: int = 2,
) -> Tensor:
    """Logits of augmented and raw images are to agree, during the first epochs."""
    distance = (apply(parameters, augmented) - apply(parameters, raw)).square().mean()
    return weight * torch.where(epoch < epochs, distance, 0.0)


def logits_squared(apply: Apply, parameters: Tensors, augmented: Tensor, *rest: Tensor) -> Tensor:
    return apply(parameters, augmented).square().mean(1)


def easy_first(epoch: int, labels: Tensor, *, share: float = 0.5) -> Tensor:
    """A share of the images in the first two epochs, all later."""
    return torch.arange(len(labels))[: int(share * len(labels)) if epoch < 2 else None]


def train_all() -> dict[str, Any]:
    """What becomes of two experts, on as many devices as the environment names."""
    here = "tests.experts.parts"
    own: dict[str, Any] = {
        "optimizer": {"_target_": f"{here}.sam", "rho": 0.1},
        "regularizers": [{"_target_": f"{here}.consistency", "weight": 0.5}],
        "samples": {"_target_": f"{here}.easy_first"},
    }
    built_in: dict[str, Any] = {"optimizer": "gsam", "sam_rho": 0.1, "sam_alpha": 0.5, "samples": "curriculum"}
    return {"parts of one's own": train_one(own), "gsam and curriculum": train_one(built_in)}


def train_one(parts: dict[str, Any]) -> dict[str, Any]:
    settings = ExpertSettings(epochs=3, batch_size=30, lr=0.03, **parts)
    data = ImageDataModule("digits", per_class=10, batch_size=30, augmentation="crop_rotate")
    network = functools.partial(ConvNet, **data.network_arguments, width=4, depth=1)
    recorder = TrajectoryRecorder(None)
    several = {"devices": 1, "strategy": "ddp", "num_nodes": 2} if "RANK" in os.environ else {"devices": 1}
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[recorder], num_sanity_val_steps=0, inference_mode=False,
        reload_dataloaders_every_n_epochs=1, **several,
    )  # fmt: skip
    expert = ExpertModule(network, settings, seed=3)
    trainer.fit(expert, datamodule=data)
    flat = torch.cat([each.detach().flatten() for each in expert.network.parameters()])
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"theta": flat, "movement": recorder.movement, "metrics": metrics}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = train_all()
    if os.environ["RANK"] == "0":
        torch.save(found, Path(sys.argv[1]))
