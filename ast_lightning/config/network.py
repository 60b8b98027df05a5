"""The options of section ``network``: the built-in network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ast_lightning.config.settings import Settings, option

NORMALIZATIONS = ("instance", "batch", "layer", "layer_chw", "group", "none")
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "sigmoid")
POOLINGS = ("avg", "max", "none")


@dataclass(frozen=True)
class ConvNetSettings(Settings):
    """The options of :class:`~ast_lightning.networks.ConvNet`; network=custom takes any other class."""

    section: ClassVar[str] = "network"

    _target_: str = option("ast_lightning.networks.ConvNet", "the class of the network")
    width: int = option(128, "channels of every convolution", least=1, most=16384)
    depth: int = option(3, "blocks: 3 at 28 and 32 px, 4 at 64 px, 5 at 128 px", least=1, most=100)
    normalization: str = option(
        "instance",
        "normalisation; layer: GroupNorm with one group; layer_chw: LayerNorm over C, H and W",
        choices=NORMALIZATIONS,
    )
    activation: str = option("relu", "activation after each normalisation", choices=ACTIVATIONS)
    pooling: str = option("avg", "pooling that halves height and width at the end of each block", choices=POOLINGS)
    first_padding: int | None = option(
        None, "padding of the first convolution; null: 3 for one channel of 28×28, otherwise 1", least=0, most=100
    )
