"""A distilled dataset on disk: self-describing, and usable without anything else of this package.

<folder>/
  dataset.json                what it is: classes, accuracy, protocol, configuration, ancestry
  images.safetensors          images [N, C, H, W] float32, labels [N] int64, learning_rate []
  preprocessing.safetensors   what must be done to real test images before a network sees them
  images.png                  the images with the preprocessing inverted
  images_raw.png              the images as networks see them, stretched to the range of the picture
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from ast_lightning.data import (
    ImageDataModule,
    Preprocessing,
    SiameseAugmentation,
    load_preprocessing,
    save_preprocessing,
)
from ast_lightning.errors import ConfigurationError
from ast_lightning.files import read_json, write_folder, write_json, write_tensors
from ast_lightning.randomness import keyed_generator
from ast_lightning.synthetic.evaluation import TrainingSet
from ast_lightning.synthetic.pictures import save_picture

FORMAT_VERSION = 1
_FILES = ("dataset.json", "images.safetensors", "preprocessing.safetensors")


@dataclass
class DistilledDataset(Dataset[tuple[Tensor, Tensor]]):
    """A few synthetic images for each class, and what is needed to train on them and to test honestly.

    Attributes:
        images: ``[N, C, H, W]`` float32, already preprocessed: train on them as they are.
        labels: ``[N]`` int64.
        learning_rate: the learned student learning rate, for SGD with momentum.
        preprocessing: what :meth:`transform` applies to real images.
        class_names: by label.
        augmentation: names of the Siamese families that :meth:`augment` draws from, joined by underscores; None for
            none.
        metadata: plain containers: ``accuracy``, ``iteration``, ``network``, ``data``, ``evaluation``, ``config``, ….
    """

    images: Tensor
    labels: Tensor
    learning_rate: float
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    augmentation: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_training(
        cls, training_set: TrainingSet, data: ImageDataModule, metadata: Mapping[str, Any] | None = None
    ) -> DistilledDataset:
        """The set as it is now (``DistillModule.training_set()``), with what travels along from the real data."""
        return cls(
            training_set.images.cpu().clone(),
            training_set.labels.cpu().clone(),
            training_set.learning_rate,
            data.preprocessing,
            data.class_names,
            "_".join(data.augmentation.families) or None,
            {"data": data.describe(), **(metadata or {})},
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.images) // len(self.class_names)

    def transform(self, image: Any) -> Tensor:
        """Real images as a network trained on this set must see them.

        Args:
            image: a PIL image; or a tensor or array-like of uint8 in 0 … 255 or float in [0, 1], ``[C, H, W]`` or
                ``[N, C, H, W]``, of the size of the synthetic images.

        Returns:
            float32, ``[C, H, W]`` or ``[N, C, H, W]``.

        Raises:
            ValueError: another number of channels or another size.
        """
        tensor = pil_to_tensor(image) if isinstance(image, Image.Image) else torch.as_tensor(image)
        if tensor.dtype == torch.uint8:
            tensor = tensor / 255
        if tensor.shape[-3:] != self.images.shape[1:]:
            raise ValueError(
                f"these images are {tuple(tensor.shape[-3:])}; the distilled dataset is for "
                f"{tuple(self.images.shape[1:])}"
            )
        batch = tensor.float() if tensor.ndim == 4 else tensor.float().unsqueeze(0)
        result = self.preprocessing.apply(batch)
        return result if tensor.ndim == 4 else result.squeeze(0)

    def augment(self, images: Tensor, *key: int) -> Tensor:
        """One draw of the Siamese augmentation that the evaluation trains with.

        Args:
            images: ``[N, C, H, W]``.
            key: numbers that name the draw, e.g. (seed, step); the same key draws the same.
        """
        augmentation = SiameseAugmentation(self.augmentation)
        height, width = images.shape[-2:]
        draw = augmentation.draw(len(images), (height, width), keyed_generator("augment", *key))
        return augmentation.apply(images, draw)

    def pictures(self) -> Tensor:
        """The images with the preprocessing inverted, ``[N, C, H, W]`` in [0, 1]."""
        return self.preprocessing.invert(self.images).clamp(0, 1)


def save_distilled(folder: Path | str, dataset: DistilledDataset) -> Path:
    """Write the directory of a distilled dataset; it appears complete or not at all."""
    folder = Path(folder)
    learning_rate = torch.tensor(dataset.learning_rate, dtype=torch.float64)

    def fill(hidden: Path) -> None:
        tensors = {"images": dataset.images.float(), "labels": dataset.labels, "learning_rate": learning_rate}
        write_tensors(hidden / "images.safetensors", tensors)
        save_preprocessing(hidden / "preprocessing.safetensors", dataset.preprocessing)
        save_picture(hidden / "images.png", dataset.pictures(), dataset.ipc)
        save_picture(hidden / "images_raw.png", dataset.images, dataset.ipc, stretch=True)
        write_json(
            hidden / "dataset.json",
            {
                "format": FORMAT_VERSION,
                "class_names": list(dataset.class_names),
                "shape": list(dataset.images.shape),
                "learning_rate": dataset.learning_rate,
                "preprocessing": dataset.preprocessing.describe(),
                "augmentation": dataset.augmentation,
                **dataset.metadata,
            },
        )

    write_folder(folder, fill)
    return folder


def load_distilled(folder: Path | str, option: str = "synthetic") -> DistilledDataset:
    """Read the directory of a distilled dataset.

    Args:
        folder: the directory.
        option: the option that named it, for error messages.

    Raises:
        ConfigurationError: it is missing, incomplete, damaged, or a newer version wrote it.
    """
    folder = Path(folder)
    missing = [name for name in _FILES if not (folder / name).exists()]
    if missing:
        what = f"it lacks {', '.join(missing)}" if folder.exists() else "there is no such folder"
        raise ConfigurationError(option, folder, what, "run distill.py first, or name another distilled dataset")
    try:
        metadata: dict[str, Any] = _read(folder / "dataset.json", read_json)
        if metadata["format"] != FORMAT_VERSION:
            raise ConfigurationError(
                option,
                folder,
                f"its format is {metadata['format']} and this version reads {FORMAT_VERSION}",
                "install the version of ast_lightning that wrote it",
            )
        dataset = _assemble(folder, metadata)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            option, folder, f"it is damaged ({error})", "take another copy, or distil again"
        ) from error
    return dataset


def _assemble(folder: Path, metadata: dict[str, Any]) -> DistilledDataset:
    """The dataset from its files; whatever does not fit together is an error that names the file."""
    tensors = _read(folder / "images.safetensors", load_file)
    images, labels = tensors["images"], tensors["labels"]
    if list(images.shape) != metadata["shape"] or len(labels) != len(images):
        raise ValueError("images.safetensors does not fit dataset.json")
    preprocessing = _read(folder / "preprocessing.safetensors", load_preprocessing)
    per_channel, per_value = images.shape[1], images[0].numel()
    for name, tensor in preprocessing.tensors().items():
        if len(tensor) != (per_value if preprocessing.kind == "zca" else per_channel):
            raise ValueError(f"{name} in preprocessing.safetensors is not for these images")
    described = ("format", "shape", "learning_rate", "preprocessing", "class_names", "augmentation")
    return DistilledDataset(
        images,
        labels,
        float(tensors["learning_rate"]),
        preprocessing,
        tuple(metadata["class_names"]),
        metadata["augmentation"],
        {key: value for key, value in metadata.items() if key not in described},
    )


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
