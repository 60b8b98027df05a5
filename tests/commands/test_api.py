"""``ast_lightning.distill``: arrays that a script holds, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import ast_lightning
from ast_lightning.errors import ConfigurationError
from ast_lightning.synthetic import load_distilled

FEW = ("trainer=cpu", "network.width=4", "network.depth=1", "evaluation.epochs=2", "evaluation.networks=1", "seed=1")
FEW += ("compile=false", "logger=none", "trainer.enable_progress_bar=false", "distill.max_steps=2")
EXPERTS = ("num_experts=1", "expert.epochs=3", "distill.syn_steps=2", "distill.max_start_epoch=2")


def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits(n_class=3)
    return (bunch.images[:120] / 16).astype(np.float32), bunch.target[:120]


def least_certain(real: Any, class_names: Any, settings: Any, seed: int, experts: Any) -> tuple[Any, Any]:
    """An initialisation that needs an expert: the image of each class with the smallest logit of the class."""
    logits = next(experts())(real.images[:])
    rows = [min((real.labels == each).nonzero()[:, 0], key=lambda row: logits[row, each]) for each in range(3)]
    return real.images[:][torch.stack(rows)], torch.arange(3)


def test_experts_are_trained_for_an_initialisation_that_may_need_them(tmp_path: Path) -> None:
    init = "distill.init={_target_: tests.commands.test_api.least_certain}"
    found = ast_lightning.distill(*digits(), options=[*FEW, *EXPERTS[:2], "method=dm", init], output_dir=tmp_path)
    assert len(found) == 3
    assert list((tmp_path / "experts").glob("*/expert_0000/expert.json"))


def test_arrays_become_a_distilled_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = digits()
    found = ast_lightning.distill(images, labels, ipc=2, options=[*FEW, *EXPERTS], output_dir=tmp_path)
    assert found.images.shape == (6, 1, 8, 8)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.class_names == ("0", "1", "2")
    assert list((tmp_path / "experts").glob("arrays_*/expert_0000/expert.json"))
    capsys.readouterr()
    again = ast_lightning.distill(
        torch.tensor(images), torch.tensor(labels), ipc=2, options=[*FEW, *EXPERTS], output_dir=tmp_path
    )
    assert "already finished" in capsys.readouterr().out
    assert torch.equal(again.images, found.images)
    (folder,) = (tmp_path / "distilled").glob("arrays_ast_ipc2_seed1_*")
    assert torch.equal(load_distilled(folder / "synthetic" / "last").images, found.images)


def test_experts_are_trained_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process would run the caller's script again, where two GPUs make auto two."""
    monkeypatch.setattr("ast_lightning.parallel.workers.gpus_of", lambda trainer: ["0", "1"])
    monkeypatch.setattr("ast_lightning.commands.train_experts.run_workers", lambda *_: pytest.fail("a second process"))
    options = [*FEW, *EXPERTS, "num_experts=2"]
    assert len(ast_lightning.distill(*digits(), options=options, output_dir=tmp_path)) == 3


def test_a_method_without_experts_trains_none(tmp_path: Path) -> None:
    images, labels = digits()
    test = {"test_images": images[:30], "test_labels": labels[:30]}
    found = ast_lightning.distill(images, labels, **test, options=[*FEW, "method=dm"], output_dir=tmp_path)
    assert len(found) == 3
    assert not (tmp_path / "experts").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["distill.syn_step=3"], r"distill\.syn_step=3: .*distill\.syn_steps"),
        (["distill.ipc=3"], r"distill\.ipc=3: .*sets this itself"),
        (["distill.max_steps=some"], r"distill\.max_steps=some: it must be a whole number"),
        (["expert.momentum=2"], r"expert\.momentum=2"),
        ("expert.momentum=0.5", r"options=expert\.momentum=0\.5: it must be a list"),
        ({"num_experts": 1}, r"it must be a list of overrides\..*\['num_experts=1'\]"),
    ],
)
def test_options_are_those_of_the_command_line(tmp_path: Path, options: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ast_lightning.distill(*digits(), options=options, output_dir=tmp_path)


def test_arrays_that_do_not_fit_are_named(tmp_path: Path) -> None:
    images, labels = digits()
    with pytest.raises(ConfigurationError, match="train_labels"):
        ast_lightning.distill(images, labels[:-1], output_dir=tmp_path)
    assert not list(tmp_path.iterdir())
