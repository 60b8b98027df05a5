"""The LightningDataModule: source, selection of images, preprocessing, augmentation and batches.

``setup()`` does all the work once. The properties call it if needed, so that a script can use ``network_arguments``
before a Trainer exists. Afterwards, the splits are plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ast_lightning.config.data import DataSettings
from ast_lightning.config.parts import describe_part
from ast_lightning.data import splits
from ast_lightning.data.classes import Classes, choose_classes, rename_classes, without_empty_classes
from ast_lightning.data.decoding import Undecoded, decode
from ast_lightning.data.folder import class_folders, imagenet, tiny_imagenet
from ast_lightning.data.from_arrays import load_arrays
from ast_lightning.data.from_datasets import dataset_class, from_class
from ast_lightning.data.loading import OrderedBatches, ShuffledBatches, TrainingBatch, loader
from ast_lightning.data.preparation import fit, place, preprocess_splits
from ast_lightning.data.sources import BUILT_IN, LabelledImages, RawDataset
from ast_lightning.errors import ConfigurationError, raised
from ast_lightning.images import Preprocessing, SiameseAugmentation
from ast_lightning.randomness import Key, keyed_generator

_OF_FILES = {"image_folder": class_folders, "imagenet": imagenet, "tiny_imagenet": tiny_imagenet}
"""The sources that list files, and only those of the chosen classes."""


@dataclass(frozen=True, eq=False)
class _Prepared:
    """The result of ``setup()``."""

    name: str
    class_names: tuple[str, ...]
    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages
    preprocessing: Preprocessing
    fingerprint: str


class ImageDataModule(LightningDataModule):
    """Preprocessed real images as tensors, and loaders that batch them by index.

    Args:
        source: the name of a built-in dataset (``SOURCES``); a function without arguments that returns a
            :class:`RawDataset` or an :class:`~ast_lightning.data.Undecoded` dataset; or a Dataset class of torch.
        name: name of the dataset, used in folder names; the name given by the source by default.
        root: folder of the files of a built-in dataset; for ``arrays``, the file.
        image_size: side in pixels that the images are resized to; None keeps their size (required for
            image files).
        resize, channels: how images are decoded, see :func:`~ast_lightning.data.decoding.decode`.
        classes: the classes to use, in the order of their labels, or how many of them; None uses all.
        class_names: names of the classes, by label, instead of those of the source.
        preprocessing: ``"standardize"``, ``"zca"`` or ``"none"``, fitted on the training split.
        mean, std: per-channel constants in [0, 1] for ``"standardize"``, instead of fitted ones.
        zca_eps, zca_max_features: see :func:`fit_preprocessing`.
        per_class: number of random training images of each class; None uses all.
        validation_fraction: fraction of each class, in [0, 1), that is held out of the training data first.
        test_fraction: fraction of each class that becomes the test split if the data have none; None: 0.2, and image
            folders need a test split.
        augmentation: transforms of :class:`SiameseAugmentation`.
        batch_size: images in a global training batch, over all ranks.
        eval_batch_size: images in an evaluation batch of one rank.
        seed: seed of the subset, the held-out split and, unless ``shuffle_key`` is set, the order of training images.
        download: let torchvision download files that are missing in ``root``.
        cache: folder for decoded images; None decodes them in memory.
        preload: MiB. If the preprocessed images are larger, they are not held in memory, but read and preprocessed
            when they are indexed.

    Attributes:
        shuffle_key: key of the order of training images, together with the epoch; ``(seed,)`` by default.
        samples: selects the training images of an epoch, see :class:`ShuffledBatches`; None uses all of them.

    Raises:
        ConfigurationError: at construction if a setting is invalid, in ``setup()`` if it does not match the data.
    """

    def __init__(
        self,
        source: Callable[[], RawDataset | Undecoded | Dataset[Any]] | str = "digits",
        *,
        name: str | None = None,
        root: str | None = None,
        image_size: int | None = None,
        resize: str = "crop",
        channels: int | None = None,
        classes: Classes = None,
        class_names: Sequence[str] | None = None,
        preprocessing: str = "standardize",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        zca_eps: float = 0.1,
        zca_max_features: int = 12288,
        per_class: int | None = None,
        validation_fraction: float = 0.0,
        test_fraction: float | None = None,
        augmentation: str | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 512,
        seed: int = 0,
        download: bool = False,
        cache: str | None = None,
        preload: int = 1024,
    ) -> None:
        super().__init__()
        if not callable(source) and not isinstance(source, str):
            problem = f"it must be a function that returns a dataset, not a {type(source).__name__}"
            raise ConfigurationError(
                "data.source", type(source).__name__, problem, "add _partial_: true to its mapping"
            )
        self._settings = DataSettings(
            source=source,
            name=name,
            root=root,
            download=download,
            image_size=image_size,
            resize=resize,
            channels=channels,
            classes=classes if classes is None or isinstance(classes, int) else list(classes),
            class_names=None if class_names is None else list(class_names),
            preprocessing=preprocessing,
            mean=None if mean is None else [float(value) for value in mean],
            std=None if std is None else [float(value) for value in std],
            zca_eps=zca_eps,
            zca_max_features=zca_max_features,
            per_class=per_class,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            cache=cache,
            preload=preload,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
        )
        self.augmentation = SiameseAugmentation(augmentation)
        self.shuffle_key: tuple[Key, ...] = (seed,)
        self.samples: Callable[[int, Tensor], Tensor] | None = None
        self._given_preprocessing: Preprocessing | None = None

    def use_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Use these statistics instead of fitting them. Call it before ``setup()``."""
        if "_prepared" in vars(self):
            raise RuntimeError("the images are preprocessed already: call use_preprocessing before setup")
        self._given_preprocessing = preprocessing

    def prepare_data(self) -> None:
        """Call ``setup()``, so that one process downloads the files before the other processes read them."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read, select and preprocess the images. Further calls do nothing; ``stage`` is ignored."""
        _ = self._prepared

    @cached_property
    def _prepared(self) -> _Prepared:
        settings = self._settings
        raw = self._raw()
        draws = keyed_generator(settings.seed, "validation")
        train, validation = splits.hold_out(raw.train, settings.validation_fraction, raw.class_names, draws)
        draws = keyed_generator(settings.seed, "subset")
        train = splits.subset_per_class(train, settings.per_class, raw.class_names, draws)
        used = {"train": train, "test": raw.test, **({} if validation is None else {"validation": validation})}
        used = {name: splits.resize(split, settings.image_size) for name, split in used.items()}
        fingerprint = splits.fingerprint(used["train"], used["test"])
        used = place(used, settings.preload * 2**20)
        fitted = self._given_preprocessing or fit(
            used,
            settings.preprocessing,
            fingerprint,
            settings.cache,
            zca_eps=settings.zca_eps,
            zca_max_features=settings.zca_max_features,
            mean=settings.mean,
            std=settings.std,
        )
        ready = preprocess_splits(used, fitted, fingerprint, settings.cache)
        return _Prepared(
            name=settings.name or raw.name,
            class_names=raw.class_names,
            train=ready["train"],
            validation=ready.get("validation"),
            test=ready["test"],
            preprocessing=fitted,
            fingerprint=fingerprint,
        )

    def _raw(self) -> RawDataset:
        """The images of the chosen classes as uint8, with a test split."""
        settings, found = self._settings, self._read()
        classes, test_fraction = settings.classes, settings.test_fraction
        decoded = isinstance(found, Undecoded)
        if isinstance(found, Undecoded):
            found = decode(
                found,
                image_size=settings.image_size,
                resize=settings.resize,
                channels=settings.channels,
                cache=settings.cache,
            )
        splits.check_raw(found, settings.source, settings.root)
        listed = isinstance(settings.source, str) and settings.source in _OF_FILES
        if decoded and not listed:
            found = without_empty_classes(found)
        raw = found if listed else choose_classes(found, classes)
        splits.check_classes(raw, settings.source, settings.root)
        if len(found.test):
            splits.check_test_classes(raw, classes)
        raw = splits.hold_out_test(raw, None if settings.source == "arrays" else test_fraction)
        splits.check_content(raw, settings.source, settings.root)
        return rename_classes(raw, settings.class_names)

    def _read(self) -> RawDataset | Undecoded:
        settings = self._settings
        source, root = settings.source, settings.root
        if source == "image_folder":
            return class_folders(root, settings.image_size, settings.classes, settings.test_fraction is not None)
        if isinstance(source, str) and source in _OF_FILES:
            return _OF_FILES[source](root, settings.image_size, settings.classes)
        if source == "arrays":
            return load_arrays(root, settings.test_fraction)
        if isinstance(source, str):
            return BUILT_IN[source](root, settings.download)
        try:
            return from_class(source, root, settings.download) if dataset_class(source) else source()
        except ConfigurationError:
            raise
        except Exception as error:  # raised by user code
            raise ConfigurationError("data.source", describe_part(source), raised(error), "correct it") from error

    @property
    def name(self) -> str:  # type: ignore[override]  # Lightning declares it as a plain attribute
        """The given name, or the name given by the source."""
        return self._prepared.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self._prepared.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self._prepared.class_names)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return int(self._prepared.train.images.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of an image."""
        height, width = self._prepared.train.images.shape[2:]
        return int(height), int(width)

    @property
    def train(self) -> LabelledImages:
        """The training split, preprocessed float32."""
        return self._prepared.train

    @property
    def validation(self) -> LabelledImages | None:
        """The split held out of the training data, preprocessed float32; None if there is none."""
        return self._prepared.validation

    @property
    def test(self) -> LabelledImages:
        """The test split, preprocessed float32."""
        return self._prepared.test

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing, fitted on the training split unless it was given."""
        return self._prepared.preprocessing

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the sha256 of the uint8 training and test images and labels in use."""
        return self._prepared.fingerprint

    @property
    def network_arguments(self) -> dict[str, Any]:
        """Arguments for building a network: ``channels``, ``num_classes``, ``image_size`` (H, W)."""
        return {"channels": self.channels, "num_classes": self.num_classes, "image_size": self.image_size}

    def describe(self) -> dict[str, Any]:
        """Description that identifies the data in use, as plain JSON values."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "class_names": list(self.class_names),
            "channels": self.channels,
            "image_size": list(self.image_size),
            "counts": {
                "train": len(self.train),
                "validation": 0 if self.validation is None else len(self.validation),
                "test": len(self.test),
            },
            "preprocessing": self.preprocessing.describe(),
            "preprocessing_fingerprint": self.preprocessing.fingerprint(),
            "augmentation": list(self.augmentation.families),
        }

    def train_dataloader(self) -> DataLoader[TrainingBatch]:
        """This rank's :class:`TrainingBatch` objects, in an order determined by ``shuffle_key`` and the epoch."""
        return loader(self.train, self._batches(0 if self.trainer is None else self.trainer.current_epoch))

    def count_steps(self, epochs: int) -> int:
        """Number of training batches in the epochs 0 … ``epochs`` − 1, whose images ``samples`` selects."""
        return sum(len(self._batches(epoch)) for epoch in range(epochs))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The test split, as (images, labels), to monitor expert training. It must not be used for model selection."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """This rank's share of the test split, as (images, labels)."""
        sampler = OrderedBatches(len(self.test), self._settings.eval_batch_size, *self._rank_and_world_size())
        return loader(self.test, sampler)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device, except for ``rows``, which index augmentation draws on the CPU."""
        if not isinstance(batch, TrainingBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.labels))
        return batch._replace(images=images, labels=labels)

    def _batches(self, epoch: int) -> ShuffledBatches:
        labels, size, ranks = self.train.labels, self._settings.batch_size, self._rank_and_world_size()
        return ShuffledBatches(labels, size, lambda: self.shuffle_key, *ranks, samples=self.samples, epoch=epoch)

    def _rank_and_world_size(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
