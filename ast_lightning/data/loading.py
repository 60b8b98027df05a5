"""Batches indexed from tensors, in an order that depends only on a key and the epoch.

A sampler yields the indices of whole batches, and the DataLoader's own batching is switched off. All ranks iterate over
the same global batches, and rank r of R takes the rows r, r + R, … of each. Global batches therefore do not depend on
the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ast_lightning.data.sources import LabelledImages
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import Key, keyed_generator


class TrainingBatch(NamedTuple):
    """One rank's part of a training batch.

    Args:
        images: preprocessed float32 [n, C, H, W].
        labels: int64 [n].
        rows: int64 [n] on the CPU, the positions of these samples in the global batch. They index augmentation draws
            made for the global batch.
        batch_size: size of the global batch, over all ranks.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    batch_size: int


class BatchIndex(NamedTuple):
    """Indices of the samples of one rank's part of a batch, in the dataset and in the global batch."""

    samples: Tensor
    rows: Tensor
    batch_size: int


class ShuffledBatches(DistributedSampler[BatchIndex]):
    """The training batches of one rank: a permutation per epoch, split into global batches; the last one is kept.

    If the last batch has fewer images than there are ranks, it is merged with the previous one, so that every rank has
    an image. This is a DistributedSampler so that Lightning does not divide the batches among devices again.

    Args:
        labels: int64 [N] of the training images.
        batch_size: size of a global batch.
        order_key: returns the key of the permutation, together with the epoch; called in each epoch.
        rank, world_size: rank of this process and number of processes.
        samples: a function of (epoch, labels) that returns the int64 indices [M] of the images of an epoch, the same
            on every rank; None uses every image once.
        epoch: the first epoch; :meth:`set_epoch` changes it.

    Raises:
        ConfigurationError: a batch has fewer images than there are ranks, or ``samples`` returns invalid indices.
    """

    def __init__(
        self,
        labels: Tensor,
        batch_size: int,
        order_key: Callable[[], tuple[Key, ...]],
        rank: int = 0,
        world_size: int = 1,
        *,
        samples: Callable[[int, Tensor], Tensor] | None = None,
        epoch: int = 0,
    ) -> None:
        super().__init__(range(len(labels)), world_size, rank)  # type: ignore[arg-type]
        self.labels, self.batch_size, self.order_key, self.samples = labels, batch_size, order_key, samples
        self.rank, self.world_size = rank, world_size
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the images and the permutation of an epoch; Lightning calls this before each epoch."""
        self.epoch = epoch
        self._chosen = None if self.samples is None else _checked_indices(self.samples(epoch, self.labels), self.labels)
        self.count = len(self.labels if self._chosen is None else self._chosen)
        if min(self.batch_size, self.count) < self.world_size:
            problem = f"{min(self.batch_size, self.count)} images cannot be shared by {self.world_size} devices"
            raise ConfigurationError("data.batch_size", self.batch_size, problem, "raise it or use fewer devices")

    def __len__(self) -> int:
        whole, left = divmod(self.count, self.batch_size)
        return whole + int(left >= self.world_size)

    def __iter__(self) -> Iterator[BatchIndex]:
        order = torch.randperm(self.count, generator=keyed_generator(*self.order_key(), "order", self.epoch))
        if self._chosen is not None:
            order = self._chosen[order]
        for position in range(len(self)):
            start = position * self.batch_size
            stop = self.count if position == len(self) - 1 else start + self.batch_size
            batch = order[start:stop]
            rows = torch.arange(self.rank, len(batch), self.world_size)
            yield BatchIndex(batch[rows], rows, len(batch))


def _checked_indices(chosen: Any, labels: Tensor) -> Tensor:
    vector = isinstance(chosen, Tensor) and chosen.dtype == torch.int64 and chosen.ndim == 1 and len(chosen) > 0
    if not vector or int(chosen.min()) < 0 or int(chosen.max()) >= len(labels):
        found = f"{chosen.dtype} {list(chosen.shape)}" if isinstance(chosen, Tensor) else f"a {type(chosen).__name__}"
        remedy = f"return one or more int64 indices [M], each from 0 to {len(labels) - 1}"
        raise ConfigurationError("expert.samples", "…", f"it returned {found}, which are not indices of images", remedy)
    return chosen.cpu()


class OrderedBatches(DistributedSampler[Tensor]):
    """The evaluation batches of rank r of R: images r, r + R, …, each once, in order."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(count), world_size, rank, shuffle=False)  # type: ignore[arg-type]
        share = torch.arange(count)[rank::world_size]
        self.parts = share.split(batch_size) if len(share) else ()

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parts)


class _Batches(Dataset[Any]):
    """A split that is indexed by whole batches."""

    def __init__(self, split: LabelledImages) -> None:
        self.split = split

    def __getitem__(self, index: BatchIndex | Tensor) -> TrainingBatch | tuple[Tensor, Tensor]:
        if isinstance(index, Tensor):
            return self.split.images[index], self.split.labels[index]
        samples, rows, batch_size = index
        return TrainingBatch(self.split.images[samples], self.split.labels[samples], rows, batch_size)


def loader(split: LabelledImages, sampler: ShuffledBatches | OrderedBatches) -> DataLoader[Any]:
    """A DataLoader of :class:`TrainingBatch` or, with :class:`OrderedBatches`, of (images, labels).

    Lightning calls ``set_epoch`` of its ``sampler``.
    """
    return DataLoader(_Batches(split), sampler=sampler, batch_size=None, pin_memory=torch.cuda.is_available())
