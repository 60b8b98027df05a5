"""What one of several gloo processes does, for test_ranks.py: ``python -m tests.distillation.ranks FOLDER``.

Each part that the folder's ``parts.json`` names is run and leaves its tensors in the folder. Started without the
variables of a process group, the same parts are those of one process by itself.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from ast_lightning.config.distill import DistillSettings, DistributionMatchingSettings
from ast_lightning.data import LabelledImages, SiameseAugmentation
from ast_lightning.distillation import DistillModule, Method, TrajectoryMatching, TrajectoryMatchingSettings
from ast_lightning.distillation.distribution_matching import DistributionMatching
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationSettings, NetworkEvaluator
from ast_lightning.networks import ConvNet
from ast_lightning.trajectories import TrajectoryStore
from tests.distillation.conftest import starting_labels

CLASSES = 3


class Gradients(Callback):
    """Keeps the gradients that the optimiser of each iteration gets, averaged over ranks."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [each.grad for each in pl_module.parameters() if each.grad is not None]
        self.seen.append(torch.cat([each.detach().flatten() for each in gradients]))


def network() -> ConvNet:
    return ConvNet(channels=3, num_classes=CLASSES, image_size=(8, 8), width=4, depth=1)


def make_module(store: TrajectoryStore, settings: DistillSettings, networks: int) -> DistillModule:
    side = 8 * settings.canvas
    images = torch.randn(2 * CLASSES, 3, side, side, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(CLASSES).repeat_interleave(2)
    families = SiameseAugmentation("color_crop_cutout_flip_scale_rotate")
    real = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    split = LabelledImages(real, torch.arange(60) % CLASSES)
    method: Method
    if isinstance(settings, TrajectoryMatchingSettings):
        method = TrajectoryMatching(settings, network, store, augmentation=families, seed=5)
    else:
        assert isinstance(settings, DistributionMatchingSettings)
        method = DistributionMatching(settings, network, split, augmentation=families, seed=5)
    evaluator = None
    if networks:
        protocol = EvaluationSettings(networks=networks, epochs=2)
        evaluator = NetworkEvaluator(network, protocol, {"test": split}, seed=3)
    start = starting_labels(getattr(settings, "labels", "hard"), labels)
    synthetic = method.synthetic_set(images, start, settings.lr_teacher)
    return DistillModule(synthetic, method, evaluator=evaluator)


def alone(store: TrajectoryStore, part: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The gradients of X and α of each window by itself, with no Trainer."""
    settings = TrajectoryMatchingSettings(**part["settings"])
    module = make_module(store, settings, 0).double()
    method = module.method
    assert isinstance(method, TrajectoryMatching)
    found = []
    for index in range(part["alone"]):
        loss, _ = method.loss(method.windows.window(index), module.synthetic)
        found.append(torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(module.parameters()))]))
    return {"gradients": torch.stack(found)}


def fit(store: TrajectoryStore, folder: Path, part: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Distil as ``part["settings"]`` say; the images, what the optimiser got, and what was logged."""
    kind = DistributionMatchingSettings if part.get("method") == "dm" else TrajectoryMatchingSettings
    settings = kind(**part["settings"])
    module = make_module(store, settings, part.get("networks", 0))
    gradients = Gradients()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=int(os.environ.get("WORLD_SIZE", 1)),
        strategy="ddp" if "WORLD_SIZE" in os.environ else "auto",
        precision=part.get("precision", "64-true"),
        max_steps=settings.max_steps,
        max_epochs=-1,
        val_check_interval=settings.eval_every,
        check_val_every_n_epoch=None,
        callbacks=[gradients],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    try:
        trainer.fit(module)
    except ConfigurationError as error:
        return {"refused": torch.tensor(list(str(error).encode()))}
    return {
        "images": module.training_set().images,
        "labels": module.training_set().labels,
        "rate": torch.tensor(module.training_set().learning_rate),
        "gradients": torch.stack(gradients.seen),
        **{name: value.detach().clone() for name, value in trainer.callback_metrics.items()},
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", 0))
    store = TrajectoryStore.open(folder / "store")
    for name, part in json.loads((folder / "parts.json").read_text()).items():
        found = alone(store, part) if "alone" in part else fit(store, folder, part)
        torch.save(found, folder / f"{name}_{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
