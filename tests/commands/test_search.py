"""Searches: steered by what is held out of the training data, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from ast_lightning.errors import ConfigurationError
from ast_lightning.sweeps.searches import OBJECTIVE, WORST, check_multirun, is_search, objective

from .conftest import ROOT, Command, Script
from .test_sweep import rows_of

pytestmark = pytest.mark.slow

HELD_OUT = "data.validation_fraction=0.2"


def check(script: str, *overrides: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(config):
        config.hydra.job.name = script
    check_multirun(config)
    assert is_search(config)


def test_a_trial_whose_networks_diverged_is_the_worst() -> None:
    assert objective({OBJECTIVE: 12.5}) == 12.5
    assert objective({OBJECTIVE: float("nan")}) == WORST
    with pytest.raises(ConfigurationError, match="validation_fraction"):
        objective({"test_accuracy": 12.5})


def test_the_example_is_a_search_of_ten_trials_over_two_parameters() -> None:
    check("distill", "experiment=digits_search")
    check("distill", "search=optuna", HELD_OUT)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        sweeper = compose("config", overrides=["experiment=digits_search"], return_hydra_config=True).hydra.sweeper
    assert (sweeper.n_trials, sweeper.direction, len(sweeper.params)) == (10, "maximize", 2)
    assert sweeper.sampler.n_startup_trials < sweeper.n_trials  # it does search


@pytest.mark.parametrize(
    ("script", "overrides", "message"),
    [
        ("distill", ("search=optuna",), r"data\.validation_fraction=0\.0: .*test set.*Remedy: set data\.validation_"),
        ("distill", ("experiment=digits_search", "data.validation_fraction=0"), r"data\.validation_fraction=0\.0: "),
        ("distill", ("hydra/sweeper=optuna", HELD_OUT), r"hydra\.sweeper\.direction=minimize: "),
        (
            "train_experts",
            ("experiment=digits_search",),
            r"hydra/sweeper=optuna: train_experts\.py evaluates on the test",
        ),
        ("evaluate", ("experiment=digits_search",), r"hydra/sweeper=optuna: evaluate\.py evaluates on"),
    ],
)
def test_a_search_that_the_test_set_would_steer_is_refused(
    script: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check(script, *overrides)


def test_the_refusal_comes_before_any_work(tmp_path: Path, script: Script) -> None:
    result = script("distill", tmp_path, "--multirun", "search=optuna", "distill.lr_img=interval(0.1,1)")
    assert result.returncode == 2
    assert result.stderr.startswith("error: data.validation_fraction=0.0: ")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_search_maximises_validation_accuracy_and_outlives_failures(
    tmp_path: Path, command: Command, script: Script
) -> None:
    command("train_experts", tmp_path, HELD_OUT)
    words = (
        *("--multirun", "search=optuna", HELD_OUT, "hydra.sweeper.n_trials=4"),
        *("distill.lr_img=tag(log, interval(0.1, 1))", "distill.expert_epochs=choice(2, 9)"),
    )
    result = script("distill", tmp_path, *words)
    assert result.returncode == 1
    (table,) = (tmp_path / "sweeps").glob("*/results.csv")
    rows = rows_of(table)
    failed = [row for row in rows if row["distill.expert_epochs"] == "9"]
    assert 0 < len(failed) < len(rows) == 4
    for row in failed:
        assert row["status"] == "failed"
        assert f"job {row['job']} (distill.lr_img={row['distill.lr_img']} distill.expert_epochs=9): " in result.stderr
        assert row["error"] in result.stderr
    completed = [row for row in rows if row not in failed]
    assert all(row["status"] == "completed" and row["test_accuracy"] for row in completed)
    best = yaml.safe_load((table.parent / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(float(row["validation_accuracy"]) for row in completed)

    again = script("distill", tmp_path, *words)
    assert again.stdout.count("already finished") == len(completed)
    assert rows_of(table) == rows
