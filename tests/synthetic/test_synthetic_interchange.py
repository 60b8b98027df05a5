"""Synthetic sets in the published form: written, read back, and refused where they do not fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ast_lightning.data import save_preprocessing
from ast_lightning.errors import ConfigurationError
from ast_lightning.synthetic import DistilledDataset, load_distilled, save_distilled
from ast_lightning.synthetic.__main__ import main
from ast_lightning.synthetic.interchange import Likeness, export_published, import_published, read_likeness
from ast_lightning.trajectories import TrajectoryStore

Make = Callable[..., DistilledDataset]
DATA = {"name": "pets", "fingerprint": "f", "channels": 3, "image_size": [6, 5], "counts": {"train": 90}}


@pytest.fixture
def original(make_distilled: Make) -> DistilledDataset:
    dataset = make_distilled("zca")
    dataset.metadata["data"] = DATA
    dataset.learning_rate = float(torch.tensor(0.0123))
    return dataset


@pytest.fixture
def like(original: DistilledDataset, tmp_path: Path) -> Likeness:
    return read_likeness(save_distilled(tmp_path / "original", original))


def test_round_trip_is_exact(original: DistilledDataset, like: Likeness, tmp_path: Path) -> None:
    files = export_published(original, tmp_path / "files")
    assert [path.name for path in files] == ["images_7.pt", "labels_7.pt", "lr_7.pt"]
    read = import_published(tmp_path / "files", like)
    assert torch.equal(read.images, original.images)
    assert torch.equal(read.labels, original.labels)
    assert read.learning_rate == original.learning_rate
    assert read.class_names == original.class_names
    assert read.augmentation == original.augmentation
    assert read.checksum() == original.checksum()
    assert read.preprocessing.fingerprint() == original.preprocessing.fingerprint()
    saved = load_distilled(save_distilled(tmp_path / "again", read))
    assert saved.metadata["imported"]["like"] == {"distilled": original.checksum()}
    assert set(saved.metadata["imported"]["files"]) == {path.name for path in files}
    assert saved.metadata["data"] == DATA
    assert saved.metadata["versions"]["torch"] == torch.__version__


def test_canvases_are_read_if_their_size_is_given(make_distilled: Make, tmp_path: Path) -> None:
    canvases = torch.randn(12, 3, 12, 10, generator=torch.Generator().manual_seed(6))
    dataset = replace(make_distilled(), images=canvases, crop_size=(6, 5))
    export_published(dataset, tmp_path / "files")
    for like in (dataset, make_distilled()):  # the size of the data, from canvases or images
        found = read_likeness(save_distilled(tmp_path / "like", like))
        read = import_published(tmp_path / "files", found, 0.1, canvas=2)
        assert torch.equal(read.images, canvases)
        assert read.crop_size == (6, 5)
        with pytest.raises(ConfigurationError, match=r"are \[12, 3, 12, 10\].*\[N, 3, 6, 5\].*--canvas"):
            import_published(tmp_path / "files", found, 0.1)
        with pytest.raises(ConfigurationError, match=r"those of the data are \[N, 3, 18, 15\]"):
            import_published(tmp_path / "files", found, 0.1, canvas=3)
        with pytest.raises(ConfigurationError, match=r"canvas=0: it must be a whole number of at least 1"):
            import_published(tmp_path / "files", found, 0.1, canvas=0)


def test_canvases_are_not_whitened(like: Likeness, original: DistilledDataset, tmp_path: Path) -> None:
    export_published(original, tmp_path / "files")
    with pytest.raises(ConfigurationError, match=r"canvas=2: ZCA whitening depends on the position"):
        import_published(tmp_path / "files", like, canvas=2)


@pytest.fixture
def soft(original: DistilledDataset) -> DistilledDataset:
    """Soft labels whose most probable class is that of the image."""
    logits = 3 * torch.eye(4)[original.labels] + torch.linspace(0, 1, 48).view(12, 4)
    return replace(original, labels=logits.softmax(1))


def test_soft_labels_are_written_as_probabilities(soft: DistilledDataset, like: Likeness, tmp_path: Path) -> None:
    export_published(soft, tmp_path, "best")
    written = torch.load(tmp_path / "labels_best.pt", weights_only=True)
    assert written.dtype == torch.float32
    assert torch.equal(written, soft.labels)
    read = import_published(tmp_path, like)
    assert read.checksum() == soft.checksum()
    assert "labels" not in read.metadata["imported"]


def test_logits_become_probabilities_with_a_note(
    soft: DistilledDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_published(soft, tmp_path / "files", "best")
    torch.save(nn.Parameter(soft.labels.log() + 5), tmp_path / "files" / "labels_best.pt")
    save_distilled(tmp_path / "like", soft)
    arguments = [str(tmp_path / "files"), str(tmp_path / "out"), "--like", str(tmp_path / "like")]
    assert main(["import", *arguments]) == 0
    note, folder = capsys.readouterr().out.splitlines()
    assert note == "note: the soft labels are the softmax of the logits in labels_best.pt"
    read = load_distilled(folder)
    torch.testing.assert_close(read.labels, soft.labels, rtol=1e-5, atol=1e-7)
    assert read.metadata["imported"]["labels"] == "softmax of the logits in labels_best.pt"


def test_half_precision_probabilities_sum_to_one_again(soft: DistilledDataset, like: Likeness, tmp_path: Path) -> None:
    export_published(soft, tmp_path, "best")
    torch.save(soft.labels.half(), tmp_path / "labels_best.pt")
    read = import_published(tmp_path, like)
    torch.testing.assert_close(read.labels, soft.labels, rtol=2e-3, atol=1e-5)
    assert float((read.labels.sum(1) - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("balanced", [True, False])
def test_images_with_soft_labels_are_sorted_by_class_if_that_is_known(
    soft: DistilledDataset, like: Likeness, tmp_path: Path, balanced: bool
) -> None:
    """An image whose most probable class is another one makes the counts unequal: the order is kept."""
    if not balanced:
        soft.labels[0] = soft.labels[11]
    order = torch.arange(11, -1, -1)
    export_published(replace(soft, images=soft.images[order], labels=soft.labels[order]), tmp_path, "best")
    read = import_published(tmp_path, like)
    expected = torch.arange(12).view(4, 3).flip(1).flatten() if balanced else order
    assert torch.equal(read.images, soft.images[expected])
    assert torch.equal(read.labels, soft.labels[expected])


def test_the_files_hold_what_the_published_codes_expect(original: DistilledDataset, tmp_path: Path) -> None:
    export_published(original, tmp_path, "best")
    images, labels, rate = (
        torch.load(tmp_path / f"{kind}_best.pt", weights_only=True) for kind in ("images", "labels", "lr")
    )
    assert (images.shape, images.dtype) == ((12, 3, 6, 5), torch.float32)
    assert (labels.shape, labels.dtype) == ((12,), torch.int64)
    assert (rate.shape, float(rate)) == ((), original.learning_rate)
    with pytest.raises(ConfigurationError, match=r"images_best\.pt: it already exists"):
        export_published(original, tmp_path, "best")


@pytest.mark.parametrize("form", ["parameter", "half", "float rate", "int32 labels", "shuffled", "given rate"])
def test_published_variants_are_read(original: DistilledDataset, like: Likeness, tmp_path: Path, form: str) -> None:
    images: Any = original.images.clone()
    labels, rate, given = original.labels.clone(), torch.tensor(0.0123), None
    content: Any = rate
    order = torch.arange(12)
    if form == "parameter":
        images = nn.Parameter(images)
    elif form == "half":
        images = images.half()
    elif form == "float rate":
        content = float(rate)
    elif form == "int32 labels":
        labels = labels.int()
    elif form == "shuffled":
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        images, labels = images[order], labels[order]
    torch.save(images, tmp_path / "images_9.pt")
    torch.save(labels, tmp_path / "labels_9.pt")
    if form == "given rate":
        given = 0.5
    else:
        torch.save(content, tmp_path / "lr_9.pt")
    read = import_published(tmp_path / "images_9.pt", like, given)
    assert read.learning_rate == (0.5 if given else float(rate))
    assert torch.equal(read.labels, original.labels)
    expected = original.images.half().float() if form == "half" else original.images
    if form == "shuffled":  # the order within a class is that of the file
        back = torch.cat([order[labels == each] for each in range(4)])
        expected = original.images[back]
    assert torch.equal(read.images, expected)
    assert not read.images.requires_grad


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("images", torch.zeros(12, 3, 5, 5), r"images are \[12, 3, 5, 5\], and those of the data are \[N, 3, 6, 5\]"),
        ("images", torch.zeros(12, 90), r"images are \[12, 90\]"),
        ("images", torch.full((12, 3, 6, 5), float("nan")), "not finite"),
        ("images", torch.zeros(12, 3, 6, 5, dtype=torch.uint8), "images are torch.uint8"),
        ("images", [torch.zeros(3)], "holds a list and not a dense tensor"),
        ("images", torch.zeros(8, 3, 6, 5), "each of 8 images"),
        ("images", torch.zeros(0, 3, 6, 5), r"images are \[0, 3, 6, 5\]"),
        ("labels", torch.zeros(12, 5), r"labels are \[12, 5\], but finite numbers \[12, 4\] are required"),
        ("labels", torch.full((12, 4), float("nan")), r"finite numbers \[12, 4\]"),
        ("labels", torch.zeros(12, 4).long(), "not one whole number for each of 12 images.*soft ones"),
        ("labels", torch.zeros(12).long(), "not the same number of each of 4 classes"),
        ("labels", torch.arange(12), "not the same number of each of 4 classes"),
        ("labels", torch.arange(12) % 4 - 1, "not the same number of each of 4 classes"),
        ("labels", torch.arange(12) % 4 + 0.5, "not one whole number"),
        ("lr", torch.zeros(2), "not hold one number"),
        ("lr", "0.1", "lr_best.*holds a str"),
        ("lr", torch.tensor(-0.1), r"learning-rate=-0\.1.*must be positive"),
        ("lr", float("nan"), "must be positive"),
        ("lr", 1e300, "finite in float32"),
        ("lr", torch.tensor(1j), "holds torch.complex64"),
        ("images", torch.zeros(12, 3, 6, 5, device="meta"), "on the device meta"),
        ("labels", torch.zeros(12, 4).to(torch.float8_e5m2), "holds torch.float8_e5m2"),
    ],
)
def test_what_does_not_fit_is_named(
    original: DistilledDataset, like: Likeness, tmp_path: Path, kind: str, content: Any, words: str
) -> None:
    export_published(original, tmp_path / "files", "best")
    torch.save(content, tmp_path / "files" / f"{kind}_best.pt")
    with pytest.raises(ConfigurationError, match=words) as caught:
        import_published(tmp_path / "files", like)
    assert caught.value.remedy


@pytest.mark.parametrize("kind", ["images", "labels", "lr"])
def test_code_is_not_run_and_missing_files_are_named(
    original: DistilledDataset, like: Likeness, tmp_path: Path, kind: str
) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sentinel"),)

    export_published(original, tmp_path / "files", "best")
    file = tmp_path / "files" / f"{kind}_best.pt"
    torch.save(Hostile(), file)
    with pytest.raises(ConfigurationError, match=r"posix\.mkdir, which was not run"):
        import_published(tmp_path / "files" / "images_best.pt", like)
    assert not (tmp_path / "sentinel").exists()
    file.unlink()
    with pytest.raises(ConfigurationError, match=f"{kind}_best"):
        import_published(tmp_path / "files" / "images_best.pt", like)


def test_a_folder_must_leave_no_choice(original: DistilledDataset, like: Likeness, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not none"):
        import_published(tmp_path, like)
    for name in ("best", "500"):
        export_published(original, tmp_path, name)
    with pytest.raises(ConfigurationError, match=r"not images_500\.pt, images_best\.pt"):
        import_published(tmp_path, like)
    with pytest.raises(ConfigurationError, match=r"expected one images_.*not labels_best\.pt"):
        import_published(tmp_path / "labels_best.pt", like)


def test_a_trajectory_store_gives_the_likeness(original: DistilledDataset, tmp_path: Path) -> None:
    data = {**DATA, "class_names": list(original.class_names), "augmentation": ["color", "flip"]}
    network = {"target": "", "arguments": {}, "parameters": [["w", [2]]]}
    metadata = {"network": network, "data": data, "expert": {}, "epochs": 1, "seed": 0}
    store = TrajectoryStore.create(tmp_path / "store", metadata)
    with pytest.raises(ConfigurationError, match=r"preprocessing\.safetensors is missing"):
        read_likeness(store.folder)
    save_preprocessing(store.folder / "preprocessing.safetensors", original.preprocessing)
    like = read_likeness(store.folder)
    assert like.class_names == original.class_names
    assert like.augmentation == "color_flip"
    assert like.preprocessing.fingerprint() == original.preprocessing.fingerprint()
    assert list(like.origin) == ["trajectories"]
    with pytest.raises(ConfigurationError, match="neither a trajectory store nor a distilled dataset"):
        read_likeness(tmp_path)


def test_another_stores_statistics_give_no_likeness(
    original: DistilledDataset, make_distilled: Make, tmp_path: Path
) -> None:
    data = {**DATA, "class_names": list(original.class_names)}
    network = {"target": "", "arguments": {}, "parameters": [["w", [2]]]}
    metadata = {"network": network, "data": data, "expert": {}, "epochs": 1, "seed": 0}
    metadata["preprocessing_fingerprint"] = original.preprocessing.fingerprint()
    store = TrajectoryStore.create(tmp_path / "store", metadata)
    path = store.folder / "preprocessing.safetensors"
    save_preprocessing(path, original.preprocessing)
    assert read_likeness(store.folder).preprocessing.fingerprint() == original.preprocessing.fingerprint()
    save_preprocessing(path, make_distilled("standardize").preprocessing)
    with pytest.raises(ConfigurationError, match=r"^like=.*is not the one that store\.json names"):
        read_likeness(store.folder)
    path.unlink()
    with pytest.raises(ConfigurationError, match=r"^like=.*preprocessing\.safetensors is missing"):
        read_likeness(store.folder)
    (store.folder / "store.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"^like=.*store\.json cannot be used"):
        read_likeness(store.folder)


def test_an_export_that_fails_leaves_nothing_and_can_be_said_again(
    original: DistilledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = torch.save, []

    def full(content: Any, stream: Any) -> None:
        saved.append(content)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        save(content, stream)

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        export_published(original, tmp_path / "files", "best")
    assert list((tmp_path / "files").iterdir()) == []
    assert len(export_published(original, tmp_path / "files", "best")) == 3


def test_a_name_with_a_slash_is_refused(original: DistilledDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"name=\.\./best: it becomes a part of file names"):
        export_published(original, tmp_path / "files", "../best")
    assert not (tmp_path / "files").exists()
