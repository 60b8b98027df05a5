"""A distilled dataset written, read back, damaged, and used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from ast_lightning.data import SiameseAugmentation, save_preprocessing
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import seal, tensor_checksum
from ast_lightning.synthetic import DistilledDataset, load_distilled, save_distilled
from ast_lightning.synthetic.dataset import read_description
from ast_lightning.synthetic.verification import verify_distilled

Make = Callable[..., DistilledDataset]
FILES = ["dataset.json", "images.safetensors", "preprocessing.safetensors"]


def by_definition(dataset: DistilledDataset, unit: Tensor) -> Tensor:
    """Preprocessing as method.md section 6 states it, of float64 images ``[N, C, H, W]`` in [0, 1]."""
    tensors = {name: tensor.double() for name, tensor in dataset.preprocessing.tensors().items()}
    if dataset.preprocessing.kind == "none":
        return unit
    if dataset.preprocessing.kind == "standardize":
        return (unit - tensors["mean"][:, None, None]) / tensors["std"][:, None, None]
    flat = torch.einsum("nd,de->ne", unit.flatten(1) - tensors["mean"], tensors["transform"])
    return flat.reshape(unit.shape)


def pixels(count: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(0, 256, (count, channels, 6, 5), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["standardize", "zca", "none"])
def test_round_trip_is_exact(make_distilled: Make, tmp_path: Path, kind: str) -> None:
    dataset = make_distilled(kind)
    folder = save_distilled(tmp_path / "set", dataset)
    read = load_distilled(folder)
    assert torch.equal(read.images, dataset.images)
    assert torch.equal(read.labels, dataset.labels)
    assert read.labels.dtype == torch.int64
    assert read.learning_rate == dataset.learning_rate
    assert read.class_names == dataset.class_names
    assert read.augmentation == "color_flip"
    assert read.metadata == dataset.metadata
    assert read.ipc == 3
    assert read.preprocessing.kind == kind
    assert read.preprocessing.describe() == dataset.preprocessing.describe()
    before, after = dataset.preprocessing.tensors(), read.preprocessing.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(read.transform(pixels(4)), dataset.transform(pixels(4)))


def test_soft_labels_come_back_exactly(make_distilled: Make, tmp_path: Path) -> None:
    hard = make_distilled()
    labels = (4 * torch.eye(4)[hard.labels].double()).softmax(1)  # of a distillation in float64
    folder = save_distilled(tmp_path / "set", replace(hard, labels=labels))
    read = load_distilled(folder)
    assert read.labels.dtype == torch.float32
    assert torch.equal(read.labels, labels.float())
    assert read.checksum() == replace(hard, labels=labels).checksum() != hard.checksum()
    assert read.metadata == hard.metadata
    assert torch.equal(read.targets, hard.labels)
    assert "soft labels" in repr(read)
    assert "soft labels" not in repr(hard)
    assert (folder / "images.png").read_bytes() == (save_distilled(tmp_path / "hard", hard) / "images.png").read_bytes()
    assert verify_distilled(folder) == []
    image, label = read[4]
    assert torch.nn.functional.cross_entropy(torch.zeros(1, 4), label[None]).item() == pytest.approx(math.log(4))
    assert torch.equal(image, hard.images[4])


def test_folder_holds_what_its_description_says(make_distilled: Make, tmp_path: Path) -> None:
    folder = save_distilled(tmp_path / "runs" / "set", make_distilled())
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "images.png", "images_raw.png"])
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    tensors = load_file(folder / "images.safetensors")
    assert {name: (list(each.shape), each.dtype) for name, each in tensors.items()} == {
        "images": ([12, 3, 6, 5], torch.float32),
        "labels": ([12], torch.int64),
        "learning_rate": ([], torch.float64),
    }
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert described["class_names"] == ["ant", "bee", "Käfer", "dog/cat"]
    assert described["shape"] == [12, 3, 6, 5]
    assert described["preprocessing"]["kind"] == "standardize"
    assert described["iteration"] == 7
    assert described["format"] == 2
    assert described["checksums"]["images.safetensors"] == make_distilled().checksum()


def test_saving_again_replaces_the_whole_folder(make_distilled: Make, tmp_path: Path) -> None:
    save_distilled(tmp_path / "set", make_distilled("zca", ipc=1))
    (tmp_path / "set" / "stray").touch()
    save_distilled(tmp_path / "set", make_distilled("standardize", ipc=2))
    assert load_distilled(tmp_path / "set").ipc == 2
    assert load_distilled(tmp_path / "set").preprocessing.kind == "standardize"
    assert not (tmp_path / "set" / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_it_is_a_torch_dataset(make_distilled: Make) -> None:
    dataset = make_distilled()
    assert len(dataset) == 12
    image, label = dataset[4]
    assert torch.equal(image, dataset.images[4])
    assert int(label) == 1
    batches = list(DataLoader(dataset, batch_size=5))
    assert torch.equal(torch.cat([images for images, _ in batches]), dataset.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)


@pytest.mark.parametrize("kind", ["standardize", "zca", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transform_is_the_preprocessing_of_any_form_of_image(make_distilled: Make, kind: str, channels: int) -> None:
    dataset = make_distilled(kind, channels=channels)
    raw = pixels(7, channels)
    expected = by_definition(dataset, raw.double() / 255).float()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(dataset.transform(raw), expected, **close)
    torch.testing.assert_close(dataset.transform(raw.float() / 255), expected, **close)
    torch.testing.assert_close(dataset.transform(raw.double() / 255), expected, **close)
    torch.testing.assert_close(dataset.transform(raw[3]), expected[3], **close)
    torch.testing.assert_close(dataset.transform(raw[3].float() / 255), expected[3], **close)
    array = raw[3].permute(1, 2, 0).numpy()
    picture = Image.fromarray(array if channels == 3 else array[..., 0])
    torch.testing.assert_close(dataset.transform(picture), expected[3], **close)
    assert raw.dtype == torch.uint8
    assert dataset.transform(raw).dtype == torch.float32


@pytest.mark.parametrize("batched", [False, True])
def test_transform_takes_arrays_as_its_docstring_says(make_distilled: Make, batched: bool) -> None:
    """ "a tensor or array-like of uint8 …, ``[C, H, W]`` or ``[N, C, H, W]``"."""
    dataset, raw = make_distilled(), pixels(3)
    chosen = raw if batched else raw[0]
    torch.testing.assert_close(dataset.transform(np.array(chosen)), dataset.transform(chosen))


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 6, 5), (3, 6, 6), (2, 3, 8, 5), (6, 5)])
def test_transform_rejects_another_size(make_distilled: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"these images are .*; the distilled dataset is for \(3, 6, 5\)"):
        make_distilled().transform(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"\(1, 6, 5\).*\(3, 6, 5\)"):
        make_distilled().transform(Image.new("L", (5, 6)))


@pytest.mark.parametrize(
    ("image", "given"),
    [
        (pixels(2).long(), "torch.int64"),
        (pixels(2).int(), "torch.int32"),
        (pixels(2) > 100, "torch.bool"),
        (np.zeros((3, 6, 5), dtype=np.int16), "torch.int16"),
        (pixels(2).float(), "outside [0, 1]"),
        (pixels(2).float() / 255 - 0.01, "outside [0, 1]"),
        (torch.full((3, 6, 5), torch.nan), "outside [0, 1]"),
        (Image.new("I;16", (5, 6)), "mode I;16; give an array of its pixels in [0, 1]"),
        (Image.new("F", (5, 6)), "mode F; give an array of its pixels in [0, 1]"),
        (Image.new("P", (5, 6)), "mode P; give image.convert('RGB')"),
        (Image.new("HSV", (5, 6)), "mode HSV"),
    ],
)
def test_transform_rejects_what_it_cannot_convert(make_distilled: Make, image: Any, given: str) -> None:
    with pytest.raises(ValueError, match=re.escape(given)) as caught:
        make_distilled().transform(image)
    assert "; give " in str(caught.value)


def test_repr_is_one_line_without_pixels(make_distilled: Make) -> None:
    shown = repr(make_distilled("zca"))
    assert "\n" not in shown
    assert "tensor" not in shown
    assert "12 images [3, 6, 5] of 4 classes" in shown


def test_attributes_that_torchvision_names(make_distilled: Make) -> None:
    dataset = make_distilled()
    assert dataset.classes == ["ant", "bee", "Käfer", "dog/cat"]
    assert torch.equal(dataset.targets, dataset.labels)


def test_pictures_invert_the_preprocessing(make_distilled: Make) -> None:
    for kind in ("standardize", "zca"):
        dataset = make_distilled(kind)
        unit = pixels(12).float() / 255
        dataset.images = dataset.transform(unit)
        torch.testing.assert_close(dataset.pictures(), unit, rtol=0, atol=2e-3)
        dataset.images = dataset.images * 100
        assert (dataset.pictures().min(), dataset.pictures().max()) == (0, 1)


def test_augment_draws_by_key(make_distilled: Make) -> None:
    dataset = make_distilled()
    draws = [dataset.augment(dataset.images, 1, step) for step in range(6)]
    assert torch.equal(dataset.augment(dataset.images, 1, 4), draws[4])
    assert len({tuple(each.flatten().tolist()) for each in draws}) == 6
    assert all(each.shape == dataset.images.shape for each in draws)
    dataset.augmentation = None
    assert torch.equal(dataset.augment(dataset.images, 1, 0), dataset.images)
    assert SiameseAugmentation("color_flip").families == ("color", "flip")


def textures(dataset: DistilledDataset, crop_size: tuple[int, int] | None = (6, 5)) -> DistilledDataset:
    canvases = torch.randn(len(dataset), 3, 12, 10, generator=torch.Generator().manual_seed(6))
    return replace(dataset, images=canvases, crop_size=crop_size)


def test_canvases_are_saved_with_the_size_of_their_crops(make_distilled: Make, tmp_path: Path) -> None:
    dataset = textures(make_distilled())
    folder = save_distilled(tmp_path / "set", dataset)
    read = load_distilled(folder)
    assert torch.equal(read.images, dataset.images)
    assert read.crop_size == (6, 5)
    assert read.image_shape == (3, 6, 5)
    assert read.metadata == dataset.metadata
    assert "crop_size=(6, 5)" in repr(read)
    assert verify_distilled(folder) == []
    assert read.pictures().shape == (12, 3, 12, 10)
    assert torch.equal(read.transform(pixels(4)), make_distilled().transform(pixels(4)))  # of real images
    with pytest.raises(ValueError, match=r"\(3, 12, 10\); the distilled dataset is for \(3, 6, 5\)"):
        read.transform(torch.zeros(3, 12, 10))
    plain = json.loads((save_distilled(tmp_path / "plain", make_distilled()) / "dataset.json").read_text("utf-8"))
    assert "crop_size" not in plain
    assert load_distilled(tmp_path / "plain").crop_size is None


def test_crops_are_drawn_by_key(make_distilled: Make) -> None:
    dataset = textures(make_distilled())
    draws = [dataset.crop(dataset.images[2:7], 1, step) for step in range(6)]
    assert all(each.shape == (5, 3, 6, 5) for each in draws)
    assert torch.equal(dataset.crop(dataset.images[2:7], 1, 4), draws[4])
    assert len({tuple(each.flatten().tolist()) for each in draws}) == 6
    values = {tuple(each) for each in dataset.images[2].flatten(1).T.tolist()}
    assert {tuple(each) for each in draws[0][0].flatten(1).T.tolist()} <= values
    plain = make_distilled()
    assert plain.crop(plain.images, 1, 0) is plain.images


@pytest.mark.parametrize("crop_size", [(13, 5), (6, 0), (6,), (6.0, 5)])
def test_crops_that_do_not_fit_are_named(make_distilled: Make, tmp_path: Path, crop_size: Any) -> None:
    folder = save_distilled(tmp_path / "set", textures(make_distilled(), crop_size))
    with pytest.raises(ConfigurationError, match=r"its crop_size is .*, and its canvases are \[12, 10\]"):
        load_distilled(folder)


def damage(folder: Path, how: str) -> None:
    images, preprocessing, description = (folder / name for name in (FILES[1], FILES[2], FILES[0]))
    tensors = load_file(images)
    content = json.loads(description.read_text(encoding="utf-8"))
    if how.startswith("truncated "):
        path = folder / how.removeprefix("truncated ")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty images":
        images.write_bytes(b"")
    elif how == "other images":
        save_file({**tensors, "images": tensors["images"][:, :, :5].contiguous()}, images)
    elif how == "fewer labels":
        save_file({**tensors, "labels": tensors["labels"][:-1].contiguous()}, images)
    elif how == "no learning rate":
        save_file({name: tensors[name] for name in ("images", "labels")}, images)
    elif how in ("newer format", "older format"):
        number = 3 if how == "newer format" else 1
        description.write_text(json.dumps({**content, "format": number}), encoding="utf-8")
    elif how == "another accuracy":
        description.write_text(json.dumps({**content, "accuracy": {"test/accuracy": 99.0}}), encoding="utf-8")
    elif how == "no checksum":
        description.write_text(json.dumps({k: v for k, v in content.items() if k != "checksum"}), encoding="utf-8")
    elif how == "no format":
        description.write_text(json.dumps({k: v for k, v in content.items() if k != "format"}), encoding="utf-8")
    elif how == "statistics without a kind":
        save_file(load_file(preprocessing), preprocessing)
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("truncated images.safetensors", "images.safetensors"),
        ("truncated preprocessing.safetensors", "preprocessing.safetensors"),
        ("truncated dataset.json", "dataset.json"),
        ("empty images", "images.safetensors"),
        ("other images", "images.safetensors cannot be used: it is not the file that dataset.json was written with"),
        ("fewer labels", "images.safetensors cannot be used: it is not the file that dataset.json was written with"),
        (
            "no learning rate",
            "images.safetensors cannot be used: it is not the file that dataset.json was written with",
        ),
        ("newer format", "dataset.json has format 3, and this version reads 2"),
        ("older format", "dataset.json has format 1, and this version reads 2"),
        ("no format", "dataset.json cannot be used: it does not match its checksum"),
        ("another accuracy", "dataset.json cannot be used: it does not match its checksum"),
        ("no checksum", "dataset.json cannot be used: it has no checksum"),
        ("statistics without a kind", "preprocessing.safetensors"),
    ],
)
@pytest.mark.parametrize("kind", ["standardize", "zca"])
def test_damage_is_named(make_distilled: Make, tmp_path: Path, how: str, named: str, kind: str) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled(kind))
    damage(folder, how)
    with pytest.raises(ConfigurationError) as caught:
        load_distilled(folder, "distill.warm_start")
    assert caught.value.option == "distill.warm_start"
    assert caught.value.value == folder
    assert named in caught.value.problem


def test_a_link_that_moves_while_it_is_read_is_read_again(
    make_distilled: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``synthetic/last`` does when a running distillation writes its next step and deletes the last one."""
    steps = [save_distilled(tmp_path / name, make_distilled("none", ipc=ipc)) for name, ipc in (("1", 1), ("2", 2))]
    link = tmp_path / "last"
    link.symlink_to(steps[0])

    def moving(folder: Path, option: str) -> dict[str, Any]:
        description = read_description(folder, option)
        if link.resolve() == steps[0].resolve():
            link.unlink()
            link.symlink_to(steps[1])
        return description

    monkeypatch.setattr("ast_lightning.synthetic.dataset.read_description", moving)
    assert load_distilled(link).ipc == 2
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(ConfigurationError, match="no such folder"):
        load_distilled(link)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(({name: None}, f"lacks {name}") for name in ("class_names", "augmentation", "checksums", "preprocessing")),
        ({"class_names": 4}, "class_names"),
        ({"class_names": [{}] * 4}, "class_names"),
        ({"class_names": []}, "0 classes"),
        ({"class_names": ["a", "b", "c"]}, "whole numbers in 0 … 2"),
        ({"class_names": ["a", "b", "c", "d", "e"]}, "5 classes"),
        ({"checksums": [1]}, "checksums"),
        ({"checksums": {}}, "checksums"),
        ({"preprocessing": 3}, "preprocessing.safetensors"),
    ],
)
def test_a_description_that_fits_its_checksum_and_nothing_else_is_named(
    make_distilled: Make, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    content = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    content = {
        name: value for name, value in {**content, **changes}.items() if value is not None or name not in changes
    }
    (folder / FILES[0]).write_text(json.dumps(seal(content)), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=named):
        load_distilled(folder)


@pytest.mark.parametrize("name", ["images", "labels", "learning_rate", "more", "rates"])
def test_other_tensors_than_those_of_a_set_are_named(make_distilled: Make, tmp_path: Path, name: str) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    tensors = load_file(folder / FILES[1])
    if name == "rates":
        tensors["learning_rate"] = torch.ones(3)
    elif tensors.pop(name, None) is None:
        tensors[name] = torch.ones(3)
    save_file(tensors, folder / FILES[1])
    content = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    content["checksums"][FILES[1]] = tensor_checksum(tensors)
    (folder / FILES[0]).write_text(json.dumps(seal(content)), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="does not hold images, labels and one learning rate"):
        load_distilled(folder)


def test_content_that_cannot_be_parsed_is_named(make_distilled: Make, tmp_path: Path) -> None:
    huge = (30 << 30).to_bytes(8, "little") + b"{}"
    for name, content in ((FILES[0], b"[" * 200_000), (FILES[1], huge), (FILES[2], huge)):
        folder = save_distilled(tmp_path / name, make_distilled())
        (folder / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match=f"{name} cannot be used"):
            load_distilled(folder)


@pytest.mark.parametrize("kind", ["standardize", "zca"])
def test_statistics_of_other_images_are_named(make_distilled: Make, tmp_path: Path, kind: str) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled(kind))
    save_preprocessing(folder / FILES[2], make_distilled(kind, channels=1).preprocessing)
    with pytest.raises(ConfigurationError, match="preprocessing"):
        load_distilled(folder)


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named(make_distilled: Make, tmp_path: Path, name: str) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    (folder / name).unlink()
    with pytest.raises(ConfigurationError, match=rf"synthetic=.*set: it lacks {name}\."):
        load_distilled(folder)


def test_a_missing_folder_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        load_distilled(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"it lacks dataset\.json, images\.safetensors, prep"):
        load_distilled(tmp_path)


def test_pictures_are_for_looking_at_only(make_distilled: Make, tmp_path: Path) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    for name in ("images.png", "images_raw.png"):
        (folder / name).unlink()
    assert len(load_distilled(folder)) == 12


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("images", torch.nan, "pixels are not finite"),
        ("images", torch.inf, "pixels are not finite"),
        ("learning_rate", float("nan"), "learning rate is nan"),
        ("learning_rate", float("inf"), "learning rate is inf"),
        ("learning_rate", -0.1, "learning rate is -0.1"),
        ("labels", torch.arange(1, 5).repeat_interleave(3), "labels are not 12 whole numbers in 0 … 3"),
        ("labels", torch.arange(4).repeat_interleave(3) - 1, "labels are not 12 whole numbers in 0 … 3"),
        ("labels", torch.zeros(12), "labels are not 12 whole numbers in 0 … 3"),
        ("labels", torch.zeros(12, 5), "soft labels are torch.float32 [12, 5], not float32 [12, 4]"),
        ("labels", torch.zeros(12, 4).long(), "soft labels are torch.int64 [12, 4]"),
        ("labels", torch.full((12, 4), 0.3), "a row has negative entries or does not sum to 1"),
        ("labels", torch.tensor([-0.5, 0.5, 0.5, 0.5]).expand(12, 4), "a row has negative entries"),
        ("labels", torch.full((12, 4), torch.nan), "not probabilities"),
        ("images", torch.zeros(12, 6, 5), "images are [12, 6, 5]"),
        ("labels", torch.zeros(11, dtype=torch.int64), "labels are not 12 whole numbers in 0 … 3"),
    ],
)
def test_values_that_no_network_can_be_trained_on_are_named(
    make_distilled: Make, tmp_path: Path, name: str, value: Any, problem: str
) -> None:
    dataset = make_distilled()
    folder = save_distilled(tmp_path / "set", dataset)
    if name == "images" and isinstance(value, float):
        dataset.images[7, 1, 2, 3] = value
    else:
        setattr(dataset, name, value)
    tensors = dataset._tensors()
    save_file({key: each.contiguous() for key, each in tensors.items()}, folder / FILES[1])
    description = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    description["checksums"][FILES[1]] = dataset.checksum()
    (folder / FILES[0]).write_text(json.dumps(seal(description)), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=re.escape(problem)) as caught:
        load_distilled(folder)
    assert (caught.value.option, caught.value.value) == ("synthetic", folder)
