"""A store of random but plausible trajectories, a synthetic set, and Trainers as distill.py builds them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer

from ast_lightning.data import LabelledImages, SiameseAugmentation
from ast_lightning.distillation import DistillModule, TrajectoryMatching, TrajectoryMatchingSettings
from ast_lightning.evaluation import EvaluationSettings, NetworkEvaluator
from ast_lightning.networks import ConvNet, build_network, describe_network
from ast_lightning.trajectories import TrajectoryStore
from tests.threads import one_thread

CLASSES = 3
FAMILIES = "color_crop_cutout_flip_scale_rotate"


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def network() -> Callable[[], ConvNet]:
    return functools.partial(
        ConvNet, channels=3, num_classes=CLASSES, image_size=(8, 8), width=4, depth=1, normalization="instance"
    )


@pytest.fixture
def make_store(tmp_path: Path, network: Callable[[], ConvNet]) -> Callable[..., TrajectoryStore]:
    """Trajectories that walk at random from a true initialisation; ``spoil`` maps (expert, epoch) to a value."""

    return functools.partial(make_trajectories, tmp_path / "store", network)


def make_trajectories(
    folder: Path,
    network: Callable[[], ConvNet],
    experts: int = 3,
    epochs: int = 5,
    *,
    finish: bool = True,
    spoil: dict[tuple[int, int], float] | None = None,
    expert: dict[str, Any] | None = None,
) -> TrajectoryStore:
    metadata = {"network": describe_network(network), "data": {}, "expert": expert or {}, "epochs": epochs}
    metadata["seed"] = 0
    store = TrajectoryStore.create(folder, {**metadata, "versions": {}})
    for index in range(experts):
        generator = torch.Generator().manual_seed(100 + index)
        weights = {name: each.detach() for name, each in build_network(network, 1, index).named_parameters()}
        for epoch in range(epochs + 1):
            spoiled = dict(weights)
            if spoil and (index, epoch) in spoil:
                spoiled["classifier.bias"] = torch.full((CLASSES,), spoil[index, epoch])
            if store.schedule.holds(epoch):
                store.write_snapshot(index, epoch, spoiled)
            weights = {n: w + 0.03 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
        if finish:
            store.finish(index, {})
    return store


@pytest.fixture
def synthetic_set() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images for each of three classes."""
    images = torch.randn(2 * CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    return images, torch.arange(CLASSES).repeat_interleave(2)


def starting_labels(kind: str, classes: torch.Tensor) -> torch.Tensor:
    """Labels as ``starting_point`` returns them: classes, logits of soft labels, or probabilities."""
    logits = torch.randn(len(classes), CLASSES, generator=torch.Generator().manual_seed(9))
    return {
        "hard": classes,
        "soft": logits + 2 * F.one_hot(classes, CLASSES),
        "teacher": F.one_hot(classes, CLASSES).float(),
    }[kind]


@pytest.fixture
def ast_settings() -> Callable[..., TrajectoryMatchingSettings]:
    """All of AST's components, on a scale where each of them shows in the result."""

    def make(**changes: Any) -> TrajectoryMatchingSettings:
        values: dict[str, Any] = {
            "ipc": 2, "syn_steps": 5, "expert_epochs": 3, "max_start_epoch": 3, "batch_syn": 4, "momentum": 0.9,
            "balance": True, "perturbation": 1.0, "intermediate": "aggregate", "augment": True, "lr_teacher": 0.05,
            "lr_img": 10.0, "lr_lr": 2e-5, "outer_momentum": 0.5, "max_steps": 2, "eval_every": 1,
            "outer": "sgd", "alpha": "raw", "recoveries": 0,
        }  # fmt: skip
        return TrajectoryMatchingSettings(**{**values, **changes})

    return make


@pytest.fixture
def real_images() -> LabelledImages:
    generator = torch.Generator().manual_seed(8)
    labels = torch.arange(60) % CLASSES
    return LabelledImages(torch.randn(60, 3, 8, 8, generator=generator), labels)


@pytest.fixture
def make_evaluator(network: Callable[[], ConvNet], real_images: LabelledImages) -> Callable[..., NetworkEvaluator]:
    def make(*splits: str, networks: int = 2) -> NetworkEvaluator:
        named = {name: real_images.take(torch.arange(start, 60, 2)) for start, name in enumerate(splits)}
        return NetworkEvaluator(network, EvaluationSettings(networks=networks, epochs=2), named, seed=3)

    return make


@pytest.fixture
def make_module(
    network: Callable[[], ConvNet], synthetic_set: tuple[torch.Tensor, torch.Tensor]
) -> Callable[..., DistillModule]:
    def make(
        store: TrajectoryStore,
        settings: TrajectoryMatchingSettings,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 5,
        evaluator: NetworkEvaluator | None = None,
    ) -> DistillModule:
        images, labels = synthetic_set
        if settings.canvas > 1:
            side = 8 * settings.canvas
            images = torch.randn(len(labels), 3, side, side, generator=torch.Generator().manual_seed(7))
        method = TrajectoryMatching(settings, network, store, augmentation=SiameseAugmentation(FAMILIES), seed=seed)
        start = starting_labels(settings.labels, labels)
        synthetic = method.synthetic_set(images.to(dtype), start, settings.lr_teacher)
        return DistillModule(synthetic, method, evaluator=evaluator)

    return make


class ValidationSteps(Callback):
    """Notes the outer iterations after which the set was evaluated."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(trainer.global_step)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(settings: TrajectoryMatchingSettings, *callbacks: Callback, **options: Any) -> Trainer:
        fixed: dict[str, Any] = {
            "accelerator": "cpu", "devices": 1, "max_steps": settings.max_steps, "max_epochs": -1, "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
            "num_sanity_val_steps": 0, "inference_mode": False, "use_distributed_sampler": False,
            "val_check_interval": settings.eval_every, "check_val_every_n_epoch": None,
            "default_root_dir": tmp_path,
        }  # fmt: skip
        return Trainer(callbacks=list(callbacks), **{**fixed, **options})

    return make


@pytest.fixture
def validation_steps() -> Callable[[], ValidationSteps]:
    return ValidationSteps
