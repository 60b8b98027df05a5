"""Layers that are written otherwise where derivatives are taken twice, or where they are compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ast_lightning.networks import ease_second_derivatives
from ast_lightning.networks.layers import InstanceNorm, ReLU


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivatives(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Values, the first derivative in images, and the derivatives of its norm in images and parameters."""
    images = images.clone().requires_grad_()
    output = network(images).tanh()
    (first,) = torch.autograd.grad(output.sum(), images, create_graph=True)
    return [output, first, *torch.autograd.grad(first.square().sum(), [images, *network.parameters()])]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
        assert left.abs().sum() > 0


@pytest.mark.parametrize("padding", [0, 1, (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
def test_an_eased_convolution_is_the_same_function(
    padding: int | tuple[int, int], bias: bool, size: tuple[int, int]
) -> None:
    layer = nn.Conv2d(3, 4, kernel_size=(3, 2), padding=padding, bias=bias).double()
    eased = ease_second_derivatives(copy.deepcopy(layer))
    assert type(eased) is not nn.Conv2d
    images = normal(2, 3, *size)
    assert_same(derivatives(layer, images), derivatives(eased, images))


def test_convolutions_that_are_not_plain_stay() -> None:
    class Own(nn.Conv2d):
        pass

    others = [
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        Own(4, 4, 3),
    ]
    network = ease_second_derivatives(nn.Sequential(*others, nn.Conv2d(4, 4, 3)))
    assert [type(each) for each in network][:-1] == [type(each) for each in others]
    assert type(network[-1]) is not nn.Conv2d


def test_autocast_reaches_an_eased_convolution() -> None:
    eased = ease_second_derivatives(nn.Conv2d(3, 4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert eased(torch.ones(1, 3, 5, 5)).dtype == torch.bfloat16


@pytest.fixture
def as_if_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1)])
def test_the_written_out_normalisation_is_torchs(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = InstanceNorm(3).double()
    with torch.no_grad():
        layer.weight.copy_(normal(3, seed=1))
        layer.bias.copy_(normal(3, seed=2))
    network, images = nn.Sequential(layer, nn.Tanh()), normal(2, 3, *size)
    usual = network(images), torch.autograd.functional.jacobian(network, images)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    written = network(images), torch.autograd.functional.jacobian(network, images)
    for left, right in zip(usual, written, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("as_if_compiling")
def test_the_written_out_normalisation_is_float32_under_autocast() -> None:
    images = 100 + normal(2, 3, 8, 8).float()  # 16 bits hold three digits: the mean would eat the deviations
    expected = InstanceNorm(3)(images)
    with torch.autocast("cpu", torch.bfloat16):
        seen = InstanceNorm(3)(images)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, expected)


@pytest.mark.usefixtures("as_if_compiling")
def test_the_written_out_relu() -> None:
    inputs = torch.tensor([-2.0, -0.0, 0.0, 3.0, float("inf"), float("nan")], requires_grad=True)
    output = ReLU()(inputs)
    assert output.tolist()[:5] == [0, 0, 0, 3, float("inf")]
    assert output[5].isnan()
    (gradient,) = torch.autograd.grad(output[:4].sum(), inputs)
    assert gradient.tolist() == [0, 0, 0, 1, 0, 0]
