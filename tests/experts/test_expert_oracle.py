"""A whole trajectory against a loop in plain PyTorch that shares nothing with the package but its random draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ast_lightning.data import ImageDataModule
from ast_lightning.experts import ExpertSettings, TrajectoryRecorder
from ast_lightning.randomness import keyed_generator


def logits_of(weights: list[Tensor], images: Tensor) -> Tensor:
    """The ConvNet of width 8 and depth 1, written out."""
    hidden = F.conv2d(images, weights[0], weights[1], padding=1)
    mean = hidden.mean((2, 3), keepdim=True)
    variance = hidden.var((2, 3), correction=0, keepdim=True)
    hidden = (hidden - mean) / (variance + 1e-5).sqrt()
    hidden = (hidden * weights[2].view(1, -1, 1, 1) + weights[3].view(1, -1, 1, 1)).clamp(min=0)
    number, width, height, breadth = hidden.shape
    hidden = hidden.reshape(number, width, height // 2, 2, breadth // 2, 2).mean((3, 5))
    return hidden.flatten(1) @ weights[4].T + weights[5]


def penalty_of(weights: list[Tensor], images: Tensor, norm: str) -> Tensor:
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logits_of(weights, images).sum(), images, create_graph=True)
    axes = (1,) if norm == "pixel" else (1, 2, 3)
    return ((gradient.pow(2).sum(axes).sqrt() - 1) ** 2).mean()


def plain_trajectory(
    start: list[Tensor], settings: ExpertSettings, data: ImageDataModule, seed: int, expert: int
) -> list[Tensor]:
    """Heavy-ball SGD with L2 decay by hand: method.md section 1."""
    weights = [tensor.clone() for tensor in start]
    buffers: list[Tensor] | None = None
    rate, step = settings.lr, 0
    data.shuffle_key = (seed, "expert", expert)
    loader = data.train_dataloader()
    snapshots = [torch.cat([weight.flatten() for weight in weights])]
    for epoch in range(settings.epochs):
        if epoch == settings.epochs // 2 + 2 and settings.lr_decay != 1:
            rate, buffers = rate * settings.lr_decay, None
        clip = min(1.0, 0.5 + 0.5 * epoch / settings.clip_epochs) if settings.clipping else 1.0
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            inputs = batch.images
            if settings.augment:
                generator = keyed_generator(seed, "expert", expert, "augment", step)
                draw = data.augmentation.draw(len(batch.labels), (8, 8), generator)
                inputs = data.augmentation.apply(inputs, draw)
            leaves = [weight.requires_grad_() for weight in weights]
            log_probabilities = logits_of(leaves, inputs).log_softmax(1)
            loss = -clip * log_probabilities[torch.arange(len(inputs)), batch.labels].mean()
            if settings.gradient_penalty:
                loss = loss + settings.gradient_penalty * penalty_of(leaves, batch.images, settings.penalty_norm)
            gradients = torch.autograd.grad(loss, leaves)
            with torch.no_grad():
                decayed = [g + settings.weight_decay * w for g, w in zip(gradients, weights, strict=True)]
                if buffers is not None:
                    decayed = [settings.momentum * b + g for b, g in zip(buffers, decayed, strict=True)]
                buffers = decayed
                weights = [w - rate * b for w, b in zip(weights, buffers, strict=True)]
            step += 1
        snapshots.append(torch.cat([weight.flatten() for weight in weights]))
    assert step == 4 * settings.epochs
    return snapshots


AST: dict[str, Any] = {}
MTT: dict[str, Any] = {
    "epochs": 3,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "lr": 0.1,
    "lr_decay": 1.0,
    "clipping": False,
    "gradient_penalty": 0.0,
}
SAMPLE_NORM: dict[str, Any] = {"epochs": 2, "penalty_norm": "sample", "augment": False}


@pytest.mark.parametrize("changes", [AST, MTT, SAMPLE_NORM], ids=["ast", "mtt", "sample norm, not augmented"])
def test_trajectory_equals_a_plain_loop(lab: Any, family: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    expert, settings = 1, dataclasses.replace(lab.settings, **changes)
    store = family.store
    if changes:
        store = lab.store(tmp_path / "store", settings)
        lab.train(TrajectoryRecorder(store), expert, settings=settings, limit_val_batches=0)
    shapes = [shape for _, shape in store.layout]
    pieces = store.read_snapshot(expert, 0).split([torch.Size(shape).numel() for shape in shapes])
    start = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    wanted = plain_trajectory(start, settings, lab.make_data(), lab.seed, expert)
    for epoch, snapshot in enumerate(wanted):
        distance = (store.read_snapshot(expert, epoch) - snapshot).norm() / (snapshot - wanted[0]).norm().clamp(min=1)
        assert distance < 1e-5, f"after epoch {epoch}"


def test_plain_loop_notices_other_draws(lab: Any, family: Any) -> None:
    """The comparison above has teeth: with the draws of another expert the same loop ends elsewhere."""
    shapes = [shape for _, shape in family.store.layout]
    pieces = family.store.read_snapshot(1, 0).split([torch.Size(shape).numel() for shape in shapes])
    start = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    other = plain_trajectory(start, lab.settings, lab.make_data(), lab.seed, expert=2)
    assert (family.store.read_snapshot(1, 1) - other[1]).norm() > 1e-2
