"""Jobs in processes that a launcher starts: the same folders, the same table, and failures that are theirs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import open_dict

from ast_lightning.storage.files import read_json
from ast_lightning.trajectories import TrajectoryStore

from .conftest import ROOT, SMALL, Script, run_of
from .test_sweep import rows_of

pytestmark = pytest.mark.slow


def test_experts_from_jobs_that_share_a_store(tmp_path: Path, script: Script) -> None:
    folder = f"'{tmp_path}/a b, c=d'"  # Hydra's quotes
    words = ("--multirun", "hydra/launcher=joblib", f"output_dir={folder}", "expert_index=0,1", "trainer.devices=2,1")
    result = script("train_experts", tmp_path, *words)
    assert result.returncode == 1
    assert "2 of 4 jobs did not complete\n  job 0 (expert_index=0 trainer.devices=2): trainer.dev" in result.stderr

    (table,) = tmp_path.rglob("results.csv")
    assert table.parent.parent == tmp_path / "a b, c=d" / "sweeps"
    rows = rows_of(table)
    assert [(row["expert_index"], row["trainer.devices"], row["status"]) for row in rows] == [
        *(("0", "2", "failed"), ("0", "1", "completed"), ("1", "2", "failed"), ("1", "1", "completed")),
    ]
    assert "a job cannot start others" in rows[0]["error"]
    assert all(0 < float(row["test_accuracy"]) <= 100 for row in rows[1::2])

    store = TrajectoryStore.open(run_of(*SMALL, f"output_dir={folder}").experts_folder())
    assert store.experts() == [0, 1]
    check_command(store, "expert_index=0", "expert_index=1")
    written = {path: path.stat().st_mtime_ns for path in store.folder.rglob("epoch_*")}

    again = script("train_experts", tmp_path, *words)
    assert again.returncode == 1
    assert rows_of(table) == rows
    assert written == {path: path.stat().st_mtime_ns for path in store.folder.rglob("epoch_*")}


def check_command(store: TrajectoryStore, *words: str) -> None:
    """The store names the words that make it again: those of one job, without the sweep."""
    command = read_json(store.folder / "store.json")["command"]
    assert command[0] == "train_experts.py"
    assert set(words) & set(command)
    assert "--multirun" not in command


KILLER = """
import os, pathlib, time
from ast_lightning.errors import ConfigurationError

class Refuser:
    def __init__(self, **_):
        raise ConfigurationError("network", "Refuser", "it refuses", "take another")

class Killer:
    def __init__(self, **_):
        (jobs,) = pathlib.Path(os.environ["SWEEPS"]).glob("*/jobs")
        others = [jobs / "0000.json", jobs / "0001.json"]
        for _ in range(1000):  # they may begin after this one, and joblib ends all jobs where one is killed
            if all(each.exists() and '"running"' not in each.read_text() for each in others):
                break
            time.sleep(0.1)
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_job_that_is_killed_is_a_failed_row(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SWEEPS", str(tmp_path / "sweeps"))
    words = ["expert_index=0", "network._target_=ast_lightning.networks.ConvNet,killer.Refuser,killer.Killer"]
    words += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []  # one job at a time runs in the parent
    result = script("train_experts", tmp_path, "--multirun", f"launch={launcher}", *words)
    assert result.returncode == 1
    (table,) = tmp_path.rglob("results.csv")
    completed, refused, killed = rows_of(table)
    assert [row["status"] for row in (completed, refused, killed)] == ["completed", "failed", "failed"]
    assert 0 < float(completed["test_accuracy"]) <= 100
    assert "it refuses" in refused["error"]
    assert "killed, or out of memory" in killed["error"]
    assert "2 of 3 jobs did not complete\n  job 1 (network._target_=killer.Refuser): network=Refuser" in result.stderr
    assert "\n  job 2 (network._target_=killer.Killer): it was ended" in result.stderr
    check_command(TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path}").experts_folder()), "expert_index=0")


def test_slurm_is_asked_for_what_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    (tmp_path / "srun").write_text("#!/bin/sh\n")  # submitit looks for it, and this test goes no further
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    asked: list[str] = []

    def record(executor: Any, function: Any, *arguments: Any) -> list[Any]:
        asked.append(executor._executor._make_submission_file_text("command", "name"))
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", record)
    words = ("launch=submitit_slurm", f"output_dir={tmp_path}", "hydra.launcher.partition=gpu")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[*words, "hydra.launcher.tasks_per_node=4"], return_hydra_config=True)
    with open_dict(config):
        config.hydra.job.name = "distill"
    HydraConfig.instance().set_config(config)
    launcher = instantiate(config.hydra.launcher)
    launcher.setup(hydra_context=None, task_function=None, config=config)
    launcher.launch([["seed=0"]], initial_job_idx=0)
    (text,) = asked
    for line in ("--partition=gpu", "--ntasks-per-node=4", "--gpus-per-node=1", "--time=240", "--signal=USR2@120"):
        assert f"#SBATCH {line}\n" in text
    assert "export SUBMITIT_EXECUTOR=slurm" in text  # which tells the jobs how many tasks they have
