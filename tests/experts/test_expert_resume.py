"""An expert that was interrupted ends bit-identical to one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ast_lightning.experts import TrajectoryRecorder


class Killed(Exception):
    pass


class Kill(Callback):
    """Stops the run in ``epoch``: in the middle of its batches, or after its snapshot and before its checkpoint."""

    def __init__(self, epoch: int, where: str) -> None:
        self.epoch, self.where = epoch, where

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.where == "batch" and (trainer.current_epoch, batch_idx) == (self.epoch, 2):
            raise Killed

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.where == "commit" and trainer.current_epoch == self.epoch:
            raise Killed


def checkpoint(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "last", enable_version_counter=False, save_top_k=1)


@pytest.mark.parametrize(
    ("epoch", "where", "kept"),
    [
        (0, "batch", 0),  # nothing to resume from
        (2, "batch", 2),
        (2, "commit", 3),  # one snapshot more than the checkpoint knows of
        (5, "batch", 5),  # resumes in the epoch of the decay, which must clear the momentum
    ],
)
def test_interrupted_expert_equals_an_uninterrupted_one(
    lab: Any, family: Any, tmp_path: Path, epoch: int, where: str, kept: int
) -> None:
    store = lab.store(tmp_path / "store")
    state = tmp_path / "resume" / "last.ckpt"
    callbacks = [Kill(epoch, where), checkpoint(state.parent)]
    with pytest.raises(Killed):
        lab.train(TrajectoryRecorder(store), 0, callbacks=callbacks, enable_checkpointing=True)
    assert store.experts() == []
    assert [number for number in range(7) if store.snapshot_path(0, number).exists()] == list(range(kept + 1))
    assert state.exists() == (epoch > 0)

    seen: list[list[int]] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
            if not seen:
                seen.append([number for number in range(7) if store.snapshot_path(0, number).exists()])

    recorder = TrajectoryRecorder(store)
    lab.train(
        recorder,
        0,
        callbacks=[Look(), checkpoint(state.parent)],
        resume=state if state.exists() else None,
        enable_checkpointing=True,
    )
    assert seen == [list(range(epoch + 1))]  # snapshots beyond the resume state were dropped first
    assert store.experts() == [0]
    assert torch.equal(store.read_window(0, 0, 6), family.store.read_window(0, 0, 6))
    assert recorder.movement == family.recorders[0].movement
    assert store.summary(0) == family.store.summary(0)
    assert len(store.summary(0)["history"]) == 6


def test_two_sittings_make_one_trajectory(lab: Any, family: Any, tmp_path: Path) -> None:
    """A first Trainer of three epochs ends in order; the second goes on from its checkpoint."""
    store = lab.store(tmp_path / "store")
    resume = tmp_path / "resume"
    first = TrajectoryRecorder(store)
    lab.train(first, 1, callbacks=[checkpoint(resume)], enable_checkpointing=True, max_epochs=3)
    assert store.experts() == []
    assert len(first.movement) == 3
    untouched = store.snapshot_path(1, 2).stat().st_mtime_ns
    lab.train(
        TrajectoryRecorder(store),
        1,
        callbacks=[checkpoint(resume)],
        enable_checkpointing=True,
        resume=resume / "last.ckpt",
    )
    assert store.snapshot_path(1, 2).stat().st_mtime_ns == untouched
    assert torch.equal(store.read_window(1, 0, 6), family.store.read_window(1, 0, 6))
    assert store.summary(1) == family.store.summary(1)


def test_a_killed_retraining_of_a_finished_expert_is_not_complete(lab: Any, tmp_path: Path) -> None:
    """Otherwise distillation would read windows that are partly of one training and partly missing."""
    store = lab.store(tmp_path / "store")
    lab.train(TrajectoryRecorder(store), 0, limit_val_batches=0)
    assert store.experts() == [0]
    with pytest.raises(Killed):
        lab.train(TrajectoryRecorder(store), 0, callbacks=[Kill(1, "batch")], limit_val_batches=0)
    assert store.experts() == []
