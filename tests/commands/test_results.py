"""What a distillation was made from: a result and a state count for that alone, and for the images that are there."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ast_lightning.commands.distill import distill
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import unseal
from ast_lightning.storage.files import read_json
from ast_lightning.synthetic import load_distilled

from .conftest import SMALL, Command, run_of
from .test_resuming import distilled_of, experts_of, with_experts

FEW = "distill.max_steps=2"


@pytest.fixture
def store(output: Path, tmp_path: Path) -> Path:
    """A copy of the store, which has two experts."""
    return Path(shutil.copytree(experts_of(output), tmp_path / "store"))


def test_trajectories_that_came_later_are_not_mixed_in(store: Path, tmp_path: Path, command: Command) -> None:
    later = shutil.move(store / "expert_0001", tmp_path / "later")
    words = f"experts_dir={store}"
    metrics = command("distill", tmp_path, words, FEW)
    assert command("distill", tmp_path, f"{words}/", FEW) == metrics  # a slash names no other folder
    shutil.move(later, store / "expert_0001")
    with pytest.raises(ConfigurationError, match=r"was made with experts = 1, and now it is 2.*fresh=true"):
        command("distill", tmp_path, words, FEW)
    with pytest.raises(ConfigurationError, match=r"last\.ckpt was made with experts = 1, and now it is 2.*fresh=true"):
        command("distill", tmp_path, words)
    shutil.rmtree(store)
    assert command("distill", tmp_path, words, FEW) == metrics  # what is finished needs them no more


def test_other_trajectories_in_their_place_are_found(store: Path, tmp_path: Path, command: Command) -> None:
    words = (f"experts_dir={store}", "num_experts=1", "distill.lr_teacher=0.01", FEW)
    command("distill", tmp_path, *words)
    shutil.rmtree(store)
    command("train_experts", tmp_path, f"experts_dir={store}", "num_experts=2", "expert.lr=0.02")
    with pytest.raises(ConfigurationError, match=r"was made with trajectories = [0-9a-f]{16}, and now it is"):
        command("distill", tmp_path, *words)


def test_another_set_to_start_from_is_found(output: Path, tmp_path: Path, command: Command) -> None:
    folder = with_experts(output, tmp_path)
    command("distill", folder, FEW)
    start = distilled_of(folder) / "synthetic" / "last"
    words = f"distill.warm_start={start}"
    command("distill", folder, words, FEW)
    command("distill", folder, "distill.max_steps=3")  # the set goes on
    with pytest.raises(ConfigurationError, match=r"was made with warm_start = [0-9a-f]+, and now it is"):
        command("distill", folder, words, FEW)


def test_a_changed_digit_is_no_result(output: Path, tmp_path: Path, command: Command) -> None:
    folder = with_experts(output, tmp_path)
    metrics = command("distill", folder, FEW)
    path = distilled_of(folder) / "result.json"
    whole = path.read_text()
    path.write_text(re.sub(r'("test_accuracy": )\d', r"\g<1>7", whole))
    assert path.read_text() != whole
    assert command("distill", folder, FEW) == metrics
    assert path.read_text() == whole


def test_the_result_is_that_of_the_images_beside_it(output: Path, tmp_path: Path, command: Command) -> None:
    """A longer run was killed: the images are those of a later iteration than the result."""
    folder = with_experts(output, tmp_path)
    command("distill", folder, FEW)
    path = distilled_of(folder) / "result.json"
    shorter = path.read_text()
    longer = command("distill", folder, "distill.max_steps=3")
    path.write_text(shorter)
    assert command("distill", folder, FEW) == longer
    assert unseal(read_json(path))["iteration"] == 3


def test_a_damaged_set_is_written_again_from_the_state(
    output: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_experts(output, tmp_path)
    metrics = command("distill", folder, FEW)
    last = distilled_of(folder) / "synthetic" / "last"
    images = load_distilled(last).images.clone()  # they are mapped from the file
    content = bytearray((last / "images.safetensors").read_bytes())
    content[-5] ^= 1
    (last / "images.safetensors").write_bytes(content)
    assert command("distill", folder, FEW) == metrics
    assert "it is written again from the checkpoint" in capsys.readouterr().out
    assert torch.equal(load_distilled(last).images, images)


def test_numbers_of_another_protocol_are_said_to_be_such(
    output: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_experts(output, tmp_path)
    command("distill", folder, FEW)
    capsys.readouterr()
    command("distill", folder, FEW, "evaluation.epochs=9")
    assert "note: evaluated with evaluation.epochs=4, not 9: evaluate.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("distill.max_steps=1", "distill.max_steps"),
        ("evaluation.epochs=9", "evaluation.epochs"),
        ("distill.eval_networks=1", "evaluation.networks"),
    ],
)
def test_a_job_of_a_sweep_has_no_numbers_of_another(
    output: Path, tmp_path: Path, command: Command, word: str, option: str
) -> None:
    folder = with_experts(output, tmp_path)
    command("distill", folder, FEW)
    run = run_of(*SMALL, f"output_dir={folder}", FEW, word)
    assert distill(run)["test_accuracy"] > 0
    with pytest.raises(ConfigurationError) as caught:
        distill(replace(run, in_sweep=True))
    assert caught.value.option == option
    alike = run_of(*SMALL, f"output_dir={folder}", FEW, "distill.eval_networks=2", "evaluation.at_once=1")
    assert distill(replace(alike, in_sweep=True))["test_accuracy"] > 0  # SMALL has two networks


def test_a_job_does_not_take_the_state_of_a_longer_one_for_its_own(
    output: Path, tmp_path: Path, command: Command
) -> None:
    folder = with_experts(output, tmp_path)
    command("distill", folder, FEW)
    (distilled_of(folder) / "result.json").unlink()
    run = run_of(*SMALL, f"output_dir={folder}", "distill.max_steps=1")
    with pytest.raises(ConfigurationError, match=r"^distill\.max_steps=1: this run has completed 2 iterations"):
        distill(replace(run, in_sweep=True))


def test_baselines_of_other_data_are_refused(store: Path, output: Path, tmp_path: Path, command: Command) -> None:
    folder = with_experts(output, tmp_path)
    command("distill", folder, FEW)
    artifact = distilled_of(folder) / "synthetic" / "last"
    words = (f"synthetic={artifact}", f"experts_dir={store}", "data.per_class=10", "evaluation.networks=1")
    for baseline in ("whole", "representative"):
        with pytest.raises(ConfigurationError, match=r"experts_dir=.*data\."):
            command("evaluate", folder, *words, f"baselines=[{baseline}]")
    assert "distilled_accuracy" in command("evaluate", folder, *words, "baselines=[]")


def test_experts_of_two_precisions_do_not_share_a_store(store: Path, tmp_path: Path, command: Command) -> None:
    words = (f"experts_dir={store}", "num_experts=3")
    with pytest.raises(ConfigurationError, match=r"arithmetic\.precision = 32-true, and this run has .* = 64-true"):
        command("train_experts", tmp_path, *words, "trainer.precision=64-true")
    assert not (store / "expert_0002").exists()


def test_beginning_anew_needs_room_for_everything(
    output: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_experts(output, tmp_path)
    before = sorted(experts_of(folder).rglob("*.safetensors"))
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=30_000))
    with pytest.raises(ConfigurationError, match="are still to be written, and its disk has"):
        command("train_experts", folder, "fresh=true")
    said = capsys.readouterr().out
    assert "training 2 experts" in said
    assert "; 0 B of trajectories" not in said
    assert sorted(experts_of(folder).rglob("*.safetensors")) == before


def test_one_broken_expert_does_not_ask_for_all_to_begin_anew(output: Path, tmp_path: Path, command: Command) -> None:
    folder = with_experts(output, tmp_path)
    expert = experts_of(folder) / "expert_0001"
    (expert / "expert.json").unlink()
    with pytest.raises(ConfigurationError, match=r"start anew with expert_index=1 fresh=true"):
        command("train_experts", folder)
    command("train_experts", folder, "expert_index=1", "fresh=true")
    assert json.loads((expert / "expert.json").read_text())["expert"] == 1
    assert not (experts_of(folder) / "earlier" / "expert_0000_1").exists()


def test_the_same_run_has_the_same_name_wherever_it_is_started(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {run_of(*SMALL, f"experts_dir={each}").distill_folder() for each in (store, f"{store}/")}
    monkeypatch.chdir(store.parent)
    names.add(run_of(*SMALL, "experts_dir=store").distill_folder())
    assert len(names) == 1
