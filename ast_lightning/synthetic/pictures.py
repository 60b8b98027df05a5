"""Grids of images for visual inspection."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SHOWN_PER_CLASS = 10
SMALLEST_SIDE = 64


def picture(images: Tensor, ipc: int, *, stretch: bool = False) -> Tensor:
    """A grid ``[C, H, W]`` in [0, 1] with one row per class, or ten classes per row if ``ipc`` is 1.

    Args:
        images: ``[N, C, H, W]`` grouped by class; at most ten per class are shown, and small images are enlarged.
        ipc: images per class.
        stretch: map the range of each image to [0, 1] instead of using the values as they are.
    """
    from torchvision.utils import (
        make_grid,  # late, as below: loading a distilled dataset does not need torchvision
    )

    images = images.detach().float().cpu()
    by_class = images.unflatten(0, (-1, ipc))[:, :SHOWN_PER_CLASS]
    per_row = 10 if ipc == 1 else by_class.shape[1]
    shown = by_class.flatten(0, 1)
    factor = max(1, -(-SMALLEST_SIDE // shown.shape[-1]))
    shown = F.interpolate(shown, scale_factor=factor, mode="nearest")
    grid: Tensor = make_grid(torch.nan_to_num(shown), per_row, normalize=stretch, scale_each=stretch)
    return grid.clamp(0, 1)


def save_picture(path: Path, images: Tensor, ipc: int, *, stretch: bool = False) -> None:
    """Write :func:`picture` as a PNG file."""
    from torchvision.utils import save_image

    save_image(picture(images, ipc, stretch=stretch), path)
