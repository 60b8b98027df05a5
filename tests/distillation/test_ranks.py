"""Two and three gloo processes against one: gradients, images, logged numbers, and evaluations."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ast_lightning.distillation import TrajectoryMatchingSettings
from ast_lightning.distillation.trajectory_matching.split import check_network
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ConvNet
from tests import PATIENCE
from tests.forks import python

from .conftest import make_trajectories
from .ranks import CLASSES, network

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "ipc": 2, "syn_steps": 5, "expert_epochs": 3, "max_start_epoch": 3, "batch_syn": 4, "lr_teacher": 0.05,
    "outer": "sgd", "lr_img": 10.0, "lr_lr": 2e-5, "max_steps": 3, "eval_every": 100,
}  # fmt: skip
PARTS: dict[str, Any] = {
    "windows": {"settings": {**BASE, "max_steps": 20, "windows_per_step": 6}},
    "batch": {"settings": {**BASE, "split": "batch", "windows_per_step": 2, "recompute": True}},
    "soft_windows": {"settings": {**BASE, "windows_per_step": 6, "labels": "soft", "lr_labels": 5.0}},
    "soft_batch": {"settings": {**BASE, "split": "batch", "labels": "soft", "outer": "normalized", "lr_img": 0.2}},
    "teacher": {"settings": {**BASE, "labels": "teacher"}},
    "tiny_batch": {"settings": {**BASE, "batch_syn": 1, "max_steps": 2}},  # one window: split by itself
    "textures": {"settings": {**BASE, "split": "batch", "canvas": 2, "crops": 2, "ema": 0.5}},
    "nearest": {
        "settings": {
            **BASE,
            "split": "batch",
            "engine": "truncated",
            "momentum": 0.0,
            "intermediate": "none",
            "drop_ratio": 0.3,
            "matching": "nearest",
            "lr_teacher": 0.5,
        }
    },
    "straight": {
        "settings": {
            **BASE,
            "windows_per_step": 6,
            "waypoints": [0, 3, 5],
            "max_start_epoch": 5,
            "min_start_epoch": 1,
            "first_start_bound": 2,
            "expansion_end": 3,
            "max_loss": 9.0,
            "max_steps": 5,
        }
    },
    "distributions": {"method": "dm", "settings": {"ipc": 2, "lr_img": 10.0, "max_steps": 3, "real_batch": 7}},
    "odd": {"settings": {**BASE, "windows_per_step": 5, "split": "windows"}},
    "evaluated": {"settings": {**BASE, "max_steps": 1, "eval_every": 1, "windows_per_step": 6}, "networks": 2},
}
Results = dict[str, dict[str, Tensor]]


def run_ranks(folder: Path, ranks: int, parts: dict[str, Any]) -> list[Results]:
    """The results of each rank; a single process has no process group."""
    folder.mkdir()
    (folder / "store").symlink_to(folder.parent / "store")
    (folder / "parts.json").write_text(json.dumps(parts))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        variables = {"OMP_NUM_THREADS": "1"}
        if ranks > 1:  # as torchrun sets them, a node a rank
            variables |= {"RANK": str(rank), "GROUP_RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        words = [*python(), "-m", "tests.distillation.ranks", str(folder)]
        processes.append(subprocess.Popen(words, cwd=ROOT, env={**os.environ, **variables}))
    assert [process.wait(timeout=PATIENCE) for process in processes] == [0] * ranks
    return [
        {name: torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for name in parts} for rank in range(ranks)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Results]]:
    """By number of ranks, what each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    make_trajectories(folder / "store", network)
    single = {name: part for name, part in PARTS.items() if name != "odd"}
    single["alone"] = {"settings": BASE, "alone": 3}
    return {
        1: run_ranks(folder / "one", 1, single),
        **{ranks: run_ranks(folder / str(ranks), ranks, parts_of(ranks)) for ranks in (2, 3)},
    }


def parts_of(ranks: int) -> dict[str, Any]:
    each = {"settings": {**BASE, "max_steps": 1, "windows_per_step": ranks}}
    return {**PARTS, "one_each": each}


SEVERAL = pytest.mark.parametrize("ranks", [2, 3])


@SEVERAL
def test_gradients_are_the_average_of_the_windows(results: dict[int, list[Results]], ranks: int) -> None:
    """Of X and α, in float64, against the windows of one process, one after the other and with no Trainer."""
    windows = results[1][0]["alone"]["gradients"][:ranks]
    assert windows.dtype == torch.float64
    images = windows[:, :-1]  # α is the last
    assert (images[0] - images[1]).norm() > 0.1 * images[0].norm()
    for rank in range(ranks):
        (gradients,) = results[ranks][rank]["one_each"]["gradients"]
        torch.testing.assert_close(gradients, windows.mean(0), rtol=1e-9, atol=1e-12)


@SEVERAL
@pytest.mark.parametrize(
    "part",
    [
        *("windows", "batch", "soft_windows", "soft_batch", "teacher", "tiny_batch", "textures", "nearest", "straight"),
        "distributions",
    ],
)
def test_ranks_end_like_one_process(results: dict[int, list[Results]], part: str, ranks: int) -> None:
    """The same images on all ranks, to the last bit, and those of one process; so is what is logged."""
    alone, first = results[1][0][part], results[ranks][0][part]
    assert len(alone["gradients"]) == PARTS[part]["settings"]["max_steps"]
    for other in results[ranks][1:]:
        assert all(torch.equal(other[part][name], value) for name, value in first.items())
    assert set(first) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: name + text)
    assert alone["images"].dtype == torch.float64
    assert part != "straight" or alone["train/skipped"] == 1


@SEVERAL
def test_the_gradients_of_a_split_batch_are_those_of_the_whole(results: dict[int, list[Results]], ranks: int) -> None:
    # tiny_batch has fewer images than there are ranks
    for part in ("batch", "textures", "nearest", "soft_batch", "teacher", "tiny_batch"):
        alone, split = results[1][0][part]["gradients"], results[ranks][0][part]["gradients"]
        torch.testing.assert_close(split[0], alone[0], rtol=1e-9, atol=1e-12)


@SEVERAL
def test_windows_that_do_not_divide_are_refused(results: dict[int, list[Results]], ranks: int) -> None:
    for rank in range(ranks):
        message = bytes(results[ranks][rank]["odd"]["refused"].tolist()).decode()
        assert message.startswith(f"distill.windows_per_step=5: {ranks} devices cannot divide")
        assert f"use a multiple of {ranks}" in message


@SEVERAL
def test_evaluation_networks_are_divided(results: dict[int, list[Results]], ranks: int) -> None:
    """Two networks over two and over three ranks find what one process finds."""
    alone = results[1][0]["evaluated"]
    assert alone["test/accuracy_std"] > 0
    for rank in range(ranks):
        found = results[ranks][rank]["evaluated"]
        for name in ("test/accuracy", "test/accuracy_std"):
            assert float(found[name]) == pytest.approx(float(alone[name]), rel=1e-6)


def test_students_with_batch_normalisation_cannot_be_split() -> None:
    def batch() -> ConvNet:
        return ConvNet(channels=3, num_classes=CLASSES, image_size=(8, 8), width=4, depth=1, normalization="batch")

    check_network(network)
    with pytest.raises(ConfigurationError, match=r"distill\.split=batch: the layer features\.1 \(BatchNorm2d\)"):
        check_network(batch)


@pytest.mark.parametrize(
    ("windows", "split", "devices", "own"),
    [(4, "windows", 4, 1), (8, "auto", 4, 2), (3, "batch", 4, 3), (3, "auto", 4, 3)],
)
def test_windows_of_a_device(windows: int, split: str, devices: int, own: int) -> None:
    settings = TrajectoryMatchingSettings(windows_per_step=windows, split=split)
    assert settings.windows_of_a_device(devices) == own
    assert settings.windows_of_a_device(1) == settings.windows_per_step


def test_settings_of_several_devices_that_cannot_work() -> None:
    with pytest.raises(ConfigurationError, match=r"distill\.windows_per_step=0"):
        TrajectoryMatchingSettings(windows_per_step=0)
    with pytest.raises(ConfigurationError, match=r"distill\.split=images"):
        TrajectoryMatchingSettings(split="images")
    with pytest.raises(ConfigurationError, match=r"distill\.engine=autograd.*distill\.split=batch.*engine=adjoint"):
        TrajectoryMatchingSettings(split="batch", engine="autograd")
    with pytest.raises(ConfigurationError, match=r"windows_per_step=2: 3 devices.*a multiple of 3"):
        TrajectoryMatchingSettings(windows_per_step=2, split="windows").windows_of_a_device(3)
