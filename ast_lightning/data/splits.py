"""Choosing the images to use: a held-out split, a subset per class, a size, and the outcome's fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.errors import ConfigurationError

_RESIZE_CHUNK = 4096


def check_raw(raw: RawDataset, source: object) -> None:
    """Raise ``ConfigurationError`` if a source broke its promises, or a class has no training images."""
    if problem := next(_problems(raw), None):
        raise ConfigurationError("data.source", source, problem, "correct the images, see RawDataset")


def _problems(raw: RawDataset) -> Iterator[str]:
    """What is wrong with a dataset; each check may rely on those before it."""
    num_classes = len(raw.class_names)
    if num_classes < 2:
        yield f"it has {num_classes} classes, and two classes are the least"
    for name, split in (("training", raw.train), ("test", raw.test)):
        images, labels = split.images, split.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            yield f"{name} images: expected uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}"
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            yield f"{name} images: expected int64 labels [{len(images)}], not {labels.dtype} {list(labels.shape)}"
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < 0 or high >= num_classes:
            yield f"{name} images: labels from {low} to {high} for {num_classes} class names"
    shapes = [list(split.images.shape[1:]) for split in (raw.train, raw.test)]
    if shapes[0] != shapes[1]:
        yield f"training and test images differ in shape ({shapes[0]} and {shapes[1]})"
    name, count = smallest_class(raw.train.labels, raw.class_names)
    if count == 0:
        yield f"class {name!r} has no training images"


def smallest_class(labels: Tensor, class_names: Sequence[str]) -> tuple[str, int]:
    """Name and size of the class with the fewest samples."""
    counts = torch.bincount(labels, minlength=len(class_names))
    smallest = int(counts.argmin())
    return class_names[smallest], int(counts[smallest])


def hold_out(
    train: LabelledImages, fraction: float, class_names: tuple[str, ...], generator: torch.Generator
) -> tuple[LabelledImages, LabelledImages | None]:
    """Split off ``fraction`` of every class (rounded, at least one image), drawn at random; order is kept.

    Returns:
        What remains for training, and the held-out images (None for a fraction of 0).
    """
    if fraction == 0:
        return train, None
    sizes = torch.bincount(train.labels, minlength=len(class_names)).tolist()
    held = [max(1, round(fraction * size)) for size in sizes]
    for name, size, count in zip(class_names, sizes, held, strict=True):
        if count >= size:
            problem = f"it leaves no training images of class {name!r}, which has {size}"
            raise ConfigurationError("data.validation_fraction", fraction, problem, "lower it, or set it to 0")
    chosen = _draw(train.labels, held, generator)
    return train.take(~chosen), train.take(chosen)


def subset_per_class(
    train: LabelledImages, per_class: int | None, class_names: tuple[str, ...], generator: torch.Generator
) -> LabelledImages:
    """``per_class`` random images of every class, in order; a smaller subset lies within a larger."""
    if per_class is None:
        return train
    name, count = smallest_class(train.labels, class_names)
    if per_class > count:
        problem = f"class {name!r} has {count} training images"
        raise ConfigurationError("data.per_class", per_class, problem, f"use at most {count} or null")
    return train.take(_draw(train.labels, [per_class] * len(class_names), generator))


def _draw(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """bool [N]: ``counts[label]`` random samples of every class."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().squeeze(1)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen


def resize(split: LabelledImages, image_size: int | None) -> LabelledImages:
    """uint8 images at ``image_size`` × ``image_size``: bilinear, antialiased, the aspect not kept."""
    if image_size is None or tuple(split.images.shape[2:]) == (image_size, image_size):
        return split
    size = [image_size, image_size]
    parts = [transforms.resize(part, size, antialias=True) for part in split.images.split(_RESIZE_CHUNK)]
    return LabelledImages(torch.cat(parts), split.labels)


def fingerprint(*splits: LabelledImages) -> str:
    """16 hexadecimal digits of the sha256 of the uint8 images and labels, in order."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.images, split.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]
