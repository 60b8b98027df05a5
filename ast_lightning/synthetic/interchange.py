"""Synthetic sets as the published codes exchange them: ``images_<name>.pt``, ``labels_<name>.pt``, ``lr_<name>.pt``.

These files hold tensors and nothing that says how test data must be preprocessed, or what the classes are called. An
import takes that from a trajectory store or from a distilled dataset of the same data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Likeness:
    """What published files do not say.

    Attributes:
        preprocessing: to apply to real images.
        class_names: by label.
        augmentation: Siamese families joined by underscores; None for none, or where it is not known.
        data: the description of the data.
        origin: where this was taken from, for the record.
    """

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    augmentation: str | None
    data: dict[str, Any]
    origin: dict[str, Any]


def export_published(dataset: DistilledDataset, folder: Path | str, name: str | None = None) -> list[Path]:
    """Write a set as ``images_<name>.pt`` (float32), ``labels_<name>.pt`` (int64) and ``lr_<name>.pt`` (a 0-d float32).

    They appear when all three are written.

    Args:
        dataset: what to write.
        folder: where; it is made.
        name: the iteration by default. The field's programs look for ``best``.

    Raises:
        ConfigurationError: such a file is there already, or ``name`` is no part of a file's name.
    """
    folder = Path(folder)
    name = str(dataset.metadata.get("iteration", "last")) if name is None else name
    if "/" in name:
        raise ConfigurationError("name", name, "it is to be part of the names of files", "give a word without slashes")
    contents: dict[str, Callable[[], Tensor]] = {
        f"{IMAGES}_{name}.pt": lambda: dataset.images.detach().float().clone(),
        f"{LABELS}_{name}.pt": lambda: dataset.labels.clone(),
        f"{RATE}_{name}.pt": lambda: torch.tensor(dataset.learning_rate),
    }
    for path in (folder / each for each in contents):
        if path.exists():
            raise ConfigurationError("out", path, "it is there already", "name another folder, or another --name")
    return save_together(folder, contents)


def import_published(images: Path | str, like: Likeness, learning_rate: float | None = None) -> DistilledDataset:
    """Read a set from its files; rows are brought into the order of their classes.

    Args:
        images: ``images_<name>.pt``, beside which ``labels_<name>.pt`` and, unless ``learning_rate`` is given,
            ``lr_<name>.pt`` are; or a folder with one such set.
        like: of the same data and preprocessing.
        learning_rate: of SGD on this set; None reads ``lr_<name>.pt``.

    Raises:
        ConfigurationError: a file is missing, damaged or would run code; images or labels do not fit ``like``.
    """
    path = _images_file(Path(images))
    labels_path, rate_path = (path.with_name(path.name.replace(IMAGES, kind, 1)) for kind in (LABELS, RATE))
    rate = _learning_rate(rate_path) if learning_rate is None else learning_rate
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigurationError("learning-rate", rate, "it must be positive", "give a number above 0")
    pixels, labels = _check_images(path, _tensor(path), like), _tensor(labels_path)
    order, ordered = _check_labels(labels_path, labels, len(pixels), len(like.class_names))
    used = [path, labels_path, *([rate_path] if learning_rate is None else [])]
    imported = {each.name: bytes_checksum(each.read_bytes()) for each in used}
    return DistilledDataset(
        pixels[order],
        ordered,
        rate,
        like.preprocessing,
        like.class_names,
        like.augmentation,
        {"data": like.data, **provenance(), "imported": {"files": imported, "like": like.origin}},
    )


def read_likeness(folder: Path | str, option: str = "like") -> Likeness:
    """What a trajectory store, or a distilled dataset, says of its data.

    Raises:
        ConfigurationError: the folder is neither, or is damaged.
    """
    folder = Path(folder)
    if (folder / "dataset.json").exists():
        dataset = load_distilled(folder, option)
        origin = {"distilled": dataset.checksum()}
        data = dataset.metadata.get("data") or {}
        return Likeness(dataset.preprocessing, dataset.class_names, dataset.augmentation, data, origin)
    if not (folder / STORE_FILE).exists():
        problem = "it is neither a trajectory store nor a distilled dataset"
        raise ConfigurationError(option, folder, problem, "name a folder with store.json or dataset.json")
    try:
        store = TrajectoryStore.open(folder)
        store.check_preprocessing()
    except ConfigurationError as error:
        raise ConfigurationError(option, folder, error.problem, error.remedy) from error
    data = dict(store.metadata["data"])
    families = data.get("augmentation") or []
    path = folder / "preprocessing.safetensors"
    with reading(path, "name another store of the same data", option, folder):
        preprocessing = load_preprocessing(path)
    origin = {"trajectories": store.id}
    return Likeness(preprocessing, tuple(data["class_names"]), "_".join(families) or None, data, origin)


def _images_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.name.startswith(IMAGES):
            raise ConfigurationError("images", path, f"its name does not begin with {IMAGES}", "name images_<name>.pt")
        return path
    found = sorted(path.glob(f"{IMAGES}_*.pt"))
    if len(found) != 1:
        names = ", ".join(each.name for each in found) or "none"
        raise ConfigurationError("images", path, f"it has not one set but {len(found)} ({names})", "name the file")
    return found[0]


def _content(path: Path) -> Any:
    content = load_plain(path, "images")
    check_content(path, "images")
    return content


def _tensor(path: Path) -> Tensor:
    content = _content(path)
    if not isinstance(content, Tensor) or content.layout != torch.strided:
        raise ConfigurationError(
            "images", path, f"it holds a {type(content).__name__} and not a tensor", "name a file of one dense tensor"
        )
    return content.detach()


def _learning_rate(path: Path) -> float:
    if not path.exists():
        raise ConfigurationError("learning-rate", "null", f"there is no {path}", "give --learning-rate")
    content = _content(path)
    values = torch.as_tensor(content).flatten() if isinstance(content, Tensor | int | float) else torch.empty(0)
    if len(values) != 1:
        raise ConfigurationError("images", path, "it does not hold one number", "give --learning-rate")
    return float(values)


def _check_images(path: Path, images: Tensor, like: Likeness) -> Tensor:
    """float32, of the shape that the data have, finite."""
    shape = _shape_of(like.data)
    if images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != shape):
        wanted = "[N, C, H, W]" if shape is None else f"[N, {', '.join(map(str, shape))}]"
        problem = f"its images are {list(images.shape)}, and those of the data are {wanted}"
        raise ConfigurationError("images", path, problem, "name a --like of the data that it was distilled from")
    if not images.numel():
        problem = f"it holds no images: its tensor is {list(images.shape)}"
        raise ConfigurationError("images", path, problem, "name a file of images")
    for name, tensor in like.preprocessing.tensors().items():
        if len(tensor) not in (images.shape[1], images[0].numel()):
            problem = f"{name} of the preprocessing is not for images of {list(images.shape[1:])}"
            raise ConfigurationError("images", path, problem, "name a --like of the data that it was distilled from")
    if not images.is_floating_point() or not images.float().isfinite().all():
        what = f"its images are {images.dtype}" if not images.is_floating_point() else "some values are not finite"
        raise ConfigurationError("images", path, what, "name preprocessed images of real, finite numbers")
    return images.float()


def _shape_of(data: Mapping[str, Any]) -> tuple[int, ...] | None:
    return (data["channels"], *data["image_size"]) if "channels" in data and "image_size" in data else None


def _check_labels(path: Path, labels: Tensor, images: int, classes: int) -> tuple[Tensor, Tensor]:
    """The order that groups rows by class, and the labels in that order."""

    def refused(problem: str, remedy: str) -> ConfigurationError:
        return ConfigurationError("images", path, problem, remedy)

    if labels.ndim != 1:
        raise refused(f"it holds {list(labels.shape)}: soft labels have no place here", "import a set of hard labels")
    if len(labels) != images:
        raise refused(f"it has {len(labels)} labels for {images} images", "name files that belong together")
    whole = labels.long()
    if not torch.equal(whole.to(labels.dtype), labels):
        raise refused("its labels are no whole numbers", "name files that belong together")
    counts = torch.bincount(whole.clamp(0, classes), minlength=classes + 1)
    if bool((whole < 0).any()) or int(counts[classes]) or len(set(counts[:classes].tolist())) != 1:
        problem = f"{images} images are not the same number of each of {classes} classes"
        raise refused(problem, "name a --like of the data that it was distilled from")
    order = torch.argsort(whole, stable=True)
    return order, whole[order]
