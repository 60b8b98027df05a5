"""A synthetic set, real images to test on, and distilled datasets of each preprocessing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch

from ast_lightning.data import LabelledImages, fit_preprocessing
from ast_lightning.networks import ConvNet
from ast_lightning.synthetic import DistilledDataset, TrainingSet

CLASSES = 10


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks on a busy machine: threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
