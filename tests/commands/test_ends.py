"""How a command ends before its work is done: own mistakes, Ctrl-C, ``max_time``, other lengths than asked for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ast_lightning.errors import ConfigurationError
from ast_lightning.synthetic import load_distilled
from tests import PATIENCE
from tests.forks import python

from .conftest import ROOT, SMALL, Command, run_of

pytestmark = pytest.mark.slow

OWN = """
import os, signal
from lightning import Callback

class Mistake(Callback):
    def on_train_batch_start(self, *_):
        return {}["a\\x1bkey"]

class CtrlC(Callback):
    def on_train_batch_start(self, *_):
        os.kill(os.getpid(), signal.SIGINT)

class CtrlCOfParent(Callback):
    def on_train_batch_start(self, *_):
        os.kill(os.getppid(), signal.SIGINT)

class Stop(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a module of the user's own."""
    (tmp_path / "own_ends.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def ended(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    callback = f"+callbacks.mine._target_=own_ends.{name}"
    line = [*python(), "train_experts.py", *SMALL, f"output_dir={folder / 'runs'}", callback, *words]
    return subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_ctrl_c_that_a_library_has_caught_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "own_ends.py").write_text(
        f"{OWN}\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    result = ended(tmp_path, "Stop")
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == "error: interrupted; rerun the command without fresh=true to resume"


def test_a_mistake_of_the_users_own_class(own: Path) -> None:
    result = ended(own, "Mistake")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"KeyError: 'a\\x1bkey' ({own / 'own_ends.py'}:7, in on_train_batch_start)" in line
    (log,) = (own / "runs" / "errors").iterdir()
    assert str(log) in line
    assert "Traceback (most recent call last)" in log.read_text()


@pytest.mark.parametrize(("name", "words"), [("CtrlC", ()), ("CtrlCOfParent", ("expert_processes=2",))])
def test_ctrl_c_is_a_line(own: Path, name: str, words: tuple[str, ...]) -> None:
    result = ended(own, name, *words)
    assert result.returncode == 128 + signal.SIGINT
    assert result.stderr.splitlines() == ["error: interrupted; rerun the command without fresh=true to resume"]


def test_what_lightning_rejects_is_found_before_data_are_read() -> None:
    with pytest.raises(ConfigurationError, match=r"^trainer=.*Lightning.*abc"):
        run_of(*SMALL, "+trainer.max_time=abc", "data=image_folder", "data.root=/nowhere")


def test_a_run_that_was_ended_early_is_called_incomplete_and_resumes_there(
    output: Path, own: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after no iteration at all; it ends as one that nothing ended."""
    words = ("logger=none", "compile=false", "distill.max_steps=6", "distill.eval_every=5")
    ends = {
        "straight": [()],
        "parts": [("+trainer.max_time=00:00:00:00",), ("+callbacks.mine._target_=own_ends.Stop",), ()],
    }
    made = {}
    for name, parts in ends.items():
        shutil.copytree(output / "experts", own / name / "experts")
        for part in parts:
            command("distill", own / name, *words, *part)
        printed = capsys.readouterr().out
        made[name] = load_distilled(run_of(*SMALL, *words, f"output_dir={own / name}").synthetic_folder()).checksum()
    assert [line for line in printed.splitlines() if line.startswith("incomplete")] == [
        "incomplete: 0 of 6 iterations; rerun the command to resume, with a larger trainer.max_time: it counts all "
        "sessions together",
        "incomplete: 3 of 6 iterations; rerun the command to resume",
    ]
    assert "last.ckpt" in printed
    assert made["parts"] == made["straight"]
    command("distill", own / "parts", *words, "distill.max_steps=4")
    assert "has completed 6 iterations, more than distill.max_steps=4" in capsys.readouterr().out
