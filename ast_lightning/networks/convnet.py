"""ConvNet, the standard architecture of dataset distillation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ast_lightning.config.network import ConvNetSettings
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks.layers import NORMALIZATIONS, ReLU

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}
_POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AvgPool2d(2),
    "max": lambda: nn.MaxPool2d(2),
    "none": nn.Identity,
}


class ConvNet(nn.Module):
    """Blocks of 3×3 convolution, normalisation, activation and 2×2 pooling, then one linear layer.

    Args:
        channels: number of image channels.
        num_classes: number of logits.
        image_size: (height, width) in pixels.
        width: output channels of every convolution.
        depth: number of blocks; 3 for 28 and 32 px, 4 for 64 px, 5 for 128 px.
        normalization: ``instance`` (GroupNorm with one channel per group), ``batch``, ``layer`` (GroupNorm with one
            group: a weight for each channel), ``layer_chw`` (LayerNorm over C, H and W as in the published codes: a
            weight for each element), ``group`` or ``none``.
        activation: ``relu``, ``leaky_relu``, ``gelu``, ``silu`` or ``sigmoid``.
        pooling: ``avg``, ``max`` or ``none``.
        first_padding: padding of the first convolution. None: 3 for one-channel images of 28×28, which become 32×32,
            otherwise 1. The published codes use 3 for one-channel images of any size.

    Shape:
        ``[N, channels, H, W]`` → ``[N, num_classes]``.

    Raises:
        ConfigurationError: an unknown choice, or too many pooling layers for the image size.

    >>> import torch
    >>> network = ConvNet(3, 10, (32, 32))
    >>> sum(parameter.numel() for parameter in network.parameters())
    320010
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        width: int = 128,
        depth: int = 3,
        normalization: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
        first_padding: int | None = None,
    ) -> None:
        super().__init__()
        ConvNetSettings(  # validates the options
            width=width,
            depth=depth,
            normalization=normalization,
            activation=activation,
            pooling=pooling,
            first_padding=first_padding,
        )
        height, breadth = image_size
        if first_padding is None:
            first_padding = 3 if channels == 1 and (height, breadth) == (28, 28) else 1
        height, breadth = height + 2 * (first_padding - 1), breadth + 2 * (first_padding - 1)
        if min(height, breadth) >> (depth if pooling != "none" else 0) < 1:
            problem = f"its layers leave nothing of images of {image_size[0]}×{image_size[1]} pixels"
            remedy = "lower network.depth, raise data.image_size or set network.pooling=none"
            raise ConfigurationError("network.depth", depth, problem, remedy)
        blocks: list[nn.Module] = []
        for block in range(depth):
            padding = first_padding if block == 0 else 1
            blocks += [
                nn.Conv2d(channels if block == 0 else width, width, kernel_size=3, padding=padding),
                NORMALIZATIONS[normalization](width, height, breadth),
                _ACTIVATIONS[activation](),
                _POOLINGS[pooling](),
            ]
            if pooling != "none":
                height, breadth = height // 2, breadth // 2
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * height * breadth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))
