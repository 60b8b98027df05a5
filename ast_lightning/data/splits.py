"""Selection of the images to use: checks, held-out split, subset per class, resizing, and a fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ast_lightning.config.parts import describe_part
from ast_lightning.data.cache import remembered
from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.errors import ConfigurationError
from ast_lightning.images import ImageView
from ast_lightning.randomness import keyed_generator
from ast_lightning.storage.files import format_bytes
from ast_lightning.storage.inspection import count
from ast_lightning.terminal import say

HELD_OUT = 0.2
"""Fraction of each class that becomes the test split if none is given."""
_CHUNK = 4096  # images that are handled at once


def check_raw(raw: RawDataset, source: object, root: str | None = None) -> None:
    """Check the dataset that a source returns. The test split may be empty.

    Raises:
        ConfigurationError: a type, shape or range is wrong, or there is only one class.
    """
    if problem := next(_problems(raw), None):
        raise _wrong(source, root, *problem)


def check_classes(raw: RawDataset, source: object, root: str | None = None) -> None:
    """Check the classes of a dataset, after some have been chosen.

    Raises:
        ConfigurationError: one has no training images.
    """
    name, size = smallest_class(raw.train.labels, raw.class_names)
    if size == 0:
        problem = f"class {name!r} has no training images"
        raise _wrong(source, root, problem, "add some, or leave the class out of data.classes")


def check_test_classes(raw: RawDataset, classes: object) -> None:
    """Print a note if some of the chosen classes have no images in a test split that exists.

    Raises:
        ConfigurationError: none of them has any.
    """
    if not len(raw.test):
        remedy = "choose other classes, or leave the test images out"
        raise ConfigurationError("data.classes", classes, f"{raw.name} has no test images of these classes", remedy)
    name, size = smallest_class(raw.test.labels, raw.class_names)
    if size == 0:
        say(f"warning: class {name!r} has no test images: accuracies are those of other classes")


def check_content(raw: RawDataset, source: object, root: str | None = None) -> None:
    """Check the images. A warning is printed if many test images are also training images.

    Raises:
        ConfigurationError: all pixels of the training images are equal.
    """
    found = remembered_of("check", raw.train, raw.test, lambda: _look_at(raw.train.images, raw.test.images))
    if found["lowest"] == found["highest"]:
        problem = f"every pixel of the training images has the value {found['lowest']}"
        raise _wrong(source, root, problem)
    if (repeated := found["repeated"]) > len(raw.test) / 20:
        say(f"warning: {repeated} of {len(raw.test)} test images are training images too: accuracies will be too high")


def _wrong(source: object, root: str | None, *problem: str) -> ConfigurationError:
    option, value, remedy = "data.root", root, "correct that in the files"
    if callable(source):
        option, value = "data.source", describe_part(source)
        remedy = "return an ast_lightning.data.RawDataset of uint8 images [N, C, H, W] and int64 labels"
    return ConfigurationError(option, value, *problem, *([remedy] if len(problem) == 1 else []))


def _look_at(train: Tensor | ImageView, test: Tensor | ImageView) -> dict[str, int]:
    """The extreme values of the training images, and how many test images are among them."""
    extremes = torch.stack([torch.stack(part.aminmax()) for part in train.split(_CHUNK)])
    known, tested = _digests(train), _digests(test)
    repeated = int(np.isin(tested, known).sum())
    return {"lowest": int(extremes[:, 0].min()), "highest": int(extremes[:, 1].max()), "repeated": repeated}


def _digests(images: Tensor | ImageView) -> np.ndarray:
    """A checksum of each image, uint64 [N]."""
    parts = (part.contiguous().numpy() for part in images.split(_CHUNK))
    return np.array([xxhash.xxh3_64_intdigest(image) for part in parts for image in part], np.uint64)


def _problems(raw: Any) -> Iterator[tuple[str, ...]]:
    """The problems of a dataset, some with a specific remedy. Each check assumes that the previous ones passed."""
    if not isinstance(raw, RawDataset):
        yield (f"it returns {type(raw).__name__}, not a dataset",)
    num_classes = len(raw.class_names)
    if num_classes < 2:
        yield f"it has {count(num_classes, 'class')}, but at least two are required", "add images of another class"
    for name, split in (("training", raw.train), ("test", raw.test)):
        images: Any = getattr(split, "images", None)
        labels: Any = getattr(split, "labels", None)
        if not isinstance(images, Tensor | ImageView) or not isinstance(labels, Tensor):
            yield (f"{name} images: expected LabelledImages of two tensors, not {type(split).__name__}",)
        shape = list(images.shape)
        if name == "test" and shape[:1] == [0]:
            continue
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
    if len(raw.test) and shapes[0] != shapes[1]:
        yield (f"training and test images differ in shape ({shapes[0]} and {shapes[1]})",)


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
    train: LabelledImages,
    fraction: float,
    class_names: tuple[str, ...],
    generator: torch.Generator,
    option: str = "data.validation_fraction",
) -> tuple[LabelledImages, LabelledImages | None]:
    """Hold out a random ``fraction`` of every class (rounded, at least one image); the order is kept.

    Returns:
        The remaining training images, and the held-out images (None for a fraction of 0).
    """
    if fraction == 0:
        return train, None
    sizes = torch.bincount(train.labels, minlength=len(class_names)).tolist()
    held = [max(1, round(fraction * size)) for size in sizes]
    for name, size, taken in zip(class_names, sizes, held, strict=True):
        if taken >= size:
            problem = f"it leaves no training images of class {name!r}, which has {size}"
            raise ConfigurationError(option, fraction, problem, "lower it, or set it to null")
    chosen = _draw(train.labels, held, generator)
    return train.take(~chosen), train.take(chosen)


def subset_per_class(
    train: LabelledImages, per_class: int | None, class_names: tuple[str, ...], generator: torch.Generator
) -> LabelledImages:
    """``per_class`` random images of every class, in their original order. Larger subsets contain smaller ones."""
    if per_class is None:
        return train
    name, size = smallest_class(train.labels, class_names)
    if per_class > size:
        problem = f"class {name!r} has {size} training images"
        raise ConfigurationError("data.per_class", per_class, problem, f"use at most {size} or null")
    return train.take(_draw(train.labels, [per_class] * len(class_names), generator))


def _draw(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """A mask, bool [N], of ``counts[label]`` random samples of every class."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, wanted in enumerate(counts):
        members = (labels == label).nonzero().squeeze(1)
        chosen[members[torch.randperm(len(members), generator=generator)[:wanted]]] = True
    return chosen


def resize(split: LabelledImages, image_size: int | None) -> LabelledImages:
    """Resize uint8 images to ``image_size`` × ``image_size``: bilinear, antialiased, ignoring the aspect ratio."""
    if image_size is None or tuple(split.images.shape[2:]) == (image_size, image_size):
        return split
    size = [image_size, image_size]
    check_memory(*split.images.shape[:2], *size)
    parts = [transforms.resize(part, size, antialias=True) for part in split.images.split(_CHUNK)]
    return LabelledImages(torch.cat(parts), split.labels)


def fingerprint(train: LabelledImages, test: LabelledImages) -> str:
    """16 hexadecimal digits of the sha256 of the uint8 images and labels, in order."""

    def compute() -> str:
        digest = hashlib.sha256()
        for split in (train, test):
            digest.update(str(tuple(split.images.shape)).encode())
            for part in split.images.split(_CHUNK):
                digest.update(part.contiguous().numpy().data)
            digest.update(str(tuple(split.labels.shape)).encode())
            digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    return str(remembered_of("fingerprint", train, test, compute))


def remembered_of(what: str, train: LabelledImages, test: LabelledImages, compute: Callable[[], Any]) -> Any:
    """The result of ``compute``; if both splits are from one cache entry, it is recorded there."""
    views = [split.images for split in (train, test)]
    if not all(isinstance(view, ImageView) for view in views):
        return compute()
    folders = {view.folder for view in views if isinstance(view, ImageView)}
    tensors: dict[str, Tensor | None] = {}
    for name, split in (("train", train), ("test", test)):
        assert isinstance(split.images, ImageView)
        tensors |= {name: split.images.rows, f"{name} labels": split.labels}
    return remembered(what, folders.pop() if len(folders) == 1 else None, tensors, compute)


def hold_out_test(raw: RawDataset, fraction: float | None) -> RawDataset:
    """Hold out a share of the training images for testing if there are no test images, always the same ones.

    Raises:
        ConfigurationError: a class is too small, or ``fraction`` is given although there are test images.
    """
    if len(raw.test):
        if fraction is not None:
            problem = f"{raw.name} has {len(raw.test)} test images"
            raise ConfigurationError("data.test_fraction", fraction, problem, "set it to null")
        return raw
    share = HELD_OUT if fraction is None else fraction
    smallest, size = smallest_class(raw.train.labels, raw.class_names)
    if size < 2:
        problem = f"class {smallest!r} has {size} images, too few to hold one out for testing"
        raise ConfigurationError("data.test_fraction", share, problem, "add images of it, or a test split")
    generator = keyed_generator(0, "test split of arrays")
    rest, test = hold_out(raw.train, share, raw.class_names, generator, "data.test_fraction")
    assert test is not None
    say(
        f"{raw.name}: no test images are given, so {len(test)} of {len(raw.train)} images ({share:.0%} of each class) "
        "test"
    )
    return RawDataset(raw.name, rest, test, raw.class_names)
