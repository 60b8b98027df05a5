"""Images in arrays or tensors, passed by a script or read from one ``.npz`` or ``.pt`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.data.splits import hold_out_test
from ast_lightning.errors import ConfigurationError, raised
from ast_lightning.storage.torch_files import load_plain

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")


def arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    name: str = "arrays",
    test_fraction: float | None = None,
) -> RawDataset:
    """A dataset from arrays or tensors.

    Args:
        train_images: uint8 in 0 … 255, or floats in [0, 1], which are multiplied by 255 and rounded to uint8. The
            shape is ``[N, C, H, W]`` or ``[N, H, W, C]`` with one or three channels, or ``[N, H, W]``.
        train_labels: ``[N]`` integers or strings.
        test_images, test_labels: the same for the test split. If they are not given, training images of each class
            are held out, always the same ones, and a line is printed.
        class_names: names of the classes, by label. By default, the sorted distinct labels are the classes. Integer
            labels must be in 0 … n − 1 for n names, and string labels must be among the names.
        name: name of the dataset.
        test_fraction: share of each class that is held out; None: 20 %.

    Raises:
        ConfigurationError: an argument is invalid; the message names it.

    >>> data = arrays(np.zeros((4, 8, 8, 3)), ["b", "a", "b", "a"], np.ones((2, 8, 8, 3)), ["a", "b"])
    >>> data.train.images.shape, data.train.labels.tolist(), data.class_names
    (torch.Size([4, 3, 8, 8]), [1, 0, 1, 0], ('a', 'b'))
    """
    train = _images("train_images", train_images)
    given = [_labels("train_labels", train_labels, len(train))]
    if test_images is None and test_labels is None:
        labels, names = _classes(given, class_names)
        only = LabelledImages(train, labels)
        return hold_out_test(RawDataset(name, only, only.take(torch.arange(0)), names), test_fraction)
    if test_images is None or test_labels is None:
        missing = "test_images" if test_images is None else "test_labels"
        raise ConfigurationError(missing, None, "it is missing", "give both test_images and test_labels, or neither")
    test = _images("test_images", test_images)
    given.append(_labels("test_labels", test_labels, len(test)))
    labels, names = _classes(given, class_names)
    if test_fraction is not None:
        problem = f"{name} has {len(test)} test images"
        raise ConfigurationError("data.test_fraction", test_fraction, problem, "set it to null")
    by_split = labels.split([len(train), len(test)])
    return RawDataset(name, LabelledImages(train, by_split[0]), LabelledImages(test, by_split[1]), names)


def load_arrays(root: str | Path | None, test_fraction: float | None = None) -> RawDataset:
    """Read a dataset from one file.

    The file has the keys ``train_images``, ``train_labels`` and, optionally, ``test_images``, ``test_labels`` and
    ``class_names``; see :func:`arrays`.

    Args:
        root: an ``.npz`` file of ``numpy.savez``, or a ``.pt`` file of ``torch.save`` that contains a dictionary.
            Pickled objects are never loaded.
        test_fraction: see :func:`arrays`.

    Raises:
        ConfigurationError: the file is missing or damaged, or its content is invalid.
    """
    path = Path(root or "").expanduser()
    if path.suffix not in (".npz", ".pt") or not path.is_file():
        problem = "there is no such .npz or .pt file"
        raise ConfigurationError("data.root", root, problem, "name a file of numpy.savez or torch.save")
    content = load_plain(path, "data.root") if path.suffix == ".pt" else _read_npz(path)
    if not isinstance(content, Mapping) or not {*KEYS[:2]} <= content.keys():
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        problem = f"it must contain {' and '.join(KEYS[:2])}, but contains {found}"
        raise ConfigurationError("data.root", root, problem, f"name the arrays {', '.join(KEYS)}")
    try:
        given = {key: content[key] for key in KEYS if key in content}
        return arrays(**given, name=path.stem, test_fraction=test_fraction)
    except ConfigurationError as error:
        problem = f"{error.option} ({error.value}): {error.problem}"
        raise ConfigurationError("data.root", root, problem, error.remedy) from error
    except Exception as error:  # torch and numpy raise various errors for sparse, complex or 8-bit numbers
        remedy = "save dense arrays of ordinary numbers"
        raise ConfigurationError("data.root", root, f"its arrays cannot be used: {raised(error)}", remedy) from error


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # numpy does not document its errors for damaged files
        problem = "it cannot be read as arrays: it is damaged, or holds Python objects"
        raise ConfigurationError("data.root", path, problem, "save plain arrays with numpy.savez") from error


def _described(value: np.ndarray | Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _images(key: str, value: Any) -> Tensor:
    """Convert images to uint8 ``[N, C, H, W]``."""
    try:
        images = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:  # objects, strings, rows of different lengths
        raise ConfigurationError(key, type(value).__name__, f"it is not an array ({error})", "give numbers") from error
    rejected = partial(ConfigurationError, key, _described(images))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4 or 0 in images.shape or not {images.shape[1], images.shape[3]} & {1, 3}:
        raise rejected("these are not images", "give [N, C, H, W] or [N, H, W, C] with 1 or 3 channels, or [N, H, W]")
    if images.shape[1] not in (1, 3):
        images = images.movedim(3, 1)
    elif images.shape[3] in (1, 3):
        raise rejected("channels may be the second or the last axis", "resize the images")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise rejected("some values are NaN or infinite", "replace them, or leave out their images")
    if images.is_floating_point() and bool(((images >= 0) & (images <= 1)).all()):
        images = (images * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise rejected("they are neither uint8 nor floats in [0, 1]", "give uint8 in 0 … 255, or floats in [0, 1]")
    return images.contiguous()


def _labels(key: str, value: Any, count: int) -> np.ndarray:
    """Convert labels to an array ``[N]`` of int64 or strings."""
    labels = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind not in "iuU" or labels.shape != (count,):
        problem = f"labels are one integer or string for each of {count} images"
        raise ConfigurationError(key, _described(labels), problem, "give integers [N], such as one_hot.argmax(1)")
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def _classes(given: Sequence[np.ndarray], class_names: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    """The concatenated labels of all splits as int64 0 … n − 1, and the names of the classes."""
    if len({labels.dtype.kind for labels in given}) > 1:
        raise ConfigurationError("test_labels", "…", "one split has strings, the other integers", "give one kind")
    known, labels = np.unique(np.concatenate(given), return_inverse=True)
    if class_names is None:
        return torch.from_numpy(labels), tuple(map(str, known))
    if np.ndim(class_names) != 1:
        raise ConfigurationError("class_names", class_names, "it is not a list of names", "give one for each class")
    names = tuple(map(str, class_names))
    place = {each: label for label, each in enumerate(names if known.dtype.kind == "U" else range(len(names)))}
    strange = [each for each in known.tolist() if each not in place]
    if strange or len(set(names)) < len(names):
        problem = f"label {strange[0]} is not one of {len(names)} classes" if strange else "a name is repeated"
        raise ConfigurationError("class_names", list(names), problem, "give one name for each class, by label")
    return torch.tensor([place[each] for each in known.tolist()])[labels], names
