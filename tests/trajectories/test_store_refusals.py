"""What the trajectory store refuses, and whether its message names the thing that is wrong."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import seal, unseal
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.__main__ import main

Metadata = dict[str, Any]
Fill = Callable[[int], None]


def with_change(metadata: Metadata, path: str, value: Any) -> Metadata:
    changed = copy.deepcopy(metadata)
    *parents, last = path.split(".")
    inner = changed
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return changed


def test_create_writes_what_made_the_store(store: TrajectoryStore, metadata: Metadata) -> None:
    stored = read_json(store.folder / "store.json")
    assert stored["format"] == 2
    assert stored["expert"] == metadata["expert"]
    assert stored["data"]["image_size"] == [4, 4]
    assert store.metadata == unseal(stored)
    assert re.fullmatch("[0-9a-f]{16}", store.id)
    assert stored["id"] == store.id
    assert store.epochs == 4


def test_create_opens_the_store_again(store: TrajectoryStore, metadata: Metadata, fill: Fill) -> None:
    fill(0)
    before = (store.folder / "store.json").read_bytes()
    assert TrajectoryStore.create(str(store.folder), metadata).experts() == [0]
    newer = with_change(metadata, "versions.torch", "2.0")  # another version may go on with a store
    assert TrajectoryStore.create(store.folder, newer).metadata["versions"] == {"torch": "1.0"}
    assert (store.folder / "store.json").read_bytes() == before


@pytest.mark.parametrize(
    ("path", "value", "stored"),
    [
        ("network.arguments.width", 3, "2"),
        ("network.target", "mine.Net", "ast_lightning.networks.convnet.ConvNet"),
        ("data.name", "svhn", "digits"),
        ("data.counts.train", 11, "10"),
        ("data.image_size", (4, 5), "[4, 4]"),
        ("data.preprocessing", {"kind": "zca"}, "None"),
        ("expert.lr", 0.01, "0.003"),
        ("expert.lr_decay_epoch", 3, "None"),
        ("expert.new_option", 1, "None"),
        ("epochs", 5, "4"),
        ("seed", 1, "0"),
    ],
)
def test_create_refuses_a_store_of_something_else(
    store: TrajectoryStore, metadata: Metadata, path: str, value: Any, stored: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrajectoryStore.create(store.folder, with_change(metadata, path, value))
    shown = list(value) if isinstance(value, tuple) else value
    assert f"made with {path} = {stored}, and this run has {path} = {shown}" in caught.value.problem
    assert caught.value.option == "experts_dir"
    assert caught.value.value == store.folder
    assert path.split(".")[0] in caught.value.remedy


def test_create_refuses_when_a_setting_has_gone(store: TrajectoryStore, metadata: Metadata) -> None:
    del metadata["expert"]["gradient_penalty"]
    with pytest.raises(ConfigurationError, match=r"expert\.gradient_penalty = 2\.0"):
        TrajectoryStore.create(store.folder, metadata)


def test_networks_that_differ_in_a_parameter_only_are_told_apart(store: TrajectoryStore, metadata: Metadata) -> None:
    metadata["network"]["parameters"][0][1] = [2, 1, 5, 5]
    with pytest.raises(ConfigurationError, match=r"network\.parameters"):
        store.require("network", metadata["network"])


def test_require_accepts_what_made_the_store(store: TrajectoryStore, metadata: Metadata) -> None:
    for key in ("network", "data", "expert", "epochs", "seed"):
        store.require(key, metadata[key])


@pytest.mark.parametrize("exists", [False, True])
def test_open_says_that_nothing_is_there(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "none"
    if exists:
        folder.mkdir()
    with pytest.raises(ConfigurationError, match=r"no trajectories.*train_experts\.py") as caught:
        TrajectoryStore.open(folder)
    assert str(folder) in str(caught.value)
    assert folder.exists() == exists


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (3, "install the version"),
        (1, r"train these experts in another folder"),
    ],
)
def test_open_refuses_another_format(store: TrajectoryStore, metadata: Metadata, version: Any, remedy: str) -> None:
    write_json(store.folder / "store.json", seal({**store.metadata, "format": version}))
    with pytest.raises(ConfigurationError, match=f"format is {version} and this version reads 2.*{remedy}"):
        TrajectoryStore.open(store.folder)
    with pytest.raises(ConfigurationError, match="format"):
        TrajectoryStore.create(store.folder, metadata)


def refusal(store: TrajectoryStore, expert: int, epoch: int) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        store.read_window(expert, epoch - 1, 1)
    assert f"epoch_{epoch:04d}.safetensors" in str(caught.value)
    assert str(store.folder) in str(caught.value)
    assert "expert_0000" in caught.value.remedy
    return caught.value


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_snapshot_is_named(store: TrajectoryStore, fill: Fill, kept: int) -> None:
    fill(0)
    path = store.snapshot_path(0, 2)
    path.write_bytes(path.read_bytes()[:kept])
    assert "truncated" in refusal(store, 0, 2).problem


def test_missing_snapshot_is_named(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    store.snapshot_path(0, 2).unlink()
    refusal(store, 0, 2)


def test_rubbish_is_named(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    store.snapshot_path(0, 3).write_bytes(bytes(range(256)) * 8)
    refusal(store, 0, 3)


def test_a_snapshot_of_another_program_is_named(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    save_file({name: torch.zeros(shape) for name, shape in store.layout}, store.snapshot_path(0, 1))
    assert "no checksum" in refusal(store, 0, 1).problem


@pytest.mark.parametrize("key", ["network", "epochs"])
def test_a_record_that_lacks_something_is_named(store: TrajectoryStore, metadata: Metadata, key: str) -> None:
    content = {name: value for name, value in store.metadata.items() if name != key}
    write_json(store.folder / "store.json", seal(content))
    with pytest.raises(ConfigurationError, match=f"store.json cannot be used: it lacks '{key}'"):
        TrajectoryStore.open(store.folder)


def test_window_beyond_the_trajectory_is_refused(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    with pytest.raises(ConfigurationError, match="epoch_0005"):
        store.read_window(0, 3, 2)


MISSING = object()


@pytest.mark.parametrize(
    "value",
    [MISSING, None, 5, "x", [], [5], {"a": 1}],
    ids=lambda value: "missing" if type(value) is object else str(value),
)
@pytest.mark.parametrize("key", ["network", "data", "expert", "epochs", "seed", "id", "network.parameters"])
def test_a_sealed_record_of_something_else_is_a_line(
    store: TrajectoryStore, metadata: Metadata, fill: Fill, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(0)
    content = unseal(read_json(store.folder / "store.json"))
    section = content["network"] if "." in key else content
    if value is MISSING:
        del section[key.rpartition(".")[2]]
    else:
        section[key.rpartition(".")[2]] = value
    write_json(store.folder / "store.json", seal(content))
    for read in (
        lambda: TrajectoryStore.create(store.folder, metadata),
        lambda: TrajectoryStore.open(store.folder).read_window(0, 0, 2),
        *(lambda command=command: main([command, str(store.folder)]) for command in ("ls", "info", "verify")),
    ):
        try:
            read()
        except ConfigurationError as error:
            assert error.option == "experts_dir"  # noqa: PT017
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["store.json", "expert_0000/expert.json"])
def test_json_that_is_nested_too_deep_is_a_line(store: TrajectoryStore, fill: Fill, name: str) -> None:
    fill(0)
    (store.folder / name).write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        TrajectoryStore.open(store.folder).record(0)


@pytest.mark.parametrize("claimed", [30 * 2**30, 2**63, 2**64 - 1])
def test_a_header_that_claims_more_than_there_is_is_a_line(store: TrajectoryStore, fill: Fill, claimed: int) -> None:
    fill(0)
    path = store.snapshot_path(0, 1)
    path.write_bytes(claimed.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ConfigurationError, match="safetensors"):
        TrajectoryStore.open(store.folder).read_window(0, 0, 2)
