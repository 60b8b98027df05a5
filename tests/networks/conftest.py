"""Small networks of every kind that a student can be, and a user's own."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from ast_lightning.networks import ConvNet, NetworkFactory


class TiedNetwork(nn.Module):
    """A user's own network: one square matrix is used in two places."""

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int], scale: float = 1.0) -> None:
        super().__init__()
        features = channels * image_size[0] * image_size[1]
        self.scale = scale
        self.first = nn.Linear(features, features, bias=False)
        self.second = nn.Linear(features, features, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(images.flatten(1)))
        return self.scale * self.head(torch.tanh(self.second(hidden)))


_ARGUMENTS = {"channels": 2, "num_classes": 3, "image_size": (4, 6)}

FACTORIES: dict[str, NetworkFactory] = {
    "instance": functools.partial(ConvNet, **_ARGUMENTS, width=5, depth=2),
    "batch": functools.partial(ConvNet, **_ARGUMENTS, width=5, depth=2, normalization="batch"),
    "none": functools.partial(ConvNet, **_ARGUMENTS, width=5, depth=1, normalization="none", activation="gelu"),
    "tied": functools.partial(TiedNetwork, **_ARGUMENTS),
}


@pytest.fixture(params=FACTORIES)
def factory(request: pytest.FixtureRequest) -> NetworkFactory:
    return FACTORIES[request.param]


@pytest.fixture
def batch_norm_factory() -> NetworkFactory:
    return FACTORIES["batch"]


@pytest.fixture
def tied_factory() -> NetworkFactory:
    return functools.partial(functools.partial(TiedNetwork, scale=0.5), **_ARGUMENTS)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 2, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 2, 1, 0, 1])
