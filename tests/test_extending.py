"""Every example of docs/extending.md, from a module outside of the package."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from ast_lightning.synthetic import load_distilled
from ast_lightning.trajectories import TrajectoryStore
from tests import PATIENCE
from tests.forks import python

from .commands.conftest import SMALL, run_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
TINY = (*SMALL, "logger=none", "compile=false", "evaluation.networks=1", "evaluation.epochs=2", "distill.max_steps=2")
TINY += ("distill.alpha=fixed",)
OF_TRAJECTORIES = ("experiment=", "distill.syn_steps=", "distill.max_start_epoch=", "distill.alpha=")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


COMMANDS = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture
def my_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_parts.py").write_text("\n\n".join(blocks("python")))
    (tmp_path / "my_conf" / "distill").mkdir(parents=True)
    (tmp_path / "my_conf" / "distill" / "means.yaml").write_text(blocks("yaml")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    yield import_module("my_parts")
    sys.modules.pop("my_parts", None)


def run(name: str, folder: Path, *overrides: str) -> Any:
    task = getattr(import_module(f"ast_lightning.commands.{name}"), name)
    of_convnet = ("network.", "experiment=") if "network=custom" in overrides else ()  # experiments set its options
    common = [word for word in TINY if not word.startswith(of_convnet)]
    configured = run_of(*common, f"output_dir={folder}", *overrides)
    return configured, task(configured)


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if "--config-dir" not in words], ids=lambda words: words[2].partition("=")[0]
)
def test_an_example(words: list[str], my_parts: Any, tmp_path: Path) -> None:
    _, script, *overrides = words
    own = [word for word in overrides if not word.startswith("distill.")]
    experts, _ = run("train_experts", tmp_path, *own)
    store = TrajectoryStore.open(experts.experts_folder())
    assert store.experts() == [0, 1]
    configured, metrics = run("distill", tmp_path, *overrides)
    assert metrics["test_accuracy"] > 0
    dataset = load_distilled(configured.synthetic_folder())
    assert dataset.metadata["iteration"] == 2
    (target,) = re.findall(r"my_parts\.(\w+)", " ".join(overrides))
    assert target in str(configured.config)
    assert hasattr(my_parts, target)
    if script == "train_experts.py" and words[2].startswith("expert."):  # it has another result than the default
        plain, _ = run("train_experts", tmp_path)
        default = TrajectoryStore.open(plain.experts_folder())
        assert not torch.equal(store.read_snapshot(0, 4), default.read_snapshot(0, 4))


def test_parts_change_the_result_and_its_folder(my_parts: Any, tmp_path: Path) -> None:
    run("train_experts", tmp_path)
    options = [" ".join(words[2:]) for words in COMMANDS if words[1] == "distill.py" and "--config-dir" not in words]
    found = {}
    for option in ["", *options]:
        configured, _ = run("distill", tmp_path, *shlex.split(option.replace("={", "='{").replace("}", "}'")))
        found[configured.distill_folder()] = load_distilled(configured.synthetic_folder()).images
    assert len(found) == 1 + len(options)
    assert len({tuple(images.flatten().tolist()) for images in found.values()}) == len(found)


def test_every_kind_of_part_has_an_example() -> None:
    named = {words[2].partition("=")[0] for words in COMMANDS}
    assert named >= {"distill.matching", "distill.init", "distill.outer", "expert.optimizer", "expert.regularizers"}
    assert named >= {"expert.samples", "data.name", "network", "--config-dir"}


def test_the_method_through_the_scripts(my_parts: Any, tmp_path: Path) -> None:
    small = [word for word in TINY if not word.startswith(OF_TRAJECTORIES)]
    for words in [words for words in COMMANDS if "--config-dir" in words]:
        line = [*python(), str(ROOT / words[1]), *words[2:], *small, f"output_dir={tmp_path}"]
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            line, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
    assert "distilled images" in done.stdout
    assert not (tmp_path / "experts").exists()
    (folder,) = (tmp_path / "distilled").glob("digits_means_ipc1_seed0_*")
    assert load_distilled(folder / "synthetic" / "last").metadata["config"]["distill"]["pool"] == 2
    wrong = [
        *python(),
        str(ROOT / "distill.py"),
        "--config-dir",
        "my_conf",
        "distill=means",
        "distill.syn_steps=3",
    ]
    done = subprocess.run(
        wrong, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
    )
    assert (done.returncode, "distill.syn_steps=3" in done.stderr) == (2, True)


def test_two_ranks_of_the_method_are_one(my_parts: Any) -> None:
    from ast_lightning.data import LabelledImages

    real = LabelledImages(torch.rand(12, 1, 4, 4), torch.arange(12) % 3)
    method = my_parts.MeanMatching(my_parts.MeanSettings(ipc=1, pool=2), real, 0)
    synthetic = method.synthetic_set(torch.zeros(3, 1, 4, 4), torch.arange(3), 0.01)

    def gradient(rank: int, ranks: int) -> torch.Tensor:
        (item,) = next(method.work(0, rank, ranks))
        return torch.autograd.grad(method.loss(item, synthetic)[0], [synthetic.tensors()[0]])[0]

    torch.testing.assert_close((gradient(0, 2) + gradient(1, 2)) / 2, gradient(0, 1))
