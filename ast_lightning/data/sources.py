"""Where real images come from: every source returns a :class:`RawDataset`, whatever its files look like.

torchvision's classes and scikit-learn do the reading. What is added here is that a dataset is taken as whole
tensors rather than image by image, that archives lying in a read-only folder are used as they are, and that
missing or damaged files end in a message that says what was looked for.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision import datasets

from ast_lightning.errors import ConfigurationError

DIGITS_TEST_IMAGES = 500


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their classes, held as two tensors.

    Args:
        images: [N, C, H, W]; uint8 as a source gives them, float32 once preprocessed.
        labels: int64 [N], in 0 … number of classes − 1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> LabelledImages:
        """The samples at the positions ``index`` (int64 [K])."""
        return LabelledImages(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class RawDataset:
    """A dataset as its source gives it: uint8 NCHW images, both splits of one size, and the class names."""

    name: str
    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]


def digits() -> RawDataset:
    """scikit-learn's handwritten digits: 1,797 images of 8×8, one channel, 500 of them the test split.

    The pixels' 0 … 16 become 0 … 255 by rounding; the split is stratified and always the same.
    """
    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST_IMAGES, random_state=0, stratify=bunch.target
    )
    everything = LabelledImages(images, labels)
    return RawDataset(
        name="digits",
        train=everything.take(torch.from_numpy(train)),
        test=everything.take(torch.from_numpy(test)),
        class_names=tuple(str(name) for name in bunch.target_names),
    )


@dataclass(frozen=True)
class _TorchvisionFiles:
    """What torchvision's class expects below its root, and the archives that can stand in for it."""

    dataset_class: type
    unpacked: tuple[str, ...]  # paths below the root that torchvision reads
    archives: tuple[str, ...]  # files that lie directly in the root instead
    unpack_to: str = ""  # where in torchvision's layout the archives' contents belong
    splits: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})

    def describe(self) -> str:
        either = f" or {', '.join(self.archives)}" if self.archives else ""
        return f"{', '.join(self.unpacked)}{either}"


_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _mnist_layout(dataset_class: type) -> _TorchvisionFiles:
    folder = f"{dataset_class.__name__}/raw"
    return _TorchvisionFiles(
        dataset_class,
        unpacked=tuple(f"{folder}/{file}" for file in _MNIST_FILES),
        archives=tuple(f"{file}.gz" for file in _MNIST_FILES),
        unpack_to=folder,
    )


_TORCHVISION = {
    "mnist": _mnist_layout(datasets.MNIST),
    "fashion_mnist": _mnist_layout(datasets.FashionMNIST),
    "cifar10": _TorchvisionFiles(datasets.CIFAR10, ("cifar-10-batches-py",), ("cifar-10-python.tar.gz",)),
    "cifar100": _TorchvisionFiles(datasets.CIFAR100, ("cifar-100-python",), ("cifar-100-python.tar.gz",)),
    "svhn": _TorchvisionFiles(
        datasets.SVHN,
        ("train_32x32.mat", "test_32x32.mat"),
        (),
        splits=({"split": "train"}, {"split": "test"}),
    ),
}
TORCHVISION_NAMES = tuple(_TORCHVISION)


def torchvision_dataset(name: str, root: str | Path | None, download: bool = False) -> RawDataset:
    """One of torchvision's datasets, read from ``root`` by torchvision's own class.

    Archives that lie directly in ``root`` (the four ``*-ubyte.gz`` files, a CIFAR ``.tar.gz``) are unpacked
    into a temporary folder, so that ``root`` may be read-only.

    Args:
        name: one of ``TORCHVISION_NAMES``.
        root: the folder of the files.
        download: let torchvision download into ``root`` what is not there.

    Raises:
        ConfigurationError: unknown name, no files, damaged files, or a download that failed.
    """
    if name not in _TORCHVISION:
        raise ConfigurationError("data.source", name, "no such dataset", f"use one of {', '.join(_TORCHVISION)}")
    if root is None:
        raise ConfigurationError("data.root", root, f"{name} is read from files", "name the folder they are in")
    files = _TORCHVISION[name]
    folder = Path(root).expanduser()
    with tempfile.TemporaryDirectory(prefix="ast_lightning_") as scratch:
        home = _find_files(files, folder, Path(scratch))
        if home is None and not download:
            raise ConfigurationError(
                "data.root",
                root,
                f"no {name} files found there (looked for {files.describe()})",
                "put the files there, point data.root at them or set data.download=true",
            )
        try:
            train, test = (
                files.dataset_class(str(home or folder), download=home is None, **split) for split in files.splits
            )
        except Exception as error:  # torchvision has no common error for a damaged file or a failed download
            raise _unreadable(name, files, root, home is None, error) from error
    names = getattr(train, "classes", None) or [str(digit) for digit in range(10)]
    raw = RawDataset(name, _as_tensors(train), _as_tensors(test), tuple(str(entry) for entry in names))
    _refuse_the_sibling(raw, root)
    return raw


def _unreadable(
    name: str, files: _TorchvisionFiles, root: str | Path, downloading: bool, error: Exception
) -> ConfigurationError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if downloading:
        return ConfigurationError(
            "data.root",
            root,
            f"no {name} files found there (looked for {files.describe()}) and the download failed: {reason}",
            "put the files there by hand and set data.download=false, or repair the connection",
        )
    return ConfigurationError(
        "data.root",
        root,
        f"the {name} files there are incomplete or damaged: {reason}",
        "fetch them again, or remove them and set data.download=true",
    )


def _find_files(files: _TorchvisionFiles, folder: Path, scratch: Path) -> Path | None:
    """The root for torchvision: ``folder``, or ``scratch`` with the archives unpacked; None without files."""
    if all((folder / path).exists() for path in files.unpacked):
        return folder
    if not files.archives or not all((folder / path).is_file() for path in files.archives):
        return None
    target = scratch / files.unpack_to
    target.mkdir(parents=True, exist_ok=True)
    for archive in files.archives:
        try:
            _unpack(folder / archive, target, files.unpacked)
        except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
            raise ConfigurationError(
                "data.root", str(folder), f"{archive} cannot be unpacked: {error}", "fetch that file again"
            ) from error
    return scratch


def _unpack(archive: Path, target: Path, folders: tuple[str, ...]) -> None:
    """A ``.gz`` file, or of a ``.tar.gz`` the regular files directly in ``folders``: a tar can name any path."""
    if not archive.name.endswith(".tar.gz"):
        with gzip.open(archive) as packed, (target / archive.stem).open("wb") as file:
            shutil.copyfileobj(packed, file)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isfile() and str(path.parent) in folders:
                (target / path.parent).mkdir(exist_ok=True)
                with tar.extractfile(member) as packed, (target / path).open("wb") as file:  # type: ignore[union-attr]
                    shutil.copyfileobj(packed, file)


# MNIST and Fashion-MNIST share their file names; the class counts of the test split tell which one it is.
_TEST_COUNTS = {
    "mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    "fashion_mnist": [1000] * 10,
}


def _refuse_the_sibling(raw: RawDataset, root: str | Path) -> None:
    counts = torch.bincount(raw.test.labels).tolist()
    for other, expected in _TEST_COUNTS.items():
        if raw.name in _TEST_COUNTS and raw.name != other and counts == expected:
            raise ConfigurationError(
                "data.root",
                root,
                f"these files are {other}, not {raw.name}",
                f"set data={other} or name another folder",
            )


def _as_tensors(dataset: Any) -> LabelledImages:
    """The ``data`` and ``targets`` (SVHN: ``labels``) of a torchvision dataset, as uint8 NCHW and int64."""
    images = torch.as_tensor(np.ascontiguousarray(dataset.data))
    labels = torch.as_tensor(np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None))))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[1] != 3:  # CIFAR keeps the channels last
        images = images.permute(0, 3, 1, 2).contiguous()
    return LabelledImages(images, labels.to(torch.int64))


BUILT_IN: dict[str, Callable[..., RawDataset]] = {
    "digits": lambda root, download: digits(),
    **{name: lambda root, download, name=name: torchvision_dataset(name, root, download) for name in TORCHVISION_NAMES},
}
