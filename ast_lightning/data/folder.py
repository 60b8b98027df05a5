"""Image files in class folders: your own, Tiny ImageNet and ImageNet.

Hidden files and folders are ignored. Files of other types are ignored with a warning.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from ast_lightning.data.classes import Classes, choose
from ast_lightning.data.decoding import Undecoded, decode
from ast_lightning.data.sources import RawDataset
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.inspection import count
from ast_lightning.storage.reading import UNREADABLE
from ast_lightning.terminal import say

_ANNOTATIONS = "val_annotations.txt"


def image_folder(
    folder: str | Path | None,
    image_size: int | None,
    resize: str = "crop",
    channels: int = 3,
    classes: Classes = None,
    cache: str | Path | None = None,
) -> RawDataset:
    """Read images from class folders and resize them to ``image_size`` × ``image_size``.

    Args:
        folder: contains ``train`` and ``test``, each with one folder per class (the same classes in both).
        image_size: side of the square images, in pixels.
        resize: ``"crop"`` resizes the shorter side, antialiased, and crops the centre; ``"squash"`` ignores the
            aspect ratio.
        channels: 3 (RGB) or 1 (grey).
        classes: see :data:`Classes`.
        cache: a folder for decoded images, see :func:`~ast_lightning.data.decoding.decode`.

    Raises:
        ConfigurationError: a folder or class is missing, empty or unreadable, the splits have different classes, or
            images cannot be decoded, in which case a line is printed for each of them.
    """
    source = class_folders(folder, image_size, classes)
    return decode(source, image_size=image_size, resize=resize, channels=channels, cache=cache)


def class_folders(
    folder: str | Path | None, image_size: int | None, classes: Classes = None, one_split: bool = False
) -> Undecoded:
    """Your own images: ``<folder>/train/<class>/…`` and ``<folder>/test/<class>/…``, files of any size.

    Args:
        folder, image_size, classes: see :func:`image_folder`.
        one_split: ``test`` may be missing.
    """
    root = _checked(folder, image_size)
    names = ["train"] if one_split and not os.path.isdir(root / "test") else ["train", "test"]
    return _source(root.resolve().name, root, {name: _list_split(root, name, classes) for name in names})


def imagenet(folder: str | Path | None, image_size: int | None, classes: Classes = None) -> Undecoded:
    """ImageNet or a part of it: ``train/<class>/…`` and ``val/<class>/…``, where ``val`` is the test split."""
    root = _checked(folder, image_size)
    train, test = (_list_split(root, split, classes, test="val") for split in ("train", "val"))
    return _source("imagenet", root, {"train": train, "test": test})


def tiny_imagenet(folder: str | Path | None, image_size: int | None, classes: Classes = None) -> Undecoded:
    """Tiny ImageNet as it is unpacked from its archive, or with ``val/<class>/…``; ``val`` is the test split.

    In the archive, the files of ``val/images`` have their classes in ``val/val_annotations.txt``. The names of the
    classes are the first ones in ``words.txt``.
    """
    root = _checked(folder, image_size)
    if not os.path.isdir(root / "train") and os.path.isdir(root / "tiny-imagenet-200"):
        root = root / "tiny-imagenet-200"
    train = _list_split(root, "train", classes, test="val", expected="_boxes.txt")
    if os.path.isfile(root / "val" / _ANNOTATIONS):
        test = _list_annotated(root, "val", list(train))
    else:
        test = _list_split(root, "val", list(train), test="val")
    return _source("tiny_imagenet", root, {"train": train, "test": test})


def _checked(folder: str | Path | None, image_size: int | None) -> Path:
    root = Path(os.path.expanduser(folder)) if isinstance(folder, str | Path) else None
    if root is None or not os.path.isdir(root):
        raise _wrong(root, "there is no such folder", "set data.root to a folder with train/ and test/")
    if image_size is None or image_size < 1:
        problem = "images in a folder need one size in pixels"
        raise ConfigurationError("data.image_size", image_size, problem, "set data.image_size=32")
    return root


def _source(name: str, root: Path, splits: Mapping[str, Mapping[str, list[str]]]) -> Undecoded:
    """The files of all splits, and what identifies their content: relative paths, sizes and modification times."""
    train, *others = splits.values()
    for test in others:
        if train.keys() != test.keys():
            only = [", ".join(sorted(a.keys() - b.keys())) for a, b in ((train, test), (test, train))]
            problem = f"train/ and test/ hold different classes (only in train/: {only[0]}; only in test/: {only[1]})"
            raise _wrong(root, problem, "make them the same")
    items = {
        split: [(file, label) for label, files in enumerate(classes.values()) for file in files]
        for split, classes in splits.items()
    }
    state, size = xxhash.xxh3_128(), 0
    for split, files in items.items():
        for file, label in files:
            found = _status(file)
            size += found[0]
            state.update(f"{split}\0{os.path.relpath(file, root)}\0{label}\0{found}\n".encode(errors="surrogateescape"))
    return Undecoded(
        name, items, _read, _names(root, list(train)), 3, [name, state.hexdigest()], size, value=root, label=_path
    )


def _status(file: str) -> tuple[int, int]:
    """Size and modification time; zeros if they cannot be read, which is reported when the file is decoded."""
    try:
        found = os.stat(file)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _names(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """The first name of each class in ``words.txt`` (``<class>\\t<name>, <name>, …``), else the class itself."""
    known: dict[str, str] = {}
    if os.path.isfile(root / "words.txt"):
        lines = (root / "words.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        known = {each.partition("\t")[0]: each.partition("\t")[2].split(",")[0].strip() for each in lines}
    names = [known.get(each) or each for each in classes]
    return tuple(
        f"{name} ({each})" if names.count(name) > 1 else name for name, each in zip(names, classes, strict=True)
    )


def _chosen_folders(classes: Classes, root: Path, folders: list[str], path: Path) -> list[str]:
    """The folders of classes, which are given as folders or by the names of :func:`_names`.

    Raises:
        ConfigurationError: a class does not exist, or is repeated.
    """
    if classes is None or isinstance(classes, int):
        return choose(classes, folders, path)
    of_name = {**dict(zip(_names(root, folders), folders, strict=True)), **{each: each for each in folders}}
    chosen = [of_name[name] for name in choose(classes, list(of_name), path)]
    if len({*chosen}) < len(chosen):
        raise ConfigurationError("data.classes", list(classes), "a class is repeated", "name each class once")
    return chosen


def _wrong(root: str | Path | None, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError("data.root", root, problem, remedy)


def _list_split(
    folder: Path, split: str, classes: Classes = None, test: str = "test", expected: str = ""
) -> dict[str, list[str]]:
    """The image files of one split by class, sorted; every class has at least one file.

    Args:
        folder: contains the split.
        split: name of its folder.
        classes: the classes to list, see :data:`Classes`.
        test: name of the folder of the test split, for messages.
        expected: end of the names of other files, which are ignored without a warning.

    Raises:
        ConfigurationError: a folder or class is missing, empty or unreadable.
    """
    path = folder / split
    if not os.path.isdir(path):
        remedy = f"lay the images out as train/<class>/… and {test}/<class>/…"
        if split == "test":
            remedy += " (rename val/ to test/ if necessary), or set data.test_fraction=0.2 to hold out images of train/"
        raise _wrong(folder, f"there is no folder {split}/ in it", remedy)
    try:
        visible = sorted((each for each in os.scandir(path) if each.name[0] != "."), key=lambda each: each.name)
        folders = {each.name: each.path for each in visible if each.is_dir()}
        if not folders:
            raise _wrong(path, "it holds no class folders", "make one folder per class in it")
        chosen = _chosen_folders(classes, folder, list(folders), path)
        found = {name: _files_below(folders[name]) for name in chosen}
    except OSError as error:
        raise _wrong(error.filename or folder, f"it cannot be read ({error.strerror})", UNREADABLE) from error
    images = {name: [file for file in files if file.lower().endswith(IMG_EXTENSIONS)] for name, files in found.items()}
    kinds = ", ".join(IMG_EXTENSIONS)
    left_out = [each.path for each in visible if not each.is_dir()]
    left_out += [file for name, files in found.items() for file in sorted({*files} - {*images[name]})]
    if left_out := [file for file in left_out if not expected or not file.endswith(expected)]:
        where = f"{count(len(left_out), 'file')} in {path}, the first is {left_out[0]}"
        say(f"warning: only files in class folders that end with {kinds} are images; left out are {where}")
    if empty := [f"{split}/{name}" for name, files in images.items() if not files]:
        remedy = f"put images there ({kinds}) or remove the class"
        raise _wrong(folder, f"no images in {', '.join(empty)}", remedy)
    return images


def _list_annotated(folder: Path, split: str, classes: Sequence[str]) -> dict[str, list[str]]:
    """The files of ``<split>/images`` by class, as ``val_annotations.txt`` gives them: lines ``<file>\\t<class>…``."""
    path = folder / split
    found: dict[str, list[str]] = {name: [] for name in classes}
    with (path / _ANNOTATIONS).open(encoding="utf-8", errors="replace", newline="") as stream:
        for row in csv.reader(stream, delimiter="\t"):
            if len(row) < 2:
                raise _wrong(path / _ANNOTATIONS, f"a line has no class: {row}", "unpack the archive again")
            if row[1] in found:
                found[row[1]].append(str(path / "images" / row[0]))
    if empty := [name for name, files in found.items() if not files]:
        raise _wrong(path / _ANNOTATIONS, f"no images of class {empty[0]}", "unpack the archive again")
    return found


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


def _path(item: tuple[str, int]) -> str:
    return item[0]


def _read(item: tuple[str, int]) -> tuple[Any, int]:
    """The upright image in a file, and its label."""
    path, label = item
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a file")
    with Image.open(path, formats=_formats()) as image:
        return ImageOps.exif_transpose(image), label


@cache
def _formats() -> list[str]:
    """The formats that Pillow decodes itself; EPS is excluded, because Pillow runs Ghostscript for it."""
    Image.init()
    return sorted(Image.OPEN.keys() - {"EPS"})
