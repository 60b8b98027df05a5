"""Images that are read and preprocessed when they are indexed, so that a large dataset need not be in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ast_lightning.images.preprocessing import Preprocessing


class ImageView:
    """Images [N, C, H, W] that are indexed like a tensor. Only what is indexed is converted and held in memory.

    Args:
        stored: uint8 or float32 [M, C, H, W], usually memory-mapped.
        rows: int64 [N], the positions of the images in ``stored``; None: all of them, in order.
        preprocessing: applied to uint8 images when they are indexed; the result is float32. It must treat each value
            by itself, so that an image does not depend on the others of its batch. None: images are as in ``stored``.
        folder: the folder of the cache that ``stored`` is mapped from; None if there is none.
    """

    def __init__(
        self,
        stored: Tensor,
        rows: Tensor | None = None,
        preprocessing: Preprocessing | None = None,
        folder: Path | None = None,
    ) -> None:
        self.stored, self.rows, self.preprocessing, self.folder = stored, rows, preprocessing, folder

    def __len__(self) -> int:
        return len(self.stored if self.rows is None else self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), *self.stored.shape[1:]))

    @property
    def ndim(self) -> int:
        return self.stored.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype if self.preprocessing is None else torch.float32

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """The images at a position, in a slice, at positions (int64 [K]), or selected by a mask (bool [N])."""
        images = self.stored[index if self.rows is None else self.rows[index]]
        return images if self.preprocessing is None else self.preprocessing.apply(images.float().div_(255))

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, in parts of ``size``."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def take(self, index: Tensor) -> ImageView:
        """A view of the images at these positions (int64 [K]) or selected by a mask (bool [N]); nothing is copied."""
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        return ImageView(self.stored, rows[index], self.preprocessing, self.folder)

    def preprocessed(self, preprocessing: Preprocessing) -> ImageView:
        """A view of the same uint8 images that applies ``preprocessing``."""
        return ImageView(self.stored, self.rows, preprocessing, self.folder)
