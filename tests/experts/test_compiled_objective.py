"""The family's objective, eased and compiled, against the plain function of the published code."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ast_lightning.compilation import Compilation
from ast_lightning.experts import ExpertObjective, ExpertSettings, expert_objective
from ast_lightning.networks import ConvNet, build_network

pytestmark = pytest.mark.slow

COMPILED = Compilation(True, True, "test")
small = functools.partial(ConvNet, channels=3, num_classes=4, image_size=(8, 8), width=6, depth=2)


@pytest.fixture(autouse=True, scope="module")
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(dtype: torch.dtype = torch.float64, count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    raw = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return raw.flip(3), raw, torch.arange(count) % 4


def plain(network: nn.Module, settings: ExpertSettings, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    augmented, raw, labels = batch(dtype)
    loss = expert_objective(
        lambda parameters, images: functional_call(network, dict(parameters), (images,)),
        dict(network.named_parameters()),
        augmented,
        raw,
        labels,
        clip_factor=0.7,
        penalty_weight=settings.gradient_penalty,
        penalty_norm=settings.penalty_norm,
    )
    return [*loss[:4], *torch.autograd.grad(loss.total, list(network.parameters()))]


def of_family(objective: ExpertObjective, network: nn.Module, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    augmented, raw, labels = batch(dtype)
    loss = objective(network, augmented, raw, labels, 0.7)
    return [*loss[:4], *torch.autograd.grad(loss.total, list(network.parameters()))]


def assert_close(seen: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for left, right in zip(seen, expected, strict=True):
        # a bias before a normalisation has no gradient, but that of rounding
        assert (left - right).norm() <= tolerance * max(float(right.norm()), 1e-3)


@pytest.mark.parametrize("norm", ["pixel", "sample"])
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_uncompiled(norm: str, weight: float) -> None:
    settings = ExpertSettings(gradient_penalty=weight, penalty_norm=norm)
    network = build_network(small, 3).double()
    assert_close(of_family(ExpertObjective(small, settings), network), plain(network, settings))


def test_compiled_for_two_experts() -> None:
    settings = ExpertSettings(gradient_penalty=2.0)
    objective = ExpertObjective(small, settings, COMPILED)
    for expert in (1, 2):
        network = build_network(small, expert).double()
        assert_close(of_family(objective, network), plain(network, settings))
    assert objective.compilation.enabled


def test_compiled_with_batch_statistics() -> None:
    """Running statistics follow the augmented batch alone."""
    factory = functools.partial(small, normalization="batch", depth=1)
    settings = ExpertSettings(gradient_penalty=1.0)
    wanted, expected = build_network(factory, 1).double(), plain(build_network(factory, 1).double(), settings)
    wanted(batch()[0])
    for compilation in (COMPILED, None):
        network = build_network(factory, 1).double()
        assert_close(of_family(ExpertObjective(factory, settings, compilation), network), expected)
        for (name, seen), (_, buffer) in zip(network.named_buffers(), wanted.named_buffers(), strict=True):
            torch.testing.assert_close(seen, buffer, rtol=1e-9, atol=1e-12, msg=name)


def test_compiled_in_mixed_precision() -> None:
    settings = ExpertSettings(gradient_penalty=2.0)
    network = build_network(small, 1)
    exact = plain(network, settings, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        usual = plain(network, settings, torch.float32)
        seen = of_family(ExpertObjective(small, settings, COMPILED), network, torch.float32)
    assert all(gradient.dtype == torch.float32 for gradient in seen[4:])
    distance = [
        sum(float((a.float() - b).detach().norm()) for a, b in zip(each, exact, strict=True)) for each in (seen, usual)
    ]
    assert 0 < distance[0] < 1.5 * distance[1]
