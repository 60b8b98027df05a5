"""The options of section ``data``: the real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ast_lightning.config.settings import LARGEST_SEED, Settings, option

SOURCES = (
    "digits",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "svhn",
    "tiny_imagenet",
    "imagenet",
    "image_folder",
    "arrays",
)
RESIZES = ("crop", "squash")
PREPROCESSINGS = ("standardize", "zca", "none")
_CLASSES = "int | list[str/int] | None"
UNDECODED = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "arrays")
"""Sources whose images are arrays of one size."""
READ_FROM_ROOT = {"image_folder": "the folder that holds train/ and test/", "arrays": "a .npz or .pt file"}
"""Sources whose images depend on ``data.root``, and what it must be. Files of other sources are the same anywhere."""


@dataclass(frozen=True)
class DataSettings(Settings):
    """The options of :class:`~ast_lightning.data.ImageDataModule`; each file in conf/data/ sets up a dataset."""

    section: ClassVar[str] = "data"

    _target_: str = option("ast_lightning.data.ImageDataModule", "the class of the data")
    source: Any = option(
        "???",
        "a built-in name, or a _target_ with _partial_: true: a torch Dataset class, or a function → RawDataset",
        type="str | part",
        choices=SOURCES,
    )
    name: str | None = option(None, "name of the data in folder names; null: the name of the source")
    root: str | None = option(None, "folder of the files, or the file of data=arrays", result=False)
    download: bool = option(False, "download missing files with torchvision", result=False)
    image_size: int | None = option(
        None, "side in pixels to resize to; null: the size of the images", least=1, most=4096
    )
    resize: str = option(
        "crop", "how decoded images become square: crop the centre of the resized image, or squash", choices=RESIZES
    )
    channels: int | None = option(
        None, "convert decoded images to RGB (3) or grey (1); null: RGB, or as the images of a Dataset", least=1, most=3
    )
    classes: Any = option(
        None,
        "classes to use, in the order of their labels, or n: the first n classes; null: all",
        type=_CLASSES,
        least=0,
    )
    class_names: list[str] | None = option(None, "names of the classes, by label; null: as given by the source")
    preprocessing: str = option("standardize", "preprocessing, fitted on the training split", choices=PREPROCESSINGS)
    mean: list[float] | None = option(
        None, "means per channel for standardize; null: of the training split", least=0, most=1
    )
    std: list[float] | None = option(None, "standard deviations per channel, given together with mean", least=1e-6)
    zca_eps: float = option(0.1, "added to the eigenvalues of the covariance (zca)", above=0)
    zca_max_features: int = option(
        12288, "largest C·H·W for zca, whose memory grows with its square", least=1, most=100_000
    )
    per_class: int | None = option(None, "training images to use per class, drawn at random; null: all", least=1)
    validation_fraction: float = option(0.0, "share of each class held out of the training data", least=0, below=1)
    test_fraction: float | None = option(
        None,
        "share of each class held out for testing if there is no test split; null: 0.2, but none for image folders",
        above=0,
        below=1,
    )
    augmentation: str | None = option(
        "none",
        "transforms of Siamese augmentation (DSA: each batch gets one at random), joined by underscores; none: off",
    )
    batch_size: int = option("${expert.batch_size}", "images in a training batch, over all devices", least=1)
    eval_batch_size: int = option(512, "images in a test batch of one device", least=1, result=False)
    cache: str | None = option(
        "${output_dir}/cache", "folder for decoded images; null: decode them in memory at each start", result=False
    )
    preload: int = option(
        1024, "MiB (as float32) to hold in memory; larger datasets are read batch by batch", least=0, result=False
    )
    seed: int = option("${seed}", "seed of the random subset and of the held-out split", least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.source, str) and self.source in READ_FROM_ROOT and self.root is None:
            raise self.refused("root", f"it must name {READ_FROM_ROOT[self.source]}", "add data.root=…")
        if isinstance(self.classes, int) and self.classes < 2:
            raise self.refused("classes", "at least two are needed", "give a larger number, names, or null")
        if isinstance(self.source, str) and self.source in UNDECODED:
            for name, value in (("channels", self.channels), ("resize", self.resize)):
                if value not in (None, "crop"):
                    problem = f"the images of data.source={self.source} are arrays, which are not decoded"
                    raise self.refused(name, problem, "leave it out")
