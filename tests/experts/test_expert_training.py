"""Experts through a real Trainer: what the recorder stores, and what an expert's randomness depends on."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from ast_lightning.experts import ExpertModule, ExpertSettings, TrajectoryRecorder
from ast_lightning.networks import ConvNet, FunctionalNetwork, build_network

EPOCHS = 6


def trajectory(store: Any, expert: int) -> Tensor:
    return store.read_window(expert, 0, store.epochs)  # type: ignore[no-any-return]


class OptimizerWatch(Callback):
    """Before each step: the epoch, the learning rate, and whether there is any momentum; the buffer after it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, bool]] = []
        self.fresh: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        (optimizer,) = trainer.optimizers
        self.rows.append((trainer.current_epoch, optimizer.param_groups[0]["lr"], len(optimizer.state) > 0))
        self.before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Whether the step taken was −lr · (gradient + decay · θ), as it is without momentum from before."""
        (optimizer,) = trainer.optimizers
        group = optimizer.param_groups[0]
        steps = [
            old - group["lr"] * (new.grad + group["weight_decay"] * old)
            for old, new in zip(self.before, group["params"], strict=True)
        ]
        self.fresh.append(all(torch.allclose(*pair, atol=1e-7) for pair in zip(steps, group["params"], strict=True)))


def test_every_snapshot_is_another_one(family: Any) -> None:
    """On the CPU a detached parameter aliases the live one: then all snapshots would equal the last."""
    for expert in range(3):
        snapshots = trajectory(family.store, expert)
        assert len(snapshots) == EPOCHS + 1
        distances = torch.cdist(snapshots, snapshots) + torch.eye(EPOCHS + 1)
        assert distances.min() > 1e-3
    assert family.store.experts() == [0, 1, 2]


def test_first_snapshot_is_the_initialisation_and_the_last_the_trained_network(family: Any, lab: Any) -> None:
    for expert in range(3):
        initial = parameters_to_vector(build_network(lab.network, lab.seed, "expert", expert).parameters())
        assert torch.equal(family.store.read_snapshot(expert, 0), initial)
        trained = parameters_to_vector(family.modules[expert].network.parameters())
        assert torch.equal(family.store.read_snapshot(expert, EPOCHS), trained)


def test_movement_is_the_distance_of_neighbouring_snapshots(family: Any) -> None:
    for expert in range(3):
        steps = trajectory(family.store, expert).diff(dim=0)
        wanted = [step.double().norm().item() for step in steps]
        assert family.recorders[expert].movement == pytest.approx(wanted, rel=1e-5)
        history = family.store.summary(expert)["history"]
        assert [row["trajectory/movement"] for row in history] == family.recorders[expert].movement


def test_expert_alone_equals_expert_of_a_full_run(family: Any, lab: Any, tmp_path: Path) -> None:
    store = lab.store(tmp_path / "alone")
    lab.train(TrajectoryRecorder(store), 2)
    assert store.experts() == [2]
    assert torch.equal(trajectory(store, 2), trajectory(family.store, 2))
    assert store.summary(2) == family.store.summary(2)


def test_watching_the_test_data_changes_nothing(family: Any, lab: Any, tmp_path: Path) -> None:
    store = lab.store(tmp_path / "blind")
    lab.train(TrajectoryRecorder(store), 1, limit_val_batches=0)
    assert torch.equal(trajectory(store, 1), trajectory(family.store, 1))


def test_experts_differ_from_the_start_on(family: Any) -> None:
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pair = trajectory(family.store, first) - trajectory(family.store, second)
        assert (pair.norm(dim=1) > 0.1).all()


def test_another_seed_is_another_expert(family: Any, lab: Any) -> None:
    recorder = TrajectoryRecorder(None)
    other = dataclasses.replace(lab, seed=lab.seed + 1)
    module = other.train(recorder, 0, max_epochs=1)
    assert len(recorder.movement) == 1  # without a store, the movement alone
    vector = parameters_to_vector(module.network.parameters())
    assert (vector - family.store.read_snapshot(0, 1)).norm() > 0.1


def test_history_says_what_happened_in_each_epoch(family: Any, lab: Any) -> None:
    summary = family.store.summary(1)
    history = summary["history"]
    assert (summary["expert_index"], summary["seed"], summary["metrics"]) == (1, lab.seed, history[-1])
    assert [row["train/clip_factor"] for row in history] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1, 1])
    assert [row["train/lr"] for row in history] == pytest.approx([0.03] * 5 + [0.018])
    for row in history:
        # the total is a sum over batches of clip · CE + λ · penalty; the clip factor is one number an epoch
        total = row["train/clip_factor"] * row["train/cross_entropy"] + 0.5 * row["train/penalty"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-4)
        assert row["train/penalty"] > 0
    assert history[-1]["train/cross_entropy"] < history[0]["train/cross_entropy"]


def test_accuracy_is_that_of_the_snapshot_on_the_test_split(family: Any, lab: Any) -> None:
    test, network = lab.make_data().test, FunctionalNetwork(lab.network)
    history = family.store.summary(0)["history"]
    for epoch in (0, 3, 5):
        logits = network(family.store.read_snapshot(0, epoch + 1), test.images)
        accuracy = (logits.argmax(1) == test.labels).double().mean().item()
        assert history[epoch]["test/accuracy"] == pytest.approx(accuracy, abs=1.5 / len(test))
    assert history[-1]["test/accuracy"] > 0.3  # chance is 0.1


@pytest.mark.parametrize(
    ("changes", "decayed_from"),
    [({}, 5), ({"lr_decay_epoch": 0}, 1), ({"lr_decay_epoch": 1, "epochs": 4}, 2)],
)
def test_learning_rate_falls_once_and_the_momentum_is_cleared(
    lab: Any, changes: dict[str, Any], decayed_from: int
) -> None:
    watch = OptimizerWatch()
    settings = dataclasses.replace(lab.settings, gradient_penalty=0.0, **changes)
    lab.train(TrajectoryRecorder(None), 0, settings=settings, callbacks=[watch], limit_val_batches=0)
    steps = 4  # 100 images in batches of 32
    assert [row[0] for row in watch.rows] == [epoch for epoch in range(settings.epochs) for _ in range(steps)]
    rates = [0.03] * (decayed_from * steps) + [0.03 * 0.6] * ((settings.epochs - decayed_from) * steps)
    assert [row[1] for row in watch.rows] == pytest.approx(rates)
    without_momentum = [step for step, row in enumerate(watch.rows) if not row[2]]
    assert without_momentum == [0, decayed_from * steps]
    assert [step for step, fresh in enumerate(watch.fresh) if fresh] == without_momentum


def test_constant_learning_rate_keeps_its_momentum(lab: Any) -> None:
    watch = OptimizerWatch()
    settings = dataclasses.replace(lab.settings, epochs=3, lr_decay=1.0, lr_decay_epoch=0, gradient_penalty=0.0)
    lab.train(TrajectoryRecorder(None), 0, settings=settings, callbacks=[watch], limit_val_batches=0)
    assert {row[1] for row in watch.rows} == {0.03}
    assert [step for step, row in enumerate(watch.rows) if not row[2]] == [0]


def test_unfinished_training_is_not_complete(lab: Any, tmp_path: Path) -> None:
    store = lab.store(tmp_path / "store")
    lab.train(TrajectoryRecorder(store), 0, max_epochs=2)
    assert store.experts() == []
    assert store.snapshot_path(0, 2).exists()


def test_a_recorder_serves_one_expert_after_another(lab: Any, tmp_path: Path) -> None:
    settings = dataclasses.replace(lab.settings, epochs=1)
    store = lab.store(tmp_path / "store", settings)
    recorder = TrajectoryRecorder(store)
    for expert in (0, 1):
        lab.train(recorder, expert, settings=settings)
    assert store.experts() == [0, 1]
    assert [len(store.summary(expert)["history"]) for expert in (0, 1)] == [1, 1]


def test_batch_normalised_expert_with_penalty(lab: Any, tmp_path: Path) -> None:
    factory = functools.partial(lab.network, normalization="batch")
    settings = dataclasses.replace(lab.settings, epochs=1, penalty_norm="sample")
    other = dataclasses.replace(lab, network=factory, settings=settings)
    store = other.store(tmp_path / "store")
    other.train(TrajectoryRecorder(store), 0)
    window = trajectory(store, 0)
    assert window.shape == (2, FunctionalNetwork(factory).num_parameters)
    assert torch.isfinite(window).all()
    assert store.summary(0)["metrics"]["train/penalty"] > 0


def dropout_network(**arguments: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))


def test_dropout_is_keyed_like_every_other_draw(lab: Any) -> None:
    """``lab`` trains from another state of the global generator each time: an expert must not see it."""
    settings = dataclasses.replace(lab.settings, epochs=1)
    other = dataclasses.replace(lab, network=dropout_network, settings=settings)
    first, again = (other.train(TrajectoryRecorder(None), 0) for _ in range(2))
    pair = [parameters_to_vector(module.network.parameters()) for module in (first, again)]
    assert torch.equal(*pair)


class _Other(LightningModule):
    def training_step(self, batch: Any, index: int) -> None:
        return None

    def configure_optimizers(self) -> None:
        return None


class _OtherData(LightningDataModule):
    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader([1, 2])  # type: ignore[arg-type]


def test_misuse_is_named(lab: Any) -> None:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "max_epochs": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with pytest.raises(TypeError, match="_Other"):
        Trainer(callbacks=[TrajectoryRecorder(None)], **quiet).fit(_Other(), datamodule=_OtherData())
    with pytest.raises(TypeError, match="ImageDataModule"):
        Trainer(**quiet).fit(ExpertModule(lab.network), datamodule=_OtherData())


def test_defaults_are_the_published_expert() -> None:
    module = ExpertModule(functools.partial(ConvNet, 1, 10, (8, 8), width=2, depth=1))
    assert module.settings == ExpertSettings()
    assert module.key == (0, "expert", 0)
