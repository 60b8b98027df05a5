"""Circular crops of canvases: images of H×W cut from larger canvases that are rolled by random offsets.

A crop is a selection of pixels, so it is linear in the canvas. As for augmentation, drawing the offsets is separate
from applying them, so that the same crops can be computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_offsets(count: int, canvas_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw independent, uniform offsets.

    Args:
        count: K, the number of crops.
        canvas_size: (height, width) of a canvas.
        generator: a CPU generator.

    Returns:
        int64 ``[K, 2]`` on the CPU: down in 0 … height − 1, to the right in 0 … width − 1.
    """
    return torch.stack([torch.randint(side, (count,), generator=generator) for side in canvas_size], dim=1)


def circular_crops(canvases: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """Roll canvases by their offsets, and cut out the upper left part: ``out[y, x] = in[y − down, x − right]``.

    Args:
        canvases: ``[B, C, height, width]``, floating point.
        offsets: int64 ``[k · B, 2]``, see :func:`draw_offsets`; row j belongs to canvas j mod B.
        size: (H, W) of the crops, at most the size of the canvases.

    Returns:
        ``[k · B, C, H, W]``, in the order of the offsets; differentiable any number of times.

    >>> canvas = torch.arange(6.0).view(1, 1, 2, 3)
    >>> circular_crops(canvas, torch.tensor([[1, 0], [0, 1]]), (1, 2)).tolist()
    [[[[3.0, 4.0]]], [[[2.0, 0.0]]]]
    """
    turns = offsets.to(canvases.device).split(len(canvases))
    return torch.cat([_crop(canvases, turn, size) for turn in turns])


def _crop(canvases: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """One crop of each canvas, as one gather from the flattened canvas."""
    count, channels, height, width = canvases.shape
    down, right = (
        (torch.arange(length, device=canvases.device) - offsets[:, axis, None]) % side
        for axis, (length, side) in enumerate(zip(size, (height, width), strict=True))
    )
    places = (down[:, :, None] * width + right[:, None, :]).view(count, 1, -1)
    return canvases.flatten(2).gather(2, places.expand(-1, channels, -1)).view(count, channels, *size)
