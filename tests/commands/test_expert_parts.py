"""The command that trains experts, with parts and arrays of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_lightning.data import digits
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts import TrajectoryRecorder
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.verification import verify_store

from .conftest import SMALL, Command, run_of

SHORT = ("expert.epochs=2", "num_experts=1", "distill.expert_epochs=1", "distill.max_start_epoch=1")
PARTS = (
    "expert.optimizer={_target_:tests.experts.parts.sam,rho:0.1}",
    "expert.samples={_target_:tests.experts.parts.easy_first,share:0.5}",
    "expert.regularizers=[{_target_:tests.experts.parts.consistency,weight:0.1}]",
)


def test_parts_by_their_target_train_other_experts_in_a_folder_of_their_own(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = {}
    for words in ((), PARTS):
        metrics = command("train_experts", tmp_path, *SHORT, *words)
        assert set(metrics) == {"test_accuracy", "movement", "cross_entropy"}
        folder = run_of(*SMALL, f"output_dir={tmp_path}", *SHORT, *words).experts_folder()
        stores[words] = TrajectoryStore.open(folder)
    assert not {"optimizer", "samples", "regularizers"} & set(stores[()].metadata["expert"])
    assert stores[PARTS].metadata["expert"]["optimizer"] == {"_target_": "tests.experts.parts.sam", "rho": 0.1}
    assert (stores[()].read_snapshot(0, 2) - stores[PARTS].read_snapshot(0, 2)).norm() > 1e-3
    assert (stores[()].read_snapshot(0, 0) == stores[PARTS].read_snapshot(0, 0)).all()
    capsys.readouterr()
    command("train_experts", tmp_path, *SHORT, *PARTS)
    assert "expert 0 is already complete" in capsys.readouterr().out


def test_gsam_and_the_curriculum_resume_with_the_scores_of_their_store(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expert that is stopped and resumed, and one that is trained alone, equal those of one command."""
    words = ("expert.optimizer=gsam", "expert.samples=curriculum", "logger=none", "trainer.enable_progress_bar=true")
    command("train_experts", tmp_path / "whole", *words)
    printed = capsys.readouterr().out
    assert printed.count("computing the difficulty of 200 images with 5 networks of 1 epoch") == 1
    assert "expert 0: 13/13" in printed  # of 150, 200, 180 and 160 images in batches of 64
    command("train_experts", tmp_path / "parts", *words, "expert_index=1")

    class Stop(Exception):
        pass

    def stop(recorder: TrajectoryRecorder, trainer: Any, expert: Any) -> None:
        if trainer.current_epoch == 2:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(TrajectoryRecorder, "on_train_epoch_start", stop)
        with pytest.raises(Stop):
            command("train_experts", tmp_path / "parts", *words)
    command("train_experts", tmp_path / "parts", *words)
    assert "resumes from" in capsys.readouterr().out
    whole, parts = (
        TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path / name}", *words).experts_folder())
        for name in ("whole", "parts")
    )
    assert torch.equal(whole.read_scores(), parts.read_scores())
    for expert in (0, 1):
        assert torch.equal(whole.read_window(expert, 0, 4), parts.read_window(expert, 0, 4))
    assert not verify_store(parts.folder)


def test_batch_normalisation_from_experts_to_accuracies(tmp_path: Path, command: Command) -> None:
    words = ("network.normalization=batch", "distill.batch_syn=6", "baselines=[]")
    for name in ("train_experts", "distill"):
        assert command(name, tmp_path, *words)["test_accuracy"] > 0
    assert all(value > 0 for value in command("evaluate", tmp_path, *words).values())


def test_a_part_that_cannot_be_imported_is_named(tmp_path: Path, command: Command) -> None:
    with pytest.raises(ConfigurationError, match=r"expert\.optimizer\._target_=tests\.experts\.parts\.missing: "):
        command("train_experts", tmp_path, *SHORT, "expert.optimizer={_target_:tests.experts.parts.missing}")


@pytest.mark.parametrize(
    ("word", "option", "fact"),
    [
        ("expert.regularizers=[{_target_: tests.experts.parts.consistency},{_target_: no.such}]", "[1]._target_", "no"),
        ("expert.optimizer={_target_: tests.experts.parts.sam, rhoo: 1}", ".optimizer._target_", "rhoo"),
        (
            "distill.outer={_target_: tests.experts.parts.sem}",
            ".outer._target_",
            "did you mean tests.experts.parts.sam?",
        ),
        ("network._target_=ast_lightning.networks.ConvNt", "network._target_", "ast_lightning.networks.ConvNet?"),
        ("network._target_=os.getcwd", "network._target_", "not a class"),
        ("data.source={_target_: ast_lightning.data.arays, _partial_: true}", "data.source._target_", "data.arrays?"),
        ("+callbacks.mine._target_=lightning.Trainr", "callbacks.mine._target_", "lightning.Trainer?"),
    ],
)
def test_what_cannot_be_imported_is_found_as_the_run_is_built(word: str, option: str, fact: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_of(*SMALL, word)
    assert caught.value.option.endswith(option)
    assert fact in str(caught.value)


def test_experts_of_arrays(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = digits()
    content = {"train_images": raw.train.images.movedim(1, 3), "train_labels": raw.train.labels}
    np.savez(tmp_path / "mine.npz", **{key: value.numpy() for key, value in content.items()})
    words = (*SHORT, "data=arrays", f"data.root={tmp_path / 'mine.npz'}")
    assert command("train_experts", tmp_path, *words)["test_accuracy"] > 0
    monkeypatch.chdir(tmp_path)
    folders = {
        run_of(*SMALL, f"output_dir={tmp_path}", *words[:-1], f"data.root={root}").experts_folder()
        for root in (tmp_path / "mine.npz", "mine.npz", "./mine.npz")
    }
    assert len(folders) == 1
    store = TrajectoryStore.open(folders.pop())
    assert store.metadata["data"]["counts"] == {"train": 200, "validation": 0, "test": 259}
    assert store.experts() == [0]
