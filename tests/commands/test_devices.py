"""Two gloo processes on the CPU."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from ast_lightning.synthetic import load_distilled
from ast_lightning.trajectories import TrajectoryStore

from .conftest import SMALL, Command, Script, run_of

pytestmark = pytest.mark.slow

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def test_experts_share_each_batch(tmp_path: Path, command: Command, script: Script) -> None:
    """The trajectory of two ranks is that of one process, up to the order of summation."""
    few = ("num_experts=2", "data.per_class=13")  # 130 images: the last batch of 64 has 2
    assert script("train_experts", tmp_path / "two", *few, *TWO).returncode == 0
    command("train_experts", tmp_path / "one", *few)
    two = TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path / 'two'}", *few, *TWO).experts_folder())
    one = TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path / 'one'}", *few).experts_folder())
    assert two.experts() == one.experts() == [0, 1]
    for expert in (0, 1):
        torch.testing.assert_close(two.read_window(expert, 0, 4), one.read_window(expert, 0, 4), rtol=1e-4, atol=1e-5)
        assert two.summary(expert)["metrics"]["test/accuracy"] == pytest.approx(
            one.summary(expert)["metrics"]["test/accuracy"], abs=0.01
        )


def test_distillation_matches_a_window_a_rank(output: Path, script: Script) -> None:
    few = (
        "num_experts=1",
        "distill.max_start_epoch=1",
        "distill.max_steps=20",
        "distill.eval_every=10",
        "distill.augment=false",
        "distill.windows_per_step=2",
        "logger=csv",
        "trainer.log_every_n_steps=1",
    )
    result = script("distill", output, *few, *TWO)
    assert result.returncode == 0, result.stderr
    folder = run_of(*SMALL, f"output_dir={output}", *few, *TWO).distill_folder()
    assert load_distilled(folder / "synthetic" / "last").metadata["iteration"] == 20
    (table,) = folder.rglob("metrics.csv")
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
    differences = [float(row["ranks/image_difference"]) for row in rows if row["ranks/image_difference"]]
    assert differences == [0.0, 0.0]
    assert json.loads((folder / "result.json").read_text())["iteration"] == 20
