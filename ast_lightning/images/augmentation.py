"""Differentiable Siamese augmentation (method section 4): one transform per call, one set of parameters per image.

As in kornia, drawing the parameters is separate from applying them, so that a draw can be applied again: the forward
and the backward pass of the unroll use the same draws, and each rank uses its rows of a global draw. A "family" is a
type of transform, such as ``crop``. Each one is an affine function of the pixels, differentiable any number of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ast_lightning.errors import ConfigurationError

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")

BRIGHTNESS = 1.0  # width of the range of the added value, centred on 0
SATURATION = 2.0  # factors from 0 to this
CONTRAST = 0.5  # factors from this to this + 1
CROP_RATIO = 0.125  # largest shift, as a fraction of the side
CUTOUT_RATIO = 0.5  # side of the hole, as a fraction of the side
SCALE_RATIO = 1.2  # factors from 1 / this to this
ROTATION = 15.0  # largest angle in degrees, in both directions

Values = dict[str, Tensor]
_Draw = Callable[[int, tuple[int, int], torch.Generator], Values]
_Apply = Callable[[Tensor, Values], Tensor]


@dataclass(frozen=True, eq=False)
class AugmentationDraw:
    """The parameters of one call, drawn on the CPU.

    Args:
        family: one of ``FAMILIES``, or None for the identity.
        values: per-sample parameters of the family, each of shape [N].
    """

    family: str | None
    values: Values

    def rows(self, index: Tensor) -> AugmentationDraw:
        """The parameters of the samples ``index`` (CPU int64 [K]) of the batch."""
        return AugmentationDraw(self.family, {name: value[index] for name, value in self.values.items()})


class SiameseAugmentation:
    """Draws and applies random transforms.

    Args:
        families: names of the transforms, underscore-separated (``"color_crop_cutout_flip_scale_rotate"``) or as a
            sequence; None, ``""`` and ``"none"`` mean the identity. Their order does not matter.

    Raises:
        ConfigurationError: an unknown or repeated family.

    >>> augmentation = SiameseAugmentation("flip")
    >>> draw = augmentation.draw(4, (2, 2), torch.Generator().manual_seed(0))
    >>> augmentation.apply(torch.rand(4, 3, 2, 2), draw).shape
    torch.Size([4, 3, 2, 2])
    """

    def __init__(self, families: str | Sequence[str] | None) -> None:
        if isinstance(families, str):
            names = [] if families in ("", "none") else families.split("_")
        else:
            names = list(families or ())
        if not set(names) <= set(FAMILIES) or len(set(names)) < len(names):
            remedy = f"join some of {', '.join(FAMILIES)} with underscores, each once, or use none"
            raise ConfigurationError("data.augmentation", families, "a family is unknown or repeated", remedy)
        self.families: tuple[str, ...] = tuple(name for name in FAMILIES if name in names)

    def draw(self, count: int, image_size: tuple[int, int], generator: torch.Generator) -> AugmentationDraw:
        """Draw one family uniformly, and its parameters.

        Args:
            count: N, the number of images (of the global batch).
            image_size: (H, W).
            generator: a CPU generator, used for all draws.
        """
        if not self.families:
            return AugmentationDraw(None, {})
        family = self.families[int(torch.randint(len(self.families), (), generator=generator))]
        return AugmentationDraw(family, _FUNCTIONS[family][0](count, image_size, generator))

    def apply(self, images: Tensor, draw: AugmentationDraw) -> Tensor:
        """Apply a draw.

        Args:
            images: float32 or float64 [N, C, H, W], in any value range, on any device.
            draw: a draw for N samples.

        Returns:
            A tensor like ``images``: an affine function of it, differentiable any number of times. An
            identity draw returns ``images`` itself.
        """
        if draw.family is None:
            return images
        values = {
            name: value.to(images) if value.is_floating_point() else value.to(images.device)
            for name, value in draw.values.items()
        }
        return _FUNCTIONS[draw.family][1](images, values)


def _per_image(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def _draw_color(count: int, image_size: tuple[int, int], generator: torch.Generator) -> Values:
    uniform = torch.rand(3, count, generator=generator, dtype=torch.float32)
    return {
        "brightness": (uniform[0] - 0.5) * BRIGHTNESS,
        "saturation": uniform[1] * SATURATION,
        "contrast": uniform[2] + CONTRAST,
    }


def _apply_color(images: Tensor, values: Values) -> Tensor:
    images = images + _per_image(values["brightness"])
    # lerp(mean, x, factor) = mean + factor · (x − mean)
    images = torch.lerp(images.mean(1, keepdim=True), images, _per_image(values["saturation"]))
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, _per_image(values["contrast"]))


def _largest_shift(side: int) -> int:
    return int(side * CROP_RATIO + 0.5)


def _draw_crop(count: int, image_size: tuple[int, int], generator: torch.Generator) -> Values:
    vertical, horizontal = (_largest_shift(side) for side in image_size)
    return {
        "shift_y": torch.randint(-vertical, vertical + 1, (count,), generator=generator),
        "shift_x": torch.randint(-horizontal, horizontal + 1, (count,), generator=generator),
    }


def _apply_crop(images: Tensor, values: Values) -> Tensor:
    """out[y, x] = in[y + shift_y, x + shift_x], zero outside, as one gather from the padded, flattened image."""
    count, channels, height, width = images.shape
    vertical, horizontal = _largest_shift(height), _largest_shift(width)
    padded = F.pad(images, (horizontal, horizontal, vertical, vertical)).flatten(2)
    rows = _places(height, images) + (values["shift_y"] + vertical)[:, None]
    columns = _places(width, images) + (values["shift_x"] + horizontal)[:, None]
    places = rows[:, :, None] * (width + 2 * horizontal) + columns[:, None, :]
    return padded.gather(2, places.view(count, 1, -1).expand(-1, channels, -1)).view(images.shape)


def _places(length: int, images: Tensor) -> Tensor:
    return torch.arange(length, device=images.device)


def _hole(side: int) -> int:
    return int(side * CUTOUT_RATIO + 0.5)


def _draw_cutout(count: int, image_size: tuple[int, int], generator: torch.Generator) -> Values:
    # A hole of even size is centred between pixels, so that there is one more position than there are pixels.
    places = [side + 1 - _hole(side) % 2 for side in image_size]
    return {
        "centre_y": torch.randint(places[0], (count,), generator=generator),
        "centre_x": torch.randint(places[1], (count,), generator=generator),
    }


def _apply_cutout(images: Tensor, values: Values) -> Tensor:
    rows = _inside(values["centre_y"], images.shape[2], images)
    columns = _inside(values["centre_x"], images.shape[3], images)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _inside(centre: Tensor, side: int, images: Tensor) -> Tensor:
    """Which of ``side`` pixels lie in the hole about ``centre``: bool [N, side]."""
    size = _hole(side)
    distance = _places(side, images) - (centre - size // 2)[:, None]
    return (distance >= 0) & (distance < size)


def _draw_flip(count: int, image_size: tuple[int, int], generator: torch.Generator) -> Values:
    return {"flip": torch.rand(count, generator=generator, dtype=torch.float32) < 0.5}


def _apply_flip(images: Tensor, values: Values) -> Tensor:
    return torch.where(_per_image(values["flip"]), images.flip(3), images)


def _draw_scale(count: int, image_size: tuple[int, int], generator: torch.Generator) -> Values:
    low = 1 / SCALE_RATIO
    uniform = torch.rand(2, count, generator=generator, dtype=torch.float32) * (SCALE_RATIO - low) + low
    return {"scale_x": uniform[0], "scale_y": uniform[1]}


def _apply_scale(images: Tensor, values: Values) -> Tensor:
    """Sample at (scale_x · x, scale_y · y) relative to the centre; factors above 1 shrink the image."""
    zero = torch.zeros_like(values["scale_x"])
    return _sample(images, (values["scale_x"], zero), (zero, values["scale_y"]))


def _draw_rotate(count: int, image_size: tuple[int, int], generator: torch.Generator) -> Values:
    return {"angle": (torch.rand(count, generator=generator, dtype=torch.float32) * 2 - 1) * math.radians(ROTATION)}


def _apply_rotate(images: Tensor, values: Values) -> Tensor:
    """Sample at coordinates, −1 … 1 on each axis, rotated by ``angle`` (radians)."""
    cosine, sine = values["angle"].cos(), values["angle"].sin()
    return _sample(images, (cosine, -sine), (sine, cosine))


def _sample(images: Tensor, x_row: tuple[Tensor, Tensor], y_row: tuple[Tensor, Tensor]) -> Tensor:
    """Sample bilinearly on the pixel grid, transformed by a 2×2 matrix per image that is given by its rows."""
    zero = torch.zeros_like(x_row[0])
    matrix = torch.stack((*x_row, zero, *y_row, zero), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


_FUNCTIONS: dict[str, tuple[_Draw, _Apply]] = {
    "color": (_draw_color, _apply_color),
    "crop": (_draw_crop, _apply_crop),
    "cutout": (_draw_cutout, _apply_cutout),
    "flip": (_draw_flip, _apply_flip),
    "scale": (_draw_scale, _apply_scale),
    "rotate": (_draw_rotate, _apply_rotate),
}
