"""Multirun: four jobs, four folders, one table."""

from __future__ import annotations

import atexit
import csv
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from ast_lightning.errors import ConfigurationError, DistillationDiverged
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.storage.provenance import command_words, remember_command
from ast_lightning.sweeps.searches import check_multirun
from ast_lightning.sweeps.table import SweepTable, sweep_name

from .conftest import Command, Script

pytestmark = pytest.mark.slow

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def job(folder: Path, number: int = 0, *overrides: str, sweeper: str = BASIC) -> Any:
    """Hydra's configuration of one job, as far as the table looks at it."""
    return OmegaConf.create(
        {
            "output_dir": str(folder),
            "hydra": {
                "mode": "RunMode.MULTIRUN",
                "job": {"num": number, "name": "distill"},
                "overrides": {"task": list(overrides)},
                "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
                "sweeper": {"_target_": sweeper},
                "sweep": {"dir": str(folder)},
            },
            "data": {"validation_fraction": 0.2},
            "distill": {"schedule": "inverse_sqrt"},
        }
    )


def returned(value: Any) -> JobReturn:
    status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
    return JobReturn(overrides=[], status=status, _return_value=value)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[SweepTable]:
    table = SweepTable()
    table.on_multirun_start(job(tmp_path))
    yield table
    atexit.unregister(table._finish)
    remember_command([])


def test_a_sweep_ends_with_one_table(tmp_path: Path, command: Command, script: Script) -> None:
    for seed in (0, 1):
        command("train_experts", tmp_path, f"seed={seed}")
    swept = ("--multirun", "distill=ast,mtt", "seed=0,1")
    result = script("distill", tmp_path, *swept)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "distilled").glob("digits_*"))) == 4
    (table,) = (tmp_path / "sweeps").glob("*/results.csv")
    rows = rows_of(table)
    assert {(row["distill"], row["seed"]) for row in rows} == {(d, s) for d in ("ast", "mtt") for s in ("0", "1")}
    assert all(row["status"] == "completed" and 0 <= float(row["test_accuracy"]) <= 100 for row in rows)
    assert str(table) in result.stdout

    shutil.rmtree(next((tmp_path / "distilled").glob("digits_mtt_ipc1_seed1_*")))
    shutil.rmtree(next((tmp_path / "experts").glob("*_seed1_*")))
    again = script("distill", tmp_path, *swept, "hydra.sweeper.max_batch_size=3")
    assert again.returncode == 1
    assert "1 of 4 jobs did not complete\n  job 3 (distill=mtt seed=1): experts_dir=" in again.stderr
    assert "holds no trajectories" in again.stderr
    (other,) = set((tmp_path / "sweeps").glob("*/results.csv")) - {table}
    assert [row["status"] for row in rows_of(other)] == ["completed", "completed", "completed", "failed"]
    assert [row["test_accuracy"] for row in rows_of(other)] == [row["test_accuracy"] for row in rows[:3]] + [""]


def test_the_same_sweep_has_the_same_folder() -> None:
    assert sweep_name(["/a/distill.py", "-m", "seed=0,1"]) == sweep_name(["distill.py", "seed=0,1", "-m"])
    assert sweep_name(["distill.py", "-m", "seed=0,1"]) != sweep_name(["distill.py", "-m", "seed=0,2"])


def test_a_row_has_settings_results_and_the_error(tmp_path: Path, table: SweepTable) -> None:
    outcomes: list[tuple[str, Any]] = [
        ("+note='a, b=c'", {"test_accuracy": 50.0}),
        ("~trainer.profiler", {"test_accuracy": 40.0, "student_lr": 0.1}),
        ("seed=1", ConfigurationError("seed", 1, 'a "bad" one', "take another")),
        ("seed=2", KeyError("broken")),
    ]
    for number, (override, outcome) in enumerate(outcomes):
        config = job(tmp_path, number, override, "data=digits")
        table.on_job_start(config)
        result = returned(outcome)
        table.on_job_end(config, result)
        assert result.return_value is None  # Hydra goes on with the other jobs
    with pytest.raises(SystemExit) as end:
        table.on_multirun_end(job(tmp_path))
    assert end.value.code == 1
    first, second, third, fourth = rows_of(tmp_path / "results.csv")
    assert list(first) == [
        *("job", "status", "note", "data", "~trainer.profiler", "seed"),
        *("test_accuracy", "student_lr", "error"),
    ]
    assert (first["note"], first["test_accuracy"], first["student_lr"]) == ("'a, b=c'", "50.0", "")
    assert (second["status"], second["student_lr"]) == ("completed", "0.1")
    assert third["error"] == 'seed=1: a "bad" one. Remedy: take another.'
    assert fourth["status"] == "failed"
    assert fourth["error"].startswith("KeyError: 'broken'. Traceback: ")


def test_the_end_names_what_failed_by_the_settings_that_differ(
    tmp_path: Path, table: SweepTable, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, outcome in enumerate([{}, DistillationDiverged(3, "the loss is nan", "lower distill.lr_img")]):
        config = job(tmp_path, number, "data=digits", f"distill.lr_img={number}")
        table.on_job_start(config)
        table.on_job_end(config, returned(outcome))
    with pytest.raises(SystemExit):
        table.on_multirun_end(job(tmp_path))
    printed = capsys.readouterr()
    assert "settings and results of 2 jobs" in printed.out
    assert "error: 1 of 2 jobs did not complete\n  job 1 (distill.lr_img=1): distillation stopped" in printed.err
    assert "Traceback" not in printed.err


def test_a_job_whose_process_is_gone_has_failed_and_one_that_runs_has_not(tmp_path: Path, table: SweepTable) -> None:
    """What is left in the table where a process was killed, and where one outlives the process that began it."""
    other = SweepTable()
    other.folder = table.folder
    other.on_job_start(job(tmp_path, 0, "seed=0"))
    write_json(tmp_path / "jobs" / "0001.json", {**read_json(tmp_path / "jobs" / "0000.json"), "job": 1})
    with pytest.raises(SystemExit):
        table.on_multirun_end(job(tmp_path))
    running, killed = rows_of(tmp_path / "results.csv")
    assert (running["status"], running["error"]) == ("running", "it is still running")
    assert killed["status"] == "failed"
    assert "killed, or out of memory" in killed["error"]
    other.on_job_end(job(tmp_path, 0, "seed=0"), returned({"test_accuracy": 1.0}))
    assert [row["status"] for row in rows_of(tmp_path / "results.csv")] == ["completed", "failed"]


def test_a_sweep_begins_with_an_empty_table_and_jobs_tell_the_command_of_their_own(
    tmp_path: Path, table: SweepTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/distill.py", "-m", "seed=0,1"])
    write_json(tmp_path / "jobs" / "0007.json", {"job": 7})
    table.on_multirun_start(job(tmp_path))
    assert not list((tmp_path / "jobs").glob("*.json"))
    table.on_job_start(job(tmp_path, 1, "seed=1"))
    assert command_words() == ["distill.py", "seed=1"]


def test_a_single_run_has_no_table(tmp_path: Path, table: SweepTable) -> None:
    config = job(tmp_path)
    config.hydra.mode = "RunMode.RUN"
    result = returned({"test_accuracy": 1.0})
    table.on_job_start(config)
    table.on_job_end(config, result)
    assert result.return_value == {"test_accuracy": 1.0}
    assert not list(tmp_path.rglob("*.json"))


def test_a_table_that_cannot_be_written_is_no_success(
    tmp_path: Path, table: SweepTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table.on_job_end(job(tmp_path), returned({}))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ast_lightning.sweeps.table.write_bytes", full)
    with pytest.raises(SystemExit) as end:
        table.on_multirun_end(job(tmp_path))
    assert end.value.code == 1
    assert "results.csv cannot be written: [Errno 28] No space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "words"),
    [
        (
            "distill.max_steps=1,2",
            ["distill.max_steps=1,2: ", "differ only in their length are the same run", "give the largest"],
        ),
        ("distill.max_steps=range(1,9)", ["distill.max_steps=range(1,9): "]),
        (
            "evaluation.epochs=1,2",
            ["evaluation.epochs=1,2: ", "does not change the distilled images", "for evaluate.py"],
        ),
        ("distill.eval_networks=1,2", ["distill.eval_networks=1,2: ", "for evaluate.py"]),
    ],
)
def test_values_that_tell_no_distillations_apart_are_not_listed(word: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_multirun(job(Path(), 0, "seed=0,1", word))
    assert all(each in str(caught.value) for each in words)
    check_multirun(job(Path(), 0, "seed=0,1", word.split("=")[0] + "=2"))
    check_multirun(job(Path(), 0, "seed=0,1", word, sweeper=OPTUNA))
    other = job(Path(), 0, word)
    other.hydra.job.name = "evaluate"
    check_multirun(other)


@pytest.mark.parametrize("changes", [{"schedule": "cosine"}, {"outer": {"_target_": "my_package.adam"}}])
def test_lengths_are_listed_where_the_images_depend_on_them(changes: dict[str, Any]) -> None:
    sweep = job(Path(), 0, "distill.max_steps=1,2")
    sweep.distill.update(changes)
    check_multirun(sweep)


def test_a_search_is_told_the_validation_accuracy_and_its_failures(tmp_path: Path, table: SweepTable) -> None:
    config = job(tmp_path, 0, "seed=0", sweeper=OPTUNA)
    good = returned({"test_accuracy": 90.0, "validation_accuracy": 40.0})
    without = returned({"test_accuracy": 90.0})
    nan = returned({"test_accuracy": 90.0, "validation_accuracy": float("nan")})
    diverged = returned(DistillationDiverged(3, "the loss is nan", "lower distill.lr_img"))
    for result in (good, without, nan, diverged):
        table.on_job_end(config, result)
    assert good.return_value == 40.0
    assert diverged.return_value == 0.0  # the worst, of which the search can learn
    assert nan.return_value == 0.0  # of networks that diverged
    assert without.status == JobStatus.FAILED
    with pytest.raises(RuntimeError):
        _ = without.return_value
    (row,) = rows_of(tmp_path / "results.csv")
    assert "the loss is nan" in row["error"]


def test_errors_survive_the_way_between_processes() -> None:
    refused = ConfigurationError("seed", SimpleNamespace(), "bad", "mend it")
    for error in (refused, DistillationDiverged(3, "the loss is nan", "lower it")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.remedy) == (type(error), str(error), error.remedy)


def test_the_end_of_a_rejected_multirun_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SweepTable().on_multirun_end(job(tmp_path))  # as Hydra 1.4 calls it
    assert not list(tmp_path.iterdir())
