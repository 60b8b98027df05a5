"""The normalised outer step: against its definition, and what it must not depend on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ast_lightning.distillation import DistillModule, SyntheticImages, TrajectoryMatching
from ast_lightning.distillation.outer import NormalizedSGD, outer_step
from ast_lightning.networks import ConvNet

Make = Callable[..., Any]
UNTUNED = {"outer": "normalized", "alpha": "log", "lr_img": 0.1, "lr_lr": 0.01, "lr_teacher": 0.05, "max_steps": 3}


def test_steps_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    start = 3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(4, 5, generator=generator, dtype=torch.float64) * 10**power for power in (-3, 2, 0, -1)]
    parameter = nn.Parameter(start.clone())
    optimizer = NormalizedSGD([{"params": [parameter], "lr": 0.2}], momentum=0.5, beta=0.9)
    expected, mean, momentum = start.clone(), 0.0, torch.zeros_like(start)
    for number, gradient in enumerate(gradients, 1):
        parameter.grad = gradient.clone()
        optimizer.step()
        square = float((gradient**2).mean())
        mean = 0.9 * mean + 0.1 * square
        momentum = 0.5 * momentum + gradient / math.sqrt(max(mean / (1 - 0.9**number), square))
        expected = expected - 0.2 * float(start.std(correction=0)) * momentum
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_zero_is_no_step() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = NormalizedSGD([{"params": [parameter]}])
    parameter.grad = torch.zeros(3)
    optimizer.step()
    assert parameter.tolist() == [1, 1, 1]


@pytest.fixture
def distilled(make_store: Make, make_trainer: Make, ast_settings: Make, network: Callable[[], ConvNet]) -> Make:
    """Images and α after three iterations."""
    store = make_store()

    def run(
        images: Tensor,
        network: Callable[..., nn.Module] = network,
        loss_scale: float = 1.0,
        **changes: Any,
    ) -> tuple[Tensor, float]:
        settings = ast_settings(**{**UNTUNED, "augment": False, **changes})
        method = TrajectoryMatching(settings, network, store, seed=5)
        loss = method.loss
        method.loss = lambda item, synthetic: (loss_scale * (found := loss(item, synthetic))[0], found[1])  # type: ignore[method-assign]
        labels = torch.arange(3).repeat_interleave(2)
        module = DistillModule(method.synthetic_set(images, labels, settings.lr_teacher), method)
        make_trainer(settings, precision="64-true").fit(module)
        found = module.training_set()
        return found.images, found.learning_rate

    return run


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "constant", "cosine"])
def test_the_scale_of_the_loss_does_not_matter(
    distilled: Make, synthetic_set: tuple[Tensor, Tensor], schedule: str
) -> None:
    images = synthetic_set[0].double()
    plain, scaled = (distilled(images, loss_scale=scale, schedule=schedule) for scale in (1.0, 1000.0))
    assert (plain[0] - images).abs().max() > 0.1
    assert plain[1] != pytest.approx(0.05, rel=1e-3)
    torch.testing.assert_close(scaled[0], plain[0], rtol=1e-9, atol=1e-9)
    assert scaled[1] == pytest.approx(plain[1], rel=1e-9)


class OfAnotherScale(ConvNet):
    """The same network for images that are 50 times as large."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images / 50)


def test_the_scale_of_the_images_does_not_matter(distilled: Make, synthetic_set: tuple[Tensor, Tensor]) -> None:
    images = synthetic_set[0].double()
    larger = functools.partial(
        OfAnotherScale, channels=3, num_classes=3, image_size=(8, 8), width=4, depth=1, normalization="instance"
    )
    plain, scaled = distilled(images), distilled(50 * images, network=larger)
    torch.testing.assert_close(scaled[0] / 50, plain[0], rtol=1e-7, atol=1e-8)
    assert scaled[1] == pytest.approx(plain[1], rel=1e-7)


def test_log_alpha_stays_positive_where_raw_alpha_does_not() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    for kind, positive in (("raw", False), ("log", True)):
        synthetic = SyntheticImages(torch.randn(2, 1, 4, 4), labels, 0.01, alpha=kind)
        (rate,) = [each for each in synthetic.parameters() if each is not synthetic.images]
        with torch.no_grad():
            rate.sub_(0.5)
        assert (float(synthetic.alpha.detach()) > 0) is positive
        assert synthetic.training_set().learning_rate == pytest.approx(0.01 * math.exp(-0.5) if positive else -0.49)


@pytest.mark.parametrize("outer", ["normalized", "sgd"])
def test_the_inverse_square_root_halves_the_step_after_60_iterations(ast_settings: Make, outer: str) -> None:
    settings = ast_settings(outer=outer, alpha="fixed", schedule="inverse_sqrt")
    group = {"params": [nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(0)))], "lr": 0.2}
    made: Any = outer_step(settings)([group], settings)
    rates = []
    for _ in range(61):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert [rates[0], rates[20], rates[60]] == pytest.approx([0.2, 0.2 / math.sqrt(2), 0.1])


def test_the_cosine_ends_at_zero(distilled: Make, synthetic_set: tuple[Tensor, Tensor]) -> None:
    images = synthetic_set[0].double()

    def distance(schedule: str, iterations: int) -> float:
        found, _ = distilled(images, schedule=schedule, outer_momentum=0.0, alpha="fixed", max_steps=iterations)
        return float((found - images).norm())

    distances, first = [distance("cosine", iterations) for iterations in (1, 2)], distance("constant", 1)
    # the first step is whole; the second of two has half the rate
    assert distances[0] == pytest.approx(first)
    size = 0.1 * float(images.std(correction=0)) * math.sqrt(images.numel())
    assert first == pytest.approx(size)
    assert distances[1] < 1.6 * size
