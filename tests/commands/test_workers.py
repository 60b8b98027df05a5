"""Experts over processes: the same trajectories, nobody left behind, errors shown."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ast_lightning.commands.train_experts import train_experts
from ast_lightning.errors import ConfigurationError, WorkerFailed
from ast_lightning.parallel import workers
from ast_lightning.storage.files import read_json
from ast_lightning.trajectories import TrajectoryStore
from tests import PATIENCE
from tests.forks import python
from tests.threads import one_thread

from . import waiting
from .conftest import ROOT, SMALL, Command, run_of
from .holding import holding, names_in, wait_for

pytestmark = pytest.mark.slow

FEW = ("num_experts=4", "data.preprocessing=zca", "logger=none", "trainer.enable_progress_bar=true")
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def line(folder: Path, *words: str) -> list[str]:
    return [*python(), "train_experts.py", *SMALL, f"output_dir={folder}", *words]


def trained(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line(folder, *words), cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def store_of(folder: Path, *words: str) -> Path:
    return run_of(*SMALL, f"output_dir={folder}", *words).experts_folder()


@pytest.fixture(scope="module", autouse=True)
def few_threads() -> Iterator[None]:
    """What is trained in this process has the bits of a process with one thread."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A folder with four experts of one process."""
    folder = tmp_path_factory.mktemp("reference")
    command("train_experts", folder, *FEW)
    return folder


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_is_killed_ends_them_all_and_the_same_command_ends_like_one_process(
    tmp_path: Path, reference: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last bit. Both of two workers train when one is killed; experts that were there before are kept aside."""
    shutil.copytree(reference / "experts", tmp_path / "experts")
    folder = store_of(tmp_path, *FEW)
    shutil.rmtree(folder / "expert_0003")
    words, held = (*FEW, "expert_processes=2"), tmp_path / "held"
    # a session of its own: what is meant for the parent must reach the parent alone
    parent = subprocess.Popen(
        line(tmp_path, *words, "num_experts=2", "fresh=true", *holding(held, 9)),
        cwd=ROOT,
        env=ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(names_in(held)) == 2)
        holders = [read_json(folder / ".locks" / f"expert_{each:04d}.holder.json")["process"] for each in (0, 1)]
        assert sorted(holders) == names_in(held)
        assert parent.pid not in holders
        os.kill(holders[1], signal.SIGKILL)
        printed, _ = parent.communicate(timeout=60)
    finally:
        parent.kill()
        parent.communicate()
    assert parent.returncode == 128 + signal.SIGKILL
    assert re.search(r"^error: process \d of 2 was ended by signal 9", printed, re.MULTILINE)
    assert not any(map(is_alive, holders))
    assert len(list((folder / "earlier").iterdir())) == 2

    kept = (folder / "expert_0000/epoch_0002.safetensors").stat().st_mtime_ns
    result = trained(tmp_path, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall(r"^\[\d\] expert \d resumes from", result.stdout, re.MULTILINE)) == 2
    assert (folder / "expert_0000/epoch_0002.safetensors").stat().st_mtime_ns == kept
    store, alone = (TrajectoryStore.open(store_of(each, *FEW)) for each in (tmp_path, reference))
    assert store.experts() == [0, 1, 2, 3]
    for expert in store.experts():
        assert torch.equal(store.read_window(expert, 0, 4), alone.read_window(expert, 0, 4))
    who = re.findall(r"^\[(\d)\] expert (\d): 16/16", result.stdout, re.MULTILINE)
    assert sorted(expert for _, expert in who) == ["0", "1", "3"]
    assert {worker for worker, _ in who} <= {"0", "1"}  # one may have trained all before the other was ready
    assert "training 3 experts in 2 processes" in result.stdout
    assert re.findall(r"^4 experts: ", result.stdout, re.MULTILINE) == ["4 experts: "]
    capsys.readouterr()
    command("train_experts", tmp_path, *words)
    assert capsys.readouterr().out.count("is already complete") == 4


def workers_in(folder: Path) -> list[int]:
    """The processes of two workers of ``waiting.wait``, once both wait."""
    wait_for(lambda: len(names_in(folder / "held")) == 2)
    return names_in(folder / "held")


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    words = [*python(), "-m", "tests.commands.waiting", str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, env=ALONE, start_new_session=True) as parent:
        try:
            pids = workers_in(tmp_path)
        finally:
            parent.kill()
    wait_for(lambda: not any(map(is_alive, pids)), 10)


def test_workers_share_the_threads_print_with_their_number_and_end_before_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On SIGTERM, in this process; for Ctrl-C see test_ends.py."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    pids: list[int] = []

    def send() -> None:
        pids.extend(workers_in(tmp_path))
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(SIGTERMException):
        workers.run_workers(waiting.wait, (tmp_path,), 2, {"accelerator": "cpu", "devices": 1})
    sender.join()
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
    assert [(tmp_path / f"{number}.txt").read_text() for number in (0, 1)] == ["3 None 2"] * 2
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] line of 0", "[1] line of 1"]
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]


@pytest.mark.parametrize("multirun", [(), ("-m",)], ids=["run", "multirun"])
def test_a_command_that_sigterm_ends_has_not_succeeded(tmp_path: Path, multirun: tuple[str, ...]) -> None:
    words = (*FEW, "expert.epochs=20000", "num_experts=1")
    folder = store_of(tmp_path, *words)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(line(tmp_path, *words, *multirun), cwd=ROOT, env=ALONE, text=True, **pipes) as process:
        try:
            wait_for((folder / "expert_0000/epoch_0001.safetensors").exists)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "error: ended by SIGTERM; rerun the command without fresh=true" in errors
    assert (folder / "expert_0000/resume/last.ckpt").exists()


def test_the_error_of_a_worker_is_shown_and_its_status_is_that_of_the_command(tmp_path: Path) -> None:
    folder = store_of(tmp_path, *FEW) / "expert_0001"
    folder.mkdir(parents=True)
    (folder / "epoch_0002.safetensors").write_bytes(b"work without a state")
    # the other waits after its first epoch, so that it would never end by itself
    result = trained(tmp_path, *FEW, "num_experts=2", "expert_processes=2", *holding(tmp_path / "held", 4))
    assert result.returncode == 2
    assert re.search(r"^\[\d\] error: fresh=false: there is work, but no checkpoint .*expert_0001", result.stderr, re.M)
    assert re.search(r"^error: process \d of 2 ended with status 2 after printing 'error: fresh=", result.stderr, re.M)
    assert "Traceback" not in result.stderr
    assert "rerun the command" in result.stderr
    assert not TrajectoryStore.open(folder.parent).is_complete(0)  # the other does not go on


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("ast_lightning.parallel.devices.device_type", lambda trainer: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def processes(*words: str) -> int:
    run = run_of(*SMALL, "trainer.accelerator=auto", *words)
    return workers.count_processes(run.config["expert_processes"], run.config["trainer"], in_sweep=False)


def test_auto_is_a_process_a_gpu_where_nothing_else_says_how_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert processes() == 1
    gpus(monkeypatch, 4)
    assert processes() == 4
    assert processes("expert_processes=7") == 7
    assert processes("trainer=ddp", "trainer.accelerator=gpu") == 1
    assert processes("trainer.devices=2", "trainer.strategy=ddp") == 1
    assert processes("trainer.devices=[3]") == 1
    assert processes("trainer.num_nodes=2") == 1
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes() == 1
    gpus(monkeypatch, 1)
    assert processes() == 1


def test_several_processes_and_several_devices_an_expert_are_refused(tmp_path: Path) -> None:
    words = ("expert_processes=2", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    with pytest.raises(ConfigurationError, match=r"^expert_processes=2: trainer\.devices=2 .*trainer\.devices=1"):
        train_experts(run_of(*SMALL, f"output_dir={tmp_path}", *words))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["0", "-1", "true", "many", "1.5", "null"])
def test_numbers_of_processes_that_are_none(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^expert_processes="):
        run_of(*SMALL, f"expert_processes={value}")


def test_a_worker_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    auto = {"accelerator": "auto", "devices": 1}
    seen = [workers.worker_environment(auto, number)["CUDA_VISIBLE_DEVICES"] for number in range(4)]
    assert seen == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert workers.worker_environment(auto, 1) == {"CUDA_VISIBLE_DEVICES": "7"}
    assert workers.worker_environment({"accelerator": "auto", "devices": [0]}, 1) == {}


def test_jobs_at_the_same_time_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    seen = []
    for number in (2, 3, 5):
        for name in ("CUDA_VISIBLE_DEVICES", "AST_LIGHTNING_GPU", "PYTORCH_NVML_BASED_CUDA_CHECK"):
            monkeypatch.setenv(name, "")  # so that both are as before after the test
            monkeypatch.delenv(name)
        workers.take_gpu({"accelerator": "auto", "devices": 2}, number)
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        workers.take_gpu({"accelerator": "auto", "devices": 1}, number)
        workers.take_gpu({"accelerator": "auto", "devices": 1}, number + 1)  # the next job of the same process
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"  # counting must not start CUDA before the choice
    assert seen == ["0", "1", "1"]


def test_a_worker_that_failed_before_it_wrote_has_no_last_line(tmp_path: Path) -> None:
    result: Any = SimpleNamespace(stderrs={1: str(tmp_path / "none.log")}, stdouts={1: ""})
    assert workers._last_line(result, 1) == ""


def test_the_status_of_a_failed_process() -> None:
    assert WorkerFailed(1, 2, 3, "why").status == 3
    assert WorkerFailed(1, 2, -9, "").status == 137
    assert "process 1 of 2 was ended by signal 9, and" in str(WorkerFailed(1, 2, -9, ""))
