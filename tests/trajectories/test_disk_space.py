"""Disks that are full or cannot be written: said before a run where possible, and clearly during one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import FunctionalNetwork
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.store import CHECKPOINT

Fill = Callable[[int], None]
Snapshot = Callable[[int, int], torch.Tensor]


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """A real file system of its own, where the tests may mount one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_what_is_still_to_be_written(store: TrajectoryStore, fill: Fill) -> None:
    one = store.format.num_bytes
    assert store.bytes_to_write([0, 1]) == 10 * one
    fill(0)
    assert store.bytes_to_write([0, 1]) == 5 * one
    assert store.bytes_to_write([0, 1], anew=True) == 10 * one
    store.snapshot_path(0, 2).unlink()
    assert store.bytes_to_write([0, 1]) == 6 * one
    written = store.snapshot_path(0, 0).stat().st_size
    assert written <= one < written + 160 * (len(store.layout) + 2)


def test_the_size_follows_from_the_settings(tmp_path: Path, metadata: dict[str, Any]) -> None:
    metadata["expert"] |= {"every_n_epochs": 3, "snapshot_dtype": "float16"}
    store = TrajectoryStore.create(tmp_path / "thin", metadata)
    assert store.bytes_to_write(range(7)) == 7 * 3 * store.format.num_bytes  # epochs 0, 3, 4


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_begins(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = store.bytes_to_write(range(3)) + CHECKPOINT * store.format.num_parameters
    for free in (needed - 1, needed):
        usage = shutil._ntuple_diskusage(10**9, 0, free)  # type: ignore[attr-defined]
        monkeypatch.setattr("shutil.disk_usage", lambda folder, usage=usage: usage)
        if free < needed:
            with pytest.raises(
                ConfigurationError, match=r"output_dir=.*KiB are still to be .* has .*KiB free"
            ) as caught:
                store.check_room(range(3))
            assert "expert.snapshot_dtype=bfloat16" in caught.value.remedy
        else:
            store.check_room(range(3))
    assert sorted(path.name for path in store.folder.iterdir()) == ["store.json"]


def test_a_folder_that_cannot_be_written_is_found_before_a_run(
    store: TrajectoryStore, metadata: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system calls refuse, as they do for users other than root."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(PermissionError):
        store.check_room([0])
    with pytest.raises(PermissionError, match=r"new/store\.json"):
        TrajectoryStore.create(tmp_path / "new", metadata)
    assert TrajectoryStore.create(store.folder, metadata).id == store.id  # what is there can be read


def test_a_disk_that_fills_up_leaves_all_that_was_written(
    tmp_path: Path, metadata: dict[str, Any], network: FunctionalNetwork, snapshot: Snapshot
) -> None:
    with small_disk(tmp_path / "disk", "size=64k"):
        store = TrajectoryStore.create(tmp_path / "disk" / "store", metadata)
        written = []

        def fill_up() -> None:
            for number in range(250):
                expert, epoch = divmod(number, 5)
                store.write_snapshot(expert, epoch, network.unflatten(snapshot(expert, epoch)))
                written.append((expert, epoch))

        with pytest.raises(OSError, match="No space left on device") as caught:
            fill_up()
        assert len(written) > 3
        assert f"epoch_{len(written) % 5:04d}" in str(caught.value)
        for expert, epoch in written:
            assert torch.equal(store.read_snapshot(expert, epoch), snapshot(expert, epoch))
        assert not list(store.folder.rglob("*partial*"))
        with pytest.raises(ConfigurationError, match=r"its disk has .* free"):
            store.check_room(range(50))


def test_a_read_only_disk(tmp_path: Path, metadata: dict[str, Any], network: FunctionalNetwork) -> None:
    with small_disk(tmp_path / "disk", "size=256k"):
        store = TrajectoryStore.create(tmp_path / "disk" / "store", metadata)
        theta = torch.ones(network.num_parameters)
        for epoch in range(5):
            store.write_snapshot(0, epoch, network.unflatten(theta))
        store.finish(0, {})
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        again = TrajectoryStore.create(store.folder, metadata)
        assert torch.equal(again.read_window(0, 0, 4)[4], theta)
        for attempt in (
            lambda: again.check_room([1]),
            lambda: again.write_snapshot(1, 0, network.unflatten(theta)),
            lambda: TrajectoryStore.create(tmp_path / "disk" / "new", metadata),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                attempt()


def test_a_full_disk_while_finishing(store: TrajectoryStore, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(0)
    replace = os.replace

    def refuse(source: str, target: Path) -> None:
        if Path(target).name == "expert.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match=r"No space left.*expert\.json"):
        store.finish(0, {})
    monkeypatch.undo()
    assert store.experts() == []
    assert len(store.check_snapshots(0, 4)) == 5
    store.finish(0, {})
    assert store.experts() == [0]
