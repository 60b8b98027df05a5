"""The built-in network."""

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
    width: int = option(128, "channels of every convolution")
    depth: int = option(3, "blocks: 3 at 28 and 32 px, 4 at 64 px, 5 at 128 px")
    normalization: str = option("instance", "instance | batch | layer (one group) | layer_chw | group | none")
    activation: str = option("relu", "relu | leaky_relu | gelu | silu | sigmoid")
    pooling: str = option("avg", "avg | max | none")
    first_padding: int | None = option(None, "of the first convolution; null: 3 for one channel of 28×28, otherwise 1")

    def __post_init__(self) -> None:
        self.require_at_least(1, "width", "depth")
        self.require_at_least(0, "first_padding")
        self.require_choice("normalization", NORMALIZATIONS)
        self.require_choice("activation", ACTIVATIONS)
        self.require_choice("pooling", POOLINGS)
