"""What evaluate.py reuses, what it measures anew, and what it says of networks that diverged."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ast_lightning.commands import measurement, scores
from ast_lightning.commands.distill import distill
from ast_lightning.commands.evaluate import evaluate, evaluation_folder
from ast_lightning.data import digits
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation.baselines import LEARNING_RATES
from ast_lightning.storage.checksums import unseal
from ast_lightning.storage.files import read_json
from ast_lightning.synthetic import load_distilled

from .conftest import SMALL, Command, run_of
from .test_commands import distilled_folder
from .test_resuming import with_experts

RANDOM = "baselines=[random]"


@pytest.fixture
def folder(output: Path, tmp_path: Path, command: Command) -> Path:
    """An output folder with experts and a distilled dataset."""
    folder = with_experts(output, tmp_path)
    command("distill", folder, "distill.max_steps=2")
    return folder


def record_of(folder: Path, *overrides: str) -> dict[str, Any]:
    return unseal(read_json(evaluation_folder(run_of(*SMALL, f"output_dir={folder}", *overrides)) / "results.json"))


def test_the_learning_rate_of_a_baseline_is_the_best_on_held_out_training_images(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tested, test = [], measurement._test

    def spy(run: Any, title: str, settings: Any, sets: Any, real: Any, purpose: str) -> Any:
        tested.append((title, {sets(index).learning_rate for index in range(settings.networks)}, real))
        return test(run, title, settings, sets, real, purpose)

    monkeypatch.setattr(measurement, "_test", spy)
    command("evaluate", folder, "baselines=[random,representative]", "evaluation.epochs=30")
    record, printed = record_of(folder, "evaluation.epochs=30"), capsys.readouterr().out
    for name in ("random", "representative"):
        rates = {float(rate): accuracy for rate, accuracy in record["learning_rates"][name].items()}
        assert tuple(rates) == LEARNING_RATES
        best = max(rates, key=lambda rate: rates[rate])
        assert f"learning rate {best:g} for {name} real images" in printed
        (_, compared, held_out), (_, used, real) = (each for each in tested if each[0].startswith(name))
        assert compared == set(LEARNING_RATES)
        assert used == {best}
        assert len(held_out) == 200 - 10  # data.per_class=20: all training images but those of the subset
        assert len(real) == 500
    assert record["learning_rates"]["distilled"] == {}


@pytest.mark.parametrize("word", ["evaluation.baseline_lr=same", "evaluation.lr=0.02"])
def test_a_given_learning_rate_is_not_searched(folder: Path, command: Command, word: str) -> None:
    command("evaluate", folder, RANDOM, word)
    assert record_of(folder, word)["learning_rates"] == {"random": {}, "distilled": {}}


def test_the_images_of_an_unfinished_run_are_named(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("evaluate", folder, "baselines=[]", "distill.max_steps=2")
    assert "note: these images" not in capsys.readouterr().out
    command("evaluate", folder, "baselines=[]", "distill.max_steps=40")
    assert "note: these images are from iteration 2 of 40; rerun distill.py" in capsys.readouterr().out


def test_a_run_without_an_evaluation_is_to_be_resumed(folder: Path, tmp_path: Path, command: Command) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.rmtree(distilled_folder(other) / "synthetic")
    with pytest.raises(
        ConfigurationError, match=r"synthetic=.*before its first evaluation.*rerun distill\.py to resume"
    ):
        command("evaluate", other)


@pytest.mark.slow
def test_scores_of_unchanged_inputs_are_reused_and_kept(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(*overrides: str) -> tuple[list[str], dict[str, float]]:
        """What networks were trained on, and the metrics."""
        capsys.readouterr()
        metrics = command("evaluate", folder, *overrides)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training ")]
        return [line.partition(" epochs on ")[2].partition(" ")[0] for line in lines], metrics

    names, first = trained()
    assert names == ["random", "representative", "distilled"]
    assert trained() == ([], first)
    assert trained("baselines=[]")[0] == []
    assert record_of(folder)["metrics"] == first  # a call without baselines loses none
    assert trained("fresh=true") == (names, first)
    assert trained("distill.init_clusters=3", f"synthetic={distilled_folder(folder) / 'synthetic' / 'last'}")[0] == [
        "representative"
    ]
    command("distill", folder, "distill.max_steps=4")  # other images in the same place
    before = record_of(folder)
    assert trained("baselines=[]")[0] == ["distilled"]
    now = record_of(folder)
    assert now["set"]["iteration"] == 4
    assert now["accuracies"]["random"] == before["accuracies"]["random"]
    aside = evaluation_folder(run_of(*SMALL, f"output_dir={folder}")) / "earlier"
    assert before["accuracies"] in [unseal(read_json(path))["accuracies"] for path in aside.glob("results.json_*")]


def test_a_changed_digit_is_no_result(folder: Path, command: Command) -> None:
    metrics = command("evaluate", folder, RANDOM)
    path = evaluation_folder(run_of(*SMALL, f"output_dir={folder}")) / "results.json"
    changed = re.sub(r'("distilled_accuracy": )\d', r"\g<1>7", path.read_text())
    path.write_text(changed)
    assert command("evaluate", folder, RANDOM) == metrics
    assert record_of(folder)["metrics"] == metrics
    assert (path.parent / "earlier" / "results.json_1").read_text() == changed


def test_an_interrupted_evaluation_keeps_what_it_has_measured(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = scores.train

    def interrupted(run: Any, name: str, sets: Any) -> Any:
        if name == "distilled":
            raise KeyboardInterrupt
        return train(run, name, sets)

    with monkeypatch.context() as patched:
        patched.setattr(scores, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command("evaluate", folder, RANDOM)
    assert list(record_of(folder)["accuracies"]) == ["random"]
    capsys.readouterr()
    command("evaluate", folder, RANDOM)
    assert "on random real images" not in capsys.readouterr().out
    assert set(record_of(folder)["accuracies"]) == {"random", "distilled"}


def test_networks_that_diverged_are_counted_and_have_no_accuracy(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = command("evaluate", folder, RANDOM, "evaluation.lr=1e6")
    assert all(math.isnan(value) for value in metrics.values())
    printed = capsys.readouterr().out
    assert "10 of 10 networks diverged" in printed
    assert "2 of 2 networks diverged" in printed
    assert "lower evaluation.lr=1e+06" in printed
    assert "±" not in printed
    record = record_of(folder, "evaluation.lr=1e6")
    assert record["accuracies"]["distilled"] == [None, None]
    assert record["metrics"]["random_accuracy"] is None
    assert all(math.isnan(value) for value in command("evaluate", folder, RANDOM, "evaluation.lr=1e6").values())
    assert "already finished" in capsys.readouterr().out


def test_an_evaluation_while_distilling_says_so_too(
    output: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_experts(output, tmp_path)
    words = ("distill.max_steps=2", "evaluation.lr=1e6")
    for said in ("2 of 2 networks diverged", "already finished"):
        assert math.isnan(command("distill", folder, *words)["test_accuracy"])
        printed = capsys.readouterr().out
        assert said in printed
        assert "test accuracy of the last images: none" in printed
    last = distilled_folder(folder) / "synthetic" / "last"
    assert load_distilled(last).metadata["accuracy"]["test/accuracy"] is None
    json.loads((last / "dataset.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_set_brings_its_preprocessing(folder: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"synthetic={run_of(*SMALL, f'output_dir={folder}').synthetic_folder()}", "baselines=[]"
    plain = command("evaluate", folder, *words)
    assert "has no effect" not in capsys.readouterr().out
    assert command("evaluate", folder, *words, "data.preprocessing=none") == plain
    assert "by standardize: data.preprocessing=none has no effect" in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("experts_dir",)])
def test_fewer_baselines_are_the_remedy_for_a_network_without_experts(
    folder: Path, command: Command, words: tuple[str, ...]
) -> None:
    run = run_of(*SMALL, f"output_dir={folder}")
    given = [f"experts_dir={run.experts_folder()}" for _ in words]
    with pytest.raises(ConfigurationError) as caught:
        command("evaluate", folder, f"synthetic={run.synthetic_folder()}", "network.width=4", *given)
    assert (caught.value.option, caught.value.value) == ("baselines", "representative,whole")
    assert "baselines=[random]" in caught.value.remedy
    assert "distilled_accuracy" in command(
        "evaluate", folder, f"synthetic={run.synthetic_folder()}", "network.width=4", *given, RANDOM
    )


@pytest.mark.parametrize("below", ["", "synthetic"])
def test_the_folder_of_a_run_leads_to_its_dataset(folder: Path, command: Command, below: str) -> None:
    place = distilled_folder(folder)
    with pytest.raises(ConfigurationError) as caught:
        command("evaluate", folder, f"synthetic={place / below}")
    assert f"synthetic={place / 'synthetic' / 'last'}" in caught.value.remedy


def test_a_test_split_that_was_held_out_otherwise_is_named(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = digits()
    np.savez(tmp_path / "mine.npz", train_images=raw.train.images[:400], train_labels=raw.train.labels[:400])
    words = ("data=arrays", f"data.root={tmp_path / 'mine.npz'}", "data.per_class=null", "distill.init=noise")
    for name in ("train_experts", "distill"):
        command(name, tmp_path, *words)
    given = f"synthetic={run_of(*SMALL, f'output_dir={tmp_path}', *words).synthetic_folder()}"
    for fraction, warned in (("0.2", False), ("0.5", True)):
        command("evaluate", tmp_path, *words, "baselines=[]", given, f"data.test_fraction={fraction}")
        assert ("data.test_fraction=null (here 0.5)" in capsys.readouterr().out) == warned


def test_a_last_batch_of_one_image_is_named_before_any_work(folder: Path, command: Command) -> None:
    given = f"synthetic={run_of(*SMALL, f'output_dir={folder}').synthetic_folder()}"
    own = ("data=digits", "network=custom", "network._target_=tests.networks.own.NormalizedLogits", "trainer=cpu")
    words = (*own, f"output_dir={folder}", "evaluation.batch_size=9")
    with pytest.raises(ConfigurationError, match=r"evaluation\.batch_size=9: of 10 images, .*one.*another size"):
        evaluate(run_of(*words, given))
    rows = "architectures=[{_target_: tests.networks.own.NormalizedLogits}]"
    with pytest.raises(ConfigurationError, match=r"architectures=.*leave .* out.*another evaluation\.batch_size"):
        evaluate(run_of(*words, given, rows, "baselines=[]"))
    with pytest.raises(ConfigurationError, match=r"evaluation\.batch_size=9: of 10 images, .*one.*another size"):
        distill(run_of(*words, "method=dm", "distill.max_steps=2"))


@pytest.mark.parametrize("network", ["OneMore", "Pair", "Fails", "CannotBeBuilt"])
def test_a_network_that_cannot_be_evaluated_is_named_before_any_is_trained(
    folder: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"synthetic={run_of(*SMALL, f'output_dir={folder}').synthetic_folder()}"
    own = ("data=digits", "network=custom", f"network._target_=tests.networks.own.{network}")
    with pytest.raises(ConfigurationError, match=r"^network=|^network\._target_="):
        evaluate(run_of(*own, given, f"output_dir={folder}", "trainer=cpu"))
    assert "training" not in capsys.readouterr().out
