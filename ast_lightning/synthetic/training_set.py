"""What a network is trained on in place of real images."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrainingSet(NamedTuple):
    """What an evaluation network is trained on.

    Attributes:
        images: ``[N, C, H, W]`` preprocessed.
        labels: ``[N]`` int64 or ``[N, classes]`` float.
        learning_rate: of SGD, unless the settings name one.
    """

    images: Tensor
    labels: Tensor
    learning_rate: float
