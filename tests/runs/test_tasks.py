"""Jobs of several tasks: the processes that submitit starts are the ranks of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from ast_lightning.errors import ConfigurationError
from ast_lightning.files import read_json
from ast_lightning.runs.command import build_run
from ast_lightning.runs.tasks import is_first_task, join_tasks, tasks_of_job
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.synthetic import load_distilled

from .conftest import SMALL, Script, composed, run_of
from .test_devices import TWO
from .test_sweep import rows_of

RANKS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def pretend(monkeypatch: pytest.MonkeyPatch, tasks: int, rank: int = 0, executor: str = "local") -> None:
    """The environment that submitit gives a task."""
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # a Trainer sets it, for all that this process does later
    for name in RANKS:
        monkeypatch.setenv(name, "")  # so that it is as before after the test, whatever the test sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    local = executor == "local"
    given = {"JOB_ID": 4711, "NTASKS": tasks, "NTASKS_PER_NODE": tasks}
    given |= {"GLOBALID" if local else "PROCID": rank, "LOCALID": rank, "NODEID": 0}
    for name, value in given.items():
        monkeypatch.setenv(f"{'SUBMITIT_LOCAL' if local else 'SLURM'}_{name}", str(value))


@pytest.mark.parametrize("word", ["trainer=ddp", "trainer=cpu"])
def test_a_job_may_not_start_processes_of_its_own(word: str) -> None:
    config = composed(*SMALL, word, "trainer.accelerator=cpu", "trainer.devices=2")
    with pytest.raises(ConfigurationError, match=r"trainer\.devices=2: .*hydra\.launcher\.tasks_per_node=2"):
        build_run(config, in_sweep=True)


def test_a_job_has_a_task_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    assert build_run(composed(*SMALL, *TWO), in_sweep=True).in_sweep
    with pytest.raises(ConfigurationError, match=r"trainer\.devices=1: the launcher gives each job 2 tasks"):
        build_run(composed(*SMALL), in_sweep=True)


def test_tasks_know_their_ranks_before_lightning_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (tasks_of_job(), is_first_task()) == (1, True)
    join_tasks()
    assert "LOCAL_RANK" not in os.environ
    pretend(monkeypatch, 3, rank=2)
    join_tasks()
    assert (tasks_of_job(), is_first_task()) == (3, False)
    ranks = {name: os.environ[name] for name in RANKS if name != "MASTER_PORT"}
    assert list(ranks.values()) == ["127.0.0.1", "2", "3", "2", "3"]


def test_one_task_is_an_ordinary_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1)
    join_tasks()
    assert "LOCAL_RANK" not in os.environ


def test_under_slurm_submitit_requeues_and_lightning_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2, rank=1, executor="slurm")
    assert (tasks_of_job(), is_first_task()) == (2, False)
    join_tasks()
    assert "LOCAL_RANK" not in os.environ  # SLURM's own variables say it
    pretend(monkeypatch, 2, executor="slurm")
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False}
    trainer = build_trainer(options, tmp_path, callbacks=[])
    used = trainer.strategy.cluster_environment
    assert isinstance(used, SLURMEnvironment)
    assert (used.auto_requeue, used.creates_processes_externally) == (False, True)


@pytest.mark.slow
def test_the_jobs_of_a_sweep_distil_on_two_devices(output: Path, script: Script) -> None:
    words = ("distill.lr_img=30", *TWO)
    launched = ("--multirun", *words, "launch=submitit_local", "hydra.launcher.tasks_per_node=2")
    result = script("distill", output, *launched)
    assert result.returncode == 0, result.stderr
    folder = run_of(*SMALL, f"output_dir={output}", *words).distill_folder()
    assert load_distilled(folder / "synthetic" / "last").metadata["iteration"] == 4
    assert read_json(folder / "machine.json")["threads"] == 1
    (row,) = [row for table in (output / "sweeps").glob("*/results.csv") for row in rows_of(table)]
    assert (row["status"], row["trainer.devices"]) == ("completed", "2")
    assert float(row["test_accuracy"]) == read_json(folder / "result.json")["metrics"]["test_accuracy"]
