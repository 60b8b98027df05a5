"""Built-in datasets, read from small files that the tests write in the formats of the real ones."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from ast_lightning.data import digits, torchvision_dataset
from ast_lightning.errors import ConfigurationError

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())


def write_mnist(folder: Path, suffix: str = ".gz") -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": random_images(20, 28, 28),
        "train-labels-idx1-ubyte": (np.arange(20) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": random_images(10, 28, 28, seed=1),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    for name, array in arrays.items():
        write_idx(folder / f"{name}{suffix}", array)
    return arrays


def no_network(monkeypatch: pytest.MonkeyPatch, dataset_class: type) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("Error downloading: no route to host")

    monkeypatch.setattr(dataset_class, "download", refuse)


def test_digits_are_scaled_and_split_the_same_way_every_time() -> None:
    first, second = digits(), digits()
    assert (len(first.train), len(first.test)) == (1297, 500)
    assert first.train.images.shape == (1297, 1, 8, 8)
    assert first.train.images.dtype == torch.uint8
    assert first.class_names == tuple("0123456789")
    assert torch.equal(first.train.images, second.train.images)
    everything = torch.cat([first.train.images, first.test.images]).flatten(1).tolist()
    original = [[int(value * 255 / 16 + 0.5) for value in row] for row in load_digits().data]
    assert sorted(everything) == sorted(original)
    shares = torch.bincount(first.test.labels) / torch.bincount(first.train.labels)
    assert shares.max() - shares.min() < 0.02  # stratified


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_four_archives_in_a_read_only_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_mnist(tmp_path)
    no_network(monkeypatch, datasets.MNIST)
    before = sorted(tmp_path.rglob("*"))
    os.chmod(tmp_path, 0o555)
    raw = torchvision_dataset(name, tmp_path, download=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert raw.name == name
    assert raw.train.images.shape == (20, 1, 28, 28)
    assert np.array_equal(raw.train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(raw.test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert raw.train.labels.tolist() == [*range(10), *range(10)]
    assert raw.train.labels.dtype == torch.int64
    assert raw.class_names[0] == {"mnist": "0 - zero", "fashion_mnist": "T-shirt/top"}[name]


def test_the_layout_of_torchvision(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path / "MNIST" / "raw", suffix="")
    raw = torchvision_dataset("mnist", str(tmp_path))
    assert np.array_equal(raw.test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    raw = torchvision_dataset("fashion_mnist", DEBIAN_FASHION)
    assert (len(raw.train), len(raw.test)) == (60_000, 10_000)
    assert torch.bincount(raw.train.labels).tolist() == [6000] * 10
    with pytest.raises(ConfigurationError, match="these files are fashion_mnist, not mnist"):
        torchvision_dataset("mnist", DEBIAN_FASHION)


def write_cifar(root: Path, dataset_class: type, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Files as the real ones, and no checksums to compare them with."""
    folder = root / dataset_class.base_folder
    folder.mkdir(parents=True)
    key = "labels" if dataset_class is datasets.CIFAR10 else "fine_labels"
    written = {}
    for seed, (name, _) in enumerate(dataset_class.train_list + dataset_class.test_list):
        images = random_images(10, 3072, seed=seed)
        written[name] = images
        (folder / name).write_bytes(pickle.dumps({"data": images, key: list(range(10))}))
    names = [f"thing {index}" for index in range(10)]
    (folder / dataset_class.meta["filename"]).write_bytes(pickle.dumps({dataset_class.meta["key"]: names}))
    for attribute in ("train_list", "test_list"):
        entries = [[name, None] for name, _ in getattr(dataset_class, attribute)]
        monkeypatch.setattr(dataset_class, attribute, entries)
    monkeypatch.setattr(dataset_class, "meta", {**dataset_class.meta, "md5": None})
    return written


@pytest.mark.parametrize(("name", "dataset_class"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar_pickles(name: str, dataset_class: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_cifar(tmp_path, dataset_class, monkeypatch)
    raw = torchvision_dataset(name, tmp_path)
    train = np.concatenate([written[entry] for entry, _ in dataset_class.train_list]).reshape(-1, 3, 32, 32)
    assert np.array_equal(raw.train.images.numpy(), train)
    assert raw.train.images.is_contiguous()
    assert raw.test.labels.tolist() == list(range(10))
    assert raw.class_names[3] == "thing 3"


def test_cifar_archive_is_read_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "made", datasets.CIFAR10, monkeypatch)
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", arcname="cifar-10-batches-py")
    raw = torchvision_dataset("cifar10", root)
    assert len(raw.train) == 50
    assert [entry.name for entry in root.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("name", ["../outside", "{absolute}", "cifar-10-batches-py/../../outside", "link/outside"])
def test_a_hostile_archive_writes_nothing_outside(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "made", datasets.CIFAR10, monkeypatch)
    root = tmp_path / "root"
    root.mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        member = archive.gettarinfo(__file__)
        member.name = name.format(absolute=tmp_path / "outside")
        with open(__file__, "rb") as content:
            archive.addfile(member, content)
        archive.add(tmp_path / "made" / "cifar-10-batches-py", arcname="./cifar-10-batches-py")
    if name == "link/outside":  # it lies inside, and is not one that is read
        assert len(torchvision_dataset("cifar10", root).train) == 50
    else:
        with pytest.raises(ConfigurationError, match=r"data\.root=.*outside lies outside of the folder"):
            torchvision_dataset("cifar10", root)
    assert not list(tmp_path.rglob("outside"))
    assert not list(scratch.iterdir())


def test_svhn_matlab_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {}
    for seed, split in enumerate(("train", "test")):
        arrays[split] = random_images(32, 32, 3, 12, seed=seed)
        labels = (np.arange(12, dtype=np.uint8) % 10 + 1)[:, None]  # the files call the digit 0 "10"
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", {"X": arrays[split], "y": labels})
    unchecked = {split: [url, file, None] for split, (url, file, _) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", unchecked)
    raw = torchvision_dataset("svhn", tmp_path)
    assert np.array_equal(raw.train.images.numpy(), arrays["train"].transpose(3, 2, 0, 1))
    assert raw.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert raw.class_names == tuple("0123456789")


def test_no_files_and_no_download(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"data\.root=.*no mnist files found there \(looked for MNIST/raw/train-images"
    ) as caught:
        torchvision_dataset("mnist", tmp_path / "nowhere")
    assert "data.download=true" in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("name", "dataset_class", "looked_for"),
    [
        ("mnist", datasets.MNIST, "t10k-labels-idx1-ubyte.gz"),
        ("cifar10", datasets.CIFAR10, "cifar-10-python.tar.gz"),
        ("svhn", datasets.SVHN, "train_32x32.mat, test_32x32.mat"),
    ],
)
def test_no_files_and_a_failed_download(
    name: str, dataset_class: type, looked_for: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch, dataset_class)
    with pytest.raises(ConfigurationError, match=f"looked for .*{looked_for}.*download failed: .*no route to host"):
        torchvision_dataset(name, tmp_path, download=True)


def test_a_download_lands_in_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: write_mnist(Path(self.raw_folder), suffix=""))
    assert len(torchvision_dataset("mnist", tmp_path, download=True).test) == 10


def flip_the_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 50]) + content[middle + 50 :]


@pytest.mark.parametrize("damage", [lambda content: b"not an archive", lambda content: content[:2000], flip_the_middle])
def test_damaged_archives(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_mnist(tmp_path)
    images = tmp_path / "t10k-images-idx3-ubyte.gz"
    images.write_bytes(damage(images.read_bytes()))
    with pytest.raises(ConfigurationError, match=r"t10k-images-idx3-ubyte\.gz cannot be unpacked"):
        torchvision_dataset("mnist", tmp_path)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "train-images-idx3-ubyte.gz", arcname="cifar-10-batches-py/data_batch_1")
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ConfigurationError, match=r"cifar-10-python\.tar\.gz cannot be unpacked|damaged"):
        torchvision_dataset("cifar10", tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ConfigurationError, match="the cifar10 files there are incomplete or damaged"):
        torchvision_dataset("cifar10", tmp_path)
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", random_images(20))  # of the wrong rank
    with pytest.raises(ConfigurationError, match="incomplete or damaged"):
        torchvision_dataset("mnist", tmp_path)


def test_unknown_name_and_missing_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.source=imagenet: .*mnist, fashion_mnist, cifar10"):
        torchvision_dataset("imagenet", tmp_path)
    with pytest.raises(ConfigurationError, match=r"data\.root=None: svhn is read from files"):
        torchvision_dataset("svhn", None)
