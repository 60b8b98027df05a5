"""Selection of the images to use: checks, held-out split, subset per class, resizing, and a fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ast_lightning.config.parts import describe_part
from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.files import format_bytes
from ast_lightning.terminal import say

_RESIZE_CHUNK = 4096


def check_raw(raw: RawDataset, source: object, root: str | None = None) -> None:
    """Check the dataset that a source returns. A warning is printed if many test images are also training images.

    Raises:
        ConfigurationError: a type, shape or range is wrong, or a class has no training images.
    """
    if problem := next(_problems(raw), None):
        option, value, remedy = "data.root", root, "correct that in the files"
        if callable(source):
            option, value = "data.source", describe_part(source)
            remedy = "return an ast_lightning.data.RawDataset of uint8 images [N, C, H, W] and int64 labels"
        raise ConfigurationError(option, value, *problem, *([remedy] if len(problem) == 1 else []))
    known = {image.tobytes() for image in raw.train.images.numpy()}
    repeated = sum(image.tobytes() in known for image in raw.test.images.numpy())
    if repeated > len(raw.test) / 20:
        say(f"warning: {repeated} of {len(raw.test)} test images are training images too: accuracies will be too high")


def _problems(raw: Any) -> Iterator[tuple[str, ...]]:
    """The problems of a dataset, some with a specific remedy. Each check assumes that the previous ones passed."""
    if not isinstance(raw, RawDataset):
        yield (f"it gives {type(raw).__name__} and no dataset",)
    num_classes = len(raw.class_names)
    if num_classes < 2:
        plural = "es" * (num_classes != 1)
        yield f"it has {num_classes} class{plural}, and at least two are needed", "add images of another class"
    for name, split in (("training", raw.train), ("test", raw.test)):
        images: Any = getattr(split, "images", None)
        labels: Any = getattr(split, "labels", None)
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            yield (f"{name} images: expected LabelledImages of two tensors, not {type(split).__name__}",)
        shape = list(images.shape)
        if images.dtype != torch.uint8 or images.ndim != 4 or 0 in shape:
            yield (f"{name} images: expected uint8 [N, C, H, W], not {images.dtype} {shape}",)
        if shape[1] > 4 and shape[3] in (1, 3):
            yield f"{name} images: {shape} has the channels last", "permute them: images.permute(0, 3, 1, 2)"
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            yield (f"{name} images: expected int64 labels [{len(images)}], not {labels.dtype} {list(labels.shape)}",)
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < 0 or high >= num_classes:
            yield (f"{name} images: labels from {low} to {high} for {num_classes} class names",)
    shapes = [list(split.images.shape[1:]) for split in (raw.train, raw.test)]
    if shapes[0] != shapes[1]:
        yield (f"training and test images differ in shape ({shapes[0]} and {shapes[1]})",)
    name, count = smallest_class(raw.train.labels, raw.class_names)
    if count == 0:
        yield (f"class {name!r} has no training images",)
    lowest, highest = (int(bound) for bound in raw.train.images.aminmax())
    if lowest == highest:
        yield (f"every pixel of the training images has the value {lowest}",)


def check_memory(count: int, channels: int, height: int, width: int) -> None:
    """Check that the images and their float32 copy fit into this machine's memory.

    Raises:
        ConfigurationError: ``data.image_size`` is too large.
    """
    needed, there = 5 * count * channels * height * width, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        problem = f"{count} images of that size take {format_bytes(needed)}, and this machine has {format_bytes(there)}"
        raise ConfigurationError("data.image_size", height, problem, "make it smaller")


def smallest_class(labels: Tensor, class_names: Sequence[str]) -> tuple[str, int]:
    """Name and size of the class with the fewest samples."""
    counts = torch.bincount(labels, minlength=len(class_names))
    smallest = int(counts.argmin())
    return class_names[smallest], int(counts[smallest])


def hold_out(
    train: LabelledImages, fraction: float, class_names: tuple[str, ...], generator: torch.Generator
) -> tuple[LabelledImages, LabelledImages | None]:
    """Hold out a random ``fraction`` of every class (rounded, at least one image); the order is kept.

    Returns:
        The remaining training images, and the held-out images (None for a fraction of 0).
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
    """``per_class`` random images of every class, in their original order. Larger subsets contain smaller ones."""
    if per_class is None:
        return train
    name, count = smallest_class(train.labels, class_names)
    if per_class > count:
        problem = f"class {name!r} has {count} training images"
        raise ConfigurationError("data.per_class", per_class, problem, f"use at most {count} or null")
    return train.take(_draw(train.labels, [per_class] * len(class_names), generator))


def _draw(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """A mask, bool [N], of ``counts[label]`` random samples of every class."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().squeeze(1)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen


def resize(split: LabelledImages, image_size: int | None) -> LabelledImages:
    """Resize uint8 images to ``image_size`` × ``image_size``: bilinear, antialiased, ignoring the aspect ratio."""
    if image_size is None or tuple(split.images.shape[2:]) == (image_size, image_size):
        return split
    size = [image_size, image_size]
    check_memory(*split.images.shape[:2], *size)
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
