"""Networks of torchvision and timm by their names, without pretrained weights."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ast_lightning.errors import ConfigurationError

_REMEDY = (
    "switch it off by network.arguments, e.g. {stochastic_depth_prob: 0} or {aux_logits: false}, or choose another "
    "network.name"
)


class Torchvision(nn.Module):
    """A classifier of ``torchvision.models``.

    Its networks take three channels. For other images, the first convolution is replaced by one of as many channels.

    Args:
        channels: number of image channels.
        num_classes: number of logits.
        image_size: (height, width) in pixels.
        name: the name in torchvision, e.g. ``resnet18``.
        arguments: further arguments of the network, e.g. ``{"stochastic_depth_prob": 0}``.

    Shape:
        ``[N, channels, H, W]`` → ``[N, num_classes]``.

    Raises:
        ConfigurationError: there is no such network, or it has no convolution of three channels to replace.

    >>> sum(parameter.numel() for parameter in Torchvision(3, 10, (32, 32), "resnet18").parameters())
    11181642
    """

    remedy = _REMEDY

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        name: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        models = self.check(name)
        sized = {"vit_": ("image_size", image_size[0]), "maxvit": ("input_size", tuple(image_size))}
        options: dict[str, Any] = dict(value for prefix, value in sized.items() if name.startswith(prefix))
        options |= {"num_classes": num_classes, **(arguments or {})}
        self.network = models.get_model(name, weights=None, **options)
        if channels != 3:
            _replace_first_convolution(self.network, channels, name)

    @staticmethod
    def check(name: str, **others: Any) -> ModuleType:
        """Import ``torchvision.models`` and reject an unknown name.

        Raises:
            ConfigurationError: it names the most similar one.
        """
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            raise _unknown(name, names, "torchvision.models")
        package: ModuleType = models
        return package

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


class Timm(nn.Module):
    """A network of timm, a package of its own (``pip install '.[timm]'``).

    Args:
        channels, num_classes, image_size, name, arguments: see :class:`Torchvision`. The size is passed to networks of
            a fixed size, such as vision transformers.

    Raises:
        ConfigurationError: timm is not installed, or has no such network.
    """

    remedy = _REMEDY

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        name: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        timm = self.check(name)
        pretrained = timm.get_pretrained_cfg(name, allow_unregistered=True)
        size = {"img_size": tuple(image_size)} if getattr(pretrained, "fixed_input_size", False) else {}
        options = {"num_classes": num_classes, "in_chans": channels, **size, **(arguments or {})}
        self.network = timm.create_model(name, pretrained=False, **options)

    @staticmethod
    def check(name: str, **others: Any) -> ModuleType:
        """Import timm and reject an unknown name; see :meth:`Torchvision.check`."""
        try:
            import timm
        except ModuleNotFoundError as error:
            remedy = "pip install 'ast-lightning[timm]', or choose network=torchvision"
            raise ConfigurationError("network", "timm", f"{error.name} is not installed", remedy) from error
        if not timm.is_model(name):
            raise _unknown(name, timm.list_models(), "timm")
        package: ModuleType = timm
        return package

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


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
