"""Your own images: ``<folder>/train/<class>/…`` and ``<folder>/test/<class>/…``, files of any size.

torchvision's ``ImageFolder`` finds the files and Pillow decodes them, in threads, because Pillow releases the
interpreter lock while it decodes and resizes. Every image ends at the same square size as uint8, so that a
dataset is one tensor. Hidden files and folders are left out; so are files of other kinds, and a line names them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as transforms

from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.errors import ConfigurationError
from ast_lightning.terminal import say


def _crop(image: Image.Image, size: int) -> Image.Image:
    return transforms.center_crop(transforms.resize(image, [size], antialias=True), [size, size])


def _squash(image: Image.Image, size: int) -> Image.Image:
    return transforms.resize(image, [size, size], antialias=True)


RESIZES: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": _crop, "squash": _squash}
_MODES = {1: "L", 3: "RGB"}


class _VisibleImages(ImageFolder):
    """The files of one split, without those that are hidden, such as thumbnails of a desktop."""

    def __init__(self, root: Path) -> None:
        self.skipped: list[str] = []
        super().__init__(str(root), is_valid_file=self._is_image, allow_empty=True)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = sorted(each.name for each in os.scandir(directory) if each.is_dir() and each.name[0] != ".")
        if not names:
            raise _wrong(directory, "it holds no class folders", "make one folder per class in it")
        return names, {name: label for label, name in enumerate(names)}

    def _is_image(self, path: str) -> bool:
        if any(part.startswith(".") for part in Path(os.path.relpath(path, self.root)).parts):
            return False
        if path.lower().endswith(IMG_EXTENSIONS):
            return True
        self.skipped.append(path)
        return False


def image_folder(
    folder: str | Path | None, image_size: int | None, resize: str = "crop", channels: int = 3
) -> RawDataset:
    """Images in class folders, brought to ``image_size`` × ``image_size``.

    Args:
        folder: holds ``train`` and ``test``, each with one folder per class (the same classes in both).
        image_size: side of the square images, in pixels.
        resize: ``"crop"`` resizes the short side, antialiased, and takes the centre; ``"squash"`` ignores the
            aspect.
        channels: 3 (RGB) or 1 (grey).

    Raises:
        ConfigurationError: a folder or class that is missing or empty, classes that differ between the
            splits, or an image that cannot be decoded; the message names it.
    """
    if folder is None or not Path(folder).expanduser().is_dir():
        raise _wrong(folder, "there is no such folder", "set data.root to a folder with train/ and test/")
    if image_size is None or image_size < 1:
        problem = "images in a folder need one size in pixels"
        raise ConfigurationError("data.image_size", image_size, problem, "set data.image_size=32")
    if resize not in RESIZES:
        raise ConfigurationError("data.source.resize", resize, "no such choice", f"use one of {', '.join(RESIZES)}")
    if channels not in _MODES:
        raise ConfigurationError("data.source.channels", channels, "no such choice", "use 1 or 3")
    folder = Path(folder).expanduser()
    splits = [_open_split(folder, split) for split in ("train", "test")]
    train, test = (set(split.classes) for split in splits)
    if train != test:
        only = f"only in train/: {', '.join(sorted(train - test))}; only in test/: {', '.join(sorted(test - train))}"
        raise _wrong(folder, f"train/ and test/ hold different classes ({only})", "make them the same")
    decode = partial(_decode, size=image_size, fit=RESIZES[resize], mode=_MODES[channels])
    decoded = [_decode_split(split, decode, image_size, channels) for split in splits]
    return RawDataset(folder.resolve().name, decoded[0], decoded[1], tuple(splits[0].classes))


def _wrong(root: str | Path | None, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError("data.root", root, problem, remedy)


def _open_split(folder: Path, split: str) -> _VisibleImages:
    """The list of files of one split, every class with at least one."""
    path = folder / split
    if not path.is_dir():
        remedy = "lay the images out as train/<class>/… and test/<class>/… (rename val/ to test/ if need be)"
        raise _wrong(folder, f"there is no folder {split}/ in it", remedy)
    dataset = _VisibleImages(path)
    kinds = ", ".join(IMG_EXTENSIONS)
    if dataset.skipped:
        found = f"{len(dataset.skipped)} files in {path}, the first is {dataset.skipped[0]}"
        say(f"warning: only files that end with {kinds} are images; left out are {found}")
    if empty := sorted(set(dataset.class_to_idx.values()) - set(dataset.targets)):
        names = ", ".join(f"{split}/{dataset.classes[label]}" for label in empty)
        raise _wrong(folder, f"no images in {names}", f"put images there ({kinds}) or remove the class")
    return dataset


def _decode(path: str, size: int, fit: Callable[[Image.Image, int], Image.Image], mode: str) -> Tensor:
    """One file as uint8 [C, size, size]."""
    try:
        with Image.open(path) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these to white without a word
                raise ValueError(f"its pixels are of more than 8 bits (mode {image.mode}); convert it first")
            upright = ImageOps.exif_transpose(image)  # cameras store the rotation beside the pixels
            return transforms.pil_to_tensor(fit(upright.convert(mode), size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _wrong(path, f"this image cannot be read: {error}", "repair or remove the file") from error


def _decode_split(
    dataset: _VisibleImages, decode: Callable[[str], Tensor], image_size: int, channels: int
) -> LabelledImages:
    """All files of a split; the tensor is allocated once, so that memory peaks at the size of the result."""
    images = torch.empty((len(dataset.samples), channels, image_size, image_size), dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as executor:  # map cancels the rest after a bad file
        for position, image in enumerate(executor.map(decode, (path for path, _ in dataset.samples))):
            images[position] = image
    return LabelledImages(images, torch.tensor(dataset.targets, dtype=torch.int64))
