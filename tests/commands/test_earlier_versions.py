"""What commit 571d69b left on disk: a store, a half-finished distillation and a finished one are found and used.

``tests/earlier/571d69b`` is what that commit wrote with the overrides below, ``distill.max_steps=6 distill.lr_img=50``
for the half-finished distillation, whose ``expected`` images after ten iterations it made on the same machine.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ast_lightning.commands.distill import distill
from ast_lightning.commands.evaluate import evaluate
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.errors import ConfigurationError
from ast_lightning.synthetic import load_distilled
from ast_lightning.synthetic.__main__ import main as synthetic_command
from ast_lightning.trajectories.__main__ import main as trajectories_command
from tests.threads import one_thread

from .conftest import run_of

EARLIER = Path(__file__).parents[1] / "earlier" / "571d69b"
HALF, WHOLE = "digits_ast_ipc1_seed0_8fecffea", "digits_ast_ipc1_seed0_ab370e39"
OVERRIDES = (
    "experiment=digits_quickstart", "trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "num_experts=2",
    "network.width=4", "network.depth=1", "data.per_class=20", "expert.epochs=4", "distill.syn_steps=4",
    "distill.max_start_epoch=2", "distill.outer=sgd", "distill.lr_img=100",
    "distill.eval_every=4", "distill.save_every=2", "evaluation.epochs=4",
    "evaluation.networks=2", "evaluation.at_once=2", "compile=false", "baselines=[]",
)  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work on, where the commands look for it."""
    shutil.copytree(EARLIER, tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield tmp_path / "runs"


def test_its_files_are_listed_and_verified(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trajectories_command(["ls", "runs/experts", "--json"]) == 0
    (store,) = json.loads(capsys.readouterr().out)
    assert (store["complete"], store["incomplete"], store["epochs"]) == (2, 0, 4)
    assert trajectories_command(["verify", "runs/experts"]) == 0
    for name in (HALF, WHOLE):
        assert synthetic_command(["verify", f"runs/distilled/{name}/synthetic/last"]) == 0


def test_its_experts_are_found_and_trained_no_more(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(*OVERRIDES)
    assert run.experts_folder().name == "digits_convnet_ast_seed0_97e9ba57"
    written = {path: path.read_bytes() for path in runs.rglob("*.safetensors")}
    train_experts(run)
    assert "expert 1 is already complete" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in runs.rglob("*.safetensors")} == written


def test_its_half_finished_distillation_is_resumed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "distilled" / HALF
    six = load_distilled(folder / "synthetic" / "last").images
    distill(run_of(*OVERRIDES, "distill.lr_img=50", "distill.max_steps=6"))  # nothing is left to compute
    assert torch.equal(load_distilled(folder / "synthetic" / "last").images, six)
    distill(run_of(*OVERRIDES, "distill.lr_img=50", "distill.max_steps=10"))
    assert "resuming from" in capsys.readouterr().out
    found = load_distilled(folder / "synthetic" / "last")
    assert found.metadata["iteration"] == 10
    expected = load_file(EARLIER / "expected" / "images.safetensors")
    # the same bits on the machine that made them; others round their convolutions differently
    torch.testing.assert_close(found.images, expected["images"], rtol=1e-4, atol=1e-4)
    assert found.learning_rate == pytest.approx(float(expected["learning_rate"]), rel=1e-5)
    assert not torch.allclose(found.images, six, atol=1e-2)
    assert len(list((runs / "distilled").glob("digits_*"))) == 2


def test_its_finished_distillation_is_finished_and_evaluated(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(*OVERRIDES, "distill.max_steps=4")
    assert run.distill_folder().name == WHOLE
    distill(run)
    assert "already finished, 4 iterations" in capsys.readouterr().out
    metrics = evaluate(run_of(*OVERRIDES, "baselines=[random,whole]"))
    assert set(metrics) == {
        f"{name}_{what}" for name in ("random", "distilled", "whole") for what in ("accuracy", "std")
    }
    assert metrics["whole_accuracy"] > 10


def test_other_trajectories_in_its_place_are_rejected(runs: Path) -> None:
    run = run_of(*OVERRIDES, "distill.lr_img=50", "distill.max_steps=10", "num_experts=1")
    assert run.distill_folder().name not in (HALF, WHOLE)  # another run
    record = next((runs / "experts").glob("*/expert_0001/expert.json"))
    record.write_text(record.read_text().replace('"expert": 1', '"expert": 2'))
    with pytest.raises(ConfigurationError, match=r"experts_dir=.*expert\.json"):
        distill(run_of(*OVERRIDES, "distill.lr_img=50", "distill.max_steps=10"))
