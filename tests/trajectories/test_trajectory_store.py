"""The trajectory store: what goes in comes out, in flat order, and only whole trajectories are listed."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import FunctionalNetwork, describe_network
from ast_lightning.trajectories import TrajectoryStore

Snapshot = Callable[[int, int], Tensor]
Fill = Callable[[int], None]


def test_snapshots_come_back_bit_for_bit_and_in_flat_order(
    store: TrajectoryStore, network: FunctionalNetwork, snapshot: Snapshot
) -> None:
    theta = snapshot(0, 2)
    pieces = network.unflatten(theta)
    store.write_snapshot(0, 2, dict(reversed(pieces.items())))
    read = store.read_snapshot(0, 2)
    assert torch.equal(read, theta)
    assert read.dtype == torch.float32
    assert store.layout == network.layout


def test_flat_order_is_parameters_order_of_the_module(store: TrajectoryStore, network: FunctionalNetwork) -> None:
    module = network.factory()
    store.write_snapshot(1, 0, dict(module.named_parameters()))
    assert torch.equal(store.read_snapshot(1, 0), parameters_to_vector(module.parameters()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(values=hnp.arrays(np.float32, 8, elements=st.floats(width=32, allow_subnormal=True)))
def test_any_float32_survives(values: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        network = describe_network(lambda: nn.Linear(3, 2))
        store = TrajectoryStore.create(Path(folder) / "s", {"network": network, "epochs": 1})
        flat = torch.from_numpy(values)
        store.write_snapshot(0, 0, {"bias": flat[6:], "weight": flat[:6].view(2, 3)})
        assert store.read_snapshot(0, 0).numpy().tobytes() == values.tobytes()


def test_other_dtypes_are_stored_as_float32(
    store: TrajectoryStore, network: FunctionalNetwork, snapshot: Snapshot
) -> None:
    half = snapshot(0, 0).to(torch.bfloat16)
    store.write_snapshot(0, 0, network.unflatten(half))
    assert torch.equal(store.read_snapshot(0, 0), half.float())


def test_a_stored_snapshot_is_a_copy(store: TrajectoryStore, network: FunctionalNetwork, snapshot: Snapshot) -> None:
    theta = snapshot(0, 0)
    before = theta.clone()
    store.write_snapshot(0, 0, network.unflatten(theta))
    theta.zero_()
    first = store.read_snapshot(0, 0)
    assert torch.equal(first, before)
    first.zero_()
    assert torch.equal(store.read_snapshot(0, 0), before)


@pytest.mark.parametrize(("start", "length"), [(0, 1), (1, 2), (0, 4), (3, 1), (2, 0)])
def test_window_is_its_snapshots(
    store: TrajectoryStore, fill: Fill, snapshot: Snapshot, start: int, length: int
) -> None:
    fill(0)
    fill(1)
    window = store.read_window(1, start, length)
    assert window.shape == (length + 1, snapshot(1, 0).numel())
    for offset in range(length + 1):
        assert torch.equal(window[offset], snapshot(1, start + offset))


def test_window_reads_no_other_file(store: TrajectoryStore, fill: Fill, snapshot: Snapshot) -> None:
    fill(0)
    fill(1)
    store.snapshot_path(1, 0).unlink()
    store.snapshot_path(1, 4).write_bytes(b"rubbish")
    for epoch in range(5):
        store.snapshot_path(0, epoch).unlink()
    window = store.read_window(1, 1, 2)
    assert torch.equal(window, torch.stack([snapshot(1, epoch) for epoch in (1, 2, 3)]))


def test_shapes_are_checked_when_writing(
    store: TrajectoryStore, network: FunctionalNetwork, snapshot: Snapshot
) -> None:
    pieces = network.unflatten(snapshot(0, 0))
    name = store.layout[0][0]
    pieces[name] = pieces[name].flatten()
    with pytest.raises(ValueError, match=name):
        store.write_snapshot(0, 0, pieces)
    del pieces[name]
    with pytest.raises(ValueError, match=name):
        store.write_snapshot(0, 0, pieces)
    assert not store.expert_folder(0).exists()


def test_experts_are_listed_in_order_and_only_when_complete(
    store: TrajectoryStore, fill: Fill, network: FunctionalNetwork, snapshot: Snapshot
) -> None:
    assert store.experts() == []
    for expert in (10, 2, 10_000):
        fill(expert)
    for epoch in range(5):  # all its snapshots, and not finished
        store.write_snapshot(3, epoch, network.unflatten(snapshot(3, epoch)))
    assert store.experts() == [2, 10, 10_000]
    assert [store.is_complete(expert) for expert in (2, 3, 10)] == [True, False, True]
    assert TrajectoryStore.open(store.folder).experts() == [2, 10, 10_000]


def test_finish_refuses_while_snapshots_are_missing(store: TrajectoryStore, fill: Fill, snapshot: Snapshot) -> None:
    fill(0)
    (store.expert_folder(0) / "expert.json").unlink()
    store.snapshot_path(0, 0).unlink()
    store.snapshot_path(0, 3).unlink()
    with pytest.raises(ConfigurationError, match=r"epoch_0000\.safetensors is missing"):
        store.finish(0, {})
    assert not store.is_complete(0)


def test_summary_is_what_finish_was_given(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    summary = {"metrics": {"test/accuracy": 1 / 3}, "history": [{"a": 1.5}, {"a": 2.5}]}
    store.finish(0, summary)
    assert store.summary(0) == summary


def test_drop_snapshots_after(store: TrajectoryStore, fill: Fill, snapshot: Snapshot) -> None:
    fill(0)
    fill(1)
    store.drop_snapshots_after(0, 2)
    assert [store.snapshot_path(0, epoch).exists() for epoch in range(5)] == [True, True, True, False, False]
    assert torch.equal(store.read_window(0, 0, 2)[2], snapshot(0, 2))
    assert all(store.snapshot_path(1, epoch).exists() for epoch in range(5))
    store.drop_snapshots_after(7, 0)  # an expert that has not begun
    assert not store.expert_folder(7).exists()


def test_an_expert_whose_snapshots_were_dropped_is_not_complete(store: TrajectoryStore, fill: Fill) -> None:
    """Training a finished expert anew drops its snapshots: killed then, it must not pass for a whole trajectory."""
    fill(0)
    store.drop_snapshots_after(0, 2)
    assert store.experts() == []


def test_no_temporary_files_remain(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    fill(0)
    files = sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file())
    snapshots = [f"expert_0000/epoch_{epoch:04d}.safetensors" for epoch in range(5)]
    assert files == [*snapshots, "expert_0000/expert.json", "store.json"]


def test_failed_write_keeps_the_old_snapshot(
    store: TrajectoryStore,
    fill: Fill,
    network: FunctionalNetwork,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(0)

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match=r"no space.*epoch_0001"):
        store.write_snapshot(0, 1, network.unflatten(snapshot(5, 5)))
    with pytest.raises(OSError, match=r"no space.*epoch_0000"):
        store.write_snapshot(1, 0, network.unflatten(snapshot(5, 5)))
    assert torch.equal(store.read_snapshot(0, 1), snapshot(0, 1))
    assert not list(store.folder.rglob("*partial*"))
    assert not store.snapshot_path(1, 0).exists()


def test_a_folder_of_the_users_is_no_expert(store: TrajectoryStore, fill: Fill) -> None:
    fill(1)
    spare = store.folder / "expert_0001_old"
    spare.mkdir()
    (spare / "expert.json").write_text("{}")
    assert store.experts() == [1]
