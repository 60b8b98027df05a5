"""Your own images: ``<folder>/train/<class>/…`` and ``<folder>/test/<class>/…``, files of any size.

Pillow decodes the files in threads, because it releases the GIL while it decodes and resizes. Images are rotated
according to their EXIF data, transparent pixels become white, and all images are resized to the same square size as
uint8, so that a dataset is one tensor. Hidden files and folders are ignored. Files of other types are ignored with a
warning.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import chain
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as transforms

from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.data.splits import check_memory
from ast_lightning.errors import ConfigurationError, printable
from ast_lightning.storage.inspection import count
from ast_lightning.storage.reading import UNREADABLE
from ast_lightning.terminal import say

_MOST_ELONGATED = 100  # longer images are cropped to this aspect ratio first, to limit memory


def _crop(image: Image.Image, size: int) -> Image.Image:
    if max(image.size) > _MOST_ELONGATED * min(image.size):
        longest = _MOST_ELONGATED * min(image.size)
        image = transforms.center_crop(image, [min(side, longest) for side in (image.height, image.width)])
    return transforms.center_crop(transforms.resize(image, [size], antialias=True), [size, size])


def _squash(image: Image.Image, size: int) -> Image.Image:
    return transforms.resize(image, [size, size], antialias=True)


RESIZES: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": _crop, "squash": _squash}
_MODES = {1: "L", 3: "RGB"}


def image_folder(
    folder: str | Path | None, image_size: int | None, resize: str = "crop", channels: int = 3
) -> RawDataset:
    """Read images from class folders and resize them to ``image_size`` × ``image_size``.

    Args:
        folder: contains ``train`` and ``test``, each with one folder per class (the same classes in both).
        image_size: side of the square images, in pixels.
        resize: ``"crop"`` resizes the shorter side, antialiased, and crops the centre; ``"squash"`` ignores the
            aspect ratio.
        channels: 3 (RGB) or 1 (grey).

    Raises:
        ConfigurationError: a folder or class is missing, empty or unreadable, the splits have different classes, or
            images cannot be decoded, in which case a line is printed for each of them.
    """
    folder = Path(os.path.expanduser(folder)) if isinstance(folder, str | Path) else None
    if folder is None or not os.path.isdir(folder):
        raise _wrong(folder, "there is no such folder", "set data.root to a folder with train/ and test/")
    if image_size is None or image_size < 1:
        problem = "images in a folder need one size in pixels"
        raise ConfigurationError("data.image_size", image_size, problem, "set data.image_size=32")
    if resize not in RESIZES:
        raise ConfigurationError("data.source.resize", resize, "no such choice", f"use one of {', '.join(RESIZES)}")
    if channels not in _MODES:
        raise ConfigurationError("data.source.channels", channels, "no such choice", "use 1 or 3")
    try:
        train, test = (_list_split(folder, split) for split in ("train", "test"))
    except OSError as error:
        raise _wrong(error.filename or folder, f"it cannot be read ({error.strerror})", UNREADABLE) from error
    if train.keys() != test.keys():
        only = [", ".join(sorted(a.keys() - b.keys())) for a, b in ((train, test), (test, train))]
        problem = f"train/ and test/ hold different classes (only in train/: {only[0]}; only in test/: {only[1]})"
        raise _wrong(folder, problem, "make them the same")
    check_memory(sum(map(len, (*train.values(), *test.values()))), channels, image_size, image_size)
    decode = partial(_decode, size=image_size, fit=RESIZES[resize], mode=_MODES[channels])
    problems: list[str] = []
    decoded = [_decode_split(list(split.values()), decode, image_size, channels, problems) for split in (train, test)]
    if problems:
        for line in problems:
            say(f"cannot be read: {line}")
        more = f", and {len(problems) - 1} more that are named above" if len(problems) > 1 else ""
        raise _wrong(folder, f"this image cannot be read: {problems[0]}{more}", "repair or remove the files")
    say(f"{folder}: {len(decoded[0])} training and {len(decoded[1])} test images of {count(len(train), 'class')}")
    return RawDataset(folder.resolve().name, decoded[0], decoded[1], tuple(train))


def _wrong(root: str | Path | None, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError("data.root", root, problem, remedy)


def _list_split(folder: Path, split: str) -> dict[str, list[str]]:
    """The image files of one split by class, both sorted; every class has at least one file.

    Raises:
        ConfigurationError: a folder is missing or empty.
        OSError: a folder cannot be read.
    """
    path = folder / split
    if not os.path.isdir(path):
        remedy = "lay the images out as train/<class>/… and test/<class>/… (rename val/ to test/ if necessary)"
        raise _wrong(folder, f"there is no folder {split}/ in it", remedy)
    visible = sorted((each for each in os.scandir(path) if each.name[0] != "."), key=lambda each: each.name)
    found = {each.name: _files_below(each.path) for each in visible if each.is_dir()}
    if not found:
        raise _wrong(path, "it holds no class folders", "make one folder per class in it")
    classes = {name: [file for file in files if file.lower().endswith(IMG_EXTENSIONS)] for name, files in found.items()}
    kinds = ", ".join(IMG_EXTENSIONS)
    left_out = [each.path for each in visible if not each.is_dir()]
    left_out += [file for name, files in found.items() for file in sorted({*files} - {*classes[name]})]
    if left_out:
        where = f"{count(len(left_out), 'file')} in {path}, the first is {left_out[0]}"
        say(f"warning: only files in class folders that end with {kinds} are images; left out are {where}")
    if empty := [f"{split}/{name}" for name, files in classes.items() if not files]:
        remedy = f"put images there ({kinds}) or remove the class"
        raise _wrong(folder, f"no images in {', '.join(empty)}", remedy)
    return classes


def _files_below(folder: str) -> list[str]:
    """The visible files of a class. Links are followed, but each folder is visited once, and parents are skipped."""

    def stop(error: OSError) -> None:
        raise error

    found, seen = [], {str(each) for each in Path(os.path.realpath(folder)).parents}
    for here, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        seen.add(os.path.realpath(here))
        inside = {each: os.path.realpath(os.path.join(here, each)) for each in sorted(folders) if each[0] != "."}
        folders[:] = [each for each, real in inside.items() if real not in seen]
        found += [(here, each) for each in files if each[0] != "."]
    return [os.path.join(*each) for each in sorted(found)]


def _decode(path: str, size: int, fit: Callable[[Image.Image, int], Image.Image], mode: str) -> Tensor | str:
    """One file as uint8 [C, size, size], or why it cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a file")
        with Image.open(path, formats=_formats()) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # Pillow would silently clip these to white
                raise ValueError(f"its pixels are of more than 8 bits (mode {image.mode}); convert it first")
            upright = ImageOps.exif_transpose(image)  # cameras store the rotation as metadata
            if upright.has_transparency_data:  # the colour of transparent pixels is arbitrary
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
            return transforms.pil_to_tensor(fit(upright.convert(mode), size))
    except Exception as error:  # Pillow does not document its errors for damaged files
        return printable(f"{path} ({error})")


@cache
def _formats() -> list[str]:
    """The formats that Pillow decodes itself; EPS is excluded, because Pillow runs Ghostscript for it."""
    Image.init()
    return sorted(Image.OPEN.keys() - {"EPS"})


def _decode_split(
    classes: Sequence[Sequence[str]],
    decode: Callable[[str], Tensor | str],
    image_size: int,
    channels: int,
    problems: list[str],
) -> LabelledImages:
    """Decode all files of a split into a preallocated tensor, so that no second copy is in memory."""
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(list(map(len, classes))))
    images = torch.empty((len(labels), channels, image_size, image_size), dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for position, image in enumerate(executor.map(decode, chain.from_iterable(classes))):
            if isinstance(image, str):
                problems.append(image)
            else:
                images[position] = image
    return LabelledImages(images, labels)
