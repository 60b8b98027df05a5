"""``distill.max_loss``: an iteration with a larger loss changes nothing but the position in the schedule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ast_lightning.distillation import DistillModule

Make = Callable[..., Any]
SPIKES = {1: 9.0, 4: 7.0, 5: 7.0}
"""Factors of the loss by iteration."""


class Notes(Callback):
    """Notes after each iteration the parameters, the state of the optimiser, its learning rate and what was logged."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[Tensor], dict[str, Any], float, dict[str, float]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        state = copy.deepcopy(trainer.optimizers[0].state_dict())
        values = [each.detach().clone() for each in pl_module.parameters()]
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert isinstance(pl_module, DistillModule)
        self.skipped = pl_module.skipped
        self.seen.append((values, state["state"], state["param_groups"][0]["lr"], logged))


@pytest.fixture
def fit(make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make) -> Callable[..., Notes]:
    store = make_store()

    def run(spikes: dict[int, float], **changes: Any) -> Notes:
        settings = ast_settings(**{"max_steps": 7, "eval_every": 100, "alpha": "raw", "lr_lr": 1e-4, **changes})
        module: DistillModule = make_module(store, settings)
        loss, notes = module.method.loss, Notes()

        def spike(item: Any, synthetic: Any) -> tuple[Tensor, dict[str, Tensor]]:
            total, found = loss(item, synthetic)
            factor = spikes.get(item.index, 1.0)
            return total * factor, {**found, "train/loss": found["train/loss"] * factor}

        module.method.loss = spike  # type: ignore[method-assign]
        make_trainer(settings, notes).fit(module)
        return notes

    return run


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("outer", ["sgd", "normalized"])
def test_a_larger_loss_changes_nothing(fit: Callable[..., Notes], outer: str) -> None:
    rate = 10.0 if outer == "sgd" else 0.1
    notes = fit(SPIKES, max_loss=10.0, outer=outer, schedule="inverse_sqrt", lr_img=rate)
    seen = notes.seen
    assert notes.skipped == len(SPIKES)
    for iteration, (before, after) in enumerate(pairwise(seen)):
        skipped = iteration in SPIKES
        assert after[3]["train/skipped"] == float(skipped)
        assert (after[3]["train/loss"] > 10) == skipped
        assert equal(before[0], after[0]) == skipped  # images and α
        assert equal(before[1], after[1]) == skipped  # momentum buffers and step counts
    rates = [each[2] for each in seen]
    assert rates == pytest.approx([rate / math.sqrt(1 + step / 20) for step in range(8)])


def test_without_a_bound_nothing_is_skipped(fit: Callable[..., Notes]) -> None:
    seen = fit({}, max_steps=2).seen
    assert "train/skipped" not in seen[-1][3]
    bounded = fit({}, max_steps=2, max_loss=1e6).seen
    assert bounded[-1][3]["train/skipped"] == 0
    assert equal(bounded[-1][0], seen[-1][0])


def test_a_loss_that_stays_large_leads_to_a_recovery(
    fit: Callable[..., Notes], capsys: pytest.CaptureFixture[str]
) -> None:
    """The images cannot change while every update is skipped: only earlier images and a smaller step help."""
    spikes = dict.fromkeys(range(25, 60), 20.0)
    seen = fit(spikes, max_loss=10.0, max_steps=48, recoveries=1, syn_steps=3).seen
    assert [each[3]["train/skipped"] for each in seen[1:]] == [0.0] * 25 + [1.0] * 23
    assert "iteration 44: the loss" in capsys.readouterr().out
    assert equal(seen[25][0], seen[44][0])
    assert not equal(seen[44][0], seen[45][0])
    assert equal(seen[45][0], seen[0][0])
    assert seen[45][2] == seen[0][2] / 4
    assert equal(seen[45][0], seen[-1][0])
