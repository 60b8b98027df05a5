"""Networks of a user's own, and what is wrong with each of them."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn


class Own(nn.Module):
    """Fits."""

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * image_size[0] * image_size[1], num_classes)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class OneMore(Own):
    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__(channels, num_classes + 1, image_size)


class Pair(Own):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits, logits  # type: ignore[return-value]


class Maps(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[..., None, None]


class Dice(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * random.random()


class Counter(Own):
    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) * self.calls


class Fails(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :, 1:])


class CannotBeBuilt(Own):
    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        raise ZeroDivisionError(f"{channels}\nchannels")


class NormalizedLogits(Own):
    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__(channels, num_classes, image_size)
        self.norm = nn.BatchNorm1d(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.norm(super().forward(images))
        return logits


class Attention(nn.Module):
    """Fits: rows of pixels that attend to each other."""

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.embed = nn.Linear(channels * image_size[1], 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.linear = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.transpose(1, 2).flatten(2))
        logits: Tensor = self.linear(torch.tanh(self.attention(rows, rows, rows, need_weights=False)[0]).mean(1))
        return logits


def no_module(channels: int, num_classes: int, image_size: tuple[int, int]) -> str:
    return "no module"
