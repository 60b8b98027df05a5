"""ResNet18 in the three forms of the published codes, whose parameters have the same order and shapes."""

from __future__ import annotations

from torch import Tensor, nn

from ast_lightning.config.network import ResNet18Settings
from ast_lightning.networks.layers import NORMALIZATIONS, ReLU, require_size, shrink_to

_Size = tuple[int, int]


class ResNet18(nn.Module):
    """Eight residual blocks of two 3×3 convolutions, and one linear layer.

    Args:
        channels: number of image channels.
        num_classes: number of logits.
        image_size: (height, width) in pixels.
        normalization: as in :class:`~ast_lightning.networks.ConvNet`.
        downsampling: ``stride``: convolutions of stride 2, and the mean of the last maps; ``avg_pool`` (ResNet18_AP):
            average pooling after convolutions of stride 1, and last maps of 4×4.
        stem: ``small``: one 3×3 convolution of stride 1; ``imagenet``: one 7×7 convolution of stride 2 and maximum
            pooling of stride 2.

    Shape:
        ``[N, channels, H, W]`` → ``[N, num_classes]``.

    Raises:
        ConfigurationError: an unknown choice, or images smaller than 16 px (64 px with ``stem=imagenet``), whose last
            maps would be single pixels, which normalisation of each map sets to zero.

    >>> sum(parameter.numel() for parameter in ResNet18(3, 10, (32, 32)).parameters())
    11173962
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: _Size,
        normalization: str = "instance",
        downsampling: str = "stride",
        stem: str = "small",
    ) -> None:
        super().__init__()
        ResNet18Settings(normalization=normalization, downsampling=downsampling, stem=stem)  # validates the options
        require_size(self, image_size, 64 if stem == "imagenet" else 16)
        pools, size = downsampling == "avg_pool", (image_size[0], image_size[1])
        if stem == "imagenet":
            size = _halved(size, rounded_up=True)
            first, pool = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False), [nn.MaxPool2d(3, 2, padding=1)]
        else:
            first, pool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), []
        self.stem = nn.Sequential(first, NORMALIZATIONS[normalization](64, *size), ReLU(), *pool)
        size = _halved(size, rounded_up=True) if pool else size
        blocks: list[nn.Module] = []
        width = 64
        for outputs, shrinks in ((64, False), (64, False), *((64 * 2**i, j == 0) for i in (1, 2, 3) for j in (0, 1))):
            blocks.append(_Block(width, outputs, size, normalization, shrinks, pools))
            width, size = outputs, _halved(size, rounded_up=not pools) if shrinks else size
        side = 4 if pools else 1
        self.blocks = nn.Sequential(*blocks, shrink_to(side, *size))
        self.classifier = nn.Linear(width * min(side, size[0]) * min(side, size[1]), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.blocks(self.stem(images)).flatten(1))
        return logits


class _Block(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)). It may halve its maps, by stride or by pooling."""

    def __init__(self, width: int, outputs: int, size: _Size, normalization: str, shrinks: bool, pools: bool) -> None:
        super().__init__()
        stride, halve = 2 if shrinks and not pools else 1, [nn.AvgPool2d(2)] if shrinks and pools else []
        half = _halved(size, rounded_up=not pools) if shrinks else size
        norm = NORMALIZATIONS[normalization]
        self.path = nn.Sequential(
            nn.Conv2d(width, outputs, 3, stride=stride, padding=1, bias=False),
            norm(outputs, *(size if halve else half)),
            ReLU(),
            *halve,
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm(outputs, *half),
        )
        self.shortcut: nn.Module = nn.Identity()
        if shrinks:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, outputs, 1, stride=stride, bias=False), *halve, norm(outputs, *half)
            )
        self.activation = ReLU()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.activation(self.path(images) + self.shortcut(images))
        return logits


def _halved(size: _Size, rounded_up: bool) -> _Size:
    height, width = ((side + rounded_up) // 2 for side in size)
    return height, width
