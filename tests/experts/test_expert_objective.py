"""The expert's objective against values worked out by hand, and its gradient against finite differences."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from ast_lightning.experts import expert_objective, gradient_penalty
from ast_lightning.networks import ConvNet


def linear(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """logits = W x: g is the sum of W over the classes, whatever the images."""
    return images.flatten(1) @ parameters["weight"].T


def weight_with_sum(gradient: Tensor, classes: int = 3) -> Tensor:
    """A matrix ``[classes, C·H·W]`` whose rows are different and add up to ``gradient`` ``[C, H, W]``."""
    rows = torch.randn(classes - 1, gradient.numel(), generator=torch.Generator().manual_seed(0), dtype=gradient.dtype)
    return torch.cat([rows, gradient.reshape(1, -1) - rows.sum(0, keepdim=True)])


# two channels, one row of two pixels: g = (3, 4) at the first pixel and (0, 2) at the second
GRADIENT = torch.tensor([[[3.0, 0.0]], [[4.0, 2.0]]], dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    ("norm", "wanted"),
    [
        ("pixel", ((5 - 1) ** 2 + (2 - 1) ** 2) / 2),  # two pixels
        ("sample", (math.sqrt(9 + 16 + 4) - 1) ** 2),  # one vector of four numbers
    ],
)
def test_penalty_of_a_linear_network(norm: str, wanted: float, batch: int) -> None:
    images = torch.randn(batch, 2, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    penalty = gradient_penalty(linear, {"weight": weight_with_sum(GRADIENT)}, images, norm)
    assert penalty.item() == pytest.approx(wanted, rel=1e-12)


def test_penalty_is_a_mean_over_samples_with_norms_of_their_own() -> None:
    """logits = x² / 2 · w: the gradient x · w is another one for each sample."""

    def quadratic(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return (images.square() / 2).flatten(1) * parameters["weight"]

    images = torch.tensor([[3.0, 4.0], [0.6, 0.8], [6.0, 8.0]], dtype=torch.float64).reshape(3, 2, 1, 1)
    weight = {"weight": torch.ones(1, dtype=torch.float64)}
    for norm in ("pixel", "sample"):  # norms 5, 1 and 10: the same for one pixel
        assert gradient_penalty(quadratic, weight, images, norm).item() == pytest.approx((16 + 0 + 81) / 3)


def test_gradient_of_the_penalty_of_a_linear_network() -> None:
    """d/dW of mean (‖g‖ − 1)² is 2 (‖g‖ − 1) g / ‖g‖ / pixels, the same for every class."""
    weight = weight_with_sum(GRADIENT).requires_grad_()
    images = torch.zeros(2, 2, 1, 2, dtype=torch.float64)
    (result,) = torch.autograd.grad(gradient_penalty(linear, {"weight": weight}, images, "pixel"), weight)
    # first pixel: 2·4·(3, 4)/5/2 = (2.4, 3.2); second: 2·1·(0, 2)/2/2 = (0, 1)
    wanted = torch.tensor([2.4, 0.0, 3.2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(result, wanted.expand(3, 4))


@pytest.mark.parametrize("norm", ["pixel", "sample"])
def test_vanishing_input_gradient_gives_a_finite_gradient(norm: str) -> None:
    weight = torch.zeros(3, 4, requires_grad=True)
    penalty = gradient_penalty(linear, {"weight": weight}, torch.ones(2, 2, 1, 2), norm)
    assert penalty.item() == 1.0
    (result,) = torch.autograd.grad(penalty, weight)
    assert torch.isfinite(result).all()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Augmented images, raw images, labels."""
    generator = torch.Generator().manual_seed(2)
    augmented, raw = torch.randn(2, 4, 2, 1, 2, generator=generator, dtype=torch.float64)
    return augmented, raw, torch.tensor([0, 2, 1, 1])


def test_total_is_put_together_by_hand(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    augmented, raw, labels = batch
    weight = weight_with_sum(GRADIENT)
    logits = augmented.flatten(1) @ weight.T
    cross_entropy = (logits.exp().sum(1).log() - logits[torch.arange(4), labels]).mean()
    loss = expert_objective(linear, {"weight": weight}, augmented, raw, labels, clip_factor=0.55, penalty_weight=2.0)
    torch.testing.assert_close(loss.logits, logits)
    torch.testing.assert_close(loss.cross_entropy, cross_entropy)
    assert loss.penalty.item() == pytest.approx(8.5)  # unscaled, and pixel is the default norm
    assert loss.total.item() == pytest.approx(0.55 * cross_entropy.item() + 2 * 8.5)


def test_penalty_is_not_scaled_by_the_clip_factor(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    parameters = {"weight": weight_with_sum(GRADIENT)}
    totals = [
        expert_objective(linear, parameters, *batch, clip_factor=clip, penalty_weight=3.0).total.item()
        for clip in (0.0, 0.5, 1.0)
    ]
    assert totals[0] == pytest.approx(3 * 8.5)
    assert totals[1] - totals[0] == pytest.approx((totals[2] - totals[0]) / 2)
    assert totals[2] > totals[0]


def test_weight_zero_is_cross_entropy_exactly(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    augmented, raw, labels = batch
    weight = weight_with_sum(GRADIENT).requires_grad_()
    calls = []

    def counted(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        calls.append(images)
        return linear(parameters, images)

    loss = expert_objective(counted, {"weight": weight}, augmented, raw, labels, clip_factor=1.0, penalty_weight=0.0)
    plain = torch.nn.functional.cross_entropy(linear({"weight": weight}, augmented), labels)
    assert loss.total.item() == plain.item()
    assert loss.penalty.item() == 0
    assert len(calls) == 1  # nothing is computed that is not asked for
    assert calls[0] is augmented
    assert torch.equal(*(torch.autograd.grad(value, weight)[0] for value in (loss.total, plain)))


def test_penalty_looks_at_the_raw_images_and_cross_entropy_at_the_augmented() -> None:
    def quadratic(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return images.square().flatten(1) * parameters["weight"]

    weight, labels = {"weight": torch.ones(2)}, torch.tensor([0])
    augmented = torch.tensor([[2.0, 1.0]]).reshape(1, 2, 1, 1)
    raw = torch.tensor([[1.5, 2.0]]).reshape(1, 2, 1, 1)  # g = 2x = (3, 4)
    loss = expert_objective(quadratic, weight, augmented, raw, labels, clip_factor=1.0, penalty_weight=1.0)
    assert loss.penalty.item() == pytest.approx(16.0)
    assert loss.cross_entropy.item() == pytest.approx(math.log1p(math.exp(-3)))
    assert raw.grad is None
    assert not raw.requires_grad


def test_penalty_can_be_measured_without_gradients() -> None:
    with torch.no_grad():
        penalty = gradient_penalty(
            linear, {"weight": weight_with_sum(GRADIENT)}, torch.zeros(1, 2, 1, 2).double(), "pixel"
        )
    assert penalty.item() == pytest.approx(8.5)


@pytest.mark.parametrize("normalization", ["instance", "batch", "none"])
@pytest.mark.parametrize("activation", ["gelu", "sigmoid"])
@pytest.mark.parametrize("norm", ["pixel", "sample"])
def test_gradient_against_finite_differences(norm: str, activation: str, normalization: str) -> None:
    torch.manual_seed(3)
    network = ConvNet(2, 3, (4, 4), 2, 1, normalization, activation).double()
    names = [name for name, _ in network.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]
    augmented, raw = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])

    def apply(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(network, dict(parameters), (images,))  # type: ignore[no-any-return]

    def penalty(*flat: Tensor) -> Tensor:
        return gradient_penalty(apply, dict(zip(names, flat, strict=True)), raw, norm)

    def total(*flat: Tensor) -> Tensor:
        parameters = dict(zip(names, flat, strict=True))
        return expert_objective(
            apply, parameters, augmented, raw, labels, clip_factor=0.7, penalty_weight=1.5, penalty_norm=norm
        ).total

    assert (
        max(g.abs().max() for g in torch.autograd.grad(penalty(*values), values, allow_unused=True) if g is not None)
        > 1e-4
    )
    assert torch.autograd.gradcheck(penalty, values, eps=1e-6, atol=1e-6, rtol=1e-4)
    assert torch.autograd.gradcheck(total, values, eps=1e-6, atol=1e-6, rtol=1e-4)
