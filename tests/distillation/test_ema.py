"""The exponential moving average of the images: its values, and what evaluation, skips, recoveries and resuming see."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ast_lightning.callbacks import StateOfIterations
from ast_lightning.config.distill import DistillSettings
from ast_lightning.distillation import DistillModule, Textures
from ast_lightning.errors import ConfigurationError

from .test_synthetic_sets import Decoded

Make = Callable[..., Any]


class Noted(Callback):
    """Notes X after each iteration."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *others: Any) -> None:
        self.images.append(pl_module.synthetic.images.detach().clone())  # type: ignore[union-attr]


def averaged(start: Tensor, path: list[Tensor], decay: float) -> Tensor:
    average = start.double()
    for images in path:
        average = decay * average + (1 - decay) * images.double()
    return average


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_three_iterations_by_hand(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, dtype: torch.dtype
) -> None:
    settings, store, noted = ast_settings(max_steps=3, ema=0.8), make_store(), Noted()
    module = make_module(store, settings, dtype=dtype)
    start = module.synthetic.images.detach().clone()
    make_trainer(settings, noted).fit(module)
    found = module.training_set()
    first, second, third = (images.double() for images in noted.images)
    by_hand = 0.512 * start.double() + 0.128 * first + 0.16 * second + 0.2 * third
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found.images.double(), by_hand, **close)
    assert found.images.dtype == dtype
    assert (third - by_hand).abs().max() > 1e-2
    assert found.learning_rate == float(module.synthetic.alpha.detach())  # the current one

    plain = make_module(store, ast_settings(max_steps=3), dtype=dtype)
    make_trainer(plain.settings).fit(plain)
    assert torch.equal(plain.synthetic.images, module.synthetic.images)  # X itself does not depend on it
    assert "average" not in plain.synthetic.state_dict()


def test_the_average_is_evaluated(
    make_store: Make,
    make_module: Make,
    make_trainer: Make,
    ast_settings: Make,
    make_evaluator: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, evaluator, seen = ast_settings(max_steps=2, ema=0.5), make_evaluator("test"), []
    run = evaluator.run
    monkeypatch.setattr(
        evaluator, "run", lambda indices, sets, device: seen.append(sets(0)) or run(indices, sets, device)
    )
    module, noted = make_module(make_store(), settings, evaluator=evaluator), Noted()
    start = module.synthetic.images.detach().clone()
    make_trainer(settings, noted).fit(module)
    torch.testing.assert_close(seen[-1].images.double(), averaged(start, noted.images, 0.5), rtol=1e-5, atol=1e-6)


def test_a_skipped_update_is_an_iteration_of_unchanged_images(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, noted = ast_settings(max_steps=3, ema=0.5), Noted()
    module, accepted = make_module(make_store(), settings), iter([True, False, False])
    monkeypatch.setattr(module.method, "accepts", lambda means: next(accepted))
    start = module.synthetic.images.detach().clone()
    make_trainer(settings, noted).fit(module)
    first = noted.images[0]
    assert torch.equal(noted.images[2], first)
    expected = 0.125 * start + 0.875 * first
    torch.testing.assert_close(module.training_set().images, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cause", ["loss", "images"])
def test_a_recovery_restores_the_average(
    make_store: Make,
    make_module: Make,
    make_trainer: Make,
    ast_settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    cause: str,
) -> None:
    """The set of the start is restored in iteration 2, before or after its update; two iterations follow."""
    settings, noted = ast_settings(max_steps=5, ema=0.5, recoveries=1), Noted()
    module = make_module(make_store(), settings)
    loss, problem, calls = module.method.loss, module.synthetic.problem, iter(range(5))

    def spoilt(item: Any, synthetic: Any) -> tuple[Tensor, dict[str, Tensor]]:
        total, found = loss(item, synthetic)
        factor = math.nan if item.index == 2 else 1.0
        return total * factor, {**found, "train/loss": found["train/loss"] * factor}

    def complaint(settings: DistillSettings) -> tuple[str, str] | None:
        return ("?", "!") if next(calls) == 2 else problem(settings)

    if cause == "loss":
        monkeypatch.setattr(module.method, "loss", spoilt)
    else:
        monkeypatch.setattr(module.synthetic, "problem", complaint)
    start = module.synthetic.images.detach().clone()
    make_trainer(settings, noted).fit(module)
    assert [(event["iteration"], event["back_to"]) for event in module.recovery.events] == [(2, 0)]
    assert torch.equal(noted.images[2], start)
    expected = averaged(start, noted.images[3:], 0.5)
    torch.testing.assert_close(module.training_set().images.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("canvas", [1, 2])
def test_a_resumed_run_is_bit_identical(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, tmp_path: Path, canvas: int
) -> None:
    settings, store = ast_settings(max_steps=4, ema=0.6, canvas=canvas, crops=canvas), make_store()
    whole = make_module(store, settings)
    make_trainer(settings).fit(whole)
    path = tmp_path / "state.ckpt"
    saver = StateOfIterations(path, 1, 100)
    first = make_module(store, settings)
    make_trainer(settings, saver, max_steps=2, enable_checkpointing=True).fit(first)
    resumed = make_module(store, settings)
    with torch.no_grad():
        resumed.synthetic.images.zero_()
        resumed.synthetic.average.zero_()
    make_trainer(settings).fit(resumed, ckpt_path=path, weights_only=True)
    assert isinstance(resumed.synthetic, Textures) == (canvas == 2)
    for ours, theirs, half in zip(
        *(module.synthetic.state_dict().values() for module in (resumed, whole, first)), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.int64 or not torch.equal(ours, half)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5])
def test_a_decay_outside_0_and_1_is_rejected(decay: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"distill\.ema={decay}: it must be .* above 0 and below 1"):
        DistillSettings(ema=decay)


@pytest.mark.parametrize(("name", "value", "lacking"), [("ema", 0.5, "average"), ("canvas", 2, "crops")])
def test_a_set_without_an_average_or_crops_is_rejected(
    make_store: Make, make_module: Make, ast_settings: Make, name: str, value: float, lacking: str
) -> None:
    method = make_module(make_store(experts=1), ast_settings(**{name: value})).method
    with pytest.raises(
        ConfigurationError, match=rf"distill\.{name}={value}: the synthetic set Decoded has no {lacking}"
    ):
        DistillModule(Decoded(), method)
