"""Images in class folders: their sizes, and every way in which a folder can be wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ast_lightning.data import ImageDataModule, image_folder
from ast_lightning.errors import ConfigurationError

CLASSES = {"cat": (200, 30, 30), "dog": (30, 200, 30)}


def write_image(path: Path, width: int, height: int, colour: tuple[int, int, int] = (9, 9, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("test", 2)):
        for name, colour in CLASSES.items():
            for index in range(count):
                write_image(tmp_path / split / name / f"{index}.png", 20 + index, 30 - index, colour)
    return tmp_path


def test_images_of_any_size_become_one_tensor(folder: Path) -> None:
    raw = image_folder(folder, 16)
    assert raw.train.images.shape == (10, 3, 16, 16)
    assert raw.train.images.dtype == torch.uint8
    assert raw.train.labels.tolist() == [0] * 5 + [1] * 5
    assert raw.class_names == ("cat", "dog")
    assert raw.name == folder.name
    for label, colour in enumerate(CLASSES.values()):
        assert torch.equal(raw.test.images[raw.test.labels == label][0, :, 3, 3], torch.tensor(colour).byte())


def test_crop_keeps_the_centre_and_squash_keeps_everything(folder: Path) -> None:
    # Three vertical stripes of 20×20: cropping leaves the middle one, squashing all three.
    stripes = np.repeat(np.array([0, 120, 240], dtype=np.uint8), 20)[None].repeat(20, 0)
    Image.fromarray(stripes).convert("RGB").save(folder / "test" / "cat" / "0.png")
    cropped = image_folder(folder, 10, "crop").test.images[0, 0]
    assert cropped[:, 1:-1].unique().tolist() == [120]
    squashed = image_folder(folder, 10, "squash").test.images[0, 0]
    assert squashed[:, [0, 5, 9]].tolist() == [[0, 120, 240]] * 10


def test_shrinking_is_antialiased(folder: Path) -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).convert("RGB").save(folder / "test" / "cat" / "0.png")
    assert (image_folder(folder, 8).test.images[0].float() - 127.5).abs().max() < 12


def test_grey_palette_and_transparent_files(folder: Path) -> None:
    Image.new("L", (20, 20), 50).save(folder / "train" / "cat" / "grey.png")
    Image.new("RGBA", (20, 20), (50, 50, 50, 255)).save(folder / "train" / "cat" / "rgba.png")
    Image.new("RGB", (20, 20), (50, 50, 50)).convert("P").save(folder / "train" / "cat" / "palette.gif")
    assert image_folder(folder, 8).train.images[5:7].unique().tolist() == [50]
    grey = image_folder(folder, 8, channels=1)
    assert grey.train.images.shape == (12, 1, 8, 8)


def test_hidden_files_and_folders_are_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = image_folder(folder, 8)
    for split in ("train", "test"):
        write_image(folder / split / ".thumbs" / "0.png", 8, 8)
        write_image(folder / split / "cat" / ".cache" / "0.png", 8, 8)
        (folder / split / "dog" / "._1.png").write_bytes(b"of a Mac")
        (folder / split / "dog" / ".DS_Store").write_bytes(b"of a Mac")
    raw = image_folder(folder, 8)
    assert raw.class_names == ("cat", "dog")
    assert torch.equal(raw.train.images, wanted.train.images)
    assert "warning" not in capsys.readouterr().out


def test_files_of_other_kinds_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.gif", "c.avif"):
        (folder / "train" / "cat" / name).write_bytes(b"")
    assert len(image_folder(folder, 8).train) == 10
    (folder / "train" / "loose.png").write_bytes(b"")
    image_folder(folder, 8)
    lines = capsys.readouterr().out.splitlines()
    assert all(text in lines[0] for text in ("2 files", "train/cat/", ".gif", ".png"))
    assert all(text in lines[1] for text in ("10 training", "4 test images", "2 classes"))
    assert all(text in lines[2] for text in ("3 files", "train/loose.png"))


def test_a_rotated_photograph_stands_upright(folder: Path) -> None:
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    pixels[:10] = 255  # the upper half is white
    upright, turned = Image.fromarray(pixels), Image.fromarray(np.rot90(pixels))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90° to see it
    for index, (image, options) in enumerate(((upright, {}), (turned, {"exif": exif}))):
        image.save(folder / "test" / "cat" / f"{index}.jpg", quality=100, **options)
    cats = image_folder(folder, 10).test.images[[0, 2]]  # before 0.png and 1.png
    assert cats[0, 0, 2, 2] > 250
    assert (cats[0].int() - cats[1].int()).abs().max() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str, folder: Path) -> None:
    hidden = Image.new("RGBA", (20, 20), (200, 0, 0, 0)).convert(mode)
    hidden.save(folder / "test" / "cat" / "0.png", **({"transparency": hidden.getpixel((0, 0))} if mode == "P" else {}))
    for channels in (1, 3):
        assert image_folder(folder, 8, channels=channels).test.images[0].unique().tolist() == [255]


def test_unreadable_images_are_all_named_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/cat/1.png", "train/dog/3.png", "test/dog/0.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(ConfigurationError, match=r"train/cat/1\.png.*and 2 more"):
        image_folder(folder, 8)
    out = capsys.readouterr().out
    assert all(name in out for name in ("train/cat/1.png", "train/dog/3.png", "test/dog/0.png"))


def test_an_unreadable_folder_is_not_an_empty_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir, closed = os.scandir, str(folder / "train" / "dog")

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigurationError, match=r"train/dog: it cannot be read \(Permission denied\)"):
        image_folder(folder, 8)


def test_links_in_a_circle_are_followed_once(folder: Path) -> None:
    wanted = image_folder(folder, 8)
    (folder / "train" / "cat" / "again").symlink_to(folder / "train" / "cat")
    assert torch.equal(image_folder(folder, 8).train.images, wanted.train.images)


def test_a_link_to_a_folder_above_brings_no_images_of_other_classes(folder: Path) -> None:
    before = image_folder(folder, 8)
    (folder / "train" / "cat" / "all").symlink_to(folder / "train")
    assert torch.equal(image_folder(folder, 8).train.labels, before.train.labels)


def test_through_the_datamodule(folder: Path) -> None:
    data = ImageDataModule("image_folder", root=str(folder), image_size=12, per_class=4)
    assert data.network_arguments == {"channels": 3, "num_classes": 2, "image_size": (12, 12)}
    assert len(data.train) == 8
    with pytest.raises(ConfigurationError, match=r"data\.image_size=None: images in a folder need one size"):
        ImageDataModule("image_folder", root=str(folder)).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": "stretch"}, r"data\.resize=stretch: .*crop, squash"),
        ({"channels": 4}, r"data\.channels=4: .*1 or 3"),
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"folder": None}, r"data\.root=None"),
        ({"folder": "/nowhere/at/all"}, r"data\.root=/nowhere/at/all: there is no such folder"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str, folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        image_folder(**{"folder": folder, "image_size": 8, **arguments})


def test_missing_split(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    with pytest.raises(ConfigurationError, match=r"there is no folder test/ in it.*rename val/ to test/"):
        image_folder(folder, 8)


def test_split_without_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ConfigurationError, match="train: it holds no class folders"):
        image_folder(tmp_path, 8)


def test_class_without_images(folder: Path) -> None:
    (folder / "train" / "emu").mkdir()
    (folder / "train" / "emu" / "notes.txt").write_text("no image")
    with pytest.raises(ConfigurationError, match=r"no images in train/emu.*\.jpg"):
        image_folder(folder, 8)


def test_other_classes_in_test(folder: Path) -> None:
    (folder / "test" / "dog").rename(folder / "test" / "Dog")
    with pytest.raises(ConfigurationError, match="only in train/: dog; only in test/: Dog"):
        image_folder(folder, 8)


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_unreadable_image_is_named(content: bytes | None, folder: Path) -> None:
    path = folder / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(ConfigurationError, match=r"data\.root=.*cannot be read: .*train/dog/3\.png"):
        image_folder(folder, 8)


def test_sixteen_bit_images_are_not_clipped_in_silence(folder: Path) -> None:
    deep = np.full((20, 20), 40_000, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "train" / "cat" / "deep.png")
    with pytest.raises(ConfigurationError, match=r"deep\.png .*more than 8 bits"):
        image_folder(folder, 8)
