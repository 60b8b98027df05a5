"""Options that follow from others where nobody gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from ast_lightning.config.check import checked
from ast_lightning.config.distill import DistributionMatchingSettings
from ast_lightning.config.evaluation import EvaluationSettings
from ast_lightning.config.identity import distill_identity
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings

CONF = str(Path(__file__).parents[2] / "conf")


def of(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(CONF, version_base="1.3"):
        return checked(compose("config", overrides=["data=digits", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # a quarter of the trajectory at one image per class, half of it at ten, 67 % at fifty
        (["expert.epochs=10", "expert.lr=0.01"], (20, 2, 3, 0.01, 600)),
        (["expert.epochs=10", "expert.lr=0.01", "distill.ipc=10"], (20, 2, 5, 0.02, 300)),
        (["expert.epochs=50", "distill.ipc=50"], (20, 2, 34, 0.00809691, 741)),
        # what is given is left alone, and the rest follows from it
        (["expert.epochs=10", "distill.expert_epochs=9", "distill.syn_steps=30"], (30, 9, 2, 0.003, 1000)),
        (["expert.epochs=40", "distill.expert_epochs=30"], (30, 30, 10, 0.003, 1000)),
        (["distill.lr_teacher=0.005", "evaluation.epochs=7", "distill.max_start_epoch=4"], (20, 2, 4, 0.005, 7)),
        # short and sparse trajectories
        (["expert.epochs=1", "expert.lr=1"], (20, 1, 1, 1.0, 300)),
        (["expert.epochs=1", "expert.lr=1e-30"], (20, 1, 1, 1e-30, 1000)),
        (["expert.epochs=20", "expert.every_n_epochs=4", "expert.max_epoch=9"], (20, 4, 5, 0.003, 1000)),
    ],
)
def test_rules(overrides: list[str], expected: tuple[float, ...]) -> None:
    config = of(*overrides)
    distill = config["distill"]
    found = (distill["syn_steps"], distill["expert_epochs"], distill["max_start_epoch"], distill["lr_teacher"])
    assert (*found, config["evaluation"]["epochs"]) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("normalized", "inverse_sqrt", 0.2, "log", 0.001)),
        (["distill.ipc=10"], ("normalized", "inverse_sqrt", 0.035566, "log", 0.001)),
        (["distill.schedule=constant"], ("normalized", "constant", 0.1, "log", 0.001)),
        (["distill.schedule=cosine", "distill.ipc=4"], ("normalized", "cosine", 0.035355, "log", 0.001)),
        (["distill.outer=sgd"], ("sgd", "constant", 1000.0, "raw", 1e-5)),
        (["distill.outer=sgd", "distill.schedule=inverse_sqrt"], ("sgd", "inverse_sqrt", 1000.0, "raw", 1e-5)),
        (["distill.alpha=raw"], ("normalized", "inverse_sqrt", 0.2, "raw", 1e-5)),
        (["distill.alpha=fixed", "distill.lr_img=0.3"], ("normalized", "inverse_sqrt", 0.3, "fixed", 1e-5)),
        (["method=mtt"], ("normalized", "inverse_sqrt", 0.2, "log", 0.001)),
    ],
)
def test_rates_and_schedule_follow_the_outer_step(overrides: list[str], expected: tuple[object, ...]) -> None:
    distill = of(*overrides)["distill"]
    assert tuple(distill[name] for name in ("outer", "schedule", "lr_img", "alpha", "lr_lr")) == expected


def test_derived_options_are_recorded_and_no_others() -> None:
    config = of("expert.epochs=10", "distill.syn_steps=25", "evaluation.epochs=5")
    assert "distill.syn_steps" not in config["derived"]
    assert "evaluation.epochs" not in config["derived"]
    assert config["derived"]["distill.max_start_epoch"] == config["distill"]["max_start_epoch"] == 3


def test_a_derived_value_and_the_same_one_given_are_the_same_run() -> None:
    base = ["expert.epochs=10", "expert.lr=0.01"]
    given = ["distill.max_start_epoch=3", "distill.lr_teacher=0.01", "distill.lr_img=0.2", "distill.alpha=log"]
    assert distill_identity(of(*base)) == distill_identity(of(*base, *given))


def test_named_experts_count_with_their_own_length(tmp_path: Path) -> None:
    store = {"epochs": 30, "expert": {"lr": 0.02, "every_n_epochs": 3, "max_epoch": None}}
    (tmp_path / "store.json").write_text(json.dumps(store))
    distill = of(f"experts_dir={tmp_path}", "expert.epochs=5")["distill"]
    assert (distill["expert_epochs"], distill["max_start_epoch"], distill["lr_teacher"]) == (3, 8, 0.02)
    for damaged in ("[]", "[" * 100_000):
        (tmp_path / "store.json").write_text(damaged)
        assert of(f"experts_dir={tmp_path}", "expert.epochs=10")["distill"]["max_start_epoch"] == 3


def test_settings_that_are_made_in_python_are_complete() -> None:
    settings = TrajectoryMatchingSettings(ipc=3)
    assert (settings.syn_steps, settings.expert_epochs, settings.max_start_epoch) == (20, 2, 20)
    assert (settings.lr_img, settings.lr_lr, settings.alpha, settings.lr_teacher) == (0.087738, 0.001, "log", 0.01)
    published = TrajectoryMatchingSettings(outer="sgd")
    assert (published.lr_img, published.lr_lr, published.alpha) == (1000.0, 1e-5, "raw")
    assert DistributionMatchingSettings().lr_img == 1.0
    assert EvaluationSettings().epochs == 1000


def test_a_rate_of_plain_sgd_is_rejected_for_the_normalised_step() -> None:
    from ast_lightning.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match=r"distill\.lr_img=1000.*standard deviations.*distill\.outer=sgd"):
        of("distill.lr_img=1000")


def test_a_schedule_that_ends_makes_the_length_part_of_the_run() -> None:
    def ids(*words: str) -> list[dict[str, Any]]:
        return [distill_identity(of(*words, f"distill.max_steps={steps}")) for steps in (10, 20)]

    default, constant, cosine = ids(), ids("distill.schedule=constant"), ids("distill.schedule=cosine")
    assert default[0] == default[1] != constant[0] == constant[1]
    assert cosine[0] != cosine[1]
