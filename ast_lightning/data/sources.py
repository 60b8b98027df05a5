"""Sources of real images. Every source returns a :class:`RawDataset`.

torchvision and scikit-learn read the files. This module converts each dataset to whole tensors, uses archives in
read-only folders without unpacking them there, and reports missing or damaged files with the expected names.
"""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import extract_archive

from ast_lightning.errors import ConfigurationError
from ast_lightning.images import ImageView


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their classes.

    Args:
        images: [N, C, H, W]; uint8 as returned by a source, float32 after preprocessing. A tensor, or a view that
            reads and preprocesses the images of a large dataset when it is indexed: use ``images[rows]``,
            ``images.split(n)``, ``images.shape`` and ``len``, which both have.
        labels: int64 [N], in 0 … number of classes − 1.
    """

    images: Tensor | ImageView
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> LabelledImages:
        """The samples selected by ``index``: positions (int64 [K]) or a mask (bool [N])."""
        images = self.images.take(index) if isinstance(self.images, ImageView) else self.images[index]
        return LabelledImages(images, self.labels[index])


@dataclass(frozen=True, eq=False)
class RawDataset:
    """A dataset before preprocessing: uint8 NCHW images of the same size in both splits, and the class names.

    If there are no test images, a share of the training images is held out for testing (``data.test_fraction``).
    """

    name: str
    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]


def digits() -> RawDataset:
    """scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, one channel; 500 images form the test split.

    Pixel values 0 … 16 are scaled to 0 … 255 and rounded. The split is stratified and always the same.
    """
    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    halves = train_test_split(np.arange(len(labels)), test_size=500, random_state=0, stratify=bunch.target)
    train, test = (LabelledImages(images, labels).take(torch.from_numpy(half)) for half in halves)
    return RawDataset("digits", train, test, tuple(map(str, bunch.target_names)))


# torchvision's class, the files that it reads below its root, the archives that may be in the root instead, and the
# folder below the root that the archives are unpacked into.
_Files = tuple[type, tuple[str, ...], tuple[str, ...], str]


def _idx_files(dataset_class: type) -> _Files:
    folder = f"{dataset_class.__name__}/raw"
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    names = [f"{kind}-ubyte" for kind in kinds]
    return dataset_class, tuple(f"{folder}/{name}" for name in names), tuple(f"{name}.gz" for name in names), folder


_TORCHVISION: dict[str, _Files] = {
    "mnist": _idx_files(datasets.MNIST),
    "fashion_mnist": _idx_files(datasets.FashionMNIST),
    "cifar10": (datasets.CIFAR10, ("cifar-10-batches-py",), ("cifar-10-python.tar.gz",), ""),
    "cifar100": (datasets.CIFAR100, ("cifar-100-python",), ("cifar-100-python.tar.gz",), ""),
    "svhn": (datasets.SVHN, ("train_32x32.mat", "test_32x32.mat"), (), ""),
}


def torchvision_dataset(name: str, root: str | Path | None, download: bool = False) -> RawDataset:
    """Read one of torchvision's datasets from ``root`` with torchvision's own class.

    Archives directly in ``root`` (the four ``*-ubyte.gz`` files, a CIFAR ``.tar.gz``) are unpacked into a temporary
    folder, so that ``root`` may be read-only.

    Args:
        name: ``mnist``, ``fashion_mnist``, ``cifar10``, ``cifar100`` or ``svhn``.
        root: the folder of the files.
        download: let torchvision download missing files into ``root``.

    Raises:
        ConfigurationError: the name is unknown, files are missing or damaged, or a download failed.
    """
    if name not in _TORCHVISION:
        raise ConfigurationError("data.source", name, "no such dataset", f"use one of {', '.join(_TORCHVISION)}")
    if root is None:
        raise ConfigurationError("data.root", root, f"{name} is read from files", "name the folder they are in")
    folder = Path(root).expanduser()
    dataset_class, unpacked, archives, _ = _TORCHVISION[name]
    missing = f"no {name} files found there (looked for {', '.join(unpacked + archives)})"
    with tempfile.TemporaryDirectory(prefix="ast_lightning_") as scratch:
        home = _find_files(name, folder, Path(scratch))
        if home is None and not download:
            raise ConfigurationError("data.root", root, missing, "name their folder or set data.download=true")
        splits: list[dict[str, Any]] = [{"train": True}, {"train": False}]
        if name == "svhn":
            splits = [{"split": "train"}, {"split": "test"}]
        try:
            train, test = (dataset_class(str(home or folder), download=home is None, **each) for each in splits)
        except Exception as error:  # torchvision has no common exception for damaged files or failed downloads
            reason = " ".join(str(error).split()) or type(error).__name__
            problem, remedy = f"the {name} files there are incomplete or damaged: {reason}", "fetch them again"
            if home is None:
                problem, remedy = f"{missing} and the download failed: {reason}", "put the files there by hand"
            raise ConfigurationError("data.root", root, problem, remedy) from error
    names = getattr(train, "classes", None) or range(10)
    raw = RawDataset(name, _as_tensors(train), _as_tensors(test), tuple(map(str, names)))
    found = {980: "mnist", 1000: "fashion_mnist"}.get(int((raw.test.labels == 0).sum()), name)
    if name.endswith("mnist") and found != name:  # MNIST and Fashion-MNIST have the same file names
        problem = f"these files are {found}, not {name}"
        raise ConfigurationError("data.root", root, problem, f"set data={found} or name another folder")
    return raw


def _find_files(name: str, folder: Path, scratch: Path) -> Path | None:
    """The root for torchvision: ``folder``, or ``scratch`` with the unpacked archives; None if there are no files."""
    _, unpacked, archives, belongs_in = _TORCHVISION[name]
    if all((folder / path).exists() for path in unpacked):
        return folder
    if not archives or not all((folder / path).is_file() for path in archives):
        return None
    target = scratch / belongs_in
    target.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        try:
            if archive.endswith(".tar.gz"):
                with tarfile.open(folder / archive) as tar:  # unpack only the files that are read, no links
                    members = tar.getmembers()
                    if outside := [each.name for each in members if {"/", ".."} & {*Path(each.name).parts}]:
                        raise ValueError(f"its member {outside[0]} lies outside of the folder, unlike in {name}")
                    tar.extractall(
                        target, [each for each in members if each.isfile() and str(Path(each.name).parent) in unpacked]
                    )
            else:
                extract_archive(folder / archive, target)
        except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
            problem = f"{archive} cannot be unpacked: {error}"
            raise ConfigurationError("data.root", folder, problem, "fetch that file again") from error
    return scratch


def _as_tensors(dataset: Any) -> LabelledImages:
    """The ``data`` and ``targets`` (SVHN: ``labels``) of a torchvision dataset, as uint8 NCHW and int64."""
    images = torch.as_tensor(np.ascontiguousarray(dataset.data))
    labels = torch.as_tensor(np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None))))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[1] != 3:  # CIFAR has the channels last
        images = images.permute(0, 3, 1, 2).contiguous()
    return LabelledImages(images, labels.to(torch.int64))


BUILT_IN: dict[str, Callable[[str | None, bool], RawDataset]] = {
    "digits": lambda root, download: digits(),
    **{name: partial(torchvision_dataset, name) for name in _TORCHVISION},
}
