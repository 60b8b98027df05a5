"""Experts trained once on a hundred digits, and a way to train more."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from ast_lightning.data import ImageDataModule
from ast_lightning.experts import ExpertModule, ExpertObjective, ExpertSettings, TrajectoryRecorder
from ast_lightning.networks import ConvNet, NetworkFactory, describe_network
from ast_lightning.trajectories import TrajectoryStore
from tests.threads import one_thread

SEED = 11
# The decay comes after epoch 6 // 2 + 1 = 4 and clipping ends before epoch 4: the last epochs see both.
SETTINGS = ExpertSettings(epochs=6, batch_size=32, lr=0.03, clip_epochs=4, gradient_penalty=0.5)


def make_data() -> ImageDataModule:
    """A data module of its own for each training, as on another machine."""
    return ImageDataModule("digits", per_class=10, batch_size=32, augmentation="crop_rotate")


@dataclass
class Lab:
    """Trains experts the way train_experts.py does, each time from another state of the global generator."""

    network: NetworkFactory
    settings: ExpertSettings = SETTINGS
    seed: int = SEED
    make_data: Callable[[], ImageDataModule] = make_data
    counter: Any = field(default_factory=lambda: itertools.count(100))

    def store(self, folder: Path, settings: ExpertSettings | None = None) -> TrajectoryStore:
        settings = settings or self.settings
        metadata = {
            "network": describe_network(self.network),
            "data": self.make_data().describe(),
            "expert": asdict(settings),
            "epochs": settings.epochs,
            "seed": self.seed,
            "versions": {},
        }
        return TrajectoryStore.create(folder, metadata)

    def train(
        self,
        recorder: TrajectoryRecorder,
        index: int,
        *,
        settings: ExpertSettings | None = None,
        callbacks: Sequence[Callback] = (),
        data: ImageDataModule | None = None,
        resume: Path | None = None,
        objective: ExpertObjective | None = None,
        scores: Any = None,
        **options: Any,
    ) -> ExpertModule:
        """Train expert ``index``; ``options`` are Lightning's."""
        torch.manual_seed(next(self.counter))
        settings = settings or self.settings
        expert = ExpertModule(
            self.network, settings, expert_index=index, seed=self.seed, objective=objective, scores=scores
        )
        arguments: dict[str, Any] = {"enable_checkpointing": False, "max_epochs": settings.epochs, **options}
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[recorder, *callbacks],
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
            **arguments,
        )
        with one_thread():  # also where a session's fixture comes before the module's
            trainer.fit(expert, datamodule=data or self.make_data(), ckpt_path=resume, weights_only=True)
        return expert


@dataclass
class Family:
    """Experts 0, 1 and 2, trained one after the other with one data module."""

    store: TrajectoryStore
    recorders: dict[int, TrajectoryRecorder]
    modules: dict[int, ExpertModule]


@pytest.fixture(scope="module", autouse=True)
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def lab() -> Lab:
    arguments = make_data().network_arguments
    return Lab(functools.partial(ConvNet, **arguments, width=8, depth=1))


@pytest.fixture(scope="session")
def family(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Family:
    store = lab.store(tmp_path_factory.mktemp("family") / "store")
    data = lab.make_data()
    recorders = {index: TrajectoryRecorder(store) for index in range(3)}
    modules = {index: lab.train(recorders[index], index, data=data) for index in range(3)}
    return Family(store, recorders, modules)
