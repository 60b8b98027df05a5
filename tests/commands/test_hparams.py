"""TensorBoard's tab for hyper-parameters, read from the event files as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ast_lightning.commands.evaluate import evaluation_folder
from ast_lightning.runs.loggers import hyperparameters
from ast_lightning.storage.files import read_json
from ast_lightning.trajectories import TrajectoryStore

from .conftest import SMALL, Command, run_of


def read(folder: Path) -> tuple[dict[str, Any], set[str], EventAccumulator]:
    """Settings, names of metrics, and everything else of a run."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()

    def plugin_data(tag: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)

    start = plugin_data(metadata.SESSION_START_INFO_TAG).session_start_info
    settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    experiment = plugin_data(metadata.EXPERIMENT_TAG).experiment
    return settings, {info.name.tag for info in experiment.metric_infos}, events


def test_a_distillation_shows_its_settings_beside_its_results(output: Path, command: Command) -> None:
    words = ("distill.lr_img=0.35", "distill.balance=false")
    metrics = command("distill", output, *words)
    folder = run_of(*SMALL, f"output_dir={output}", *words).distill_folder()
    settings, tags, events = read(folder)
    assert settings["distill.lr_img"] == 0.35
    assert settings["distill.balance"] == "false"
    assert settings["distill.batch_syn"] == "null"
    assert (settings["data.name"], settings["seed"], settings["expert.epochs"]) == ("digits", 0, 4)
    assert all(isinstance(value, float | str) for value in settings.values())
    assert tags == {f"result/{name}" for name in metrics}
    for name, value in metrics.items():
        assert events.Scalars(f"result/{name}")[-1].value == pytest.approx(value)
    assert [event.step for event in events.Scalars("test/accuracy")] == [1, 3]  # the curves are as they were

    command("distill", output, *words, "distill.max_steps=6")
    longer = read(folder)[2]
    final = read_json(folder / "result.json")["metrics"]["test_accuracy"]
    assert longer.Scalars("result/test_accuracy")[-1].value == pytest.approx(final)


def test_an_expert_shows_its_own(output: Path) -> None:
    store = TrajectoryStore.open(run_of(*SMALL, f"output_dir={output}").experts_folder())
    settings, tags, events = read(store.expert_folder(1))
    assert settings["expert.gradient_penalty"] == 2
    assert not any(name.startswith("distill.") for name in settings)
    assert tags == {"result/test_accuracy", "result/movement", "result/cross_entropy"}
    accuracy = 100 * store.summary(1)["metrics"]["test/accuracy"]
    assert events.Scalars("result/test_accuracy")[-1].value == pytest.approx(accuracy)
    history = store.summary(1)["history"]
    for name in ("train/accuracy", "test/accuracy"):  # per cent is shown, the fraction stored
        assert [each.value for each in events.Scalars(name)] == pytest.approx([100 * row[name] for row in history])
    assert [each.value for each in events.Scalars("epoch")] == [0, 1, 2, 3]  # once a step


def test_an_evaluation_shows_the_protocol(output: Path, command: Command) -> None:
    command("distill", output)
    words = ("evaluation.epochs=5", "baselines=[]")
    metrics = command("evaluate", output, *words)
    settings, tags, events = read(evaluation_folder(run_of(*SMALL, f"output_dir={output}", *words)))
    assert settings["evaluation.epochs"] == 5
    assert tags == {"result/distilled_accuracy", "result/distilled_std"}
    assert events.Scalars("result/distilled_accuracy")[-1].value == pytest.approx(metrics["distilled_accuracy"])


def test_all_that_is_shown_is_a_scalar_or_a_word() -> None:
    shown = hyperparameters(run_of("experiment=ast_cifar10_ipc10").config, ("expert", "distill", "evaluation"))
    assert {type(value) for value in shown.values()} == {int, float, str}
    assert shown["network._target_"] == "ast_lightning.networks.ConvNet"
