"""Runs that go on, that are finished, that begin anew, and several that want the same folders."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ast_lightning.commands.app import execute
from ast_lightning.commands.distill import distill
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.runs.expert_locks import claim_experts
from ast_lightning.synthetic import load_distilled
from ast_lightning.trajectories import TrajectoryStore
from tests import PATIENCE
from tests.forks import python

from .conftest import ROOT, SMALL, Command, composed, run_of

pytestmark = pytest.mark.slow

HELD_OUT = ("data.validation_fraction=0.2", "num_experts=1", "logger=none")


def experts_of(folder: Path, *overrides: str) -> Path:
    return run_of(*SMALL, f"output_dir={folder}", *overrides).experts_folder()


def distilled_of(folder: Path, *overrides: str) -> Path:
    return run_of(*SMALL, f"output_dir={folder}", *overrides).distill_folder()


def with_experts(output: Path, folder: Path) -> Path:
    shutil.copytree(output / "experts", folder / "experts")
    return folder


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A folder with one expert of data that hold out a validation split."""
    folder = tmp_path_factory.mktemp("held_out")
    command("train_experts", folder, *HELD_OUT)
    return folder


def test_a_longer_run_ends_like_one_that_was_long_from_the_start(
    held_out: Path, tmp_path: Path, command: Command
) -> None:
    """Images, momenta, selection and result, whatever the shorter run evaluated beside the schedule."""
    ends = []
    for name, lengths in (("straight", (9,)), ("parts", (3, 5, 9))):
        folder = with_experts(held_out, tmp_path / name)
        for length in lengths:
            metrics = command("distill", folder, *HELD_OUT, f"distill.max_steps={length}", "distill.save_every=2")
        run = distilled_of(folder, *HELD_OUT)
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        momenta = [each["momentum"] for each in state["optimizer_states"][0]["state"].values()]
        sets = [load_distilled(run / "synthetic" / which) for which in ("last", "best")]
        ends.append((metrics, [each.metadata["iteration"] for each in sets], [*momenta, *(s.images for s in sets)]))
        assert {path.name for path in (run / "synthetic").iterdir()} == {
            "last", "best", *(f"step_{each:06d}" for each in ends[-1][1])
        }  # fmt: skip
    (metrics, steps, tensors), (parts_metrics, parts_steps, parts_tensors) = ends
    assert (metrics, steps) == (parts_metrics, parts_steps)
    assert all(torch.equal(one, other) for one, other in zip(tensors, parts_tensors, strict=True))


def test_fresh_moves_a_distillation_aside_and_says_where(
    output: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_experts(output, tmp_path)
    first = command("distill", folder)
    run = distilled_of(folder)
    (run / "note.txt").write_text("mine")
    capsys.readouterr()
    assert command("distill", folder, "fresh=true") == first
    moved = run.parent / "earlier" / f"{run.name}_1"
    assert str(moved) in capsys.readouterr().out
    assert (moved / "note.txt").read_text() == "mine"
    assert not (run / "note.txt").exists()
    assert load_distilled(moved / "synthetic" / "last").metadata["iteration"] == 4
    assert "already finished" not in capsys.readouterr().out


def test_fresh_moves_only_the_experts_aside_that_it_trains(output: Path, tmp_path: Path, command: Command) -> None:
    folder = with_experts(output, tmp_path)
    store = TrajectoryStore.open(experts_of(folder))
    (store.expert_folder(1) / "note.txt").write_text("mine")
    untouched = store.snapshot_path(0, 4).stat().st_mtime_ns
    before = store.read_window(1, 0, 4)
    command("train_experts", folder, "fresh=true", "expert_index=1")
    assert store.snapshot_path(0, 4).stat().st_mtime_ns == untouched
    assert (store.folder / "earlier" / "expert_0001_1" / "note.txt").exists()
    assert not (store.expert_folder(1) / "note.txt").exists()
    assert TrajectoryStore.open(store.folder).experts() == [0, 1]
    assert torch.equal(store.read_window(1, 0, 4), before)


def test_lost_states_stop_a_run_instead_of_beginning_anew(output: Path, tmp_path: Path, command: Command) -> None:
    folder = with_experts(output, tmp_path)
    command("distill", folder)
    shutil.rmtree(distilled_of(folder) / "checkpoints")
    with pytest.raises(ConfigurationError, match=r"there is work, but no checkpoint .*fresh=true"):
        command("distill", folder, "distill.max_steps=8")
    assert load_distilled(distilled_of(folder) / "synthetic" / "last").metadata["iteration"] == 4
    (experts_of(folder) / "expert_0001" / "expert.json").unlink()
    with pytest.raises(ConfigurationError, match=r"there is work, but no checkpoint .*expert_0001"):
        command("train_experts", folder)
    assert (experts_of(folder) / "expert_0001" / "epoch_0004.safetensors").exists()


def test_a_result_that_is_damaged_or_a_dataset_that_is_gone_is_made_again(
    output: Path, tmp_path: Path, command: Command
) -> None:
    folder = with_experts(output, tmp_path)
    metrics = command("distill", folder)
    run = distilled_of(folder)
    images = load_distilled(run / "synthetic" / "last").images
    whole = (run / "result.json").read_text()
    (run / "result.json").write_text(whole[:20])
    assert command("distill", folder) == metrics
    assert (run / "result.json").read_text() == whole
    shutil.rmtree(run / "synthetic")
    assert command("distill", folder) == metrics
    assert torch.equal(load_distilled(run / "synthetic" / "last").images, images)


def test_a_damaged_state_is_replaced_by_the_one_before(
    output: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = []
    for name in ("whole", "damaged"):
        folder = with_experts(output, tmp_path / name)
        command("distill", folder, "distill.save_every=1")
        state = distilled_of(folder) / "checkpoints" / "last.ckpt"
        if name == "damaged":
            content = bytearray(state.read_bytes())
            content[len(content) // 2] ^= 1
            state.write_bytes(content)
        command("distill", folder, "distill.save_every=1", "distill.max_steps=6")
        ends.append(load_distilled(distilled_of(folder) / "synthetic" / "last"))
    assert "does not match its checksum" in capsys.readouterr().out
    assert torch.equal(ends[0].images, ends[1].images)
    assert ends[0].learning_rate == ends[1].learning_rate


def test_the_second_process_in_a_folder_is_refused_by_name(output: Path, tmp_path: Path, command: Command) -> None:
    folder = with_experts(output, tmp_path)
    with FolderLock(distilled_of(folder)) as lock:
        assert lock.take()
        with pytest.raises(ConfigurationError, match=rf"^output_dir=.*process {os.getpid()} on "):
            command("distill", folder)
    assert not distilled_of(folder).exists()
    with FolderLock(experts_of(folder) / "expert_0001") as lock:
        assert lock.take()
        for overrides in (("fresh=true",), ("trainer.devices=2", "num_experts=2")):
            (experts_of(folder) / "expert_0001" / "expert.json").unlink(missing_ok=True)
            with pytest.raises(ConfigurationError, match=rf"process {os.getpid()} on .* writes into .*expert_0001 "):
                command("train_experts", folder, *overrides)
        assert (experts_of(folder) / "expert_0000" / "expert.json").exists()
        assert not (experts_of(folder) / "earlier").exists()


def test_states_of_a_complete_expert_go(output: Path, tmp_path: Path, command: Command) -> None:
    """What a kill between the last file of an expert and the deletion of its states leaves."""
    folder = with_experts(output, tmp_path)
    left = experts_of(folder) / "expert_0001" / "resume"
    left.mkdir()
    (left / "last.ckpt").write_bytes(b"whatever")
    command("train_experts", folder)
    assert not left.exists()


def test_an_expert_that_runs_out_of_time_goes_on_the_next_time(output: Path, tmp_path: Path, command: Command) -> None:
    """``max_time`` ends a fit in order; its states must stay."""
    command("train_experts", tmp_path, "expert_index=1", "+trainer.max_steps=8")  # two of four epochs, likewise
    store = TrajectoryStore.open(experts_of(tmp_path))
    assert not store.is_complete(1)
    first = store.snapshot_path(1, 1).stat().st_mtime_ns
    command("train_experts", tmp_path, "expert_index=1")
    assert store.is_complete(1)
    assert store.snapshot_path(1, 1).stat().st_mtime_ns == first
    straight = TrajectoryStore.open(experts_of(output))
    assert torch.equal(store.read_window(1, 0, 4), straight.read_window(1, 0, 4))


def test_each_sitting_has_a_table_of_its_own(output: Path, tmp_path: Path, command: Command) -> None:
    """Lightning deletes the table that is there."""
    folder = with_experts(output, tmp_path)
    logged = ("logger=csv", "trainer.log_every_n_steps=1")
    for steps in (2, 4):
        command("distill", folder, *logged, f"distill.max_steps={steps}")
    rows = []
    for version in ("csv", "csv_2"):
        with (distilled_of(folder, *logged) / version / "metrics.csv").open() as stream:
            rows += [int(row["step"]) for row in csv.DictReader(stream) if row["train/loss"]]
    assert rows == [0, 1, 2, 3]


def test_another_machine_is_mentioned(
    output: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_experts(output, tmp_path)
    command("distill", folder, "distill.max_steps=2")
    path = distilled_of(folder) / "machine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": 77, "compile": "on (compile=true)"}))
    capsys.readouterr()
    command("distill", folder)
    printed = capsys.readouterr().out
    assert "note: threads was 77" in printed
    assert "note: compile was on and is off now" in printed


def test_another_machine_is_mentioned_for_experts_too(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("train_experts", tmp_path, "num_experts=1", "+trainer.max_steps=8")  # two of the four epochs
    path = experts_of(tmp_path) / "expert_0000" / "resume" / "machine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": 77}))
    command("train_experts", tmp_path, "num_experts=1")
    assert "note: threads was 77" in capsys.readouterr().out
    assert not path.parent.exists()


def test_an_expert_that_another_process_completes_is_not_trained_again_by_ranks(output: Path, tmp_path: Path) -> None:
    store = TrajectoryStore.open(experts_of(with_experts(output, tmp_path)))
    with pytest.raises(ConfigurationError, match=r"^expert_index=1: another process has completed it just now"):
        next(claim_experts(store, [1], together=True, fresh=False))


@pytest.mark.parametrize(
    ("number", "word", "named"),
    [(errno.ENOSPC, "free disk space", True), (errno.EROFS, "writable", True), (errno.EIO, "", False)],
)
def test_a_disk_that_does_not_take_a_state_is_named_and_nothing_is_lost(
    output: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    word: str,
    named: bool,
) -> None:
    folder = with_experts(output, tmp_path)
    command("distill", folder, "distill.max_steps=2")
    plain = os.fsync

    def refuse(descriptor: int) -> None:
        if "last.ckpt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    config = composed(*SMALL, f"output_dir={folder}")
    with pytest.raises(SystemExit) as ended:
        execute(distill, config)
    error = f"error: output_dir={folder}: {os.strerror(number)}" if named else "error: OSError: "
    assert error in capsys.readouterr().err
    assert ended.value.code == (2 if named else 1)
    monkeypatch.undo()
    assert load_distilled(distilled_of(folder) / "synthetic" / "last").metadata["iteration"] == 2
    metrics = command("distill", folder)
    assert metrics == command("distill", with_experts(output, tmp_path / "straight"))
    assert word or not named


def test_a_folder_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    closed = tmp_path / "closed"

    def refuse(run: object) -> dict[str, float]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(closed / "experts" / "x"))

    with pytest.raises(SystemExit):
        execute(refuse, composed(*SMALL, f"output_dir={closed}"))
    message = capsys.readouterr().err
    assert message.startswith(f"error: output_dir={closed}: Permission denied")
    assert "make the folder writable" in message
    with pytest.raises(SystemExit) as ended:  # not every refusal is one to write
        execute(refuse, composed(*SMALL, f"output_dir={tmp_path / 'elsewhere'}"))
    assert ended.value.code == 1
    assert "error: PermissionError: " in capsys.readouterr().err


def test_two_processes_share_the_experts(tmp_path: Path) -> None:
    """All complete, each trained once, and equal to those of one process."""
    words = ["num_experts=4", "expert.epochs=6", "logger=csv", "trainer.enable_progress_bar=true"]
    line = [*python(), "train_experts.py", *SMALL, *words, f"output_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    printed = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    store = TrajectoryStore.open(experts_of(tmp_path, *words))
    assert store.experts() == [0, 1, 2, 3]
    trained = [re.findall(r"^expert (\d): 24/24", output, re.MULTILINE) for output in printed]
    assert sorted(trained[0] + trained[1]) == ["0", "1", "2", "3"]
    epochs = 0
    for table in store.folder.rglob("metrics.csv"):
        with table.open() as stream:
            epochs += sum(bool(row["trajectory/movement"]) for row in csv.DictReader(stream))
    assert epochs == 4 * 6
    alone = tmp_path / "alone"
    train_experts(run_of(*SMALL, *words, f"output_dir={alone}", "expert_index=3", "trainer.enable_progress_bar=false"))
    other = TrajectoryStore.open(experts_of(alone, *words))
    torch.testing.assert_close(other.read_window(3, 0, 6), store.read_window(3, 0, 6), rtol=1e-4, atol=1e-5)


def test_killed_commands_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """The short form of ``make stress``."""
    line = [sys.executable, "-m", "tests.faults", "--kills", "6", "--seed", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("all identical") == 3
