"""A distillation that was stopped and goes on equals one that was not, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ast_lightning.distillation import DistillModule

Make = Callable[..., Any]


class Kill(Callback):
    """An accident in the middle of an outer iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.iteration:
            raise OSError("killed")


def checkpoints(folder: Path) -> ModelCheckpoint:
    """As distill.py keeps them."""
    return ModelCheckpoint(folder / "checkpoints", "last", enable_version_counter=False, save_top_k=1)


def momenta(trainer: Trainer) -> list[torch.Tensor]:
    state = trainer.optimizers[0].state_dict()["state"]
    return [state[index]["momentum_buffer"] for index in sorted(state)]


def same(one: tuple[DistillModule, Trainer], other: tuple[DistillModule, Trainer]) -> None:
    assert one[1].global_step == other[1].global_step
    assert torch.equal(one[0].synthetic.images, other[0].synthetic.images)
    assert torch.equal(one[0].synthetic.learning_rate, other[0].synthetic.learning_rate)
    left, right = momenta(one[1]), momenta(other[1])
    assert len(left) == len(right) == 2
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(left, right, strict=True))
    metrics = {name: float(value) for name, value in one[1].callback_metrics.items()}
    assert metrics == {name: float(value) for name, value in other[1].callback_metrics.items()}


@pytest.fixture
def run(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, make_evaluator: Make, tmp_path: Path
) -> Callable[..., tuple[DistillModule, Trainer]]:
    store = make_store()

    def fit(
        name: str, *callbacks: Callback, resume: Path | None = None, **changes: Any
    ) -> tuple[DistillModule, Trainer]:
        settings = ast_settings(**changes)
        module = make_module(store, settings, evaluator=make_evaluator("test"))
        if resume:
            with torch.no_grad():
                module.synthetic.images.zero_()
        trainer = make_trainer(settings, checkpoints(tmp_path / name), *callbacks, enable_checkpointing=True)
        torch.manual_seed(len(name))  # global random state must not matter
        trainer.fit(module, ckpt_path=resume, weights_only=True)
        return module, trainer

    return fit


def test_three_steps_and_three_more_are_six(
    run: Callable[..., tuple[DistillModule, Trainer]], validation_steps: Make, tmp_path: Path
) -> None:
    whole, first, second = validation_steps(), validation_steps(), validation_steps()
    uninterrupted = run("whole", whole, max_steps=6, eval_every=3)
    half = run("parts", first, max_steps=3, eval_every=3)
    assert not torch.equal(half[0].synthetic.images, uninterrupted[0].synthetic.images)
    state = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    resumed = run("parts", second, max_steps=6, eval_every=3, resume=state)
    same(uninterrupted, resumed)
    assert whole.steps == [3, 6]
    assert (first.steps, second.steps) == ([3], [6])


def test_a_killed_run_goes_on_from_its_last_evaluation(
    run: Callable[..., tuple[DistillModule, Trainer]], validation_steps: Make, tmp_path: Path
) -> None:
    whole, first, second = validation_steps(), validation_steps(), validation_steps()
    uninterrupted = run("whole", whole, max_steps=7, eval_every=2)
    with pytest.raises(OSError, match="killed"):
        run("killed", first, Kill(5), max_steps=7, eval_every=2)
    state = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert torch.load(state, weights_only=True)["global_step"] == 4
    same(uninterrupted, run("killed", second, max_steps=7, eval_every=2, resume=state))
    assert whole.steps == [2, 4, 6]
    assert (first.steps, second.steps) == ([2, 4], [6])


def test_evaluation_does_not_touch_distillation(run: Callable[..., tuple[DistillModule, Trainer]]) -> None:
    often, _ = run("often", max_steps=4, eval_every=1)
    never, _ = run("never", max_steps=4, eval_every=100)
    assert torch.equal(often.synthetic.images, never.synthetic.images)
    assert torch.equal(often.synthetic.learning_rate, never.synthetic.learning_rate)


def test_the_last_images_can_be_validated_after_the_fit(
    run: Callable[..., tuple[DistillModule, Trainer]], validation_steps: Make
) -> None:
    """What distill.py does where eval_every does not divide max_steps."""
    seen = validation_steps()
    module, trainer = run("odd", seen, max_steps=3, eval_every=2)
    trainer.validate(module, verbose=False)
    assert seen.steps == [2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"max_loss": 4.23},
        {"waypoints": [0, 3, 5], "max_start_epoch": 5, "first_start_bound": 1, "expansion_end": 4},
        {"matching": "nearest", "intermediate": "none", "drop_ratio": 0.3, "momentum": 0.0, "engine": "truncated"},
    ],
    ids=["skips", "waypoints", "nearest"],
)
def test_parts_of_published_methods_go_on(
    run: Callable[..., tuple[DistillModule, Trainer]], tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, killed, resumed = Skips(), Skips(), Skips()
    changes = {"max_steps": 6, "eval_every": 2, **changes}
    uninterrupted = run("whole", whole, **changes)
    with pytest.raises(OSError, match="killed"):
        run("killed", killed, Kill(3), **changes)
    state = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    same(uninterrupted, run("killed", resumed, resume=state, **changes))
    assert killed.seen[:2] + resumed.seen == whole.seen
    if "max_loss" in changes:
        assert {*whole.seen[:2]} == {*whole.seen[2:]} == {0.0, 1.0}


class Skips(Callback):
    """Notes for every iteration whether its update was skipped."""

    def __init__(self) -> None:
        self.seen: list[float | None] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        skipped = trainer.callback_metrics.get("train/skipped")
        self.seen.append(None if skipped is None else float(skipped))
