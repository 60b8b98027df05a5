"""Networks of torchvision and timm by their names, without pretrained weights."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ast_lightning.errors import ConfigurationError


class LibraryNetwork(nn.Module, ABC):
    """A network that a library builds by its name.

    Args:
        channels: number of image channels.
        num_classes: number of logits.
        image_size: (height, width) in pixels.
        name: the name in the library, e.g. ``resnet18``.
        arguments: further arguments of the network, e.g. ``{"stochastic_depth_prob": 0}``.

    Shape:
        ``[N, channels, H, W]`` → ``[N, num_classes]``.
    """

    remedy = (
        "switch it off by network.arguments, e.g. {stochastic_depth_prob: 0} or {aux_logits: false}, or choose another "
        "network.name"
    )
    remedy_of_errors = "set a larger data.image_size, choose another network.name, or correct network.arguments"

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        name: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = {"num_classes": num_classes, **(arguments or {})}
        self.network = self._build(channels, tuple(image_size), name, options)

    @staticmethod
    @abstractmethod
    def check(name: str, **others: Any) -> ModuleType:
        """Import the library and reject an unknown name.

        Raises:
            ConfigurationError: the library is not installed, or has no such network; it names the most similar one.
        """

    @abstractmethod
    def _build(self, channels: int, image_size: tuple[int, ...], name: str, options: dict[str, Any]) -> nn.Module:
        """Build the network; ``options`` are ``num_classes`` and the further arguments."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


class Torchvision(LibraryNetwork):
    """A classifier of ``torchvision.models``.

    Its networks take three channels. For other images, the first convolution is replaced by one of as many channels.

    Raises:
        ConfigurationError: there is no such network, or it has no convolution of three channels to replace.

    >>> sum(parameter.numel() for parameter in Torchvision(3, 10, (32, 32), "resnet18").parameters())
    11181642
    """

    def _build(self, channels: int, image_size: tuple[int, ...], name: str, options: dict[str, Any]) -> nn.Module:
        sizes = {"vit_": ("image_size", image_size[0]), "maxvit": ("input_size", image_size)}
        sized: dict[str, Any] = dict(value for prefix, value in sizes.items() if name.startswith(prefix))
        network: nn.Module = self.check(name).get_model(name, weights=None, **{**sized, **options})
        if channels != 3:
            _replace_first_convolution(network, channels, name)
        return network

    @staticmethod
    def check(name: str, **others: Any) -> ModuleType:
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            raise _unknown(name, names, "torchvision.models")
        package: ModuleType = models
        return package


class Timm(LibraryNetwork):
    """A network of timm, a package of its own (``pip install '.[timm]'``).

    The image size is passed to networks of a fixed size, such as vision transformers.

    Raises:
        ConfigurationError: timm is not installed, or has no such network.
    """

    def _build(self, channels: int, image_size: tuple[int, ...], name: str, options: dict[str, Any]) -> nn.Module:
        timm = self.check(name)
        pretrained = timm.get_pretrained_cfg(name, allow_unregistered=True)
        sized = {"img_size": image_size} if getattr(pretrained, "fixed_input_size", False) else {}
        network: nn.Module = timm.create_model(name, pretrained=False, **{"in_chans": channels, **sized, **options})
        return network

    @staticmethod
    def check(name: str, **others: Any) -> ModuleType:
        try:
            import timm
        except ModuleNotFoundError as error:
            remedy = "pip install 'ast-lightning[timm]', or choose network=torchvision"
            raise ConfigurationError("network", "timm", f"{error.name} is not installed", remedy) from error
        if not timm.is_model(name):
            raise _unknown(name, timm.list_models(), "timm")
        package: ModuleType = timm
        return package


def _unknown(name: str, names: Collection[str], library: str) -> ConfigurationError:
    near = difflib.get_close_matches(name, names, 1)
    remedy = f"did you mean {near[0]}?" if near else f"choose a network of {library}, such as resnet18"
    return ConfigurationError("network.name", name, f"{library} has no such network", remedy)


def _replace_first_convolution(network: nn.Module, channels: int, name: str) -> None:
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            parent, _, child = path.rpartition(".")
            shape: dict[str, Any] = {
                each: getattr(module, each) for each in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            first = nn.Conv2d(channels, module.out_channels, bias=module.bias is not None, **shape)
            setattr(network.get_submodule(parent), child, first)
            return
    problem = f"it has no convolution of three channels, and the images have {channels}"
    raise ConfigurationError("network.name", name, problem, "choose another network, or give images of three channels")
