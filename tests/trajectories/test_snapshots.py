"""Types of snapshots, the statistics of batch normalisation, thinned trajectories, and files in the wrong place."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ConvNet, FunctionalNetwork, build_network, describe_network
from ast_lightning.storage.checksums import seal
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.trajectories import TrajectoryStore

Metadata = dict[str, Any]


def statistics(store: TrajectoryStore, epoch: int) -> dict[str, Tensor]:
    """What the file of expert 0 after an epoch holds beside parameters."""
    parameters = dict(store.layout)
    return {n: t for n, t in load_file(store.snapshot_path(0, epoch)).items() if n not in parameters}


Snapshot = Callable[[int, int], Tensor]
Fill = Callable[[int], None]
BATCH = functools.partial(ConvNet, 1, 3, (4, 4), width=2, depth=1, normalization="batch")


@pytest.fixture
def make(tmp_path: Path, metadata: Metadata) -> Callable[..., TrajectoryStore]:
    """A store with other settings: ``make("name", snapshot_dtype="float16")``."""

    def create(name: str = "other", network: Any = None, **expert: Any) -> TrajectoryStore:
        changed = copy.deepcopy(metadata)
        changed["expert"] |= expert
        if network is not None:
            changed["network"] = describe_network(network)
        return TrajectoryStore.create(tmp_path / name, changed)

    return create


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_the_bytes_and_the_nearest_values(
    make: Any, store: TrajectoryStore, network: FunctionalNetwork, snapshot: Snapshot, name: str
) -> None:
    halved, theta = make(snapshot_dtype=name), snapshot(0, 0)
    for each in (halved, store):
        each.write_snapshot(0, 0, network.unflatten(theta))
    tensors = load_file(halved.snapshot_path(0, 0))
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{name}"}
    read = halved.read_snapshot(0, 0)
    assert read.dtype == torch.float32
    assert torch.equal(read, theta.to(getattr(torch, name)).float())
    assert not torch.equal(read, theta)
    assert store.format.num_bytes - halved.format.num_bytes == 2 * len(theta)
    assert torch.equal(halved.read_window(0, 0, 0), read[None])


def test_what_float16_cannot_hold_is_refused(make: Any, network: FunctionalNetwork, snapshot: Snapshot) -> None:
    half, brain = make("half", snapshot_dtype="float16"), make("brain", snapshot_dtype="bfloat16")
    theta = snapshot(0, 0)
    theta[7] = -65504.0
    half.write_snapshot(0, 0, network.unflatten(theta))
    assert float(half.read_snapshot(0, 0)[7]) == -65504.0
    theta[7] = -70000.0
    with pytest.raises(ConfigurationError, match=r"expert\.snapshot_dtype=float16: .*reaches 70000 after epoch 1.*bfl"):
        half.write_snapshot(0, 1, network.unflatten(theta))
    assert not half.snapshot_path(0, 1).exists()
    brain.write_snapshot(0, 1, network.unflatten(theta))
    assert float(brain.read_snapshot(0, 1)[7]) == pytest.approx(-70000, rel=4e-3)
    theta[7] = 3.4e38
    with pytest.raises(ConfigurationError, match=r"snapshot_dtype=bfloat16: .*lower expert\.lr"):
        brain.write_snapshot(0, 2, network.unflatten(theta))


def test_a_diverged_expert_is_stored_as_it_is(make: Any, network: FunctionalNetwork, snapshot: Snapshot) -> None:
    half, theta = make(snapshot_dtype="float16"), snapshot(0, 0)
    theta[3], theta[4] = float("inf"), float("nan")
    half.write_snapshot(0, 0, network.unflatten(theta))
    assert half.read_snapshot(0, 0)[3:5].isfinite().tolist() == [False, False]


def test_statistics_of_batch_normalisation_are_kept_in_their_types(make: Any) -> None:
    store = make(network=BATCH, snapshot_dtype="float16")
    module = build_network(BATCH, 0)
    module(torch.randn(5, 1, 4, 4))
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    store.write_snapshot(0, 1, tensors)
    kept = statistics(store, 1)
    wanted = {name: value for name, value in module.state_dict().items() if name not in dict(module.named_parameters())}
    assert len(wanted) == 3
    assert {str(value.dtype) for value in wanted.values()} == {"torch.float32", "torch.int64"}
    assert sorted(kept) == sorted(wanted)
    for name, value in wanted.items():
        assert kept[name].dtype == value.dtype
        assert torch.equal(kept[name], value)
    assert len(store.read_snapshot(0, 1)) == sum(each.numel() for each in module.parameters())


def test_statistics_may_be_left_out_altogether_but_not_in_part(make: Any) -> None:
    """Published trajectories have none."""
    store, module = make(network=BATCH), build_network(BATCH, 0)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    store.write_snapshot(0, 0, parameters)
    assert statistics(store, 0) == {}
    assert len(store.read_snapshot(0, 0)) == store.format.num_parameters
    name = next(iter(buffers))
    with pytest.raises(ValueError, match="running_var has shape None"):
        store.write_snapshot(0, 1, {**parameters, name: buffers[name]})
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\)"):
        store.write_snapshot(0, 1, {**parameters, **buffers, name: torch.zeros(3)})
    assert not store.snapshot_path(0, 1).exists()


def test_a_network_without_buffers_describes_none() -> None:
    assert "buffers" not in describe_network(lambda: nn.Linear(2, 2))
    described = describe_network(lambda: nn.BatchNorm1d(2))["buffers"]
    assert described == [["running_mean", [2]], ["running_var", [2]], ["num_batches_tracked", []]]


def test_thinned_trajectories(make: Any, network: FunctionalNetwork, snapshot: Snapshot) -> None:
    store = make(every_n_epochs=2, max_epoch=3)
    assert store.schedule.stored() == [0, 2, 4]
    for epoch in (1, 3, 5):
        with pytest.raises(ValueError, match=f"epoch {epoch} is not stored"):
            store.write_snapshot(0, epoch, network.unflatten(snapshot(0, epoch)))
    store.write_snapshot(0, 0, network.unflatten(snapshot(0, 0)))
    store.write_snapshot(0, 4, network.unflatten(snapshot(0, 4)))
    with pytest.raises(ConfigurationError, match=r"epoch_0002\.safetensors is missing"):
        store.finish(0, {})
    store.write_snapshot(0, 2, network.unflatten(snapshot(0, 2)))
    store.finish(0, {"a": 1})
    window = store.read_window(0, 0, 4)
    assert torch.equal(window, torch.stack([snapshot(0, epoch) for epoch in (0, 2, 4)]))
    with pytest.raises(ConfigurationError, match=r"epoch_0001\.safetensors is missing"):
        store.read_snapshot(0, 1)
    assert store.experts() == [0]


def test_settings_of_the_snapshots_tell_stores_apart(make: Any) -> None:
    assert len({make(name, **each).id for name, each in enumerate_settings()}) == 4


def enumerate_settings() -> list[tuple[str, dict[str, Any]]]:
    return [("a", {}), ("b", {"snapshot_dtype": "float16"}), ("c", {"every_n_epochs": 2}), ("d", {"max_epoch": 3})]


def test_the_checksum_and_what_a_file_is_stand_in_it(store: TrajectoryStore, fill: Fill) -> None:
    fill(3)
    with safe_open(store.snapshot_path(3, 2), "pt") as file:
        metadata = file.metadata()
    recorded = read_json(store.expert_folder(3) / "expert.json")["snapshots"]
    assert metadata == {"expert": "3", "epoch": "2", "store": store.id, "checksum": recorded["2"]}
    assert sorted(recorded) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(("place", "words"), [((0, 3), "epoch 1"), ((1, 1), "expert 0 after epoch 1")])
def test_a_file_in_the_place_of_another_is_named(
    store: TrajectoryStore, fill: Fill, place: tuple[int, int], words: str
) -> None:
    fill(0)
    fill(1)
    shutil.copyfile(store.snapshot_path(0, 1), store.snapshot_path(*place))
    with pytest.raises(ConfigurationError, match=rf"epoch_000{place[1]}\.safetensors.* it belongs to.*{words}"):
        store.read_snapshot(*place)


def test_a_file_of_another_store_is_named(store: TrajectoryStore, fill: Fill, make: Any) -> None:
    fill(0)
    other = make(lr=0.5)
    for epoch in range(5):
        other.write_snapshot(
            0, epoch, FunctionalNetwork(lambda: build_network(shape_of(store), 0)).unflatten(theta(store))
        )
    shutil.copyfile(other.snapshot_path(0, 2), store.snapshot_path(0, 2))
    with pytest.raises(ConfigurationError, match=rf"it belongs to .* of store {other.id}, not to"):
        store.read_snapshot(0, 2)


def shape_of(store: TrajectoryStore) -> Callable[[], nn.Module]:
    return functools.partial(ConvNet, 1, 3, (4, 4), width=2, depth=1)


def theta(store: TrajectoryStore) -> Tensor:
    return torch.ones(store.format.num_parameters)


def test_a_consistent_file_that_was_not_there_when_the_expert_was_finished_is_named(
    store: TrajectoryStore, fill: Fill, network: FunctionalNetwork, tmp_path: Path, metadata: Metadata
) -> None:
    """The same store on another machine: everything in the file fits, and its values are others."""
    fill(0)
    twin = TrajectoryStore.create(tmp_path / "twin", metadata)
    assert twin.id == store.id
    twin.write_snapshot(0, 2, network.unflatten(theta(store)))
    shutil.copyfile(twin.snapshot_path(0, 2), store.snapshot_path(0, 2))
    with pytest.raises(ConfigurationError, match=r"epoch_0002.* checksum differs from expert\.json"):
        store.read_window(0, 1, 2)
    assert torch.equal(twin.read_snapshot(0, 2), theta(store))  # an expert in the making has no such list


def test_an_expert_moves_to_the_same_store_on_another_machine(
    store: TrajectoryStore, fill: Fill, snapshot: Snapshot, tmp_path: Path, metadata: Metadata
) -> None:
    fill(1)
    twin = TrajectoryStore.create(tmp_path / "twin", metadata)
    shutil.copytree(store.expert_folder(1), twin.expert_folder(1))
    assert torch.equal(twin.read_window(1, 0, 4)[3], snapshot(1, 3))


def test_a_record_of_something_else_is_named(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    fill(1)
    shutil.copyfile(store.expert_folder(1) / "expert.json", store.expert_folder(0) / "expert.json")
    fresh = TrajectoryStore.open(store.folder)
    for read in (lambda: fresh.read_snapshot(0, 0), lambda: fresh.summary(0)):
        with pytest.raises(ConfigurationError, match=r"expert_0000/expert\.json .*belongs to expert 1 of store"):
            read()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"expert": 0}', "\x00\xff"])
def test_a_damaged_record_is_named(store: TrajectoryStore, fill: Fill, content: str) -> None:
    fill(0)
    (store.expert_folder(0) / "expert.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"expert_0000/expert\.json cannot be used.*delete .*expert_0000"):
        TrajectoryStore.open(store.folder).read_snapshot(0, 0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: {**content, "epochs": 3}, "does not match its checksum"),
        (lambda content: {key: value for key, value in content.items() if key != "checksum"}, "no checksum"),
    ],
)
def test_a_changed_store_record_is_named(store: TrajectoryStore, metadata: Metadata, damage: Any, words: str) -> None:
    path = store.folder / "store.json"
    write_json(path, damage(read_json(path)))
    for attempt in (lambda: TrajectoryStore.open(store.folder), lambda: TrajectoryStore.create(store.folder, metadata)):
        with pytest.raises(ConfigurationError, match=rf"store\.json cannot be used: it .*{words}.*restore a copy"):
            attempt()


def test_a_store_that_lost_its_record_gets_it_back(
    store: TrajectoryStore, fill: Fill, snapshot: Snapshot, metadata: Metadata
) -> None:
    fill(2)
    (store.folder / "store.json").unlink()
    with pytest.raises(ConfigurationError, match=r"no store\.json.*run train_experts\.py"):
        TrajectoryStore.open(store.folder)
    with pytest.raises(ConfigurationError, match=r"expert\.json .*belongs to expert 2 of store"):
        TrajectoryStore.create(store.folder, {**metadata, "seed": 9})
    assert not (store.folder / "store.json").exists()
    again = TrajectoryStore.create(store.folder, metadata)
    assert again.experts() == [2]
    assert torch.equal(again.read_snapshot(2, 1), snapshot(2, 1))


def test_metadata_that_json_changes_are_sealed_as_they_are_read(tmp_path: Path, metadata: Metadata) -> None:
    odd = {**metadata, "config": {10: "ten", 9: (1, 2)}}
    stored = TrajectoryStore.create(tmp_path / "odd", odd)
    assert stored.metadata["config"] == {"10": "ten", "9": [1, 2]}
    assert json.loads((stored.folder / "store.json").read_text()) == seal(stored.metadata)


def test_a_header_that_lies_is_named(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    path = store.snapshot_path(0, 0)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    for change in (
        {"data_offsets": [4, 8]},
        {"shape": [-1]},
        {"shape": [1.0]},
        {"dtype": "F33"},
        {"shape": None},
        {"data_offsets": [0]},
    ):
        text = json.dumps({**header, first: {**header[first], **change}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(ConfigurationError, match=r"epoch_0000\.safetensors cannot be used"):
            store.read_snapshot(0, 0)
    for text in (b"[]", b'{"__metadata__": 5}', b'{"__metadata__": {}}', b"\xff\xfe"):
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(ConfigurationError, match=r"epoch_0000\.safetensors cannot be used"):
            store.read_snapshot(0, 0)


def test_a_file_without_a_checksum_is_refused(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    path = store.snapshot_path(0, 0)
    save_file(load_file(path), path)
    with pytest.raises(ConfigurationError, match="it has no checksum"):
        store.read_snapshot(0, 0)


def test_what_cannot_be_read_is_not_called_damaged(store: TrajectoryStore, fill: Fill) -> None:
    """A folder in the place of a file stands for all that the system refuses to read."""
    fill(0)
    for path in (store.snapshot_path(0, 1), store.expert_folder(0) / "expert.json", store.folder / "store.json"):
        path.rename(path.with_suffix(".aside"))
        path.mkdir()
        with pytest.raises(ConfigurationError, match=r"cannot be read \(Is a directory\).*do not delete it"):
            TrajectoryStore.open(store.folder).read_window(0, 1, 1)
        path.rmdir()
        path.with_suffix(".aside").rename(path)


def test_check_snapshots_reads_what_a_resumed_run_relies_on(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    store.snapshot_path(0, 3).unlink()
    (store.expert_folder(0) / "expert.json").unlink()
    assert sorted(store.check_snapshots(0, 2)) == [0, 1, 2]
    with pytest.raises(ConfigurationError, match=r"epoch_0003\.safetensors is missing"):
        store.check_snapshots(0, 3)


def test_finish_reads_everything_once_more(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    path = store.snapshot_path(0, 1)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ConfigurationError, match=r"epoch_0001"):
        store.finish(0, {})
    assert not store.is_complete(0)


def test_pieces_of_a_killed_run_are_cleared_where_it_goes_on(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    piece = store.expert_folder(0) / ".epoch_0002.safetensors.abc.partial"
    piece.write_bytes(b"half")
    store.drop_snapshots_after(0, 4)
    assert not piece.exists()
    assert store.is_complete(0)  # nothing else was touched


def test_incomplete_experts_are_listed(store: TrajectoryStore, fill: Fill) -> None:
    for expert in (0, 5, 12):
        fill(expert)
    (store.expert_folder(5) / "expert.json").unlink()
    (store.folder / "expert_0007").mkdir()  # nothing in it yet
    assert store.experts() == [0, 12]
    assert store.incomplete() == [5]
