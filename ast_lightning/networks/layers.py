"""Layers that several networks share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ast_lightning.errors import ConfigurationError


class InstanceNorm(nn.GroupNorm):
    """GroupNorm with one channel per group; under torch.compile, written as sums and elementwise operations.

    torch's own kernel cannot be fused by the compiler, and its second derivatives need many passes over memory.

    Args:
        width: number of channels.

    Shape:
        ``[N, width, H, W]`` → ``[N, width, H, W]``.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(input)
        if torch.is_autocast_enabled(input.device.type):
            input = input.float()  # autocast runs torch's own normalisations in float32
        number, width, height, breadth = input.shape

        def rows(statistic: Tensor) -> Tensor:
            return statistic.expand(number, width, height, 1)

        def mean(values: Tensor) -> Tensor:
            return values.sum(3, keepdim=True).sum(2, keepdim=True) * (1 / (height * breadth))

        deviation = input - rows(mean(input))
        variance = mean(deviation.square())
        scale = (variance + self.eps).rsqrt() * self.weight.view(-1, 1, 1)
        return deviation * rows(scale) + rows(self.bias.view(-1, 1, 1))


class ReLU(nn.ReLU):
    """max(x, 0); under torch.compile, computed as x multiplied by a 0/1 step function.

    torch's own derivative stores a boolean mask, which compiled CPU code writes twenty times slower than floats.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(input)
        return input * input.detach().sign().clamp(min=0)


NORMALIZATIONS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "instance": lambda width, *size: InstanceNorm(width),
    "layer": lambda width, *size: nn.GroupNorm(1, width),
    "layer_chw": lambda *shape: nn.LayerNorm(shape),
    "group": lambda width, *size: nn.GroupNorm(math.gcd(4, width), width),
    "batch": lambda width, *size: nn.BatchNorm2d(width),
    "none": nn.Identity,
}
"""(channels, height, width of the maps) → the layer that option ``network.normalization`` names."""


def shrink_to(side: int, height: int, width: int) -> nn.Module:
    """Average maps ``[N, C, height, width]`` down to at most ``side`` × ``side``; smaller maps are kept.

    Published networks expect images of 32 px. With this layer before the classifier they take larger ones, and compute
    the same function of 32 px.
    """
    size = min(side, height), min(side, width)
    return nn.Identity() if size == (height, width) else nn.AdaptiveAvgPool2d(size)


def require_size(network: nn.Module, image_size: tuple[int, int], least: int) -> None:
    """Reject images that are too small for a network.

    Raises:
        ConfigurationError: a side is shorter than ``least`` pixels; the message gives both.
    """
    if min(image_size) < least:
        problem = f"it takes images of {least}×{least} pixels or more, and these have {image_size[0]}×{image_size[1]}"
        remedy = f"set data.image_size={least}, or choose network=mlp or convnet, which take smaller ones"
        raise ConfigurationError("network", type(network).__name__, problem, remedy)
