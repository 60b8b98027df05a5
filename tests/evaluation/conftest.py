"""A synthetic set, networks to train on it, and real images to test them on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch

from ast_lightning.data import LabelledImages
from ast_lightning.networks import ConvNet
from ast_lightning.synthetic import TrainingSet
from tests.threads import one_thread

CLASSES = 10


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def convnet() -> Callable[..., Callable[[], ConvNet]]:
    def make(normalization: str = "instance") -> Callable[[], ConvNet]:
        return functools.partial(
            ConvNet,
            channels=1,
            num_classes=CLASSES,
            image_size=(8, 8),
            width=4,
            depth=1,
            normalization=normalization,
        )

    return make


@pytest.fixture
def training_set() -> TrainingSet:
    """Two images a class about a prototype of the class."""
    labels = torch.arange(CLASSES).repeat_interleave(2)
    images = normal(CLASSES, 1, 8, 8, seed=1)[labels] + 0.3 * normal(len(labels), 1, 8, 8, seed=2)
    return TrainingSet(images, labels, 0.05)


@pytest.fixture
def real() -> LabelledImages:
    """Enough images, ambiguous enough, for small changes of a network to show in its accuracy."""
    labels = torch.arange(2000) % CLASSES
    images = normal(CLASSES, 1, 8, 8, seed=1)[labels] + 2 * normal(len(labels), 1, 8, 8, seed=3)
    return LabelledImages(images, labels)
