"""The adjoint engine against the oracle, plain autograd through all K steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation.trajectory_matching import InnerProblem, unroll
from ast_lightning.distillation.trajectory_matching.adjoint import StepBatch
from ast_lightning.networks import ConvNet, FunctionalNetwork
from ast_lightning.randomness import keyed_generator
from tests.networks.own import Attention

CLASSES = 3
FAMILIES = "color_crop_cutout_flip_scale_rotate"
small = functools.partial(ConvNet, channels=2, num_classes=CLASSES, image_size=(4, 4), width=3, depth=1)


class Tied(nn.Module):
    """One matrix used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.last = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(images.flatten(1))))))
        return logits


def batches(count: int, size: int, seed: int) -> StepBatch:
    """Random, augmented mini-batches that depend on the step alone."""
    augmentation = SiameseAugmentation(FAMILIES)

    def batch(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        generator = keyed_generator(seed, step)
        rows = torch.randperm(count, generator=generator)[:size]
        draw = augmentation.draw(size, (images.shape[2], images.shape[3]), generator)
        return augmentation.apply(images[rows], draw), labels[rows]

    return batch


def gradients(factory: Any, *, engine: str, count: int = 5, size: int = 4, seed: int = 0, **options: Any) -> Any:
    """The matched parameters, and the gradients in X, α and Y of a random linear function of them."""
    generator = torch.Generator().manual_seed(seed)
    options = {"steps": 4, "momentum": 0.9, "loss_scale": 1.3, "match_at": [4], **options}
    rate = options.pop("rate", 0.4)
    soft = options.pop("soft", True)
    images = torch.randn(count, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    if soft:
        labels = torch.rand(count, CLASSES, generator=generator, dtype=torch.float64).requires_grad_()
    else:
        labels = torch.randint(CLASSES, (count,), generator=generator)
    learning_rate = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    network = FunctionalNetwork(factory)
    theta = network.initial_parameters(seed).double()
    problem = InnerProblem(network)
    batch = batches(count, size, seed)
    matched = unroll(problem, theta, (images, labels), batch, learning_rate, engine=engine, **options)
    weights = {k: torch.randn(theta.shape, generator=generator, dtype=theta.dtype) for k in sorted(matched)}
    outer = sum((weights[k] * matched[k].tanh()).sum() for k in matched)
    inputs = [images, learning_rate, *([labels] if soft else [])]
    return [matched[k].detach() for k in sorted(matched)], torch.autograd.grad(outer, inputs)  # type: ignore[arg-type]


def assert_same(factory: Any, **options: Any) -> None:
    oracle = gradients(factory, engine="autograd", **{k: v for k, v in options.items() if k != "recompute"})
    adjoint = gradients(factory, engine="adjoint", **options)
    for expected, seen in zip([*oracle[0], *oracle[1]], [*adjoint[0], *adjoint[1]], strict=True):
        assert (seen - expected).norm() <= 1e-9 * expected.norm()


@given(data=st.data())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_adjoint_equals_autograd(data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 7), label="steps")
    count = data.draw(st.integers(1, 6), label="count")
    assert_same(
        small,
        count=count,
        size=data.draw(st.integers(1, count), label="size"),
        steps=steps,
        match_at=data.draw(st.lists(st.integers(1, steps), min_size=1, unique=True), label="match_at"),
        momentum=data.draw(st.sampled_from([0.0, 0.5, 0.9]), label="momentum"),
        rate=data.draw(st.sampled_from([0.0, 0.01, 0.7]), label="rate"),
        loss_scale=data.draw(st.sampled_from([0.5, 1.0, 1.7]), label="loss_scale"),
        soft=data.draw(st.booleans(), label="soft"),
        recompute=data.draw(st.booleans(), label="recompute"),
        seed=data.draw(st.integers(0, 1000), label="seed"),
    )


@pytest.mark.parametrize("normalization", ["instance", "layer", "layer_chw", "group", "batch", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_every_layer_of_the_convnet(normalization: str, pooling: str) -> None:
    assert_same(functools.partial(small, normalization=normalization, pooling=pooling), match_at=[2, 4])


def test_padding_and_attention() -> None:
    assert_same(functools.partial(small, first_padding=3), match_at=[2, 4])
    assert_same(functools.partial(Attention, channels=2, num_classes=CLASSES, image_size=(4, 4)), match_at=[2, 4])


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "sigmoid"])
def test_every_activation(activation: str) -> None:
    assert_same(functools.partial(small, activation=activation))


def test_shared_parameters() -> None:
    assert_same(Tied, match_at=[1, 4])


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_finite_differences(recompute: bool, momentum: float) -> None:
    network = FunctionalNetwork(functools.partial(small, activation="gelu"))
    theta = network.initial_parameters(2).double()
    generator = torch.Generator().manual_seed(3)

    def student(images: Tensor, labels: Tensor, learning_rate: Tensor) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"steps": 4, "momentum": momentum, "loss_scale": 1.3, "match_at": [2, 4]}
        batch = batches(3, 2, 0)
        matched = unroll(network, theta, (images, labels), batch, learning_rate, recompute=recompute, **options)
        return matched[2], matched[4]

    images = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(3, CLASSES, generator=generator, dtype=torch.float64).requires_grad_()
    learning_rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(student, (images, labels, learning_rate))


@pytest.mark.parametrize(
    "normalization",
    [lambda: nn.BatchNorm2d(3), lambda: nn.InstanceNorm2d(3, affine=True), lambda: nn.LayerNorm([3, 4, 4])],
)
def test_finite_differences_through_normalisations(normalization: Callable[[], nn.Module]) -> None:
    network = FunctionalNetwork(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), normalization(), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))
    )
    theta, labels = network.initial_parameters(2).double(), torch.tensor([0, 2, 1])

    def student(images: Tensor, learning_rate: Tensor) -> Tensor:
        options: dict[str, Any] = {"steps": 3, "momentum": 0.9, "match_at": [3]}
        return unroll(network, theta, (images, labels), lambda k, x, y: (x, y), learning_rate, **options)[3]

    images = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    learning_rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(student, (images.requires_grad_(), learning_rate))


def test_only_what_is_asked_for() -> None:
    """α alone, or X alone, gives the same numbers as all together."""
    network = FunctionalNetwork(small)
    theta = network.initial_parameters(0).double()
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(4, 2, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])

    def outer(by_images: bool, by_rate: bool) -> tuple[Tensor, Tensor, Tensor]:
        images = data.clone().requires_grad_(by_images)
        rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=by_rate)
        matched = unroll(network, theta, (images, labels), batches(4, 3, 0), rate, steps=3, match_at=[3])[3]
        return matched.square().sum(), images, rate

    total, images, rate = outer(True, True)
    both = torch.autograd.grad(total, (images, rate))
    for by_images in (True, False):
        total, images, rate = outer(by_images, not by_images)
        (alone,) = torch.autograd.grad(total, images if by_images else rate)
        torch.testing.assert_close(alone, both[0 if by_images else 1])


def test_a_step_is_made_again_from_the_same_draws() -> None:
    asked: list[int] = []
    network = FunctionalNetwork(small)

    def batch(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(step)
        return images, labels

    images = torch.ones(1, 2, 4, 4, requires_grad=True)
    theta, labels, rate = network.initial_parameters(0), torch.tensor([1]), torch.tensor(0.1)
    unroll(network, theta, (images, labels), batch, rate, steps=5, match_at=[5])[5].sum().backward()
    assert asked == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]
    asked.clear()
    matched = unroll(network, theta, (images, labels), batch, rate, steps=5, match_at=[5], recompute=True)
    matched[5].sum().backward()
    assert asked == [0, 1, 2, 3, 4, *(3, 4), 4, 3, *(0, 1, 2), 2, 1, 0]  # segments 0–2 and 3–4


def test_a_second_derivative_is_refused() -> None:
    network = FunctionalNetwork(small)
    images = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    theta, labels, rate = network.initial_parameters(0), torch.tensor([0, 1]), torch.tensor(0.1)
    matched = unroll(network, theta, (images, labels), lambda k, x, y: (x, y), rate, steps=2, match_at=[2])
    (first,) = torch.autograd.grad(matched[2].square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_matched_parameters_may_be_changed_in_place() -> None:
    network = FunctionalNetwork(small)
    theta, labels, rate = network.initial_parameters(0), torch.tensor([0, 1]), torch.tensor(0.1)
    seen = []
    for spoil in (False, True):
        images = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        matched = unroll(network, theta, (images, labels), lambda k, x, y: (x, y), rate, steps=3, match_at=[2, 3])
        total = matched[3].sum() + matched[2].square().sum().detach()
        if spoil:
            with torch.no_grad():
                matched[2].zero_()
        seen.append(torch.autograd.grad(total, images)[0])
    assert torch.equal(*seen)


def test_float32_errors_are_no_larger_than_those_of_autograd() -> None:
    """At full width: the distance to float64 comes from ReLUs that switch, whatever the engine."""
    network = FunctionalNetwork(functools.partial(ConvNet, channels=3, num_classes=10, image_size=(32, 32)))
    data = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 6, 9])

    def gradient(dtype: torch.dtype, engine: str) -> Tensor:
        images = data.to(dtype, copy=True).requires_grad_()
        theta, rate = network.initial_parameters(0).to(dtype), torch.tensor(0.01, dtype=dtype)
        options: dict[str, Any] = {"steps": 3, "momentum": 0.9, "match_at": [3], "engine": engine}
        matched = unroll(network, theta, (images, labels), lambda k, x, y: (x, y), rate, **options)[3]
        (found,) = torch.autograd.grad((matched - theta).square().sum(), images)
        return found.double()

    reference = gradient(torch.float64, "autograd")
    errors = {e: float((gradient(torch.float32, e) - reference).norm()) for e in ("adjoint", "autograd")}
    assert errors["adjoint"] <= 1.5 * errors["autograd"]
    assert errors["adjoint"] <= 0.05 * float(reference.norm())
