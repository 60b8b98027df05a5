"""The options of section ``network``: the built-in networks, and those of torchvision and timm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ast_lightning.config.settings import Settings, option

NORMALIZATIONS = ("instance", "batch", "layer", "layer_chw", "group", "none")
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "sigmoid")
POOLINGS = ("avg", "max", "none")
VGG_LAYERS = (11, 13, 16, 19)
_CONVNET = "ast_lightning.networks.ConvNet"


@dataclass(frozen=True)
class ConvNetSettings(Settings):
    """The options of :class:`~ast_lightning.networks.ConvNet`; network=custom takes any other class."""

    section: ClassVar[str] = "network"

    _target_: str = option(_CONVNET, "the class of the network")
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


def _target(name: str) -> Any:
    """The class of a network other than ConvNet. ConvNet is the neutral value, so that each class is another run."""
    return option(f"ast_lightning.networks.{name}", "the class of the network", neutral=_CONVNET)


@dataclass(frozen=True)
class MLPSettings(Settings):
    """The options of :class:`~ast_lightning.networks.MLP`: none (network=mlp)."""

    section: ClassVar[str] = "network"

    _target_: str = _target("MLP")


@dataclass(frozen=True)
class LeNetSettings(Settings):
    """The options of :class:`~ast_lightning.networks.LeNet`: none (network=lenet)."""

    section: ClassVar[str] = "network"

    _target_: str = _target("LeNet")


@dataclass(frozen=True)
class AlexNetSettings(Settings):
    """The options of :class:`~ast_lightning.networks.AlexNet` (network=alexnet)."""

    section: ClassVar[str] = "network"

    _target_: str = _target("AlexNet")
    normalization: str = option("none", "normalisation after each convolution, as in ConvNet", choices=NORMALIZATIONS)


@dataclass(frozen=True)
class VGGSettings(Settings):
    """The options of :class:`~ast_lightning.networks.VGG` (network=vgg11, vgg13, vgg16, vgg19)."""

    section: ClassVar[str] = "network"

    _target_: str = _target("VGG")
    layers: int = option(11, "layers with weights: 11, 13, 16 or 19", least=11, most=19)
    normalization: str = option("instance", "normalisation, as in ConvNet", choices=NORMALIZATIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers not in VGG_LAYERS:
            raise self.refused("layers", "there is no such VGG", f"choose one of {', '.join(map(str, VGG_LAYERS))}")


@dataclass(frozen=True)
class ResNet18Settings(Settings):
    """The options of :class:`~ast_lightning.networks.ResNet18` (network=resnet18, resnet18_ap, resnet18_imagenet)."""

    section: ClassVar[str] = "network"

    _target_: str = _target("ResNet18")
    normalization: str = option("instance", "normalisation, as in ConvNet", choices=NORMALIZATIONS)
    downsampling: str = option(
        "stride", "how maps are halved; avg_pool: by average pooling (ResNet18_AP)", choices=("stride", "avg_pool")
    )
    stem: str = option(
        "small",
        "first layers: small (a 3×3 convolution) | imagenet (a 7×7 convolution of stride 2 and maximum pooling)",
        choices=("small", "imagenet"),
    )


@dataclass(frozen=True)
class LibraryNetworkSettings(Settings):
    """The options of networks that a library builds, without pretrained weights."""

    section: ClassVar[str] = "network"

    name: str = option("???", "the name of the network in the library, e.g. resnet18")
    arguments: Any = option(
        None, "further arguments of the network, e.g. {stochastic_depth_prob: 0}", type="mapping | None"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.arguments, Mapping | None):
            raise self.refused("arguments", "it is not a mapping", "write {name: value}, or null")


@dataclass(frozen=True)
class TorchvisionSettings(LibraryNetworkSettings):
    """The class of networks of torchvision.models (network=torchvision)."""

    _target_: str = _target("Torchvision")


@dataclass(frozen=True)
class TimmSettings(LibraryNetworkSettings):
    """The class of networks of timm (network=timm)."""

    _target_: str = _target("Timm")
