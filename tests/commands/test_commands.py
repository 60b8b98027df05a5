"""The three commands one after the other, and what a second call finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ast_lightning.commands.evaluate import evaluation_folder
from ast_lightning.errors import ConfigurationError
from ast_lightning.synthetic import load_distilled
from ast_lightning.trajectories import TrajectoryStore

from .conftest import SMALL, Command, Script, run_of


def distilled_folder(output: Path, *overrides: str) -> Path:
    return run_of(*SMALL, f"output_dir={output}", *overrides).distill_folder()


def results_of(output: Path, *overrides: str) -> Path:
    return evaluation_folder(run_of(*SMALL, f"output_dir={output}", *overrides)) / "results.json"


def test_trajectories_are_complete_and_a_second_call_trains_nothing(
    output: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    store = TrajectoryStore.open(run_of(*SMALL, f"output_dir={output}").experts_folder())
    assert store.experts() == [0, 1]
    times = {path: path.stat().st_mtime_ns for path in store.folder.rglob("epoch_*")}
    assert len(times) == 2 * 5
    command("train_experts", output)
    assert "expert 1 is already complete" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in store.folder.rglob("epoch_*")}
    assert not list(store.folder.rglob("resume"))


def test_one_expert_alone_equals_that_expert_of_the_family(output: Path, tmp_path: Path, command: Command) -> None:
    command("train_experts", tmp_path, "expert_index=1")
    alone = TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path}").experts_folder())
    family = TrajectoryStore.open(run_of(*SMALL, f"output_dir={output}").experts_folder())
    assert alone.experts() == [1]
    torch.testing.assert_close(alone.read_window(1, 0, 4), family.read_window(1, 0, 4), rtol=0, atol=0)


def test_distillation_writes_an_artifact_that_loads_and_says_where_it_comes_from(
    output: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = command("distill", output, "seed=0")
    folder = distilled_folder(output)
    dataset = load_distilled(folder / "synthetic" / "last")
    assert dataset.images.shape == (10, 1, 8, 8)
    assert dataset.labels.tolist() == list(range(10))
    assert dataset.metadata["iteration"] == 4
    assert dataset.metadata["accuracy"]["test/accuracy"] == pytest.approx(metrics["test_accuracy"])
    assert dataset.metadata["config"]["distill"]["syn_steps"] == 4
    assert dataset.metadata["trajectories"]["expert"]["epochs"] == 4
    average = load_distilled(folder / "synthetic" / "last" / "average")
    assert average.images.shape == dataset.images.shape
    assert not torch.equal(average.images, dataset.images)
    assert average.metadata["accuracy"] is None  # it has not been evaluated
    assert not (folder / "synthetic" / "best").exists()  # nothing was held out that could select
    assert [path.name for path in (folder / "synthetic").glob("step_*")] == ["step_000004"]
    capsys.readouterr()
    assert command("distill", output, "seed=0") == metrics
    assert "already finished" in capsys.readouterr().out


def test_more_iterations_continue_the_run_and_equal_an_uninterrupted_one(
    output: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(output / "experts", tmp_path / "experts")
    command("distill", tmp_path, "distill.max_steps=3")  # the last iteration lies between evaluations
    command("distill", tmp_path, "distill.max_steps=8")
    assert "resuming from" in capsys.readouterr().out
    continued = load_distilled(distilled_folder(tmp_path) / "synthetic" / "last")
    whole = tmp_path / "whole"
    shutil.copytree(output / "experts", whole / "experts")
    command("distill", whole, "distill.max_steps=8")
    straight = load_distilled(distilled_folder(whole) / "synthetic" / "last")
    assert continued.metadata["iteration"] == straight.metadata["iteration"] == 8
    torch.testing.assert_close(continued.images, straight.images, rtol=0, atol=0)
    assert continued.learning_rate == straight.learning_rate


def test_a_last_iteration_between_evaluations_is_evaluated(output: Path, command: Command) -> None:
    command("distill", output, "distill.max_steps=3", "seed=0", "distill.lr_img=0.50")
    folder = distilled_folder(output, "distill.lr_img=0.50")
    assert load_distilled(folder / "synthetic" / "last").metadata["iteration"] == 3
    assert json.loads((folder / "result.json").read_text())["iteration"] == 3


def test_best_exists_where_a_validation_split_selects(output: Path, tmp_path: Path, command: Command) -> None:
    held_out = ("data.validation_fraction=0.2", "num_experts=1")
    command("train_experts", tmp_path, *held_out)
    metrics = command("distill", tmp_path, *held_out)
    assert "validation_accuracy" in metrics
    best = load_distilled(distilled_folder(tmp_path, *held_out) / "synthetic" / "best")
    assert "validation/accuracy" in best.metadata["accuracy"]


def test_warm_start_goes_on_from_an_earlier_set(output: Path, command: Command) -> None:
    command("distill", output, "seed=0")
    earlier = distilled_folder(output) / "synthetic" / "last"
    # outer learning rates this small leave the images as they were
    frozen = (f"distill.warm_start={earlier}", "distill.lr_img=1e-12", "distill.lr_lr=0", "distill.max_steps=1")
    command("distill", output, *frozen)
    later = load_distilled(distilled_folder(output, *frozen) / "synthetic" / "last")
    before = load_distilled(earlier)
    torch.testing.assert_close(later.images, before.images)
    assert later.learning_rate == pytest.approx(before.learning_rate)


def test_soft_labels_through_all_commands(output: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    soft = ("distill.labels=soft", "distill.init=correct", "logger=none")
    command("distill", output, *soft, "distill.max_steps=3")
    command("distill", output, *soft)
    assert "resuming from" in capsys.readouterr().out
    folder = distilled_folder(output, *soft) / "synthetic" / "last"
    dataset = load_distilled(folder)
    assert dataset.labels.shape == (10, 10)
    assert torch.equal(load_distilled(folder / "average").labels, dataset.labels)
    metrics = command("evaluate", output, *soft, "baselines=[]")
    assert metrics.keys() == {"distilled_accuracy", "distilled_std"}
    kept = (f"distill.warm_start={folder}", "distill.labels=soft", "distill.max_steps=1", "distill.lr_labels=0")
    command("distill", output, *kept)
    later = load_distilled(distilled_folder(output, *kept) / "synthetic" / "last")
    torch.testing.assert_close(later.labels, dataset.labels)
    teacher = ("distill.labels=teacher", "distill.max_steps=2", "distill.init=real", "logger=none")
    command("distill", output, *teacher)
    assert load_distilled(distilled_folder(output, *teacher) / "synthetic" / "last").labels.shape == (10, 10)


@pytest.mark.parametrize(
    "overrides",
    [
        ("distill=mtt",),
        ("distill.init=noise", "distill.intermediate=adaptive", "distill.alpha=fixed"),
        ("distill.ipc=3", "distill.batch_syn=7", "distill.perturbation=0", "distill.balance=false"),
        ("distill.ipc=12", "distill.init=representative", "distill.augment=false", "distill.momentum=0"),
    ],
)
def test_every_component_runs_by_itself(output: Path, command: Command, overrides: tuple[str, ...]) -> None:
    fewer = ("distill.max_steps=2", "logger=none")
    metrics = command("distill", output, *fewer, *overrides)
    dataset = load_distilled(distilled_folder(output, *fewer, *overrides) / "synthetic" / "last")
    assert bool(dataset.images.isfinite().all())
    assert metrics["student_lr"] > 0
    if "distill.alpha=fixed" in overrides:
        assert metrics["student_lr"] == pytest.approx(0.01)


def test_evaluation_beside_the_baselines(output: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command("distill", output, "seed=0")
    metrics = command("evaluate", output, "seed=0")
    assert {"random_accuracy", "representative_accuracy", "distilled_accuracy", "whole_accuracy"} <= set(metrics)
    printed = capsys.readouterr().out
    assert "distilled images" in printed
    accuracies = json.loads(results_of(output).read_text())["accuracies"]
    assert len(accuracies["random"]) == 10
    assert len(set(accuracies["random"])) > 1  # a fresh draw for each network
    assert len(accuracies["distilled"]) == 2
    assert len(accuracies["whole"]) == 2


def test_evaluation_of_an_artifact_by_its_path_with_another_network(output: Path, command: Command) -> None:
    command("distill", output, "seed=0")
    artifact = distilled_folder(output) / "synthetic" / "last"
    metrics = command(
        "evaluate", output, f"synthetic={artifact}", "network.width=4", "network.normalization=batch", "baselines=[]"
    )
    assert 0 <= metrics["distilled_accuracy"] <= 100
    assert set(metrics) == {"distilled_accuracy", "distilled_std"}


def test_results_are_written_before_anything_of_them_is_printed(
    output: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("distill", output, "seed=0")
    words = ("baselines=[random]", "evaluation.epochs=3")

    def fail(*arguments: object) -> None:
        raise UnicodeEncodeError("ascii", "±", 0, 1, "ordinal not in range(128)")

    monkeypatch.setattr("ast_lightning.commands.evaluate._print_table", fail)
    with pytest.raises(UnicodeEncodeError):
        command("evaluate", output, *words)
    assert set(json.loads(results_of(output, *words).read_text())["accuracies"]) == {"random", "distilled"}


@pytest.mark.slow
def test_the_table_in_ascii(output: Path, script: Script, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command("distill", output, "seed=0")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = script("evaluate", output, "baselines=[]", "seed=0")
    assert done.returncode == 0, done.stderr
    assert "+-" in done.stdout


@pytest.mark.parametrize("baselines", ["[]", "[random]"])
def test_evaluation_without_experts(output: Path, tmp_path: Path, command: Command, baselines: str) -> None:
    command("distill", output, "seed=0")
    artifact = f"synthetic={distilled_folder(output) / 'synthetic' / 'last'}"
    assert "distilled_accuracy" in command("evaluate", tmp_path, artifact, f"baselines={baselines}")
    for name in ("representative", "whole"):
        with pytest.raises(ConfigurationError) as caught:
            command("evaluate", tmp_path, artifact, f"baselines=[random,{name}]")
        assert (caught.value.option, caught.value.value) == ("baselines", name)
        assert f"leave {name} out: baselines=[random]" in caught.value.remedy


def test_baselines_have_as_many_images_as_the_set(output: Path, command: Command) -> None:
    """Whatever distill.ipc is, which belongs to another run where ``synthetic`` names the set."""
    command("distill", output, "distill.ipc=3", "seed=0")
    artifact = f"synthetic={distilled_folder(output, 'distill.ipc=3') / 'synthetic' / 'last'}"
    words = (artifact, "baselines=[representative]")
    accuracy = command("evaluate", output, *words, "distill.ipc=3")["representative_accuracy"]
    assert command("evaluate", output, *words, "fresh=true")["representative_accuracy"] == accuracy
    with pytest.raises(ConfigurationError, match=r"^baselines=random: class .* has only 2 .* the 3 images"):
        command("evaluate", output, artifact, "baselines=[random]", "data.per_class=2")


@pytest.mark.parametrize("name", ["train_experts", "distill", "evaluate"])
def test_fast_dev_run_writes_nothing(output: Path, tmp_path: Path, command: Command, name: str) -> None:
    command("distill", output, "seed=0")
    shutil.copytree(output, tmp_path / "copy", symlinks=True)
    before = sorted(path for path in (tmp_path / "copy").rglob("*"))
    command(name, tmp_path / "copy", "trainer.fast_dev_run=true", "seed=0")
    assert before == sorted(path for path in (tmp_path / "copy").rglob("*"))


def test_loggers(output: Path, command: Command) -> None:
    command("distill", output, "logger=csv", "trainer.log_every_n_steps=1", "distill.lr_img=0.60")
    (table,) = distilled_folder(output, "distill.lr_img=0.60").rglob("metrics.csv")
    columns = table.read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/match_1", "train/match_2", "train/start_distance", "train/student_lr"} <= set(columns)
    assert {"train/start_epoch", "train/image_gradient_norm", "test/accuracy"} <= set(columns)
    command("distill", output, "logger=tensorboard", "distill.lr_img=0.70")
    assert list(distilled_folder(output, "distill.lr_img=0.70").rglob("events.out.tfevents*"))
