"""A synthetic set that is no pixels: decoded images, soft labels, a positive learning rate, through the same method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ast_lightning.config.distill import DistillSettings
from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation import BatchDraw, DistillModule, SyntheticSet, TrajectoryMatching
from ast_lightning.networks import ConvNet
from ast_lightning.randomness import keyed_generator
from ast_lightning.synthetic import TrainingSet

FAMILIES = "color_crop_cutout_flip_scale_rotate"
Make = Callable[..., Any]


class Decoded(SyntheticSet):
    """Six canvases of 16×16 that a linear map decodes from codes; each batch shows a random 8×8 part of each."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.codes = nn.Parameter(torch.randn(6, 5, generator=generator, dtype=torch.float64))
        self.register_buffer("decoder", torch.randn(5, 3 * 16 * 16, generator=generator, dtype=torch.float64))
        self.logits = nn.Parameter(4 * torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0))
        self.log_rate = nn.Parameter(torch.tensor(-3.0, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.decoder: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (6, 3, 8, 8)

    def tensors(self) -> tuple[Tensor, ...]:
        canvases = (self.codes @ self.decoder).view(6, 3, 16, 16)
        return canvases, self.logits.softmax(1), self.log_rate.exp()

    def batch(self, draw: BatchDraw, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        canvases, labels = tensors
        top, left = torch.randint(9, (2,), generator=keyed_generator(*draw.key, "part")).tolist()
        return canvases[draw.rows][:, :, top : top + 8, left : left + 8], labels[draw.rows]

    def groups(self, settings: DistillSettings) -> list[dict[str, Any]]:
        rest = [each for name, each in self.named_parameters() if name != "codes"]
        return [{"params": [self.codes], "lr": settings.lr_img}, {"params": rest, "lr": 0.1}]

    def training_set(self) -> TrainingSet:
        canvases, labels, rate = (each.detach() for each in self.tensors())
        return TrainingSet(canvases[..., :8, :8], labels, float(rate))


@pytest.fixture
def method_of(
    network: Callable[[], ConvNet], make_store: Make, ast_settings: Make
) -> Callable[..., TrajectoryMatching]:
    store = make_store()

    def make(**changes: Any) -> TrajectoryMatching:
        settings = ast_settings(lr_img=0.01, **changes)
        return TrajectoryMatching(settings, network, store, augmentation=SiameseAugmentation(FAMILIES), seed=5)

    return make


def test_both_engines_give_the_gradients_of_all_its_parameters(method_of: Callable[..., TrajectoryMatching]) -> None:
    found = []
    for changes in ({"engine": "autograd"}, {}, {"recompute": True}):
        method, synthetic = method_of(**changes), Decoded()
        method.start(torch.device("cpu"), torch.float64)
        loss, _ = method.loss(method.windows.window(2), synthetic)
        found.append(torch.autograd.grad(loss, list(synthetic.parameters()), materialize_grads=True))
    for gradients in found[1:]:
        for ours, oracle in zip(gradients, found[0], strict=True):
            torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-13)
    assert all(each.norm() > 0 for each in found[0][:3])
    assert found[0][3].norm() == 0  # a parameter that an item does not touch


def test_it_is_trained_by_the_same_module(
    method_of: Callable[..., TrajectoryMatching], make_trainer: Make, make_evaluator: Make
) -> None:
    method, synthetic = method_of(max_steps=2), Decoded()
    before = {name: value.clone() for name, value in synthetic.state_dict().items()}
    trainer = make_trainer(method.settings, precision="64-true")
    trainer.fit(DistillModule(synthetic, method, evaluator=make_evaluator("test", networks=1)))
    after = synthetic.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"codes", "logits", "log_rate"}
    assert float(trainer.callback_metrics["test/accuracy"]) >= 0


def test_an_update_that_the_method_does_not_accept_changes_nothing(
    method_of: Callable[..., TrajectoryMatching], make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, synthetic = method_of(max_steps=3), Decoded()
    losses: list[float] = []

    def second_only(means: dict[str, Tensor]) -> bool:
        losses.append(float(means["train/loss"]))
        return len(losses) == 2

    monkeypatch.setattr(method, "accepts", second_only)
    steps: list[Tensor] = []
    module = DistillModule(synthetic, method)
    monkeypatch.setattr(module, "on_train_batch_end", lambda *_: steps.append(synthetic.codes.detach().clone()))
    make_trainer(method.settings, precision="64-true").fit(module)
    assert len(losses) == 3
    assert torch.equal(steps[0], Decoded().codes)
    assert not torch.equal(steps[1], steps[0])
    assert torch.equal(steps[2], steps[1])  # no momentum either: an optimiser passes over absent gradients
