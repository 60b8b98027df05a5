"""Images that lie in arrays or tensors: those of a script, or of one ``.npz`` or ``.pt`` file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.data.splits import hold_out, smallest_class
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import keyed_generator
from ast_lightning.storage.torch_files import load_plain
from ast_lightning.terminal import say

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
HELD_OUT = 0.2
"""Share of each class that is the test split where none is given."""

_LAYOUTS = "give uint8 or floats in [0, 1] of shape [N, C, H, W], [N, H, W, C] with 1 or 3 channels, or [N, H, W]"


def arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    name: str = "arrays",
) -> RawDataset:
    """A dataset from arrays or tensors.

    Args:
        train_images: uint8 in 0 … 255, or floats in [0, 1], which are multiplied by 255 and rounded to uint8. The
            shape is ``[N, C, H, W]``, ``[N, H, W, C]`` with one or three channels, or ``[N, H, W]``.
        train_labels: ``[N]`` integers or strings.
        test_images, test_labels: the same for the test split. Without them, 20 % of each class are held out of the
            training images, always the same ones, and a line says so.
        class_names: by label. Without them the sorted distinct labels are the classes; with integer labels they name
            the classes 0 … n − 1, and string labels must be among them.
        name: of the dataset.

    Raises:
        ConfigurationError: naming the argument that does not fit.

    >>> data = arrays(np.zeros((4, 8, 8, 3)), ["b", "a", "b", "a"], np.ones((2, 8, 8, 3)), ["a", "b"])
    >>> data.train.images.shape, data.train.labels.tolist(), data.class_names
    (torch.Size([4, 3, 8, 8]), [1, 0, 1, 0], ('a', 'b'))
    """
    if (test_images is None) != (test_labels is None):
        missing = "test_images" if test_images is None else "test_labels"
        raise ConfigurationError(missing, None, "it is missing", "give both test_images and test_labels, or neither")
    images = {"train": _images("train_images", train_images)}
    given = {"train": _labels("train_labels", train_labels, len(images["train"]))}
    if test_images is not None:
        images["test"] = _images("test_images", test_images)
        given["test"] = _labels("test_labels", test_labels, len(images["test"]))
        shapes = [list(images[split].shape[1:]) for split in ("train", "test")]
        if shapes[0] != shapes[1]:
            problem = f"training images are {shapes[0]} and test images {shapes[1]} (C, H, W)"
            raise ConfigurationError("test_images", _shape(test_images), problem, "give both splits one shape")
    labels, names = _classes(given, class_names)
    splits = {split: LabelledImages(images[split], labels[split]) for split in images}
    train, test = (splits["train"], splits["test"]) if "test" in splits else _hold_out(splits["train"], names, name)
    return RawDataset(name, train, test, names)


def load_arrays(root: str | Path | None) -> RawDataset:
    """The dataset in one file with the keys ``train_images``, ``train_labels`` and, where there are such,
    ``test_images``, ``test_labels`` and ``class_names``; see :func:`arrays`.

    Args:
        root: an ``.npz`` file of ``numpy.savez``, or a ``.pt`` file of ``torch.save`` that holds a dictionary. Pickled
            objects are never loaded.

    Raises:
        ConfigurationError: naming ``data.root``: the file is missing or damaged, or its content does not fit.
    """
    readers = {".npz": _read_npz, ".pt": _read_pt}
    if root is None:
        raise ConfigurationError("data.root", root, "no file of arrays is named", "set data.root=FILE.npz or FILE.pt")
    path = Path(root).expanduser()
    if path.suffix not in readers or not path.is_file():
        problem = "there is no such file" if path.suffix in readers else "its name does not end with .npz or .pt"
        raise ConfigurationError("data.root", root, problem, "name a file of numpy.savez or torch.save")
    content = readers[path.suffix](path)
    for key in KEYS[:2]:
        if key not in content:
            found = ", ".join(sorted(map(str, content))) or "nothing"
            raise ConfigurationError(
                "data.root", root, f"it has no {key}, but {found}", f"name the arrays {', '.join(KEYS)}"
            )
    try:
        return arrays(**{key: content[key] for key in KEYS if key in content}, name=path.stem)
    except ConfigurationError as error:
        problem = f"{error.option} ({error.value}): {error.problem}"
        raise ConfigurationError("data.root", root, problem, error.remedy) from error


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in KEYS if key in archive} or dict.fromkeys(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ConfigurationError(
            "data.root",
            path,
            f"it cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            "save plain arrays with numpy.savez, no objects",
        ) from error


def _read_pt(path: Path) -> Mapping[str, Any]:
    content = load_plain(path, "data.root")
    if not isinstance(content, Mapping):
        raise ConfigurationError(
            "data.root", path, f"it holds a {type(content).__name__}", "save a dictionary of tensors with torch.save"
        )
    return content


def _shape(value: Any) -> str:
    array = value if isinstance(value, Tensor) else np.asarray(value)
    return f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)}"


def _images(key: str, value: Any) -> Tensor:
    """uint8 ``[N, C, H, W]``."""
    images = value if isinstance(value, Tensor) else _as_tensor(key, value)

    def rejected(problem: str, remedy: str = _LAYOUTS) -> ConfigurationError:
        return ConfigurationError(key, _shape(value), problem, remedy)

    if images.ndim not in (3, 4) or 0 in images.shape:
        raise rejected("these are no images")
    if images.ndim == 4:
        channels, height, width = images.shape[1:]
        first, last = channels in (1, 3) or channels < min(height, width), width in (1, 3)
        if first and last:
            raise rejected(
                "channels may be the second or the last axis",
                "resize the images, or leave out a channel axis of size 1",
            )
        if not first and not last:
            raise rejected("neither the second nor the last axis holds 1 or 3 channels")
    if images.is_floating_point():
        low, high = (float(bound) for bound in torch.aminmax(images))
        if not (low >= 0 and high <= 1):  # also NaN
            raise rejected(f"values from {low:.4g} to {high:.4g}", "scale them to [0, 1], or give uint8 in 0 … 255")
        images = (images.detach() * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise rejected("their type is neither uint8 nor a float", "give uint8 in 0 … 255, or floats in [0, 1]")
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif last:
        images = images.movedim(3, 1)
    return images.cpu().contiguous()


def _as_tensor(key: str, value: Any) -> Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:  # objects, texts, rows of several lengths
        raise ConfigurationError(key, type(value).__name__, f"it is no array of numbers ({error})", _LAYOUTS) from error


def _labels(key: str, value: Any, count: int) -> np.ndarray:
    """Integers or strings ``[N]``."""
    labels = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iuU" or labels.ndim != 1:
        problem = "labels are one integer or string for each image"
        raise ConfigurationError(key, _shape(labels), problem, "give integers [N], such as one_hot.argmax(1)")
    if len(labels) != count:
        problem = f"there are {count} images and {len(labels)} labels"
        raise ConfigurationError(key, _shape(labels), problem, "give one label for each image")
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def _classes(
    given: Mapping[str, np.ndarray], class_names: Sequence[str] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Labels as int64 0 … n − 1, and the names of the classes."""
    kinds = {split: labels.dtype.kind == "U" for split, labels in given.items()}
    if len(set(kinds.values())) > 1:
        raise ConfigurationError("test_labels", "…", "one split has strings, the other integers", "give one kind")
    known = np.unique(np.concatenate(list(given.values())))
    if class_names is None:
        names = tuple(str(each) for each in known)
    else:
        names = tuple(str(each) for each in np.asarray(class_names).tolist())
        classes = np.array(names) if kinds["train"] else np.arange(len(names))
        strange = np.setdiff1d(known, classes)
        if len(strange) or len(set(names)) < len(names):
            problem = f"label {strange[0]} is none of {len(names)} classes" if len(strange) else "a name stands twice"
            raise ConfigurationError("class_names", list(names), problem, "give one name for each class, by label")
        known = classes
    order = np.argsort(known, kind="stable")
    return {split: torch.from_numpy(order[np.searchsorted(known[order], each)]) for split, each in given.items()}, names


def _hold_out(train: LabelledImages, names: tuple[str, ...], name: str) -> tuple[LabelledImages, LabelledImages]:
    smallest, count = smallest_class(train.labels, names)
    if count < 2:
        raise ConfigurationError(
            "test_images",
            None,
            f"class {smallest!r} has {count} images, too few to hold one out for testing",
            "give test_images and test_labels",
        )
    rest, test = hold_out(train, HELD_OUT, names, keyed_generator(0, "test split of arrays"))
    assert test is not None
    say(f"{name}: no test images are given, so {len(test)} of {len(train)} images ({HELD_OUT:.0%} of each class) test")
    return rest, test
