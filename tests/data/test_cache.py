"""The cache of decoded images: the same images with and without it, kills, two processes, damage, a full disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ast_lightning.data import ImageDataModule, ImageView, decoding
from ast_lightning.data.cache import cached_arrays, entry_folder, write_array
from ast_lightning.data.folder import class_folders
from ast_lightning.data.selection import representative_images
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation.baselines import held_out

COUNTS = {"train": 40, "test": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (20 + index % 3, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "UNCACHED_BYTES", 0)


def module(folder: Path, cache: Path | None, **settings: Any) -> ImageDataModule:
    return ImageDataModule(
        "image_folder", **{"root": str(folder), "image_size": 12, "cache": cache and str(cache), **settings}
    )


def files(cache: Path) -> dict[str, int]:
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*.npy")}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
        {"preprocessing": "none", "per_class": 17},
        {"validation_fraction": 0.2, "per_class": 20, "seed": 3},
        {"resize": "squash", "channels": 1, "classes": ["dog", "cat"]},
    ],
)
def test_cached_views_equal_images_in_memory_in_every_bit(folder: Path, tmp_path: Path, settings: dict) -> None:
    whole = module(folder, None, **settings)
    for _ in range(2):  # the second time from the cache, with recorded statistics
        lazy = module(folder, tmp_path, preload=0, **settings)
        assert isinstance(lazy.train.images, ImageView)
        assert lazy.describe() == whole.describe()
        for ours, theirs in ((lazy.train, whole.train), (lazy.test, whole.test), (lazy.validation, whole.validation)):
            if ours is None or theirs is None:
                assert ours is theirs
                continue
            order = torch.randperm(len(ours), generator=torch.Generator().manual_seed(0))
            assert isinstance(theirs.images, torch.Tensor)
            assert torch.equal(ours.images[order], theirs.images[order])
            assert torch.equal(ours.images[0], theirs.images[0])
            assert torch.equal(ours.images[3:9], theirs.images[3:9])
            assert torch.equal(ours.images[ours.labels == 1], theirs.images[theirs.labels == 1])
            assert torch.equal(torch.cat(list(ours.images.split(7))), theirs.images)
            assert ours.images.shape == theirs.images.shape
            assert ours.images.dtype == theirs.images.dtype
            assert torch.equal(ours.labels, theirs.labels)
    batches = zip(lazy.train_dataloader(), whole.train_dataloader(), strict=True)
    assert all(torch.equal(ours.images, theirs.images) for ours, theirs in batches)


def test_a_cache_serves_small_data_in_memory_too(folder: Path, tmp_path: Path) -> None:
    cached, whole = module(folder, tmp_path), module(folder, None)
    assert isinstance(cached.train.images, torch.Tensor)
    assert torch.equal(cached.train.images, whole.train.images[:])
    before = files(tmp_path)
    assert len(before) == 4
    module(folder, tmp_path, preload=0, preprocessing="none", per_class=3).setup()
    assert files(tmp_path) == before


def test_small_files_are_not_cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "UNCACHED_BYTES", 2**24)
    module(folder, tmp_path).setup()
    assert not any(tmp_path.iterdir())


def test_another_file_or_setting_is_another_entry(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    cache = tmp_path / "cache"
    module(own, cache).setup()
    entries = [set(cache.iterdir())]
    for settings in ({"image_size": 10}, {"resize": "squash"}, {"channels": 1}, {"classes": ["dog", "cat"]}):
        module(own, cache, **settings).setup()
        entries.append(set(cache.iterdir()))
    Image.new("RGB", (20, 20)).save(own / "train" / "cat" / "3.png")
    changed = module(own, cache)
    entries.append(changed.test is not None and set(cache.iterdir()))
    assert [len(each) for each in entries] == [1, 2, 3, 4, 5, 6]
    assert changed.fingerprint != module(folder, None).fingerprint


def test_selection_and_baselines_take_views(folder: Path, tmp_path: Path) -> None:
    lazy, whole = module(folder, tmp_path, preload=0), module(folder, None)
    weight = torch.randn(3 * 12 * 12, 2, generator=torch.Generator().manual_seed(0))
    chosen = [
        representative_images(data.train, data.class_names, 4, 0, lambda images: images.flatten(1) @ weight)[0]
        for data in (lazy, whole)
    ]
    assert torch.equal(*chosen)
    others = [held_out(data.train, chosen[0], 0) for data in (lazy, whole)]
    assert torch.equal(others[0].images[:], others[1].images[:])


def test_zca_of_views_is_the_whitening_of_all_images_and_is_kept(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"preprocessing": "zca", "image_size": 6}
    lazy, whole = module(folder, tmp_path, preload=0, **settings), module(folder, None, **settings)
    assert lazy.preprocessing.difference(whole.preprocessing) is None
    torch.testing.assert_close(lazy.train.images[:], whole.train.images, rtol=1e-3, atol=1e-4)
    given = module(folder, tmp_path, preload=0, **settings)
    given.use_preprocessing(whole.preprocessing)  # the same statistics: the same bits
    assert torch.equal(given.test.images[:], whole.test.images[:])
    before = files(tmp_path)
    again = module(folder, tmp_path, preload=0, **settings)
    assert torch.equal(again.train.images[:], lazy.train.images[:])
    assert files(tmp_path) == before
    with pytest.raises(ConfigurationError, match=r"data\.preprocessing=zca: images of 108 values.*zca_max_features"):
        module(folder, tmp_path, preload=0, zca_max_features=100, **settings).setup()


def test_a_damaged_entry_is_written_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fingerprint = module(folder, tmp_path).fingerprint
    (path,) = tmp_path.glob("*/arrays/train.npy")
    for change in (lambda content: content[:-5], lambda content: content[:200] + b"\0\1" + content[202:]):
        path.write_bytes(change(path.read_bytes()))
        assert module(folder, tmp_path).fingerprint == fingerprint
        assert "is damaged" in capsys.readouterr().out
    shutil.rmtree(path.parent)
    assert module(folder, tmp_path).fingerprint == fingerprint


def _set_up(folder: Path, cache: Path) -> None:
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
    decoding.UNCACHED_BYTES = 0  # type: ignore[misc]
    module(folder, cache).setup()


def _started(folder: Path, cache: Path) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_set_up, args=(folder, cache))
    process.start()
    return process


def _children(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_killed_process_leaves_a_whole_entry_or_none_and_no_processes(folder: Path, tmp_path: Path) -> None:
    expected = module(folder, None).fingerprint
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
        process = _started(folder, tmp_path)
        time.sleep(delay)
        assert process.pid is not None
        workers = _children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for folder_of_entry in tmp_path.glob("*/arrays"):
            assert (folder_of_entry / "checksums.json").exists()
        until = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
            time.sleep(0.01)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert module(folder, tmp_path).fingerprint == expected
    assert not list(tmp_path.glob("*/*.partial"))


def test_two_processes_decode_once(folder: Path, tmp_path: Path) -> None:
    both = [_started(folder, tmp_path) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    before = files(tmp_path)
    assert module(folder, tmp_path).fingerprint == module(folder, None).fingerprint
    assert files(tmp_path) == before
    assert not list(tmp_path.glob("*/*.partial"))


def test_a_disk_that_is_too_full_is_found_before_decoding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 0, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ConfigurationError, match=rf"data\.cache={tmp_path}: .*KiB.* the disk has 1000 B") as caught:
        module(folder, tmp_path).setup()
    assert "data.cache=null" in caught.value.remedy
    assert not files(tmp_path)


def test_a_disk_that_fills_up_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def parts() -> Iterator[np.ndarray]:
        yield np.zeros((2, 3), np.uint8)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    entry = entry_folder(tmp_path, "full", ["full"])
    with pytest.raises(ConfigurationError, match=rf"data\.cache={tmp_path}: No space left"):
        cached_arrays(entry, 12, lambda hidden: write_array(hidden / "a.npy", (4, 3), np.uint8, parts()))
    assert [path.name for path in entry.iterdir()] == [".locks"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=rf"data\.cache={tmp_path}/file: it cannot be written to .*another"):
        cached_arrays(entry_folder(tmp_path / "file", "any", []), 1, lambda hidden: None)


def test_unreadable_images_are_named_and_nothing_is_cached(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    for name in ("train/cat/1.png", "train/dog/39.png", "test/dog/0.png"):
        (own / name).write_bytes(b"no image")
    with pytest.raises(ConfigurationError, match=r"train/cat/1\.png.*and 2 more"):
        module(own, tmp_path / "cache").setup()
    assert capsys.readouterr().out.count("cannot be read: ") == 3
    assert not files(tmp_path / "cache")


def test_files_are_listed_in_the_order_of_their_labels(folder: Path) -> None:
    source = class_folders(folder, 8, ["dog", "cat"])
    assert Counter(label for _, label in source.splits["train"]) == {0: COUNTS["train"], 1: COUNTS["train"]}
    assert all(("/dog/" in path) == (label == 0) for path, label in source.splits["test"])
