"""Where the synthetic images start from: representative real images, random real images, or noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ast_lightning.config.distill import INITIALIZATIONS
from ast_lightning.data import LabelledImages
from ast_lightning.data.selection import Logits, check_ipc, random_images, representative_images, representatives
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import keyed_generator

__all__ = ["Logits", "check_ipc", "initial_images", "representatives"]


def initial_images(
    init: str,
    real: LabelledImages,
    class_names: Sequence[str],
    ipc: int,
    *,
    seed: int,
    logits: Logits | None = None,
    clusters: int = 10,
) -> tuple[Tensor, Tensor]:
    """The synthetic set before distillation.

    Args:
        init: ``representative``, ``real`` or ``noise``.
        real: the preprocessed training images.
        class_names: of all classes, in the order of the labels.
        ipc: images per class.
        seed: of every draw.
        logits: an expert, for ``representative``.
        clusters: k-means clusters a class, for ``representative``.

    Returns:
        images ``[classes · ipc, C, H, W]`` float32, grouped by class, and labels ``[classes · ipc]`` int64.

    Raises:
        ConfigurationError: fewer than ``ipc`` real images in a class, or no such initialisation.
    """
    if init not in INITIALIZATIONS:
        raise ConfigurationError(
            "distill.init", init, "there is no such choice", f"take one of {', '.join(INITIALIZATIONS)}"
        )
    if init == "noise":
        labels = torch.arange(len(class_names)).repeat_interleave(ipc)
        shape = (len(labels), *real.images.shape[1:])
        return torch.randn(shape, generator=keyed_generator(seed, "noise initialisation")), labels
    if init == "real":
        return random_images(real, class_names, ipc, seed)
    if logits is None:
        raise ValueError("representative initialisation needs the logits of an expert")
    return representative_images(real, class_names, ipc, seed, logits, clusters)
