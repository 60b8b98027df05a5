"""Arrays and tensors as a dataset: layouts, types, labels, files, and every way in which they can be wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_lightning.data import ImageDataModule, arrays, load_arrays
from ast_lightning.errors import ConfigurationError

LABELS = np.array([0, 1, 2] * 4)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


CONTENT: dict[str, Any] = {
    "train_images": pixels(12, 8, 8, 3),
    "train_labels": LABELS,
    "test_images": pixels(6, 8, 8, 3, seed=1),
    "test_labels": LABELS[:6],
}


def write(path: Path, **content: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **content)
    else:
        torch.save({key: torch.from_numpy(value) for key, value in content.items()}, path)
    return path


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_layouts_of_the_same_images_agree(kind: Any) -> None:
    last = pixels(12, 8, 6, 3)
    wanted = torch.from_numpy(last.transpose(0, 3, 1, 2).copy())
    for images in (last, last.transpose(0, 3, 1, 2).copy()):
        data = arrays(kind(images), kind(LABELS), kind(images[:6]), kind(LABELS[:6]))
        assert torch.equal(data.train.images, wanted)
        assert torch.equal(data.test.images, wanted[:6])
        assert data.train.images.is_contiguous()
        assert data.class_names == ("0", "1", "2")
    grey = pixels(12, 8, 6)
    for images in (grey, grey[:, None], grey[..., None]):
        data = arrays(kind(images), kind(LABELS), kind(images), kind(LABELS))
        assert torch.equal(data.train.images, torch.from_numpy(grey)[:, None])


def test_floats_are_rounded_to_bytes() -> None:
    values = np.array([0.0, 0.4 / 255, 0.6 / 255, 127.4 / 255, 1.0])
    for dtype in (np.float32, np.float64, np.float16):
        images = np.broadcast_to(values.astype(dtype)[:, None, None], (5, 4, 4))
        data = arrays(images, [0, 1, 0, 1, 0], images, [0, 1, 0, 1, 0])
        assert data.train.images.dtype == torch.uint8
        assert data.train.images[:, 0, 0, 0].tolist() == [0, 0, 1, 127, 255]


def test_the_callers_arrays_are_not_shared() -> None:
    images = pixels(12, 8, 8)
    data = arrays(images, LABELS, images, LABELS)
    before = data.train.images.clone()
    images[:] = 0
    assert torch.equal(data.train.images, before)


@pytest.mark.parametrize(
    ("train", "test", "given", "labels", "names"),
    [
        ([7, 3, 7, 5], [5, 3], None, [2, 0, 2, 1], ("3", "5", "7")),
        (["b", "a", "b", "c"], ["c", "a"], None, [1, 0, 1, 2], ("a", "b", "c")),
        (["b", "a", "b", "c"], ["c", "a"], ["c", "b", "a"], [1, 2, 1, 0], ("c", "b", "a")),
        ([1, 0, 1, 2], [2, 0], ["cat", "dog", "cow"], [1, 0, 1, 2], ("cat", "dog", "cow")),
        ([[1], [0], [1], [2]], [[2], [0]], None, [1, 0, 1, 2], ("0", "1", "2")),
        (np.array([1, 0, 1, 2], dtype=np.uint64), np.array([2, 0], dtype=np.int8), None, [1, 0, 1, 2], ("0", "1", "2")),
    ],
)
def test_labels_become_whole_numbers_from_zero(
    train: Any, test: Any, given: Any, labels: list[int], names: tuple[str, ...]
) -> None:
    data = arrays(pixels(4, 8, 8), train, pixels(2, 8, 8), test, given)
    assert data.train.labels.tolist() == labels
    assert data.train.labels.dtype == torch.int64
    assert data.class_names == names
    assert [names[label] for label in data.test.labels] == [
        str(given[int(each)] if given and not isinstance(each, str) else each) for each in np.asarray(test).ravel()
    ]


def test_a_fixed_share_of_each_class_is_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 4])
    first, again = (arrays(pixels(34, 8, 8), labels, name="mine") for _ in range(2))
    assert torch.bincount(first.test.labels).tolist() == [2, 4, 1]
    assert torch.bincount(first.train.labels).tolist() == [8, 16, 3]
    assert torch.equal(first.test.images, again.test.images)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(text in lines[0] for text in ("mine", "7", "34", "20%"))


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_file_through_the_datamodule(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"mine{suffix}", **CONTENT)
    data = ImageDataModule("arrays", root=str(path), preprocessing="none")
    assert data.network_arguments == {"channels": 3, "num_classes": 3, "image_size": (8, 8)}
    assert data.name == "mine"
    assert len(data.test) == 6
    wanted = torch.from_numpy(CONTENT["train_images"]).movedim(3, 1) / 255
    torch.testing.assert_close(data.train.images, wanted)
    assert ImageDataModule("arrays", root=str(path), image_size=4).image_size == (4, 4)


def test_class_names_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npz", **CONTENT, class_names=np.array(["cat", "dog", "cow"]))
    assert load_arrays(path).class_names == ("cat", "dog", "cow")
    with pytest.raises(ConfigurationError, match=r"data\.root=.*class_names.*not a list of names"):
        load_arrays(write(tmp_path / "other.npz", **{**CONTENT, "class_names": np.array("abc")}))


@pytest.mark.parametrize(
    ("changes", "option", "fact"),
    [
        ({"train_images": pixels(12, 3, 8, 3)}, "train_images", "second or the last"),
        ({"train_images": pixels(12, 8, 8, 4)}, "train_images", "1 or 3 channels"),
        ({"train_images": pixels(12, 64)}, "train_images", "uint8 [12, 64]"),
        ({"train_images": pixels(0, 8, 8)}, "train_images", "not images"),
        ({"train_images": CONTENT["train_images"].astype(np.int64)}, "train_images", "int64"),
        ({"train_images": CONTENT["train_images"].astype(np.float32)}, "train_images", "255"),
        ({"train_images": np.full((12, 8, 8, 3), np.nan)}, "train_images", "NaN"),
        ({"train_images": np.where(np.arange(8) == 5, np.inf, np.ones((12, 8, 8)))}, "train_images", "NaN or infinite"),
        ({"train_images": np.full((12, 8, 8, 3), -0.1)}, "train_images", "[0, 1]"),
        ({"train_images": [[1], [2, 3]]}, "train_images", "list"),
        ({"train_images": np.array([object()])}, "train_images", "not an array"),
        ({"train_labels": LABELS[:5]}, "train_labels", "12 images"),
        ({"train_labels": np.eye(12)[:, :3]}, "train_labels", "[12, 3]"),
        ({"train_labels": LABELS.astype(float)}, "train_labels", "float64"),
        ({"test_labels": ["a"] * 6}, "test_labels", "strings"),
        ({"test_labels": None}, "test_labels", "missing"),
        ({"test_images": None}, "test_images", "missing"),
        ({"class_names": ["cat", "dog"]}, "class_names", "label 2"),
        ({"class_names": ["cat", "dog", "cat"]}, "class_names", "repeated"),
        ({"class_names": "abc"}, "class_names", "not a list"),
        ({"class_names": 5}, "class_names", "not a list"),
        ({"test_images": None, "test_labels": None, "train_labels": [0] * 11 + [1]}, "data.test_fraction", "1 images"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], option: str, fact: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        arrays(**{**CONTENT, **changes})
    assert caught.value.option == option
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_content_that_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npz", **{**CONTENT, "train_labels": LABELS[:5]})
    with pytest.raises(ConfigurationError, match=r"data\.root=.*mine\.npz: train_labels \(int64 \[5\]\): .*12 images"):
        ImageDataModule("arrays", root=str(path)).setup()


def test_a_class_without_training_images_is_named_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npz", **{**CONTENT, "train_labels": np.arange(12) % 2})
    with pytest.raises(ConfigurationError, match=r"data\.root=.*mine\.npz: class '\w+' has no training images"):
        ImageDataModule("arrays", root=str(path)).setup()


@pytest.mark.parametrize(
    "images", [torch.zeros(12, 8, 8).to_sparse(), torch.zeros(12, 8, 8, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_ordinary_numbers_are_named_with_the_file(images: torch.Tensor, tmp_path: Path) -> None:
    torch.save({**CONTENT, "train_images": images}, tmp_path / "mine.pt")
    with pytest.raises(ConfigurationError, match=r"data\.root=.*mine\.pt: "):
        load_arrays(tmp_path / "mine.pt")


def test_chosen_classes_need_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "mine.npz", **{**CONTENT, "test_labels": np.full(6, 2)})
    data = ImageDataModule("arrays", root=str(path), classes=["1", "2"])
    assert data.test.labels.tolist() == [1] * 6
    assert "class '1' has no test images" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match=r"data\.classes=.*no test images of these classes"):
        ImageDataModule("arrays", root=str(path), classes=["0", "1"]).setup()


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("this was run",)


def damaged(path: Path) -> None:
    path.write_bytes(write(path, **CONTENT).read_bytes()[:300])


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda path: None, "no such"),
        (Path.mkdir, "no such"),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(b"not an archive"), ""),
        (lambda path: path.write_bytes(pickle.dumps(Hostile())), ""),
        (damaged, ""),
        (lambda path: write(path, train_images=CONTENT["train_images"]), "contains train_images"),
        (lambda path: write(path, x=LABELS), "contains x"),
    ],
)
def test_files_that_cannot_be_used(
    suffix: str, make: Any, fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"mine{suffix}"
    make(path)
    with pytest.raises(ConfigurationError) as caught:
        load_arrays(path)
    assert caught.value.option == "data.root"
    assert fact in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "this was run" not in capsys.readouterr().out


def test_objects_in_an_archive_are_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = np.empty(12, dtype=object)
    objects[:] = Hostile()
    np.savez(tmp_path / "mine.npz", train_images=objects, train_labels=LABELS)
    with pytest.raises(ConfigurationError, match=r"data\.root"):
        load_arrays(tmp_path / "mine.npz")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConfigurationError, match="list"):
        load_arrays(tmp_path / "list.pt")
    assert "this was run" not in capsys.readouterr().out


@pytest.mark.parametrize("root", [None, "data", "images.csv"])
def test_a_root_that_is_no_file_of_arrays(root: str | None) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.root=.*\.npz"):
        load_arrays(root)


def test_one_class_is_too_few() -> None:
    data = arrays(pixels(4, 8, 8), [0] * 4, pixels(2, 8, 8), [0] * 2)
    with pytest.raises(ConfigurationError, match=r"data\.source.*at least two"):
        ImageDataModule(lambda: data).setup()
