"""The training set of an evaluation network."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrainingSet(NamedTuple):
    """Images, labels and learning rate for the training of an evaluation network.

    Attributes:
        images: ``[N, C, H, W]`` preprocessed.
        labels: ``[N]`` int64, or probabilities ``[N, classes]`` float. ``cross_entropy`` accepts both.
        learning_rate: learning rate of SGD, unless the settings specify one.
        crop_size: (H, W) of the images that networks see, if ``images`` are larger canvases: each batch takes a random
            circular crop of each of its canvases. None for ordinary images.
    """

    images: Tensor
    labels: Tensor
    learning_rate: float
    crop_size: tuple[int, int] | None = None
