"""A distilled dataset on disk: self-describing, and usable without the rest of this package.

<folder>/
  dataset.json                classes, accuracy, protocol, configuration, inputs; checksums of all files below;
                              for canvases crop_size, the size of the images to cut from them
  images.safetensors          images [N, C, H, W] float32, labels [N] int64 or [N, classes] float32, learning_rate []
  preprocessing.safetensors   statistics of the preprocessing, which must also be applied to real test images
  images.png                  the images with the preprocessing inverted
  images_raw.png              the preprocessed images, each scaled to the range of the picture

Checksums are compared when the dataset is read, and damaged files are rejected. The pictures are checked by ``verify``
only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ast_lightning.errors import ConfigurationError
from ast_lightning.images import (
    Preprocessing,
    SiameseAugmentation,
    circular_crops,
    draw_offsets,
    load_preprocessing,
    save_preprocessing,
)
from ast_lightning.randomness import keyed_generator
from ast_lightning.storage.checksums import Damaged, bytes_checksum, read_tensors, seal, tensor_checksum, unseal
from ast_lightning.storage.files import read_json, write_folder, write_json, write_tensors
from ast_lightning.storage.provenance import provenance
from ast_lightning.storage.reading import reading
from ast_lightning.synthetic.pictures import save_picture
from ast_lightning.synthetic.training_set import TrainingSet

if TYPE_CHECKING:
    from ast_lightning.data import ImageDataModule

FORMAT_VERSION = 2
PICTURES = ("images.png", "images_raw.png")
AVERAGE = "average"
"""Subfolder with the average of the images over the last iterations, which is a distilled dataset itself."""
FILES = ("dataset.json", "images.safetensors", "preprocessing.safetensors")
_COPY = "copy the whole folder again, or distil again"
_ANOTHER = "it is not the file that dataset.json was written with"
_CROP = "crop_size"
_DESCRIBED = ("format", "shape", "learning_rate", "preprocessing", "class_names", "augmentation", "checksums")


@dataclass(eq=False)
class DistilledDataset(Dataset[tuple[Tensor, Tensor]]):
    """Synthetic images of each class, with everything needed to train on them and to test on real images.

    Attributes:
        images: ``[N, C, H, W]`` float32, already preprocessed: train on them as they are. Grouped by class.
        labels: ``[N]`` int64; soft labels are probabilities, ``[N, classes]`` float32. ``cross_entropy`` accepts both.
        learning_rate: the learned student learning rate, for SGD with momentum.
        preprocessing: applied to real images by :meth:`transform`.
        class_names: names of the classes, by label.
        augmentation: names of the Siamese transforms that :meth:`augment` draws from, joined by underscores; None for
            no augmentation.
        metadata: plain containers: ``accuracy``, ``iteration``, ``network``, ``data``, ``evaluation``, ``config``, ….
        crop_size: (H, W) of the real images, if ``images`` are larger canvases: draw images of this size from them with
            :meth:`crop`. None for ordinary images.
    """

    images: Tensor
    labels: Tensor
    learning_rate: float
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    augmentation: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    crop_size: tuple[int, int] | None = None

    @classmethod
    def from_training(
        cls, training_set: TrainingSet, data: ImageDataModule, metadata: Mapping[str, Any] | None = None
    ) -> DistilledDataset:
        """Build a dataset from the current set (``DistillModule.training_set()``) and the module of its real data."""
        return cls(
            training_set.images.cpu().clone(),
            training_set.labels.cpu().clone(),
            training_set.learning_rate,
            data.preprocessing,
            data.class_names,
            "_".join(data.augmentation.families) or None,
            {"data": data.describe(), **provenance(), **(metadata or {})},
            training_set.crop_size,
        )

    def __repr__(self) -> str:
        soft = "soft labels, " if self.has_soft_labels else ""
        return (
            f"DistilledDataset({len(self)} images {list(self.images.shape[1:])} of {len(self.class_names)} classes, "
            f"{soft}learning_rate={self.learning_rate:g}, preprocessing={self.preprocessing.kind!r}, "
            f"augmentation={self.augmentation!r}{f', crop_size={self.crop_size}' if self.crop_size else ''})"
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def classes(self) -> list[str]:
        """The class names, as in torchvision's datasets."""
        return list(self.class_names)

    @property
    def has_soft_labels(self) -> bool:
        """Whether the labels are probabilities."""
        return self.labels.is_floating_point()

    @property
    def targets(self) -> Tensor:
        """The class of each image, ``[N]`` int64, as in torchvision's datasets."""
        if self.has_soft_labels:
            return torch.arange(len(self.class_names)).repeat_interleave(self.ipc)
        return self.labels

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.images) // len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images that networks see: of the crops, if the set consists of canvases."""
        return (self.images.shape[1], *(self.crop_size or self.images.shape[2:]))

    def transform(self, image: Any) -> Tensor:
        """Preprocess real images for a network that was trained on this set.

        Args:
            image: a PIL image of mode L or RGB; or a tensor or array-like of uint8 in 0 … 255 or floating point in
                [0, 1], ``[C, H, W]`` or ``[N, C, H, W]``, of the size of the synthetic images or of their crops.

        Returns:
            float32, ``[C, H, W]`` or ``[N, C, H, W]``.

        Raises:
            ValueError: the mode, type, range, number of channels or size is not supported.
        """
        tensor = _unit_range(image)
        if tensor.shape[-3:] != self.image_shape:
            shape, ours = tuple(tensor.shape[-3:]), self.image_shape
            raise ValueError(f"these images are {shape}; the distilled dataset is for {ours}")
        batch = tensor.float().reshape(-1, *self.image_shape)
        return self.preprocessing.apply(batch).view(tensor.shape)

    def augment(self, images: Tensor, *key: int) -> Tensor:
        """Apply one draw of the Siamese augmentation that the evaluation uses for training.

        Args:
            images: ``[N, C, H, W]``.
            key: numbers that determine the draw, e.g. (seed, step).
        """
        augmentation, (height, width) = SiameseAugmentation(self.augmentation), images.shape[-2:]
        draw = augmentation.draw(len(images), (height, width), keyed_generator("augment", *key))
        return augmentation.apply(images, draw)

    def crop(self, images: Tensor, *key: int) -> Tensor:
        """Draw a random circular crop of each canvas, as the evaluation does for every batch, before :meth:`augment`.

        Args:
            images: ``[N, C, H, W]``, some or all of the set's images.
            key: numbers that determine the draw, e.g. (seed, step).

        Returns:
            Images of ``crop_size``; ordinary images are returned as they are.
        """
        if self.crop_size is None:
            return images
        height, width = images.shape[-2:]
        offsets = draw_offsets(len(images), (height, width), keyed_generator("crop", *key))
        return circular_crops(images, offsets, self.crop_size)

    def checksum(self) -> str:
        """Checksum of images, labels and learning rate, 32 hexadecimal digits; independent of the location on disk."""
        return tensor_checksum(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        learning_rate = torch.tensor(self.learning_rate, dtype=torch.float64)
        labels = self.labels.float() if self.has_soft_labels else self.labels
        return {"images": self.images.float(), "labels": labels, "learning_rate": learning_rate}

    def pictures(self) -> Tensor:
        """The images with the preprocessing inverted, ``[N, C, H, W]`` in [0, 1]."""
        return self.preprocessing.invert(self.images).clamp(0, 1)


def _unit_range(image: Any) -> Tensor:
    """Convert an image or images to floating-point numbers in [0, 1].

    Raises:
        ValueError: the mode, type or range is not supported.
    """
    if hasattr(image, "getbands"):  # a Pillow image; Pillow may not be installed
        if image.mode not in ("L", "RGB"):
            deep = image.mode[0] in "IF"  # convert() would clip these modes
            give = "an array of its pixels in [0, 1]" if deep else "image.convert('RGB') or image.convert('L')"
            raise ValueError(f"this image has mode {image.mode}; give {give}")
        pixels = torch.from_numpy(np.array(image))
        image = pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)
    tensor = torch.as_tensor(image)
    if tensor.dtype == torch.uint8:
        return tensor / 255
    if not tensor.is_floating_point():
        raise ValueError(f"these images are {tensor.dtype}; give uint8 in 0 … 255, or floating point in [0, 1]")
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise ValueError("these images have values outside [0, 1]; give floating point in [0, 1], or uint8 in 0 … 255")
    return tensor


def save_distilled(folder: Path | str, dataset: DistilledDataset) -> Path:
    """Write the folder of a distilled dataset atomically."""
    folder = Path(folder)

    def fill(hidden: Path) -> None:
        write_tensors(hidden / "images.safetensors", dataset._tensors())
        save_preprocessing(hidden / "preprocessing.safetensors", dataset.preprocessing)
        save_picture(hidden / "images.png", dataset.pictures(), dataset.ipc)
        save_picture(hidden / "images_raw.png", dataset.images, dataset.ipc, stretch=True)
        described = {
            "format": FORMAT_VERSION,
            "class_names": list(dataset.class_names),
            "shape": list(dataset.images.shape),
            "learning_rate": dataset.learning_rate,
            "preprocessing": dataset.preprocessing.describe(),
            "augmentation": dataset.augmentation,
            **({_CROP: list(dataset.crop_size)} if dataset.crop_size else {}),
            **({"labels": "soft"} if dataset.has_soft_labels else {}),
            "checksums": {
                "images.safetensors": dataset.checksum(),
                "preprocessing.safetensors": tensor_checksum(dataset.preprocessing.tensors()),
                **{name: bytes_checksum((hidden / name).read_bytes()) for name in PICTURES},
            },
        }
        write_json(hidden / "dataset.json", seal({**dataset.metadata, **described}))

    write_folder(folder, fill)
    return folder


def load_distilled(folder: Path | str, option: str = "synthetic") -> DistilledDataset:
    """Read the folder of a distilled dataset.

    Args:
        folder: the folder.
        option: the option that named it, for error messages.

    Raises:
        ConfigurationError: it is missing, incomplete or damaged, its files belong to different datasets, another
            version wrote it, its values are not finite, or its labels do not match its classes.
    """
    folder = Path(folder)
    step = folder.is_symlink() and os.readlink(folder)
    try:
        return _read(folder, option)
    except ConfigurationError:
        if step is False or os.readlink(folder) == step:
            raise
    return load_distilled(folder, option)  # a running distillation has moved the link to another step


def _read(folder: Path, option: str) -> DistilledDataset:
    description = read_description(folder, option)
    tensors = read_images(folder, description, option)
    dataset = DistilledDataset(
        tensors["images"],
        tensors["labels"],
        float(tensors["learning_rate"]),
        read_preprocessing(folder, description, option),
        tuple(description["class_names"]),
        description["augmentation"],
        {key: value for key, value in description.items() if key not in (*_DESCRIBED, _CROP, "labels")},
        None if _CROP not in description else tuple(description[_CROP]),
    )
    if problem := _impossible(dataset):
        raise ConfigurationError(option, folder, problem, "distil again, or name another distilled dataset")
    return dataset


def _impossible(dataset: DistilledDataset) -> str:
    """Why the values of a set cannot be used for training; empty if they can."""
    labels, classes = dataset.labels, len(dataset.class_names)
    if dataset.images.ndim != 4 or not classes or not 0 < len(dataset) == classes * dataset.ipc:
        return f"its images are {list(dataset.images.shape)}, not [N, C, H, W] with as many of {classes} classes each"
    if dataset.crop_size is not None and not _fits(dataset.crop_size, dataset.images.shape[2:]):
        return f"its crop_size is {dataset.crop_size}, and its canvases are {list(dataset.images.shape[2:])}"
    if not bool(dataset.images.isfinite().all()):
        return "some of its pixels are not finite"
    if not 0 < dataset.learning_rate < math.inf:
        return f"its learning rate is {dataset.learning_rate}, and it must be positive and finite"
    if labels.ndim == 2:
        return _impossible_probabilities(labels, (len(dataset), classes))
    whole = labels.dtype == torch.int64 and labels.shape == (len(dataset),)
    if not whole or bool(((labels < 0) | (labels >= classes)).any()):
        return f"its labels are not {len(dataset)} whole numbers in 0 … {classes - 1}"
    return ""


def _fits(crop: Sequence[Any], canvas: Sequence[int]) -> bool:
    """Whether ``crop`` consists of two whole numbers of at least 1 and at most the sides of a canvas."""
    whole = len(crop) == 2 and all(type(side) is int for side in crop)
    return whole and all(1 <= side <= limit for side, limit in zip(crop, canvas, strict=True))


def _impossible_probabilities(labels: Tensor, shape: tuple[int, int]) -> str:
    """Why soft labels cannot be used for training; empty if they can."""
    if labels.dtype != torch.float32 or labels.shape != shape:
        return f"its soft labels are {labels.dtype} {list(labels.shape)}, not float32 {list(shape)}"
    if not bool((labels >= 0).all()) or not bool(((labels.double().sum(1) - 1).abs() < 1e-4).all()):
        return "its soft labels are not probabilities: a row has negative entries or does not sum to 1"
    return ""


def read_description(folder: Path | str, option: str = "synthetic") -> dict[str, Any]:
    """The content of ``dataset.json``, after comparing its checksum.

    Raises:
        ConfigurationError: a file of the dataset is missing, the description is damaged, or another version wrote it.
    """
    folder = Path(folder)
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        what = f"it lacks {', '.join(missing)}" if folder.exists() else "there is no such folder"
        of_run = [place for place in (folder / "synthetic" / "last", folder / "last") if (place / FILES[0]).is_file()]
        remedy = f"set {option}={of_run[0]}" if of_run else "run distill.py first, or name another distilled dataset"
        raise ConfigurationError(option, folder, what, remedy)
    with reading(folder / "dataset.json", _COPY, option, folder):
        content = read_json(folder / "dataset.json")
        version = content.get("format") if isinstance(content, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            problem = f"dataset.json has format {version}, and this version reads {FORMAT_VERSION}"
            remedy = "install the version of ast_lightning that wrote it, or distil again with this one"
            raise ConfigurationError(option, folder, problem, remedy)
        content = unseal(content)
        if missing := [name for name in _DESCRIBED if name not in content]:
            raise Damaged(f"it lacks {', '.join(missing)}")
        if not isinstance(names := content["class_names"], list) or not all(isinstance(each, str) for each in names):
            raise Damaged("class_names is not a list of names")
        if not isinstance(content.get(_CROP, []), list):
            raise Damaged(f"{_CROP} is not a list of sides")
        if not isinstance(content["checksums"], dict) or {*FILES[1:], *PICTURES} - content["checksums"].keys():
            raise Damaged("it lacks checksums of files")
        return content


def read_images(folder: Path, description: Mapping[str, Any], option: str) -> dict[str, Tensor]:
    """Read ``images``, ``labels`` and ``learning_rate``.

    Raises:
        ConfigurationError: they do not match the checksum in the description.
    """
    path = folder / "images.safetensors"
    with reading(path, _COPY, option, folder):
        _, tensors = read_tensors(path)
        if tensor_checksum(tensors) != description["checksums"][path.name]:
            raise Damaged(_ANOTHER)
        if tensors.keys() != {"images", "labels", "learning_rate"} or tensors["learning_rate"].numel() != 1:
            raise Damaged("it does not hold images, labels and one learning rate")
        return tensors


def read_preprocessing(folder: Path, description: Mapping[str, Any], option: str) -> Preprocessing:
    """Read the preprocessing of real images.

    Raises:
        ConfigurationError: it does not match the checksum in the description.
    """
    path = folder / "preprocessing.safetensors"
    with reading(path, _COPY, option, folder):
        found = load_preprocessing(path)
        written = (description["checksums"][path.name], description["preprocessing"])
        if (tensor_checksum(found.tensors()), found.describe()) != written:
            raise Damaged(_ANOTHER)
        return found
