"""The options of section ``data``: the real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ast_lightning.config.settings import LARGEST_SEED, Settings, option

SOURCES = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "image_folder", "arrays")
PREPROCESSINGS = ("standardize", "zca", "none")
READ_FROM_ROOT = {"image_folder": "the folder that holds train/ and test/", "arrays": "a .npz or .pt file"}
"""Sources whose images depend on ``data.root``, and what it must be. Files of other sources are the same anywhere."""


@dataclass(frozen=True)
class DataSettings(Settings):
    """The options of :class:`~ast_lightning.data.ImageDataModule`; the files in conf/data/ name a dataset each."""

    section: ClassVar[str] = "data"

    _target_: str = option("ast_lightning.data.ImageDataModule", "the class of the data")
    source: Any = option(
        "???",
        "a built-in name, or a _target_ with _partial_: true that returns a RawDataset",
        type="str | part",
        choices=SOURCES,
    )
    name: str | None = option(None, "name of the data in folder names; null: the name of the source")
    root: str | None = option(None, "folder of the files, or the file of data=arrays", result=False)
    download: bool = option(False, "download missing files with torchvision", result=False)
    image_size: int | None = option(
        None, "side in pixels to resize to; null: the size of the images", least=1, most=4096
    )
    preprocessing: str = option("standardize", "preprocessing, fitted on the training split", choices=PREPROCESSINGS)
    mean: list[float] | None = option(
        None, "means per channel for standardize; null: of the training split", least=0, most=1
    )
    std: list[float] | None = option(None, "standard deviations per channel, given together with mean", least=1e-6)
    zca_eps: float = option(0.1, "added to the eigenvalues of the covariance (zca)", least=0)
    zca_max_features: int = option(
        12288, "largest C·H·W for zca, whose memory grows with its square", least=1, most=100_000
    )
    per_class: int | None = option(None, "random training images to use per class; null: all", least=1)
    validation_fraction: float = option(0.0, "share of each class held out of the training data", least=0, below=1)
    augmentation: str | None = option(
        "none",
        "families of Siamese augmentation (DSA: each batch gets one at random), joined by underscores; none: off",
    )
    batch_size: int = option("${expert.batch_size}", "images in a training batch, over all devices", least=1)
    eval_batch_size: int = option(512, "images in a test batch of one device", least=1, result=False)
    seed: int = option("${seed}", "seed of the random subset and of the held-out split", least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.source, str) and self.source in READ_FROM_ROOT and self.root is None:
            raise self.refused("root", f"it must name {READ_FROM_ROOT[self.source]}", "add data.root=…")
