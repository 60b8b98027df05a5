"""A built wheel, installed into a folder and used outside of the repository, does what the scripts do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ast_lightning.errors import PROGRAM, as_started
from ast_lightning.storage.inspection import cell
from ast_lightning.synthetic import load_distilled
from tests.forks import python

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PARTS = ("ast_lightning", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")
EXPERIMENT = """# @package _global_
defaults:
  - override /data: digits
num_experts: 2
baselines: [random]
data:
  per_class: 20
network:
  width: 8
  depth: 1
expert:
  epochs: 3
distill:
  syn_steps: 4
  max_steps: 3
  eval_every: 3
evaluation:
  networks: 2
  epochs: 4
trainer:
  accelerator: cpu
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed into."""
    folder = tmp_path_factory.mktemp("install")
    source, target = folder / "source", folder / "target"
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / part, source / part)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", target, wheel], check=True)
    return target


def run(installed: Path, folder: Path, *words: str) -> str:
    """What a command prints; it runs in ``folder`` and imports the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_console_command_trains_distils_and_evaluates(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    program, module = [str(installed / "bin" / "ast-lightning")], [sys.executable, "-m", "ast_lightning"]
    for words in (
        [*program, "train_experts", "-cd"],
        [*program, "distill", "--config-dir"],
        [*module, "evaluate", "-cd"],
    ):
        printed = run(installed, tmp_path, *words, "own", "experiment=mine")
    assert "distilled images" in printed
    (found,) = tmp_path.glob("runs/distilled/*/synthetic/last")
    assert load_distilled(found).images.shape == (10, 1, 8, 8)
    assert str(installed) in run(
        installed, tmp_path, sys.executable, "-c", "import ast_lightning; print(ast_lightning.__file__)"
    )


def test_messages_name_the_command_that_was_started(tmp_path: Path) -> None:
    words = [*python(), "-m", "ast_lightning", "distill", f"output_dir={tmp_path}"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "run python -m ast_lightning train_experts with the same settings" in ended.stderr


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--help"], 0), (["distil"], 2)])
def test_the_commands_are_listed(words: list[str], status: int) -> None:
    ended = subprocess.run([sys.executable, "-m", "ast_lightning", *words], capture_output=True, text=True)
    assert ended.returncode == status
    assert "train_experts" in ended.stdout + ended.stderr


def test_recorded_commands_are_shown_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRAM, "ast-lightning")
    assert as_started("run train_experts.py with x") == "run ast-lightning train_experts with x"
    assert as_started("/home/me/distill.py") == "/home/me/distill.py"
    assert cell("distill.py seed=1") == "distill.py seed=1"  # of a file that records what it was made by
