"""What of a training is stored: every n-th epoch, none beyond a bound, other types, the statistics of batch norm."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from ast_lightning.config.schedule import Schedule
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts import ExpertSettings, TrajectoryRecorder


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"every_n_epochs": 2}, [0, 2, 4, 6]),
        ({"every_n_epochs": 4}, [0, 4, 6]),
        ({"max_epoch": 2}, [0, 1, 2, 6]),
        ({"every_n_epochs": 2, "max_epoch": 3, "snapshot_dtype": "bfloat16"}, [0, 2, 6]),
    ],
)
def test_less_is_stored_of_the_same_training(
    lab: Any, family: Any, tmp_path: Path, changes: dict[str, Any], stored: list[int]
) -> None:
    settings = dataclasses.replace(lab.settings, **changes)
    store = lab.store(tmp_path / "store", settings)
    recorder = TrajectoryRecorder(store)
    lab.train(recorder, 0, settings=settings)
    assert sorted(path.name for path in store.expert_folder(0).glob("epoch_*")) == [
        f"epoch_{epoch:04d}.safetensors" for epoch in stored
    ]
    for epoch in stored:
        wanted = family.store.read_snapshot(0, epoch)
        if settings.snapshot_dtype == "bfloat16":
            wanted = wanted.to(torch.bfloat16).float()
        assert torch.equal(store.read_snapshot(0, epoch), wanted)
    assert store.experts() == [0]
    assert recorder.movement == family.recorders[0].movement  # of every epoch
    assert store.summary(0) == family.store.summary(0)


class Killed(Exception):
    pass


class Kill(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise Killed


def checkpoint(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "last", enable_version_counter=False, save_top_k=1)


def test_a_thinned_expert_resumes_between_its_snapshots(lab: Any, family: Any, tmp_path: Path) -> None:
    settings = dataclasses.replace(lab.settings, every_n_epochs=3)
    store, options = lab.store(tmp_path / "store", settings), {"settings": settings, "enable_checkpointing": True}
    with pytest.raises(Killed):
        lab.train(TrajectoryRecorder(store), 1, callbacks=[Kill(5), checkpoint(tmp_path / "r")], **options)
    assert store.incomplete() == [1]
    lab.train(
        TrajectoryRecorder(store), 1, callbacks=[checkpoint(tmp_path / "r")], resume=tmp_path / "r/last.ckpt", **options
    )
    assert torch.equal(store.read_window(1, 0, 6), family.store.read_window(1, 0, 6)[::3])
    assert store.summary(1) == family.store.summary(1)


@pytest.mark.parametrize("damage", ["deleted", "damaged"])
def test_a_lost_snapshot_is_found_before_training_goes_on(lab: Any, tmp_path: Path, damage: str) -> None:
    store = lab.store(tmp_path / "store")
    with pytest.raises(Killed):
        lab.train(
            TrajectoryRecorder(store), 0, callbacks=[Kill(3), checkpoint(tmp_path / "r")], enable_checkpointing=True
        )
    path = store.snapshot_path(0, 1)
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    recorder = TrajectoryRecorder(store)
    with pytest.raises(ConfigurationError, match=r"epoch_0001\.safetensors .*delete .*expert_0000 and run"):
        lab.train(
            recorder,
            0,
            callbacks=[checkpoint(tmp_path / "r")],
            resume=tmp_path / "r/last.ckpt",
            enable_checkpointing=True,
        )
    assert len(recorder.movement) == 3  # what the checkpoint knew of, and not an epoch more


def test_statistics_of_batch_normalisation_are_stored(lab: Any, tmp_path: Path) -> None:
    factory = functools.partial(lab.network, normalization="batch")
    settings = dataclasses.replace(lab.settings, epochs=2, gradient_penalty=0.0)
    other = dataclasses.replace(lab, network=factory, settings=settings)
    store = other.store(tmp_path / "store")
    module = other.train(TrajectoryRecorder(store), 0)
    first, last = load_file(store.snapshot_path(0, 0)), load_file(store.snapshot_path(0, 2))
    live = dict(module.network.named_buffers())
    assert len(live) == 3
    for name in live:
        value = last[name]
        assert torch.equal(value, live[name])
        assert value.dtype == live[name].dtype
        assert not torch.equal(value, first[name])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("snapshot_dtype", "float64", "float32, bfloat16 or float16"),
        ("every_n_epochs", 0, "from 1 to"),
        ("max_epoch", 0, "from 1 to"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"expert.{name}={value}: .*{words}"):
        ExpertSettings(**{name: value})


def test_the_schedule_of_the_settings() -> None:
    assert ExpertSettings(epochs=9, every_n_epochs=2, max_epoch=5).schedule == Schedule(9, 2, 5)
    assert ExpertSettings().schedule == Schedule(50)
