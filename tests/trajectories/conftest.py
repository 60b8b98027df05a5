"""A store of a tiny network, and snapshots that are all different."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ast_lightning.networks import ConvNet, FunctionalNetwork, describe_network
from ast_lightning.trajectories import TrajectoryStore

EPOCHS = 4
FACTORY = functools.partial(ConvNet, 1, 3, (4, 4), width=2, depth=1)


@pytest.fixture
def network() -> FunctionalNetwork:
    return FunctionalNetwork(FACTORY)


@pytest.fixture
def metadata() -> dict[str, Any]:
    """What ``create`` is given: with tuples where JSON has lists, as a program has them."""
    return {
        "network": describe_network(FACTORY),
        "data": {"name": "digits", "image_size": (4, 4), "counts": {"train": 10, "test": 5}, "preprocessing": None},
        "expert": {"lr": 0.003, "gradient_penalty": 2.0, "lr_decay_epoch": None},
        "epochs": EPOCHS,
        "seed": 0,
        "versions": {"torch": "1.0"},
    }


@pytest.fixture
def store(tmp_path: Path, metadata: dict[str, Any]) -> TrajectoryStore:
    return TrajectoryStore.create(tmp_path / "store", copy.deepcopy(metadata))


@pytest.fixture
def snapshot(network: FunctionalNetwork) -> Callable[[int, int], Tensor]:
    """The parameters ``[P]`` of an expert after an epoch: a made-up vector for each pair."""

    def make(expert: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * expert + epoch)
        return torch.randn(network.num_parameters, generator=generator)

    return make


@pytest.fixture
def fill(
    store: TrajectoryStore, network: FunctionalNetwork, snapshot: Callable[[int, int], Tensor]
) -> Callable[[int], None]:
    """Write a whole trajectory and finish it."""

    def write(expert: int) -> None:
        for epoch in range(EPOCHS + 1):
            store.write_snapshot(expert, epoch, network.unflatten(snapshot(expert, epoch)))
        store.finish(expert, {"expert_index": expert})

    return write
