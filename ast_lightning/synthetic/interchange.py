"""Synthetic sets in the format of the published codes: ``images_<name>.pt``, ``labels_<name>.pt``, ``lr_<name>.pt``.

These files contain only tensors; the canvases of textures are stored like images. The preprocessing of test data and
the class names are taken from a trajectory store or from a distilled dataset of the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ast_lightning.config.distill import check_canvases
from ast_lightning.data import Preprocessing, load_preprocessing
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import bytes_checksum
from ast_lightning.storage.provenance import provenance
from ast_lightning.storage.reading import reading
from ast_lightning.storage.torch_files import check_content, load_plain, save_together
from ast_lightning.synthetic.dataset import DistilledDataset, load_distilled
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.records import STORE_FILE

IMAGES, LABELS, RATE = "images", "labels", "lr"

_ORDINARY = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_ORDINARY |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@dataclass(frozen=True)
class Likeness:
    """Properties of the data that published files do not contain.

    Attributes:
        preprocessing: applied to real images.
        class_names: names of the classes, by label.
        augmentation: Siamese transforms joined by underscores; None if there are none or they are unknown.
        shape: shape of an image, (C, H, W).
        data: the description of the data.
        origin: the store or dataset that these properties were read from, to be recorded.
    """

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    augmentation: str | None
    shape: tuple[int, ...]
    data: dict[str, Any]
    origin: dict[str, Any]


def export_published(dataset: DistilledDataset, folder: Path | str, name: str | None = None) -> list[Path]:
    """Write a set as ``images_<name>.pt`` (float32), ``labels_<name>.pt`` and ``lr_<name>.pt`` (a 0-d float32).

    Hard labels are int64 ``[N]``. Soft labels are probabilities, float32 ``[N, classes]``. The files become visible
    only after all three are written.

    Args:
        dataset: the dataset to write.
        folder: the output folder, created if needed.
        name: the iteration by default. The published programs look for ``best``.

    Raises:
        ConfigurationError: such a file exists already, or ``name`` contains a slash.
    """
    folder = Path(folder)
    name = str(dataset.metadata.get("iteration", "last")) if name is None else name
    if "/" in name:
        raise ConfigurationError("name", name, "it becomes a part of file names", "give a name without slashes")
    contents: dict[str, Callable[[], Tensor]] = {
        f"{IMAGES}_{name}.pt": lambda: dataset.images.detach().float().clone(),
        f"{LABELS}_{name}.pt": lambda: dataset.labels.float() if dataset.has_soft_labels else dataset.labels.clone(),
        f"{RATE}_{name}.pt": lambda: torch.tensor(dataset.learning_rate),
    }
    for path in (folder / each for each in contents):
        if path.exists():
            raise ConfigurationError("out", path, "it already exists", "name another folder, or another --name")
    return save_together(folder, contents)


def import_published(
    images: Path | str, like: Likeness, learning_rate: float | None = None, canvas: int = 1
) -> DistilledDataset:
    """Read a set from its files and sort it by class.

    Soft labels ``[N, classes]`` are probabilities if all rows sum to 1. Otherwise they are logits, and their softmax is
    taken; the metadata ``imported`` of the dataset then has an entry ``labels`` that states it. Images with soft labels
    are sorted by their most probable class if each class has the same number. Otherwise they keep their order, which is
    by class in published sets.

    Args:
        images: ``images_<name>.pt``, in the same folder as ``labels_<name>.pt`` and, unless ``learning_rate`` is given,
            ``lr_<name>.pt``; or a folder with one such set.
        like: properties of the data; data and preprocessing must be those of the set.
        learning_rate: learning rate of SGD on this set; None reads ``lr_<name>.pt``.
        canvas: side of a canvas in image sides; 1 if the files hold ordinary images.

    Raises:
        ConfigurationError: a file is missing, damaged or contains pickled code, or images or labels do not match
            ``like``.
    """
    path = _images_file(Path(images))
    labels_path, rate_path = (path.with_name(path.name.replace(IMAGES, kind, 1)) for kind in (LABELS, RATE))
    rate = _learning_rate(rate_path) if learning_rate is None else learning_rate
    if not 0 < rate <= torch.finfo(torch.float32).max:
        problem = "it must be positive and finite in float32"
        raise ConfigurationError("learning-rate", rate, problem, "give a number above 0")
    channels, *size = like.shape
    shape = (channels, *(canvas * side for side in size))
    if canvas != 1:
        _check_canvas(canvas, like)
    pixels = _read_pixels(path, shape)
    labels, note = _read_labels(labels_path, len(pixels), len(like.class_names))
    order = _by_class(labels, len(like.class_names))
    used = [path, labels_path, *([rate_path] if learning_rate is None else [])]
    files = {each.name: bytes_checksum(each.read_bytes()) for each in used}
    imported: dict[str, Any] = {"files": files, "like": like.origin}
    if note:
        imported["labels"] = note
    return DistilledDataset(
        pixels[order],
        labels[order],
        rate,
        like.preprocessing,
        like.class_names,
        like.augmentation,
        {"data": like.data, **provenance(), "imported": imported},
        (size[0], size[1]) if canvas > 1 else None,
    )


def read_likeness(folder: Path | str, option: str = "like") -> Likeness:
    """Read the properties of the data from a trajectory store or a distilled dataset.

    Raises:
        ConfigurationError: the folder is neither, or is damaged.
    """
    folder = Path(folder)
    if (folder / "dataset.json").exists():
        dataset = load_distilled(folder, option)
        data, origin = dataset.metadata.get("data") or {}, {"distilled": dataset.checksum()}
        shape = dataset.image_shape
        return Likeness(dataset.preprocessing, dataset.class_names, dataset.augmentation, shape, data, origin)
    if not (folder / STORE_FILE).exists():
        problem = "it is neither a trajectory store nor a distilled dataset"
        raise ConfigurationError(option, folder, problem, "name a folder with store.json or dataset.json")
    try:
        store = TrajectoryStore.open(folder)
        store.check_preprocessing()
    except ConfigurationError as error:
        raise ConfigurationError(option, folder, error.problem, error.remedy) from error
    path, data = folder / "preprocessing.safetensors", dict(store.metadata["data"])
    with reading(path, "name another store of the same data", option, folder):
        return Likeness(
            load_preprocessing(path),
            tuple(data["class_names"]),
            "_".join(data.get("augmentation") or []) or None,
            (data["channels"], *data["image_size"]),
            data,
            {"trajectories": store.id},
        )


def _images_file(path: Path) -> Path:
    found = sorted(path.glob(f"{IMAGES}_*.pt")) if path.is_dir() else [path]
    if len(found) != 1 or not found[0].name.startswith(IMAGES):
        problem = f"expected one {IMAGES}_<name>.pt, not {', '.join(each.name for each in found) or 'none'}"
        raise ConfigurationError("images", path, problem, "name that file")
    return found[0]


def _content(path: Path, kinds: tuple[type, ...]) -> Tensor:
    """The content of a file as a tensor; its type must be one of ``kinds``."""
    content = load_plain(path, "images")
    check_content(path, "images")
    if not isinstance(content, kinds) or getattr(content, "layout", torch.strided) != torch.strided:
        problem = f"it holds a {type(content).__name__} and not a dense tensor"
        raise ConfigurationError("images", path, problem, "name a file of one tensor")
    tensor = torch.as_tensor(content).detach()
    if tensor.is_meta or tensor.dtype not in _ORDINARY:
        problem = f"it holds {tensor.dtype} on the device {tensor.device}"
        raise ConfigurationError("images", path, problem, "save ordinary integers or floating-point numbers")
    return tensor


def _learning_rate(path: Path) -> float:
    if not path.exists():
        raise ConfigurationError("learning-rate", "null", f"there is no {path}", "give --learning-rate")
    content = _content(path, (Tensor, int, float))
    if content.numel() != 1:
        raise ConfigurationError("images", path, "it does not hold one number", "give --learning-rate")
    return float(content)


def _check_canvas(canvas: int, like: Likeness) -> None:
    if canvas < 1:
        raise ConfigurationError("canvas", canvas, "it must be a whole number of at least 1", "give such a number")
    check_canvases(canvas, like.preprocessing.kind, "canvas")


def _read_pixels(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The images as float32; they must be finite and have the given shape ``(C, H, W)``."""
    images = _content(path, (Tensor,))
    if images.shape[1:] != shape or not len(images):
        wanted = ", ".join(map(str, ("N", *shape)))
        problem = f"its images are {list(images.shape)}, and those of the data are [{wanted}]"
        remedy = "name a --like of the data that it was distilled from, and the --canvas of textures"
        raise ConfigurationError("images", path, problem, remedy)
    if not images.is_floating_point() or not images.float().isfinite().all():
        problem = f"its images are {images.dtype}, or some values are not finite"
        raise ConfigurationError("images", path, problem, "name preprocessed images of real, finite numbers")
    return images.float()


def _read_labels(path: Path, images: int, classes: int) -> tuple[Tensor, str]:
    """The labels, int64 ``[N]`` or probabilities float32 ``[N, classes]``, and a note if they were logits.

    Classes of hard labels must have equal counts.
    """
    labels = _content(path, (Tensor,))
    if labels.is_floating_point() and labels.ndim == 2:
        return _probabilities(path, labels, (images, classes))
    if labels.shape != (images,) or not torch.equal(labels.long().to(labels.dtype), labels):
        problem = f"{labels.dtype} {list(labels.shape)} is not one whole number for each of {images} images"
        raise ConfigurationError("images", path, problem, f"import hard labels, or soft ones [{images}, {classes}]")
    if not torch.equal(labels.long().sort().values, torch.arange(classes).repeat_interleave(images // classes)):
        raise _unequal(path, images, classes)
    return labels.long(), ""


def _probabilities(path: Path, labels: Tensor, shape: tuple[int, int]) -> tuple[Tensor, str]:
    """Soft labels as probabilities, float32; see :func:`import_published`."""
    images, classes = shape
    if labels.shape != shape or not labels.isfinite().all():
        problem = f"its labels are {list(labels.shape)}, but finite numbers {list(shape)} are required"
        raise ConfigurationError("images", path, problem, "name a --like of the data that it was distilled from")
    if images % classes:
        raise _unequal(path, images, classes)
    sums = labels.double().sum(1, keepdim=True)
    if not bool((labels >= 0).all()) or bool(((sums - 1).abs() > 0.01).any()):
        return labels.double().softmax(1).float(), f"softmax of the logits in {path.name}"
    # 16-bit probabilities do not sum to 1
    return torch.where((sums - 1).abs() < 1e-5, labels.double(), labels.double() / sums).float(), ""


def _unequal(path: Path, images: int, classes: int) -> ConfigurationError:
    problem = f"{images} images are not the same number of each of {classes} classes"
    return ConfigurationError("images", path, problem, "name a --like of the data that it was distilled from")


def _by_class(labels: Tensor, classes: int) -> Tensor:
    """The order ``[N]`` that sorts the images by class; see :func:`import_published`."""
    hard = labels.argmax(1) if labels.ndim == 2 else labels
    equal = torch.equal(hard.bincount(minlength=classes), torch.full((classes,), len(labels) // classes))
    return torch.argsort(hard, stable=True) if equal else torch.arange(len(labels))
