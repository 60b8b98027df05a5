"""Textures, as in the code of MTT (CVPR 2022): canvases larger than the images, of which batches show random parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ast_lightning.config.distill import DistillSettings
from ast_lightning.distillation.synthetic_set import BatchDraw, SyntheticImages
from ast_lightning.images import circular_crops, draw_offsets
from ast_lightning.randomness import keyed_generator
from ast_lightning.synthetic import TrainingSet


class Textures(SyntheticImages):
    """N canvases as parameters; a batch consists of random circular crops of its canvases.

    In each batch, every canvas is rolled circularly by independent, uniform offsets, and its upper left H×W pixels are
    taken. A crop is linear in the canvas. Its offsets depend only on ``BatchDraw.key``, so that the backward pass
    through the student's training recomputes the same crops.

    Args:
        canvases: X before distillation, ``[N, C, canvas · H, canvas · W]``, otherwise as in :class:`SyntheticImages`.
        labels: one for each canvas.
        learning_rate: α before distillation.
        canvas: side of a canvas in image sides.
        crops: crops of each canvas in a batch.
        options: the other arguments of :class:`SyntheticImages`.
    """

    def __init__(
        self, canvases: Tensor, labels: Tensor, learning_rate: float, *, canvas: int, crops: int = 1, **options: Any
    ) -> None:
        super().__init__(canvases, labels, learning_rate, **options)
        height, width = canvases.shape[-2:]
        self.size = height // canvas, width // canvas
        self.crops = crops

    @property
    def shape(self) -> tuple[int, ...]:
        """``[N, C, H, W]``: N canvases, and the size of the images in a batch."""
        return (*self.images.shape[:2], *self.size)

    def batch(self, draw: BatchDraw, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[crops · B, C, H, W]`` and labels; crop j is of the canvas in row j mod B of the draw."""
        canvases, labels = super().batch(draw, *tensors)
        height, width = canvases.shape[-2:]
        generator = keyed_generator(*draw.key, "crops")
        offsets = draw_offsets(self.crops * len(canvases), (height, width), generator)
        return circular_crops(canvases, offsets, self.size), torch.cat([labels] * self.crops)

    def training_set(self) -> TrainingSet:
        return super().training_set()._replace(crop_size=self.size)


def images_or_textures(
    settings: DistillSettings, images: Tensor, labels: Tensor, learning_rate: float, **options: Any
) -> SyntheticImages:
    """The synthetic set that ``distill.canvas`` selects.

    Args:
        settings: ``canvas`` and ``crops`` are used.
        images: images or canvases before distillation.
        labels: one for each of them.
        learning_rate: α before distillation.
        options: the other arguments of :class:`SyntheticImages`.
    """
    if settings.canvas == 1:
        return SyntheticImages(images, labels, learning_rate, **options)
    return Textures(images, labels, learning_rate, canvas=settings.canvas, crops=settings.crops, **options)


def tiled(images: Tensor, canvas: int) -> Tensor:
    """Canvases of real images: each ``canvas``² successive images are arranged in a square, row by row.

    Args:
        images: ``[N · canvas², C, H, W]``.
        canvas: side of the square, in images.

    Returns:
        ``[N, C, canvas · H, canvas · W]``.
    """
    _, channels, height, width = images.shape
    squares = images.view(-1, canvas, canvas, channels, height, width)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, canvas * height, canvas * width)
