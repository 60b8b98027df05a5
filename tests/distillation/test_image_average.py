"""The average of the images over the last iterations: its formula, and that interruptions do not show in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ast_lightning.callbacks import ImageAverage, StateOfIterations

Make = Callable[..., Any]


class Noted(Callback):
    """Notes the images after each iteration."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *others: Any) -> None:
        self.images.append(pl_module.training_set().images.clone())  # type: ignore[operator]


def test_it_is_the_polynomial_decay_average(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make
) -> None:
    settings = ast_settings(max_steps=4)
    average, path = ImageAverage(), Noted()
    make_trainer(settings, path, average).fit(make_module(make_store(), settings))
    expected = path.images[0]
    for step, images in enumerate(path.images[1:], 2):
        expected = expected + (images - expected) * 11 / (step + 10)
    assert average.images is not None
    torch.testing.assert_close(average.images, expected)
    assert not torch.allclose(average.images, path.images[-1], atol=1e-3)


def test_a_resumed_run_has_the_same_average(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, tmp_path: Path
) -> None:
    store, settings = make_store(), ast_settings(max_steps=4)
    whole = ImageAverage()
    make_trainer(settings, whole).fit(make_module(store, settings))
    path = tmp_path / "state.ckpt"
    first = make_trainer(
        settings, ImageAverage(), StateOfIterations(path, 1, 100), max_steps=2, enable_checkpointing=True
    )
    first.fit(make_module(store, settings))
    resumed = ImageAverage()
    make_trainer(settings, resumed).fit(make_module(store, settings), ckpt_path=path, weights_only=True)
    assert torch.equal(resumed.images, whole.images)
