"""MLP, LeNet, AlexNet and VGG in the forms of the published codes, whose parameters have the same order and shapes.

These forms are for images of 32 px. Images of 28×28 are padded in the first convolution so that they give the maps of
32×32, as published for one channel. Larger maps are averaged before the classifier.
"""

from __future__ import annotations

from torch import Tensor, nn

from ast_lightning.config.network import AlexNetSettings, VGGSettings
from ast_lightning.networks.layers import NORMALIZATIONS, ReLU, require_size, shrink_to

_POOL = 0  # in a list of convolutions: 2×2 maximum pooling
_VGG = {
    11: [64, _POOL, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL, 512, 512, _POOL],
    13: [64, 64, _POOL, 128, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL, 512, 512, _POOL],
    16: [64, 64, _POOL, 128, 128, _POOL, *[256] * 3, _POOL, *[512] * 3, _POOL, *[512] * 3, _POOL],
    19: [64, 64, _POOL, 128, 128, _POOL, *[256] * 4, _POOL, *[512] * 4, _POOL, *[512] * 4, _POOL],
}


def _is_28(image_size: tuple[int, int]) -> bool:
    return tuple(image_size) == (28, 28)


class MLP(nn.Module):
    """Two hidden layers of 128 ReLUs.

    Args:
        channels: number of image channels.
        num_classes: number of logits.
        image_size: (height, width) in pixels.

    Shape:
        ``[N, channels, H, W]`` → ``[N, num_classes]``.

    >>> sum(parameter.numel() for parameter in MLP(3, 10, (32, 32)).parameters())
    411146
    """

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        features = channels * image_size[0] * image_size[1]
        self.layers = nn.Sequential(
            nn.Linear(features, 128), ReLU(), nn.Linear(128, 128), ReLU(), nn.Linear(128, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images.flatten(1))
        return logits


class LeNet(nn.Module):
    """Two 5×5 convolutions with ReLU and maximum pooling, and three linear layers.

    Args:
        channels, num_classes, image_size: see :class:`MLP`.

    Raises:
        ConfigurationError: images smaller than 16 px.

    >>> sum(parameter.numel() for parameter in LeNet(3, 10, (32, 32)).parameters())
    62006
    """

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        require_size(self, image_size, 16)
        padding = 2 if _is_28(image_size) else 0
        height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in image_size)
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 6, 5, padding=padding), ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), ReLU(), nn.MaxPool2d(2)),
            shrink_to(5, height, width),
        )
        features = 16 * min(height, 5) * min(width, 5)
        self.classifier = nn.Sequential(
            nn.Linear(features, 120), ReLU(), nn.Linear(120, 84), ReLU(), nn.Linear(84, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class AlexNet(nn.Module):
    """Five convolutions with ReLU, three maximum poolings, and one linear layer.

    Args:
        channels, num_classes, image_size: see :class:`MLP`.
        normalization: after each convolution, as in :class:`~ast_lightning.networks.ConvNet`; the published form has
            none.

    Raises:
        ConfigurationError: an unknown normalisation, or images smaller than 8 px.

    >>> sum(parameter.numel() for parameter in AlexNet(3, 10, (32, 32)).parameters())
    1872202
    """

    def __init__(
        self, channels: int, num_classes: int, image_size: tuple[int, int], normalization: str = "none"
    ) -> None:
        super().__init__()
        AlexNetSettings(normalization=normalization)  # validates the option
        require_size(self, image_size, 8)
        convolutions: list[tuple[int, int, int] | int] = [
            (128, 5, 4 if _is_28(image_size) else 2),
            _POOL,
            (192, 5, 2),
            _POOL,
        ]
        convolutions += [(256, 3, 1), (192, 3, 1), (192, 3, 1), _POOL]
        self.features, self.classifier = _stack(channels, num_classes, image_size, convolutions, normalization, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class VGG(nn.Module):
    """3×3 convolutions with normalisation and ReLU, five maximum poolings, and one linear layer.

    Args:
        channels, num_classes, image_size: see :class:`MLP`.
        layers: layers with weights: 11, 13, 16 or 19.
        normalization: as in :class:`~ast_lightning.networks.ConvNet`.

    Raises:
        ConfigurationError: an unknown choice, or images smaller than 28 px.

    >>> sum(parameter.numel() for parameter in VGG(3, 10, (32, 32)).parameters())
    9231114
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        layers: int = 11,
        normalization: str = "instance",
    ) -> None:
        super().__init__()
        VGGSettings(layers=layers, normalization=normalization)  # validates the options
        require_size(self, image_size, 28 if _is_28(image_size) else 32)
        first = 3 if _is_28(image_size) else 1
        paddings = [first, *[1] * (len(_VGG[layers]) - 1)]
        convolutions: list[tuple[int, int, int] | int] = [
            (width, 3, padding) if width else _POOL for width, padding in zip(_VGG[layers], paddings, strict=True)
        ]
        self.features, self.classifier = _stack(channels, num_classes, image_size, convolutions, normalization, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _stack(
    channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    convolutions: list[tuple[int, int, int] | int],
    normalization: str,
    side: int,
) -> tuple[nn.Module, nn.Module]:
    """Convolutions ``(width, kernel, padding)`` with normalisation and ReLU, or poolings; and the classifier.

    The classifier sees maps of at most ``side`` × ``side``.
    """
    layers: list[nn.Module] = []
    height, width = image_size
    for each in convolutions:
        if isinstance(each, int):
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
            continue
        outputs, kernel, padding = each
        height, width = (extent + 2 * padding - kernel + 1 for extent in (height, width))
        layers += [
            nn.Conv2d(channels, outputs, kernel, padding=padding),
            NORMALIZATIONS[normalization](outputs, height, width),
            ReLU(),
        ]
        channels = outputs
    layers.append(shrink_to(side, height, width))
    return nn.Sequential(*layers), nn.Linear(channels * min(side, height) * min(side, width), num_classes)
