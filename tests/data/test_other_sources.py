"""Tiny ImageNet, ImageNet, Dataset classes and Hugging Face: the same images from every source, and wrong input."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_sources import write_cifar, write_mnist
from torch.utils.data import Dataset
from torchvision import datasets

from ast_lightning.data import ImageDataModule, arrays, digits, torchvision_dataset
from ast_lightning.errors import ConfigurationError

WNIDS = {"n02": "goldfish", "n01": "tench", "n03": "tench"}


def write_images(folder: Path, count: int, start: int = 0, name: str = "{}.JPEG", side: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name.format(index), quality=95)


def equal(first: ImageDataModule, second: ImageDataModule) -> bool:
    pairs = [(first.train, second.train), (first.test, second.test)]
    return all(torch.equal(a.images[:], b.images[:]) and torch.equal(a.labels, b.labels) for a, b in pairs)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_every_source_gives_the_same_images(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "mnist":
        write_mnist(tmp_path / "MNIST" / "raw", suffix="")
        found: Any = datasets.MNIST
    else:
        write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
        found = datasets.CIFAR10
    raw = torchvision_dataset(name, tmp_path)
    for split, part in (("train", raw.train), ("test", raw.test)):
        for label in range(10):
            (tmp_path / "folder" / split / str(label)).mkdir(parents=True)
        for index, (image, label) in enumerate(zip(part.images[:], part.labels.tolist(), strict=True)):
            pixels = image.permute(1, 2, 0).squeeze(2).numpy()
            Image.fromarray(pixels).save(tmp_path / "folder" / split / str(label) / f"{index:04}.png")
    built_in = ImageDataModule(name, root=str(tmp_path))
    by_class = ImageDataModule(functools.partial(found), root=str(tmp_path))
    assert by_class.describe() | {"name": name} == built_in.describe()
    assert equal(by_class, built_in)
    names = list(raw.class_names)
    given = ImageDataModule(lambda: arrays(raw.train.images, raw.train.labels, raw.test.images, raw.test.labels, names))
    assert equal(given, built_in)
    order = [torch.sort(part.labels, stable=True).indices for part in (raw.train, raw.test)]  # that of the folders
    of_files = ImageDataModule(
        "image_folder", root=str(tmp_path / "folder"), channels=built_in.channels, image_size=built_in.image_size[0]
    )
    for part, wanted, rows in zip((of_files.train, of_files.test), (built_in.train, built_in.test), order, strict=True):
        assert torch.equal(part.images[:], wanted.images[rows])
        assert torch.equal(part.labels, wanted.labels[rows])


def test_hugging_face_on_disk(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets", reason="the package datasets is not installed")
    raw = digits()
    features = library.Features(
        {
            "picture": library.Image(),
            "other": library.Value("int64"),
            "digit": library.ClassLabel(names=list("0123456789")),
        }
    )
    splits = {}
    for split, part in (("train", raw.train.take(torch.arange(100))), ("validation", raw.test.take(torch.arange(40)))):
        rows = [
            {"picture": Image.fromarray(image[0].numpy()), "other": 0, "digit": label}
            for image, label in zip(part.images, part.labels.tolist(), strict=True)
        ]
        splits[split] = library.Dataset.from_generator(
            lambda rows=rows: iter(rows), features=features, cache_dir=str(tmp_path / "made"), split=split
        )
    library.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    from ast_lightning.data import huggingface

    own = functools.partial(huggingface, str(tmp_path / "saved"))
    cache = str(tmp_path / "cache")
    for _ in range(2):
        data = ImageDataModule(own, cache=cache)
        assert (data.name, len(data.train), len(data.test), data.channels) == ("saved", 100, 40, 1)
        reference = ImageDataModule(
            lambda: arrays(
                *(raw.train.images[:100], raw.train.labels[:100], raw.test.images[:40], raw.test.labels[:40]),
                [str(each) for each in range(10)],
            )
        )
        assert equal(data, reference)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1
    for arguments, message in (
        ({"train": "all"}, r"data\.source\.train=all: .*no such split.*train, validation"),
        ({"label": "class"}, r"data\.source\.label=class: .*picture, other, digit"),
        ({"path": str(tmp_path / "nowhere")}, r"data\.source\.path="),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ImageDataModule(functools.partial(huggingface, **{"path": str(tmp_path / "saved"), **arguments})).setup()


def test_hugging_face_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from ast_lightning.data import huggingface

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"package datasets.*ast-lightning\[huggingface\]"):
        huggingface("somewhere")


class Halves(Dataset):
    """Random images of two sizes, in splits that are chosen by name."""

    def __init__(self, split: str = "train", sizes: tuple[int, ...] = (6,), base: int = 0, classes: Any = None) -> None:
        if split not in ("train", "valid"):
            raise ValueError(f"no split {split}")
        self.split, self.sizes, self.base, self.classes = split, sizes, base, classes

    def __len__(self) -> int:
        return 20 if self.split == "train" else 8

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError
        side = self.sizes[index % len(self.sizes)]
        pixels = np.random.default_rng(index + 100 * len(self)).integers(0, 256, (3, side, side), dtype=np.uint8)
        return torch.from_numpy(pixels), index % 2 + self.base


class Passing(Halves):
    def __init__(self, root: str, train: bool = True, **others: Any) -> None:
        self.root = root
        super().__init__(split="train" if train else "valid", **others)


def test_splits_are_found_by_the_signature(tmp_path: Path) -> None:
    by_name, by_flag = ImageDataModule(Halves), ImageDataModule(Passing, root=str(tmp_path))
    assert equal(by_name, by_flag)
    assert (len(by_name.train), len(by_name.test), by_name.class_names) == (20, 8, ("0", "1"))
    one = ImageDataModule(functools.partial(Halves, split="train"), test_fraction=0.3)
    assert (len(one.train), len(one.test)) == (14, 6)
    fake = functools.partial(datasets.FakeData, size=60, image_size=(3, 10, 10), num_classes=3)
    data = ImageDataModule(fake, image_size=8, root="unused", class_names=["a", "b", "c"])
    assert (len(data.train) + len(data.test), data.image_size, data.class_names) == (60, (8, 8), ("a", "b", "c"))
    assert len(data.test) == pytest.approx(12, abs=2)
    assert equal(data, ImageDataModule(fake, image_size=8))


def test_classes_without_images_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as N/A of EMNIST's letters, whose labels start at 1."""
    plain = ImageDataModule(Halves)
    for classes, names in ((["N/A", "a", "b", "c"], ("a", "b")), (None, ("1", "2"))):
        data = ImageDataModule(functools.partial(Halves, base=1, classes=classes))
        assert equal(data, plain)
        assert data.class_names == names
        assert f"'{'N/A' if classes else '0'}'" in capsys.readouterr().out
    chosen = ImageDataModule(functools.partial(Halves, base=1, classes=["N/A", "a", "b"]), classes=["b", "a"])
    assert torch.equal(chosen.train.labels, 1 - plain.train.labels)


def test_a_class_that_is_not_in_a_file_is_not_cached(tmp_path: Path) -> None:
    """One of a notebook or of standard input, whose code may have changed."""
    (tmp_path / "root").mkdir()
    found = type("Typed", (Passing,), {"__module__": "typed"})
    data = ImageDataModule(found, root=str(tmp_path / "root"), cache=str(tmp_path / "cache"), preload=0)
    assert equal(data, ImageDataModule(Halves))
    assert not (tmp_path / "cache").exists()


def test_a_class_that_reads_below_root_is_cached(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for count in (1, 1, 2):
        (root / "file").write_text("x" * count)
        lazy = ImageDataModule(Passing, root=str(root), cache=str(tmp_path / "cache"), preload=0)
        assert equal(lazy, ImageDataModule(Halves))
        entries = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(entries) == 3 or len(entries) == 2  # a file that was written again is another file


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (functools.partial(Halves, sizes=(6, 5)), {}, "5×5 pixels, .*data.image_size=32"),
        (functools.partial(Halves, split="test"), {}, r"data\.source=.*Halves: \(split='test'\): it raised ValueError"),
        (functools.partial(Halves, base=-1, classes=["a", "b"]), {}, "labels from -1"),
        (Halves, {"test_fraction": 0.2}, r"data\.test_fraction=0\.2: .*has 8 test images.*null"),
        (Halves, {"classes": ["0", "two"]}, r"data\.classes=.*'two'.*names such as"),
        (Halves, {"classes": 3}, r"data\.classes=3: .*2 classes"),
        (Halves, {"class_names": ["a"]}, r"data\.class_names=.*2 classes"),
        (
            functools.partial(datasets.FakeData, transform=lambda image: torch.zeros(3, 8, 8)),
            {},
            "leave out transforms",
        ),
    ],
)
def test_what_does_not_fit_is_named(source: Any, settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ImageDataModule(source, **settings).setup()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Tiny ImageNet as in its archive: three classes with four training and two validation images each."""
    lines = []
    for place, wnid in enumerate(WNIDS):
        write_images(tmp_path / "train" / wnid / "images", 4, 10 * place, wnid + "_{}.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
        write_images(tmp_path / "val" / "images", 2, 100 + 2 * place, "val_{}.JPEG")
        lines += [f"val_{100 + 2 * place + index}.JPEG\t{wnid}\t0\t0\t7\t7\n" for index in range(2)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    (tmp_path / "words.txt").write_text("".join(f"{wnid}\t{name}, fish\n" for wnid, name in WNIDS.items()))
    write_images(tmp_path / "test" / "images", 2, 200)
    return tmp_path


def test_tiny_imagenet_in_its_archive_layout_and_as_folders(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8)
    assert archive.class_names == ("tench (n01)", "goldfish", "tench (n03)")
    assert (len(archive.train), archive.test.labels.tolist()) == (12, [0, 0, 1, 1, 2, 2])
    assert "warning" not in capsys.readouterr().out
    (tiny / "inside").mkdir()
    for part in ("train", "val", "words.txt"):
        (tiny / part).rename(tiny / "inside" / part)
    inside = tiny / "inside"
    inside.rename(tiny / "tiny-imagenet-200")
    assert equal(ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8), archive)
    root = tiny / "tiny-imagenet-200"
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        (root / "val" / wnid).mkdir(exist_ok=True)
        (root / "val" / "images" / file).rename(root / "val" / wnid / file)
    (root / "val" / "images").rmdir()
    (root / "val" / "val_annotations.txt").unlink()
    assert equal(ImageDataModule("tiny_imagenet", root=str(root), image_size=8), archive)
    (root / "val").rename(root / "test")
    assert equal(ImageDataModule("image_folder", root=str(root), image_size=8), archive)


def test_a_part_of_tiny_imagenet(tiny: Path) -> None:
    data = ImageDataModule(
        "tiny_imagenet", root=str(tiny), image_size=8, classes=["n03", "n02"], class_names=["x", "y"]
    )
    assert data.class_names == ("x", "y")
    named = ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8, classes=["tench (n03)", "goldfish"])
    assert equal(named, data)
    with pytest.raises(ConfigurationError, match=r"data\.classes=\['n02', 'goldfish'\]: a class is repeated"):
        ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8, classes=["n02", "goldfish"]).setup()
    with pytest.raises(ConfigurationError, match=r"no class 'tench'\. Remedy: use names such as tench \(n0"):
        ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8, classes=["tench", "goldfish"]).setup()
    whole = ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8, preprocessing="none")
    raw = ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8, preprocessing="none", classes=["n03", "n02"])
    assert torch.equal(raw.test.images[:2], whole.test.images[4:])
    assert len(ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8, classes=2).train) == 8
    (tiny / "val" / "val_annotations.txt").write_text("val_100.JPEG\tn02\n")
    with pytest.raises(ConfigurationError, match=r"val_annotations\.txt.*no images of class n01"):
        ImageDataModule("tiny_imagenet", root=str(tiny), image_size=8).setup()


def test_imagenet_and_one_split_of_folders(tmp_path: Path) -> None:
    for place, wnid in enumerate(WNIDS):
        write_images(tmp_path / "train" / wnid, 4, 10 * place, side=12)
        write_images(tmp_path / "val" / wnid, 2, 100 + 10 * place, side=12)
    data = ImageDataModule("imagenet", root=str(tmp_path), image_size=8, classes=["n03", "n01"])
    assert (data.class_names, len(data.train), len(data.test)) == (("n03", "n01"), 8, 4)
    with pytest.raises(ConfigurationError, match=r"data\.classes=.*no class 'n04'.*n0"):
        ImageDataModule("imagenet", root=str(tmp_path), image_size=8, classes=["n03", "n04"]).setup()
    with pytest.raises(ConfigurationError, match=r"no folder test/.*data\.test_fraction=0\.2"):
        ImageDataModule("image_folder", root=str(tmp_path), image_size=8).setup()
    held = ImageDataModule("image_folder", root=str(tmp_path), image_size=8, test_fraction=0.25)
    assert (len(held.train), len(held.test)) == (9, 3)
