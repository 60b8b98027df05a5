"""Preprocess the splits: in memory if they are small, otherwise when images are indexed.

ZCA whitening multiplies whole batches by a matrix, and the rounding depends on the size of the batch. Large splits are
therefore whitened once, and kept in the cache as float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ast_lightning.data.cache import cached_arrays, entry_folder, write_array
from ast_lightning.data.sources import LabelledImages
from ast_lightning.data.splits import remembered_of
from ast_lightning.images import ImageView, Preprocessing, ZcaWhitening, fit_preprocessing, preprocess
from ast_lightning.images import preprocessed_parts as parts_of
from ast_lightning.terminal import say

Splits = Mapping[str, LabelledImages]
"""``train``, ``test`` and, if there is one, ``validation``."""


def place(used: Splits, limit: int) -> dict[str, LabelledImages]:
    """The same splits as tensors, or as views if their preprocessed images take more than ``limit`` bytes."""
    large = sum(4 * math.prod(split.images.shape) for split in used.values()) > limit
    return {name: _as_view(split) if large else _as_tensor(split) for name, split in used.items()}


def fit(
    used: Splits, kind: str, fingerprint: str, cache: str | Path | None, zca_eps: float, **options: Any
) -> Preprocessing:
    """:func:`fit_preprocessing` on the training images. Statistics of views are recorded in the cache."""
    images = used["train"].images

    def fitted(**more: Any) -> Preprocessing:
        return fit_preprocessing(kind, images, zca_eps=zca_eps, **{**options, **more})

    if not isinstance(images, ImageView) or options.get("mean") is not None:
        return fitted()
    if kind == "standardize":
        found = remembered_of("statistics", used["train"], used["test"], lambda: fitted().describe())
        return fitted(mean=found["mean"], std=found["std"])
    features = math.prod(images.shape[1:])
    if kind != "zca" or cache is None or features > options["zca_max_features"]:
        return fitted()
    entry = entry_folder(cache, "zca", ["zca", fingerprint, zca_eps])

    def write(folder: Path) -> None:
        say(f"fitting ZCA on {len(images)} images of {features} values")
        for name, tensor in fitted().tensors().items():
            write_array(folder / f"{name}.npy", tuple(tensor.shape), np.float32, [tensor.numpy()])

    return ZcaWhitening(**cached_arrays(entry, 8 * features**2, write), eps=zca_eps)


def preprocess_splits(
    used: Splits, fitted: Preprocessing, fingerprint: str, cache: str | Path | None
) -> dict[str, LabelledImages]:
    """Preprocess uint8 splits.

    Args:
        used: the splits, see :func:`place`.
        fitted: the preprocessing.
        fingerprint: of the training and test images.
        cache: the folder for large whitened images; None keeps them in memory.
    """
    ready: dict[str, Tensor | ImageView] = {}
    for name, split in used.items():
        view = isinstance(split.images, ImageView)
        if isinstance(split.images, ImageView) and fitted.elementwise:
            ready[name] = split.images.preprocessed(fitted)
        elif not view or cache is None:
            ready[name] = preprocess(fitted, split.images)
        else:
            ready[name] = _whitened(name, split, fitted, fingerprint, cache)
    return {name: LabelledImages(images, used[name].labels) for name, images in ready.items()}


def _whitened(
    name: str, split: LabelledImages, fitted: Preprocessing, fingerprint: str, cache: str | Path
) -> ImageView:
    """A view of preprocessed images in the cache."""
    shape = tuple(split.images.shape)
    identity = ["whitened", fingerprint, name, list(shape), fitted.fingerprint()]
    entry = entry_folder(cache, f"whitened_{name}", identity)

    def write(folder: Path) -> None:
        say(f"whitening {len(split)} {name} images")
        write_array(folder / "images.npy", shape, np.float32, _arrays(parts_of(fitted, split.images)))

    return ImageView(cached_arrays(entry, 4 * math.prod(shape), write)["images"])


def _arrays(parts: Iterable[Tensor]) -> Iterable[np.ndarray]:
    return (part.numpy() for part in parts)


def _as_view(split: LabelledImages) -> LabelledImages:
    images = split.images
    return split if isinstance(images, ImageView) else LabelledImages(ImageView(images), split.labels)


def _as_tensor(split: LabelledImages) -> LabelledImages:
    images = split.images
    return LabelledImages(images[:], split.labels) if isinstance(images, ImageView) else split
