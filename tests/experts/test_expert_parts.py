"""Optimisers, regularisers and curricula of one's own: SAM, resumed and on two devices, as the hardest case."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.utils import parameters_to_vector

from ast_lightning.compilation import Compilation
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts import ExpertModule, ExpertObjective, ExpertSettings, TrajectoryRecorder
from ast_lightning.networks import build_network
from tests import PATIENCE
from tests.experts.parts import train_all
from tests.forks import python

pytestmark = pytest.mark.slow

HERE = "tests.experts.parts"
RELOAD = {"reload_dataloaders_every_n_epochs": 1}


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **arguments}


def theta(expert: ExpertModule) -> torch.Tensor:
    return parameters_to_vector(expert.network.parameters()).detach()


class Killed(Exception):
    pass


class Kill(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            raise Killed


GSAM = {"optimizer": "gsam", "sam_rho": 0.1, "sam_alpha": 0.5}


@pytest.mark.parametrize(
    ("neutral", "other"),
    [({"optimizer": part("sam", rho=0.0)}, {"optimizer": part("sam")}), (GSAM | {"sam_rho": 0, "sam_alpha": 0}, GSAM)],
)
def test_sam_without_radius_is_sgd_in_every_bit_and_is_logged_once(
    lab: Any, family: Any, neutral: dict[str, Any], other: dict[str, Any]
) -> None:
    """Both evaluations of a step see the same draws; the metrics count each batch once."""
    settings = dataclasses.replace(lab.settings, **neutral)
    recorder = TrajectoryRecorder(None)
    expert = lab.train(recorder, 0, settings=settings)
    assert torch.equal(theta(expert), family.store.read_snapshot(0, 6))
    assert recorder.movement == family.recorders[0].movement
    assert recorder.state_dict()["history"] == family.store.summary(0)["history"]
    changed = lab.train(TrajectoryRecorder(None), 0, settings=dataclasses.replace(settings, **other))
    assert (theta(changed) - theta(expert)).norm() > 1e-3


@pytest.mark.parametrize("neutral", [{"optimizer": part("sam", rho=0.0)}, GSAM | {"sam_rho": 0, "sam_alpha": 0}])
def test_running_statistics_follow_the_first_evaluation_of_a_step(lab: Any, neutral: dict[str, Any]) -> None:
    other = dataclasses.replace(lab, network=functools.partial(lab.network, normalization="batch"))
    short = dataclasses.replace(lab.settings, epochs=1)
    one = other.train(TrajectoryRecorder(None), 0, settings=short)
    two = other.train(TrajectoryRecorder(None), 0, settings=dataclasses.replace(short, **neutral))
    buffers = dict(two.network.named_buffers())
    assert int(buffers["features.1.num_batches_tracked"]) == 4
    for name, buffer in one.network.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize(
    "parts",
    [
        GSAM | {"samples": "curriculum"},
        {"samples": part("easy_first", share=0.5), "regularizers": [part("consistency", weight=0.3)]},
    ],
)
@pytest.mark.parametrize("epoch", [2, 5])
def test_an_interrupted_expert_equals_an_uninterrupted_one(
    lab: Any, tmp_path: Path, parts: dict[str, Any], epoch: int
) -> None:
    settings = dataclasses.replace(lab.settings, **parts)
    whole, recorder = TrajectoryRecorder(None), TrajectoryRecorder(None)
    wanted = theta(lab.train(whole, 0, settings=settings, **RELOAD))
    state = ModelCheckpoint(tmp_path, "last", enable_version_counter=False, save_top_k=1)
    with pytest.raises(Killed):
        lab.train(recorder, 0, settings=settings, callbacks=[Kill(epoch), state], enable_checkpointing=True, **RELOAD)
    expert = lab.train(recorder, 0, settings=settings, resume=tmp_path / "last.ckpt", **RELOAD)
    assert torch.equal(theta(expert), wanted)
    assert recorder.state_dict() == whole.state_dict()


def test_an_epoch_has_as_many_steps_as_its_images_fill(lab: Any) -> None:
    steps: list[int] = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            steps.append(trainer.global_step)

    settings = dataclasses.replace(lab.settings, epochs=4, samples=part("easy_first", share=0.3))
    lab.train(TrajectoryRecorder(None), 0, settings=settings, callbacks=[Count()], limit_val_batches=0, **RELOAD)
    assert steps == [1, 2, 6, 10]  # of 30, 30, 100 and 100 images in batches of 32
    with pytest.raises(ConfigurationError, match=r"expert\.samples.*reload_dataloaders_every_n_epochs=1"):
        lab.train(TrajectoryRecorder(None), 0, settings=settings)


def test_an_optimizer_without_schedule(lab: Any) -> None:
    settings = dataclasses.replace(lab.settings, epochs=2, lr_decay_epoch=0, optimizer=part("adam"))
    recorder = TrajectoryRecorder(None)
    expert = lab.train(recorder, 0, settings=settings)
    assert isinstance(expert.trainer.optimizers[0], torch.optim.Adam)
    assert expert.trainer.optimizers[0].state  # never cleared: that belongs to the schedule of sgd
    assert [row["train/lr"] for row in recorder.state_dict()["history"]] == pytest.approx([0.03, 0.03])
    with pytest.raises(ConfigurationError, match=r"expert\.optimizer.*NoneType"):
        lab.train(TrajectoryRecorder(None), 0, settings=dataclasses.replace(settings, optimizer=part("nothing")))


def test_a_regularizer_equals_the_built_in_option_of_the_same_formula(lab: Any) -> None:
    """L2 decay as a term of the loss, against SGD's own."""
    plain = dataclasses.replace(lab.settings, epochs=2, weight_decay=0.01)
    term = dataclasses.replace(plain, weight_decay=0.0, regularizers=[part("l2", weight=0.01)])
    recorder = TrajectoryRecorder(None)
    wanted, seen = lab.train(TrajectoryRecorder(None), 0, settings=plain), lab.train(recorder, 0, settings=term)
    torch.testing.assert_close(theta(seen), theta(wanted), rtol=1e-4, atol=1e-5)
    for row in recorder.state_dict()["history"]:
        parts = row["train/clip_factor"] * row["train/cross_entropy"] + 0.5 * row["train/penalty"]
        assert row["train/loss"] == pytest.approx(parts + row["train/regularization"], rel=1e-4)
        assert row["train/regularization"] > 0


def objective_with(lab: Any, compilation: Compilation | None, *parts: Any) -> ExpertObjective:
    return ExpertObjective(lab.network, dataclasses.replace(lab.settings, regularizers=list(parts)), compilation)


def losses(lab: Any, objective: ExpertObjective, epoch: int) -> tuple[Any, list[torch.Tensor]]:
    network = build_network(lab.network, 1).double()
    raw = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = objective(network, raw.flip(3), raw, torch.arange(5), 0.7, epoch)
    return loss, list(torch.autograd.grad(loss.total, list(network.parameters())))


def test_regularizers_are_summed_and_see_the_epoch(lab: Any) -> None:
    terms = part("consistency", weight=0.3), part("l2", weight=0.2)
    without, _ = losses(lab, objective_with(lab, None), 0)
    assert without.regularization is None
    alone = [losses(lab, objective_with(lab, None, each), 0)[0].regularization for each in terms]
    for epoch, wanted in ((0, alone[0] + alone[1]), (2, alone[1])):
        loss, _ = losses(lab, objective_with(lab, None, *terms), epoch)
        torch.testing.assert_close(loss.regularization, wanted)
        torch.testing.assert_close(loss.total, without.total + wanted)
    with pytest.raises(ConfigurationError, match=r"expert\.regularizers.*\[5\]"):
        losses(lab, objective_with(lab, None, part("logits_squared")), 0)


def test_regularizers_are_compiled_once_for_all_epochs(lab: Any) -> None:
    torch.compiler.reset()
    terms = part("consistency", weight=0.3), part("l2", weight=0.2)
    lab = dataclasses.replace(lab, settings=dataclasses.replace(lab.settings, gradient_penalty=0.0))  # less to compile
    usual = objective_with(lab, None, *terms)
    compiled = objective_with(lab, Compilation(True, True, "test"), *terms)
    with torch.compiler.set_stance("default"):
        wanted, seen = losses(lab, usual, 0), losses(lab, compiled, 0)
    with torch.compiler.set_stance("fail_on_recompile"):
        later = losses(lab, usual, 3), losses(lab, compiled, 3)
    for (loss, gradients), (other, others) in ((wanted, seen), later):
        torch.testing.assert_close(loss.total, other.total, rtol=1e-9, atol=0)
        for pair in zip(gradients, others, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-7, atol=1e-9)
    torch.compiler.reset()


def train_two_ranks(path: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):  # as torchrun sets them, a node a rank
        variables = {"RANK": rank, "GROUP_RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        words = [*python(), "-m", HERE, str(path)]
        processes.append(subprocess.Popen(words, cwd=Path(__file__).parents[2], env={**os.environ, **variables}))
    assert [process.wait(timeout=PATIENCE) for process in processes] == [0, 0]
    result: dict[str, Any] = torch.load(path, weights_only=True)
    return result


def test_two_devices_train_the_same_expert(tmp_path: Path) -> None:
    one, two = train_all(), train_two_ranks(tmp_path / "two.pt")
    assert list(one) == list(two) == ["parts of one's own", "gsam and curriculum"]
    for (name, alone), shared in zip(one.items(), two.values(), strict=True):
        torch.testing.assert_close(shared["theta"], alone["theta"], rtol=1e-3, atol=1e-4, msg=name)
        assert shared["movement"] == pytest.approx(alone["movement"], rel=1e-3), name
        for metric, value in alone["metrics"].items():
            assert shared["metrics"][metric] == pytest.approx(value, rel=1e-3), (name, metric)


BEFORE_PARTS = [
    "epochs",
    "batch_size",
    "lr",
    "momentum",
    "weight_decay",
    "lr_decay",
    "lr_decay_epoch",
    "clipping",
    "clip_start",
    "clip_end",
    "clip_epochs",
    "gradient_penalty",
    "penalty_norm",
    "augment",
    "snapshot_dtype",
    "every_n_epochs",
    "max_epoch",
]


def test_parts_at_their_default_leave_no_trace_in_the_description() -> None:
    """Stores that were made before there were parts keep their id."""
    settings = ExpertSettings(lr=0.02)
    assert list(settings.describe()) == BEFORE_PARTS
    assert settings.describe() == {name: getattr(settings, name) for name in BEFORE_PARTS}
    changed = dataclasses.replace(settings, optimizer=part("sam", rho=0.1), regularizers=[part("l2", weight=1.0)])
    assert changed.describe()["optimizer"] == part("sam", rho=0.1)
    assert changed.describe()["regularizers"] == [part("l2", weight=1.0)]
    assert "samples" not in changed.describe()


@pytest.mark.parametrize(
    ("name", "value"),
    [("optimizer", "adam"), ("optimizer", None), ("samples", "half"), ("regularizers", "l2"), ("regularizers", ["l2"])],
)
def test_unknown_parts_are_rejected_by_option(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ExpertSettings(**{name: value})
    assert caught.value.option.removesuffix("[0]") == f"expert.{name}"
    assert "_target_" in caught.value.problem
