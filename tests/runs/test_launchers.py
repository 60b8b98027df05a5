"""Jobs in processes that a launcher starts: the same folders, the same table, and failures that are theirs alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_lightning.files import read_json
from ast_lightning.trajectories import TrajectoryStore

from .conftest import SMALL, Script, run_of
from .test_sweep import rows_of


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["hydra/launcher=joblib", "launch=submitit_local"])
def test_experts_from_jobs_that_share_a_store(tmp_path: Path, script: Script, launcher: str) -> None:
    folder = f"'{tmp_path}/a b, c=d'"  # Hydra's quotes
    words = ("--multirun", launcher, f"output_dir={folder}", "expert_index=-1,0,1")
    result = script("train_experts", tmp_path, *words)
    assert result.returncode == 1
    assert "1 of 3 jobs did not complete\n  job 0 (expert_index=-1): expert_index=-1: " in result.stderr

    (table,) = tmp_path.rglob("results.csv")
    assert table.parent.parent == tmp_path / "a b, c=d" / "sweeps"
    rows = rows_of(table)
    assert [(row["expert_index"], row["status"]) for row in rows] == [
        *(("-1", "failed"), ("0", "completed"), ("1", "completed")),
    ]
    assert "experts are counted from 0" in rows[0]["error"]
    assert all(0 < float(row["test_accuracy"]) <= 100 for row in rows[1:])

    store = TrajectoryStore.open(run_of(*SMALL, f"output_dir={folder}").experts_folder())
    assert store.experts() == [0, 1]
    command = read_json(store.folder / "store.json")["command"]
    assert command[0] == "train_experts.py"
    assert {"expert_index=0", "expert_index=1"} & set(command)  # the words that make this one again, without the sweep
    assert "--multirun" not in command
    written = {path: path.stat().st_mtime_ns for path in store.folder.rglob("epoch_*")}

    again = script("train_experts", tmp_path, *words)
    assert again.returncode == 1
    assert rows_of(table) == rows
    assert written == {path: path.stat().st_mtime_ns for path in store.folder.rglob("epoch_*")}
