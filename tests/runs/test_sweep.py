"""Multirun: four jobs, four folders, one table."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from ast_lightning.errors import ConfigurationError
from ast_lightning.runs.command import build_run
from ast_lightning.runs.sweeps import sweep_name

from .conftest import SMALL, Command, Script, composed


@pytest.mark.slow
def test_a_sweep_ends_with_one_table(tmp_path: Path, command: Command, script: Script) -> None:
    for seed in (0, 1):
        command("train_experts", tmp_path, f"seed={seed}")
    swept = ("--multirun", "distill=ast,mtt", "seed=0,1")
    result = script("distill", tmp_path, *swept)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "distilled").glob("digits_*"))) == 4
    (table,) = (tmp_path / "sweeps").glob("*/results.csv")
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["distill"], row["seed"]) for row in rows} == {(d, s) for d in ("ast", "mtt") for s in ("0", "1")}
    assert all(row["status"] == "completed" and 0 <= float(row["test_accuracy"]) <= 100 for row in rows)
    assert str(table) in result.stdout

    shutil.rmtree(next((tmp_path / "distilled").glob("digits_mtt_ipc1_seed1_*")))
    shutil.rmtree(next((tmp_path / "experts").glob("*_seed1_*")))
    again = script("distill", tmp_path, *swept)
    assert again.returncode != 0
    assert "no trajectories are there" in again.stderr
    with table.open() as stream:
        statuses = [row["status"] for row in csv.DictReader(stream)]
    assert sorted(statuses) == ["completed", "completed", "completed", "failed"]  # the other jobs still ran


def test_the_same_sweep_has_the_same_folder() -> None:
    assert sweep_name(["/a/distill.py", "-m", "seed=0,1"]) == sweep_name(["distill.py", "seed=0,1", "-m"])
    assert sweep_name(["distill.py", "-m", "seed=0,1"]) != sweep_name(["distill.py", "-m", "seed=0,2"])


def test_a_job_of_a_sweep_may_not_start_processes_of_its_own() -> None:
    config = composed(*SMALL, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    with pytest.raises(ConfigurationError, match=r"trainer\.devices"):
        build_run(config, in_sweep=True)
