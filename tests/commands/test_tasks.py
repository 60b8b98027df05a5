"""Jobs of several tasks: the processes that submitit starts are the ranks of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from ast_lightning.callbacks import RunProgress
from ast_lightning.commands.app import build_run, execute
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.errors import ConfigurationError
from ast_lightning.runs.trainer import build_trainer
from ast_lightning.storage.files import read_json
from ast_lightning.sweeps.tasks import join_tasks, number_of_task, tasks_of_job
from ast_lightning.synthetic import load_distilled
from ast_lightning.trajectories import TrajectoryStore

from .conftest import SMALL, Script, composed, run_of
from .test_devices import TWO
from .test_sweep import rows_of

pytestmark = pytest.mark.slow

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
    with pytest.raises(ConfigurationError, match=r"trainer\.devices=1: .*tasks=2"):
        build_run(composed(*SMALL), in_sweep=True)


def test_tasks_know_their_ranks_before_lightning_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (tasks_of_job(), number_of_task()) == (1, 0)
    join_tasks()
    assert "LOCAL_RANK" not in os.environ
    pretend(monkeypatch, 3, rank=2)
    join_tasks()
    assert (tasks_of_job(), number_of_task()) == (3, 2)
    ranks = {name: os.environ[name] for name in RANKS if name != "MASTER_PORT"}
    assert list(ranks.values()) == ["127.0.0.1", "2", "3", "2", "3"]


def test_one_task_is_an_ordinary_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1)
    join_tasks()
    assert "LOCAL_RANK" not in os.environ


def test_under_slurm_submitit_requeues_and_lightning_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2, rank=1, executor="slurm")
    assert (tasks_of_job(), number_of_task()) == (2, 1)
    join_tasks()
    assert "LOCAL_RANK" not in os.environ  # SLURM's own variables say it
    pretend(monkeypatch, 2, executor="slurm")
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False}
    trainer = build_trainer(options, tmp_path, callbacks=[], progress=RunProgress("test"))
    used = trainer.strategy.cluster_environment
    assert isinstance(used, SLURMEnvironment)
    assert (used.auto_requeue, used.creates_processes_externally) == (False, True)


def as_task_of_slurm(monkeypatch: pytest.MonkeyPatch, tasks: int, rank: int = 0) -> None:
    pretend(monkeypatch, tasks, rank, executor="slurm")
    monkeypatch.delenv("SUBMITIT_EXECUTOR")


MISSING = r"^trainer\.devices=2: 2 processes are expected \(trainer\.num_nodes=1\), but there are 1.*trainer=slurm"


def test_processes_that_are_not_there_are_not_counted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of one task with two devices: Lightning would take it for the whole of the run."""
    as_task_of_slurm(monkeypatch, 1)
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False}
    with pytest.raises(ConfigurationError, match=MISSING):
        build_trainer(options, tmp_path, callbacks=[], progress=RunProgress("test"))


def test_a_task_with_one_device_is_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one of ``srun``'s many that train experts into one store: its locks are what keeps them apart."""
    as_task_of_slurm(monkeypatch, 2, rank=1)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    words = (*SMALL, f"output_dir={tmp_path}", "num_experts=1")
    assert execute(train_experts, composed(*words))["test_accuracy"] > 0
    store = TrajectoryStore.open(run_of(*words).experts_folder())
    assert store.experts() == [0]
    assert "1 expert: test accuracy" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        execute(train_experts, composed(*words, "tf32=some"))
    assert "error: tf32=some" in capsys.readouterr().err


def test_torchrun_without_its_trainer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match=r"^trainer\.devices=1: torchrun has started 2 .*trainer=torchrun"):
        build_run(composed(*SMALL))
    for name, value in (("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    assert not build_run(composed(*SMALL, "trainer=torchrun", "trainer.accelerator=cpu")).is_alone


def test_the_jobs_of_a_sweep_distil_on_two_devices(output: Path, script: Script) -> None:
    words = ("distill.lr_img=0.30", *TWO)
    launched = ("--multirun", *words, "launch=submitit_local", "hydra.launcher.tasks_per_node=2")
    result = script("distill", output, *launched)
    assert result.returncode == 0, result.stderr
    folder = run_of(*SMALL, f"output_dir={output}", *words).distill_folder()
    assert load_distilled(folder / "synthetic" / "last").metadata["iteration"] == 4
    assert read_json(folder / "machine.json")["threads"] == int(os.environ.get("OMP_NUM_THREADS", "1"))
    (row,) = [row for table in (output / "sweeps").glob("*/results.csv") for row in rows_of(table)]
    assert (row["status"], row["trainer.devices"]) == ("completed", "2")
    assert float(row["test_accuracy"]) == read_json(folder / "result.json")["metrics"]["test_accuracy"]
