"""Distilled datasets of each preprocessing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ast_lightning.data import fit_preprocessing
from ast_lightning.synthetic import DistilledDataset


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make_distilled() -> Callable[..., DistilledDataset]:
    def make(kind: str = "standardize", ipc: int = 3, channels: int = 3) -> DistilledDataset:
        generator = torch.Generator().manual_seed(4)
        pixels = torch.randint(0, 256, (90, channels, 6, 5), generator=generator, dtype=torch.uint8)
        return DistilledDataset(
            images=normal(4 * ipc, channels, 6, 5, seed=5),
            labels=torch.arange(4).repeat_interleave(ipc),
            learning_rate=0.0123456789012345,
            preprocessing=fit_preprocessing(kind, pixels),
            class_names=("ant", "bee", "Käfer", "dog/cat"),
            augmentation="color_flip",
            metadata={"accuracy": {"test/accuracy": 12.5}, "iteration": 7, "config": {"seed": 3, "list": [1, None]}},
        )

    return make
