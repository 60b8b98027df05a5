"""Divergence is survived: back to good images with a smaller step, the same after an interruption."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ast_lightning.callbacks import StateOfIterations
from ast_lightning.distillation import DistillModule
from ast_lightning.distillation.recovery import Recovery
from ast_lightning.errors import DistillationDiverged

Make = Callable[..., Any]


def test_a_loss_that_is_high_for_long_is_noticed() -> None:
    recovery = Recovery()
    for iteration in range(20):
        assert recovery.watch(iteration, 1.0 + iteration % 2) is None  # 1.5 in the mean
    for iteration in range(20, 39):
        assert recovery.watch(iteration, 6.1) is None
    assert recovery.watch(39, 5.9) is None  # 4 · 1.5 is the limit: the count begins again
    found = [recovery.watch(iteration, 6.1) for iteration in range(40, 60)]
    assert found[:-1] == [None] * 19
    assert "4 times that of the start for 20 iterations" in str(found[-1])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_noticed(loss: float) -> None:
    assert Recovery().watch(0, loss) == f"the loss is {loss:g}"


@pytest.fixture
def make_diverging(make_store: Make, make_module: Make, ast_settings: Make) -> Callable[..., DistillModule]:
    """A module whose loss is not a number in some iterations."""
    store = make_store()

    def make(*spoilt: int, **changes: Any) -> DistillModule:
        settings = ast_settings(**{"max_steps": 6, "recoveries": 2, "outer": "normalized", "lr_img": 0.1, **changes})
        module: DistillModule = make_module(store, settings)
        loss = module.method.loss

        def spoil(item: Any, synthetic: Any) -> tuple[Tensor, dict[str, Tensor]]:
            total, found = loss(item, synthetic)
            factor = math.nan if item.index in spoilt else 1.0
            return total * factor, {**found, "train/loss": found["train/loss"] * factor}

        module.method.loss = spoil  # type: ignore[method-assign]
        return module

    return make


@pytest.mark.parametrize(("outer", "schedule"), [("normalized", "constant"), ("sgd", "cosine")])
def test_the_run_goes_on_from_good_images_with_a_smaller_step(
    make_diverging: Make, make_trainer: Make, capsys: pytest.CaptureFixture[str], outer: str, schedule: str
) -> None:
    changes = {"outer": outer, "lr_img": 0.1 if outer == "normalized" else 10.0, "schedule": schedule}
    module = make_diverging(3, **changes)
    start = module.synthetic.images.detach().clone()
    trainer = make_trainer(module.settings)
    trainer.fit(module)
    (event,) = module.recovery.events
    assert (event["iteration"], event["back_to"], event["step"]) == (3, 0, 0.25)
    assert "iteration 3: the loss is nan; back to the images of iteration 0" in capsys.readouterr().out
    left = module.settings.lr_img / 4 * (0.0 if schedule == "cosine" else 1.0)  # after the last iteration
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(left)
    assert trainer.global_step == 6
    images = module.synthetic.images.detach()
    assert images.isfinite().all()
    assert not torch.equal(images, start)

    straight = make_diverging(**changes, max_steps=6)
    make_trainer(straight.settings).fit(straight)
    assert (images - start).norm() < (straight.synthetic.images.detach() - start).norm()


def test_it_ends_where_going_back_does_not_help(make_diverging: Make, make_trainer: Make) -> None:
    module = make_diverging(1, 2, 3)
    with pytest.raises(DistillationDiverged, match=r"iteration 3: the loss is nan.*lower distill\.lr_img"):
        make_trainer(module.settings).fit(module)
    assert [event["iteration"] for event in module.recovery.events] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "rates"), [({"labels": "soft"}, ["lr_img", "lr_lr", "lr_labels"]), ({"alpha": "fixed"}, ["lr_img"])]
)
def test_the_rates_of_what_is_learned_are_recommended(
    make_diverging: Make, make_trainer: Make, changes: dict[str, str], rates: list[str]
) -> None:
    module = make_diverging(0, recoveries=0, **changes)
    with pytest.raises(DistillationDiverged) as caught:
        make_trainer(module.settings).fit(module)
    assert re.findall(r"distill\.(\w+) \(", str(caught.value)) == [*rates, "lr_teacher"]


def test_a_run_without_one_good_iteration_is_no_success(make_diverging: Make, make_trainer: Make) -> None:
    module = make_diverging(0, 1, max_steps=2)
    with pytest.raises(DistillationDiverged, match="iteration 1: the loss is nan"):
        make_trainer(module.settings).fit(module)


def test_an_alpha_below_zero_is_taken_back(make_diverging: Make, make_trainer: Make) -> None:
    module = make_diverging(outer="sgd", alpha="raw", lr_img=1e-3, lr_lr=0.1, lr_teacher=1e-3, recoveries=30)
    make_trainer(module.settings).fit(module)
    assert module.recovery.events
    assert "student learning rate became -" in module.recovery.events[0]["problem"]
    assert 0 < module.training_set().learning_rate < math.inf


@pytest.mark.parametrize("ends", [1, 2, 3, 4, 5])
def test_a_run_that_ends_anywhere_and_resumes_is_bit_identical(
    make_diverging: Make, make_trainer: Make, tmp_path: Path, ends: int
) -> None:
    changes = {"alpha": "log", "lr_lr": 0.01, "schedule": "cosine", "ema": 0.7}
    straight = make_diverging(2, 4, **changes)
    make_trainer(straight.settings).fit(straight)
    assert len(straight.recovery.events) == 2

    path = tmp_path / "state.ckpt"
    first = make_diverging(2, 4, **changes)
    saver = StateOfIterations(path, 1, 100)
    trainer = make_trainer(first.settings, saver, max_steps=ends, enable_checkpointing=True)
    trainer.fit(first)
    second = make_diverging(2, 4, **changes)
    make_trainer(second.settings).fit(second, ckpt_path=path, weights_only=True)
    assert second.recovery.events == straight.recovery.events
    ours, theirs = second.synthetic.state_dict(), straight.synthetic.state_dict()
    assert set(ours) == set(theirs) == {"images", "log_learning_rate", "labels", "average"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_values_of_an_earlier_version_are_restored() -> None:
    """They hold the parameters only."""
    layer = torch.nn.BatchNorm1d(2)
    recovery = Recovery(good={"weight": torch.tensor([3.0, 4.0]), "bias": torch.zeros(2)})
    recovery.go_back(1, "?", layer, torch.optim.SGD(layer.parameters(), 1.0))
    assert layer.weight.tolist() == [3.0, 4.0]
