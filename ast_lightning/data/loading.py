"""Batches cut from tensors by index, in an order that depends on a key and the epoch alone.

A sampler yields the indices of whole batches and the DataLoader's own batching is off: no item is touched
singly. All ranks go through the same global batches; rank r of R takes the rows r, r + R, … of each, so that
the batches do not depend on the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ast_lightning.data.sources import LabelledImages
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import Key, keyed_generator


class TrainingBatch(NamedTuple):
    """One rank's part of a training batch.

    Args:
        images: preprocessed float32 [n, C, H, W].
        labels: int64 [n].
        rows: int64 [n] on the CPU, the positions of these samples inside the global batch. They pick the rows
            of draws made for the global batch.
        batch_size: size of the global batch, over all ranks.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    batch_size: int


class BatchIndex(NamedTuple):
    """Where the samples of one rank's part of a batch lie in the dataset, and in the global batch."""

    samples: Tensor
    rows: Tensor
    batch_size: int


class ShuffledBatches(Sampler[BatchIndex]):
    """The training batches of one rank: a permutation per epoch, cut into global batches, the last one kept.

    A last batch with fewer images than ranks joins the one before it, since no rank may be left without
    images.

    Args:
        count: number of training images.
        batch_size: size of a global batch.
        order_key: gives what, with the epoch, names the permutation; asked anew each epoch.
        rank, world_size: which part of each batch is this process's.

    Raises:
        ConfigurationError: a batch that cannot give every rank an image.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        order_key: Callable[[], tuple[Key, ...]],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if min(batch_size, count) < world_size:
            raise ConfigurationError(
                "data.batch_size",
                batch_size,
                f"a batch of {min(batch_size, count)} images cannot be shared by {world_size} devices",
                "raise it or use fewer devices",
            )
        self.count, self.batch_size, self.order_key = count, batch_size, order_key
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, left = divmod(self.count, self.batch_size)
        return whole + int(left >= self.world_size)

    def __iter__(self) -> Iterator[BatchIndex]:
        order = torch.randperm(self.count, generator=keyed_generator(*self.order_key(), "order", self.epoch))
        for position in range(len(self)):
            start = position * self.batch_size
            stop = self.count if position == len(self) - 1 else start + self.batch_size
            batch = order[start:stop]
            rows = torch.arange(self.rank, len(batch), self.world_size)
            yield BatchIndex(batch[rows], rows, len(batch))


class OrderedBatches(Sampler[Tensor]):
    """The evaluation batches of one rank: its share of the images (r, r + R, …), each once, in order."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        share = torch.arange(count)[rank::world_size]
        self.parts = share.split(batch_size) if len(share) else ()

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parts)


class _TrainingBatches(Dataset[TrainingBatch]):
    def __init__(self, split: LabelledImages) -> None:
        self.split = split

    def __getitem__(self, index: BatchIndex) -> TrainingBatch:
        part = self.split.take(index.samples)
        return TrainingBatch(part.images, part.labels, index.rows, index.batch_size)


class _EvaluationBatches(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, split: LabelledImages) -> None:
        self.split = split

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        part = self.split.take(index)
        return part.images, part.labels


def training_loader(split: LabelledImages, sampler: ShuffledBatches) -> DataLoader[TrainingBatch]:
    """A DataLoader of :class:`TrainingBatch`; Lightning finds ``set_epoch`` on its ``sampler``."""
    return DataLoader(_TrainingBatches(split), sampler=sampler, batch_size=None, pin_memory=torch.cuda.is_available())


def evaluation_loader(split: LabelledImages, sampler: OrderedBatches) -> DataLoader[tuple[Tensor, Tensor]]:
    """A DataLoader of (images, labels)."""
    return DataLoader(_EvaluationBatches(split), sampler=sampler, batch_size=None, pin_memory=torch.cuda.is_available())
