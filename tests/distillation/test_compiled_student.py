"""The compiled derivatives of the student are those of plain autograd."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ast_lightning.compilation import Compilation
from ast_lightning.distillation.trajectory_matching import InnerProblem, unroll
from ast_lightning.distillation.trajectory_matching.inner import Products, forward_mode_is_exact
from ast_lightning.networks import ConvNet, FunctionalNetwork, NetworkFactory
from tests.networks.own import Attention

CLASSES = 3
COMPILED = Compilation(True, True, "test")
small = functools.partial(ConvNet, channels=2, num_classes=CLASSES, image_size=(4, 4), width=3, depth=1)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def problems() -> tuple[InnerProblem, InnerProblem]:
    network = FunctionalNetwork(small)
    return InnerProblem(network, COMPILED), InnerProblem(network)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    network = FunctionalNetwork(small)
    theta = network.initial_parameters(count).double()
    return theta, normal(count, 2, 4, 4, seed=1), normal(count, CLASSES, seed=2).softmax(1), normal(len(theta), seed=3)


def close(seen: Tensor | None, expected: Tensor | None) -> None:
    assert seen is not None
    assert expected is not None
    assert (seen - expected).norm() <= 1e-9 * expected.norm()


def test_derivatives_at_two_batch_sizes(problems: tuple[InnerProblem, InnerProblem]) -> None:
    compiled, plain = problems
    for count in (4, 3, 4, 3):
        theta, images, labels, direction = inputs(count)
        close(compiled.gradient(theta, images, labels), plain.gradient(theta, images, labels))
        everything = (True, True, True)
        seen = compiled.products(theta, images, labels, direction, everything)
        expected = plain.products(theta, images, labels, direction, everything)
        for field in Products._fields:
            close(getattr(seen, field), getattr(expected, field))
    assert counters["stats"]["unique_graphs"] == 4  # the gradient and the product, for each size


def test_whole_unroll_with_hard_labels(problems: tuple[InnerProblem, InnerProblem]) -> None:
    labels = torch.tensor([0, 2, 1, 1])

    def outcome(problem: InnerProblem, engine: str) -> list[Tensor]:
        theta, data, _, _ = inputs(4)
        images, rate = data.requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        options: dict[str, Any] = {"steps": 4, "momentum": 0.9, "loss_scale": 1.3, "match_at": [2, 4], "engine": engine}
        matched = unroll(problem, theta, (images, labels), lambda k, x, y: (x.roll(k, 3), y), rate, **options)
        outer = matched[2].square().sum() + matched[4].tanh().sum()
        return [*(each.detach() for each in matched.values()), *torch.autograd.grad(outer, (images, rate))]

    compiled, plain = problems
    for seen, expected in zip(outcome(compiled, "adjoint"), outcome(plain, "autograd"), strict=True):
        close(seen, expected)


def test_truncated_steps_are_one_more_graph_each(problems: tuple[InnerProblem, InnerProblem]) -> None:
    """Of a student that was walked back exactly before, and of one that was not."""

    def outcome(problem: InnerProblem, engine: str = "truncated") -> list[Tensor]:
        theta, images, labels, _ = inputs(4)
        tensors = images.requires_grad_(), labels.requires_grad_()
        options: dict[str, Any] = {"steps": 3, "match_at": [3], "engine": engine}
        rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        matched = unroll(problem, theta, tensors, lambda k, x, y: (x.roll(k, 3), y), rate, **options)
        return list(torch.autograd.grad(matched[3].square().sum(), (*tensors, rate)))

    compiled, plain = problems
    outcome(compiled, "adjoint")
    graphs = counters["stats"]["unique_graphs"]
    for seen, expected in zip(outcome(compiled), outcome(plain), strict=True):
        close(seen, expected)
    outcome(compiled)
    assert counters["stats"]["unique_graphs"] == graphs + 1


class OwnNorm(nn.Module):
    """A network of a user's, with a normalisation of torch's."""

    def __init__(self, normalization: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), normalization, nn.Tanh(), nn.Flatten(), nn.Linear(16, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


@pytest.mark.parametrize(
    ("normalization", "exact"),
    [
        (lambda: nn.BatchNorm2d(4), False),
        (lambda: nn.InstanceNorm2d(4, affine=True), False),
        (lambda: nn.LayerNorm([4, 2, 2]), False),
        (lambda: nn.GroupNorm(2, 4), True),
        (lambda: nn.RMSNorm([4, 2, 2]), True),
        (nn.Identity, True),
    ],
)
def test_forward_mode_is_taken_where_it_loses_no_terms(normalization: Callable[[], nn.Module], exact: bool) -> None:
    """Where it is not exact, it is wrong by per cents; should torch mend that, this test will say so."""
    problem = InnerProblem(FunctionalNetwork(lambda: OwnNorm(normalization())))
    theta = problem.network.initial_parameters(4)  # type: ignore[attr-defined]
    images, labels = normal(2, 2, 4, 4, seed=1).float(), torch.tensor([0, 2])
    assert forward_mode_is_exact(problem.loss, theta, images, labels) == exact


def test_forward_mode_is_judged_alike_where_the_student_is_sure_of_its_images() -> None:
    """A tiny loss has tiny derivatives, whose missing terms no absolute tolerance would show."""
    problem = InnerProblem(FunctionalNetwork(lambda: OwnNorm(nn.BatchNorm2d(4))))
    theta = problem.network.initial_parameters(4)  # type: ignore[attr-defined]
    images = normal(2, 2, 4, 4, seed=1).float()
    with torch.no_grad():
        labels = problem.network(theta, images).argmax(1)
    certain = theta.clone()
    certain[-17 * CLASSES :] *= 600  # the classifier's
    assert 0 < problem.loss(certain.double(), images.double(), labels) < 1e-9
    assert not forward_mode_is_exact(problem.loss, certain, images, labels)


@pytest.mark.usefixtures("uncompilable")
def test_a_failure_to_compile_is_known_and_said_once() -> None:
    problem = InnerProblem(FunctionalNetwork(small), Compilation(True, False, "auto: long enough"))
    theta, images, labels, direction = inputs(4)
    with pytest.warns(RuntimeWarning, match=r"the inner gradient runs uncompiled: no compiler today"):
        problem.gradient(theta, images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.products(theta, images, labels, direction, (True, True, False))
    assert str(problem.compilation) == "off (it failed: no compiler today)"


@pytest.fixture
def uncompilable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any, **_: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("no compiler today")

        return call

    monkeypatch.setattr(torch, "compile", fails)


def test_a_layer_without_forward_mode_is_found() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * cotangent

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return Square.apply(images.flatten(1) @ theta).sum()

    assert not forward_mode_is_exact(loss, torch.ones(3), torch.ones(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(small, normalization="batch", pooling="max", activation="gelu"),
        functools.partial(small, normalization="layer_chw", first_padding=3),
        functools.partial(Attention, channels=2, num_classes=CLASSES, image_size=(4, 4)),
    ],
    ids=["batch", "layer_chw", "attention"],
)
def test_other_students(factory: NetworkFactory) -> None:
    network = FunctionalNetwork(factory)
    _, images, _, _ = inputs(4)
    theta = network.initial_parameters(4).double()
    direction = normal(len(theta), seed=3)
    labels = torch.tensor([0, 2, 1, 1])
    compiled, plain = InnerProblem(network, COMPILED), InnerProblem(network)
    seen = compiled.products(theta, images, labels, direction, (True, True, False))
    expected = plain.products(theta, images, labels, direction, (True, True, False))
    close(seen.theta, expected.theta)
    close(seen.images, expected.images)
    assert seen.labels is None
