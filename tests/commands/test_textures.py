"""Textures and the average of the images, from the command that distils to the one that evaluates."""

from __future__ import annotations

from pathlib import Path

import torch

from ast_lightning.synthetic import load_distilled
from ast_lightning.synthetic.verification import verify_distilled

from .conftest import Command
from .test_resuming import distilled_of, with_experts

WORDS = ("distill.canvas=2", "distill.crops=2", "distill.ema=0.5")


def test_a_resumed_run_ends_like_a_whole_one_and_can_be_evaluated(
    output: Path, tmp_path: Path, command: Command
) -> None:
    whole, parts = (with_experts(output, tmp_path / name) for name in ("whole", "parts"))
    expected = command("distill", whole, *WORDS)
    command("distill", parts, *WORDS, "distill.max_steps=2")
    assert command("distill", parts, *WORDS) == expected
    ours, theirs = (distilled_of(folder, *WORDS) / "synthetic" / "last" for folder in (parts, whole))
    dataset = load_distilled(ours)
    assert dataset.checksum() == load_distilled(theirs).checksum()
    assert dataset.images.shape == (10, 1, 16, 16)
    assert dataset.crop_size == (8, 8)
    assert not (ours / "average").exists()  # the images are an average themselves
    assert verify_distilled(ours) == []
    found = command("evaluate", parts, *WORDS, "baselines=[]")
    assert 0 <= found["distilled_accuracy"] <= 100

    state = torch.load(distilled_of(whole, *WORDS) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(dataset.images, state["synthetic.average"])
    assert not torch.equal(dataset.images, state["synthetic.images"])

    warm = ("distill.canvas=2", "distill.ema=0.9", f"distill.warm_start={ours}", "distill.max_steps=1")
    command("distill", whole, *warm)
    moved = load_distilled(distilled_of(whole, *warm) / "synthetic" / "last").images - dataset.images
    assert 0 < moved.norm() < 0.2 * dataset.images.norm()  # the average starts as the loaded canvases
