"""Several processes of one run, on one node and as two torchrun agents on loopback: results, failures, resuming."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ast_lightning.commands.run import Run
from ast_lightning.distillation.trajectory_matching import choose_window
from ast_lightning.errors import ConfigurationError
from ast_lightning.trajectories import TrajectoryStore
from tests import PATIENCE
from tests.forks import python

from .conftest import ROOT, SMALL, Command, run_of
from .holding import holding, names_in, wait_for

pytestmark = pytest.mark.slow

DOUBLE = (
    "trainer.precision=64-true",
    "logger=none",
    "distill.max_steps=20",
    "distill.eval_every=20",
    "distill.save_every=5",
    "evaluation.networks=1",
    "distill.windows_per_step=2",
)
TWO_DEVICES = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
TORCHRUN = ("trainer=torchrun", "trainer.accelerator=cpu")
SOON = 120  # seconds within which the survivors of a killed process must have ended, their start included


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    command("train_experts", folder, "trainer.precision=64-true", "logger=none")
    return folder


def fresh_copy(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained / "experts", folder / "experts")
    return folder


def run_in(folder: Path, *words: str) -> Run:
    return run_of(*SMALL, *DOUBLE, f"output_dir={folder}", *words)


def words_of(folder: Path, *words: str) -> list[str]:
    return ["distill.py", *SMALL, *DOUBLE, f"output_dir={folder}", *words]


def start(*words: str) -> subprocess.Popen[str]:
    """In a process group of its own, which can be killed as a whole."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    program = [sys.executable] if words[0] == "-m" else python()  # a group of a test's own is that of the agent
    return subprocess.Popen([*program, *words], cwd=ROOT, env=environment, start_new_session=True, **pipes)


def start_nodes(folder: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Two torchrun agents with a process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    return [
        start(*agent, f"--master-port={port}", f"--node-rank={node}", *words_of(folder, *TORCHRUN, *words))
        for node in (0, 1)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = PATIENCE) -> list[tuple[int, str, str]]:
    """Status, output and errors of each."""
    found = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def state_of(run: Run) -> dict[str, torch.Tensor]:
    state = torch.load(run.distill_folder() / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == run.distill.max_steps
    tensors: dict[str, torch.Tensor] = state["state_dict"]
    return tensors


@pytest.fixture(scope="module")
def alone(trained: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> dict[str, torch.Tensor]:
    """What one process makes of two windows an iteration."""
    folder = fresh_copy(trained, tmp_path_factory.mktemp("alone"))
    command("distill", folder, *DOUBLE, "distill.windows_per_step=2")
    return state_of(run_in(folder, "distill.windows_per_step=2"))


def wait_for_hold(folder: Path, processes: list[subprocess.Popen[str]], count: int) -> list[int]:
    """Wait until so many ranks hold; return their processes."""

    def hold() -> bool:
        assert all(process.poll() is None for process in processes)
        return len(names_in(folder)) >= count

    wait_for(hold, SOON)
    return names_in(folder)


@pytest.fixture(scope="module")
def nodes(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, str]]]:
    """The folder of two nodes that nothing disturbs, and how they ended."""
    folder = fresh_copy(trained, tmp_path_factory.mktemp("nodes"))
    return folder, ended(start_nodes(folder))


def test_two_nodes_end_like_one_device(
    nodes: tuple[Path, list[tuple[int, str, str]]], alone: dict[str, torch.Tensor]
) -> None:
    folder, ((status, _, errors), (other, said, _)) = nodes
    assert (status, other) == (0, 0), errors
    assert "distill" not in said  # the second node is silent
    found = state_of(run_in(folder, *TWO_DEVICES))
    assert found["synthetic.images"].dtype == torch.float64
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-12)


def test_a_killed_node_ends_the_other_and_both_go_on(
    nodes: tuple[Path, list[tuple[int, str, str]]], trained: Path, tmp_path: Path
) -> None:
    """Killed are the process group of the second agent, then this group and its process; each time both go on."""
    folder = fresh_copy(trained, tmp_path / "killed")
    run = run_in(folder, *TWO_DEVICES)
    for whole_node, step in ((False, 7), (True, 12)):
        held = tmp_path / str(step)
        started = start_nodes(folder, *holding(held, step), "+callbacks.hold.rank=1")  # the other waits for it
        (worker,) = wait_for_hold(held, started, 1)
        os.killpg(started[1].pid, signal.SIGKILL)
        if whole_node:
            os.kill(worker, signal.SIGKILL)
        (status, said, errors), _ = ended(started, SOON)
        assert status == 1
        assert ("resuming from" in said) == whole_node
        told = [line for line in errors.splitlines() if line.startswith("error")]
        assert len(told) == 1, errors
        assert "has ended" in told[0]
        assert "rerun the command" in told[0]
        state = torch.load(run.distill_folder() / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["global_step"] == step - 2  # the last multiple of five

    again = ended(start_nodes(folder))
    assert [status for status, _, _ in again] == [0, 0], again[0][2]
    assert "resuming from" in again[0][1]
    expected, found = (state_of(run_in(each, *TWO_DEVICES)) for each in (nodes[0], folder))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_error_of_one_rank_is_that_of_the_run(
    trained: Path, alone: dict[str, torch.Tensor], tmp_path: Path, command: Command
) -> None:
    """A snapshot that rank 1 alone would read is damaged: told once, status 2, and one device goes on after mending."""
    folder = fresh_copy(trained, tmp_path / "damaged")
    run = run_in(folder, *TWO_DEVICES)
    store = TrajectoryStore.open(run.experts_folder())
    first = {choose_window(index, [0, 1], 2, run.seed): index for index in range(19, -1, -1)}
    (expert, begin), index = next(
        (which, index) for which, index in sorted(first.items(), key=lambda each: each[1]) if index % 2 and which[1]
    )
    path = store.snapshot_path(expert, begin + 2)  # the last of its window, which no window that begins earlier holds
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\\0\\0\\0\\0")
    ((status, said, errors),) = ended([start(*words_of(folder, *TWO_DEVICES))], SOON)
    assert status == 2, errors
    assert f"error on rank 1 of 2: experts_dir={store.folder}" in errors
    assert path.name in errors
    assert len(errors.strip().splitlines()) == 1
    assert f"iteration {index // 2}" not in said

    path.write_bytes(content)
    command("distill", folder, *DOUBLE, "distill.windows_per_step=2")
    found = state_of(run_in(folder, *TWO_DEVICES))
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-12)


def test_sigterm_ends_all_processes_at_once(trained: Path, tmp_path: Path) -> None:
    folder = fresh_copy(trained, tmp_path / "terminated")
    process = start(*words_of(folder, *TWO_DEVICES, *holding(tmp_path / "held", 7)))
    wait_for_hold(tmp_path / "held", [process], 2)
    process.terminate()
    ((status, _, errors),) = ended([process], SOON)  # the pipes are closed by the last of them
    assert status == 128 + signal.SIGTERM, errors
    assert errors.count("error: ended by SIGTERM; rerun the command without fresh=true") == 1


def test_what_all_ranks_find_is_told_once(trained: Path, tmp_path: Path) -> None:
    folder = fresh_copy(trained, tmp_path / "diverged")
    ((status, _, errors),) = ended(
        [start(*words_of(folder, *TWO_DEVICES, "distill.outer=sgd", "distill.lr_lr=1e30", "distill.recoveries=0"))],
        SOON,
    )
    assert status == 2, errors
    assert errors.count("distillation stopped at iteration") == 1
    assert errors.startswith("error: distillation stopped")
    assert "Traceback" not in errors


def test_an_unforeseen_error_shows_its_rank_and_where_its_traceback_is(trained: Path, tmp_path: Path) -> None:
    folder = fresh_copy(trained, tmp_path / "unforeseen")
    ((status, _, errors),) = ended([start("tests/commands/failing.py", *words_of(folder, *TWO_DEVICES)[1:])], SOON)
    assert status == 1, errors
    assert "error on rank 1 of 2: ZeroDivisionError: nobody foresaw this (" in errors
    assert errors.count("ZeroDivisionError: nobody foresaw this") == 1
    (log,) = (folder / "errors").iterdir()
    assert str(log) in errors
    assert "nobody foresaw this" in log.read_text()


def test_a_device_count_that_does_not_divide_the_windows(trained: Path, tmp_path: Path, command: Command) -> None:
    folder = fresh_copy(trained, tmp_path / "odd")
    words = (*DOUBLE, *TWO_DEVICES, "distill.windows_per_step=3", "distill.split=windows")
    with pytest.raises(ConfigurationError, match=r"^distill\.windows_per_step=3: 2 devices cannot divide"):
        command("distill", folder, *words)
