"""``python -m ast_lightning.synthetic``: what it prints, its exit status, and one whole way round."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ast_lightning.storage.provenance import provenance
from ast_lightning.synthetic import DistilledDataset, load_distilled, save_distilled
from ast_lightning.synthetic.__main__ import main

Make = Callable[..., DistilledDataset]


@pytest.fixture
def folder(make_distilled: Make, tmp_path: Path) -> Path:
    """A set with all that distill.py records, in small."""
    dataset = make_distilled()
    dataset.metadata |= {
        **provenance(),
        "seed": 3,
        "data": {"name": "pets", "fingerprint": "abc123", "counts": {"train": 90}},
        "network": {"target": "ast_lightning.networks.convnet.ConvNet", "arguments": {"width": 32}},
        "evaluation": {"epochs": 300},
        "trajectories": {
            "id": "store-id",
            "folder": "runs/experts/pets",
            "experts": list(range(12)),
            "epochs": 50,
            "seed": 5,
            "expert": {"lr": 0.003},
            "sources": {"0": {"file": "replay_buffer_4.pt", "trajectory": 2, "checksum": "beef"}},
            "data": {"name": "pets", "fingerprint": "abc123"},
            "versions": {"torch": "2.6.0"},
            "git": {"of": "package", "commit": "c0ffee", "dirty": True},
            "command": ["train_experts.py", "data=pets"],
            "time": "2025-01-01T00:00:00+00:00",
        },
        "warm_start": {"folder": "runs/earlier", "checksum": "feed", "iteration": 9, "trajectories": "other-id"},
    }
    return save_distilled(tmp_path / "set", dataset)


@pytest.mark.parametrize("soft", [True, False])
def test_info_names_soft_labels(
    make_distilled: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], soft: bool
) -> None:
    dataset = make_distilled()
    if soft:
        dataset.labels = torch.full((12, 4), 0.25)
    assert main(["info", str(save_distilled(tmp_path / "set", dataset))]) == 0
    rows = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert ("labels soft" in rows) == soft


def test_info_tells_the_whole_ancestry_on_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder)]) == 0
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "12, 3, 6, 5",
        "ant, bee, Käfer, dog/cat",
        "test/accuracy 12.5",
        load_distilled(folder).checksum(),
        "data fingerprint abc123",
        "data counts train 90",
        "width 32",
        "trajectories id store-id",
        "trajectories folder runs/experts/pets",
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …",
        "trajectories epochs 50",
        "lr 0.003",
        "file replay_buffer_4.pt, trajectory 2, checksum beef",
        "train_experts.py data=pets",
        "commit c0ffee, dirty True",
        "torch 2.6.0",
        f"torch {torch.__version__}",
        "folder runs/earlier, checksum feed, iteration 9, trajectories other-id",
    ):
        assert words in page, words
    assert len(page.splitlines()) <= 60


def test_brackets_are_no_markup(make_distilled: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_distilled()
    dataset.metadata |= {"command": ["distill.py", "baselines=[random,whole]"], "time": "today"}
    folder = save_distilled(tmp_path / "[" / "bold]" / "set", dataset)
    for command in ("info", "verify"):
        assert main([command, str(folder)]) == 0
    assert "baselines=[random,whole]" in capsys.readouterr().out


def test_what_the_disk_refuses_is_said_in_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main(["export", str(folder), str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: File exists\n"


def test_info_as_json_is_the_description(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(folder)
    assert told["trajectories"]["id"] == "store-id"
    assert told["class_names"] == ["ant", "bee", "Käfer", "dog/cat"]


def test_info_of_a_set_that_says_little(
    make_distilled: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_distilled("none")
    dataset.metadata, dataset.augmentation = {}, None
    assert main(["info", str(save_distilled(tmp_path / "set", dataset))]) == 0
    assert "kind none" in capsys.readouterr().out


def test_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.endswith(": no problems\n")
    (folder / "images.png").write_bytes(b"")
    assert main(["verify", str(folder)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("images.png: it is not the picture that was written. Remedy: ")
    assert said.endswith(": 1 problem\n")
    assert main(["verify", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [each["file"] for each in told["findings"]] == ["images.png"]


def test_mistakes_are_named_with_status_2(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"error: folder={tmp_path / 'none'}: there is no such folder")
    (folder / "images.safetensors").write_bytes(b"")
    for words in (["info", str(folder)], ["export", str(folder), str(tmp_path / "out")]):
        assert main(words) == 2
        assert "images.safetensors cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["import", str(tmp_path), str(folder), "--like", str(folder)]) == 2
    assert "it already exists" in capsys.readouterr().err


def test_out_and_in_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "files", tmp_path / "again"
    assert main(["export", str(folder), str(out), "--name", "best"]) == 0
    assert capsys.readouterr().out.split() == [str(out / f"{kind}_best.pt") for kind in ("images", "labels", "lr")]
    assert main(["import", str(out), str(again), "--like", str(folder), "--learning-rate", "0.25"]) == 0
    assert load_distilled(again).learning_rate == 0.25
    assert torch.equal(load_distilled(again).images, load_distilled(folder).images)
    assert main(["info", str(again)]) == 0
    assert "images_best.pt" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_a_command(folder: Path) -> None:
    words = [sys.executable, "-m", "ast_lightning.synthetic", "verify", str(folder)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(": no problems\n")
