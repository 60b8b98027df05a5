"""Networks of torchvision and timm as students, and what is rejected by name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ast_lightning.distillation.trajectory_matching import unroll
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import FunctionalNetwork, Timm, Torchvision
from tests.commands.conftest import composed
from tests.threads import one_thread


@pytest.fixture(scope="module", autouse=True)
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


def check_student(kind: Any, channels: int = 1, size: int = 32, **options: Any) -> FunctionalNetwork:
    """Check that a network is pure, and that the adjoint of one step equals autograd."""
    network = FunctionalNetwork(
        functools.partial(kind, channels=channels, num_classes=3, image_size=(size, size), **options)
    )
    network.require_pure(torch.zeros(channels, size, size), 3)
    network.require_second_derivatives(torch.zeros(channels, size, size))
    theta, found = network.initial_parameters(0).double(), []
    target = torch.randn(theta.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for engine in ("adjoint", "autograd"):
        generator = torch.Generator().manual_seed(3)
        images = torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64).requires_grad_()
        matched = unroll(
            network,
            theta,
            (images,),
            lambda step, x: (x, torch.tensor([0, 2, 1])),
            torch.tensor(0.1, dtype=torch.float64),
            steps=1,
            match_at=[1],
            engine=engine,
        )
        found += torch.autograd.grad((matched[1] * target).sum(), images)
    assert found[1].abs().sum() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-11)
    return network


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mnasnet0_5", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_a_network_of_torchvision_is_a_student(name: str) -> None:
    check_student(Torchvision, name=name)  # with batch normalisation


def test_the_first_convolution_takes_the_channels_of_the_images() -> None:
    grey, coloured = (Torchvision(channels, 10, (32, 32), "squeezenet1_1") for channels in (1, 3))
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (grey, coloured)]
    assert counts[1] - counts[0] == 2 * 64 * 3 * 3
    assert grey(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_stochastic_depth_is_refused_and_can_be_switched_off() -> None:
    make = functools.partial(Torchvision, 3, 3, (32, 32), "efficientnet_b0")
    with pytest.raises(ConfigurationError, match="random numbers") as caught:
        FunctionalNetwork(make).require_pure(torch.zeros(3, 32, 32), 3)
    assert "network.arguments" in caught.value.remedy
    FunctionalNetwork(functools.partial(make, arguments={"stochastic_depth_prob": 0})).require_pure(
        torch.zeros(3, 32, 32), 3
    )


def test_a_layer_without_second_derivatives_is_named() -> None:
    network = FunctionalNetwork(functools.partial(Torchvision, 3, 3, (32, 32), "mobilenet_v3_small"))
    network.require_pure(torch.zeros(3, 32, 32), 3)
    with pytest.raises(ConfigurationError, match="differentiated twice, and derivative for aten::hardsigmoid_backward"):
        network.require_second_derivatives(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("name", ["alexnet", "vit_b_16"])  # one cannot be evaluated, the other cannot be built
def test_images_that_are_too_small(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FunctionalNetwork(functools.partial(Torchvision, 1, 10, (8, 8), name)).require_logits(torch.zeros(1, 8, 8), 10)
    assert "data.image_size" in caught.value.remedy
    assert "network.name" in caught.value.remedy


def test_an_unknown_name_of_torchvision() -> None:
    with pytest.raises(ConfigurationError, match=r"^network\.name=resnet81: .*did you mean resnet18\?"):
        Torchvision.check("resnet81")
    with pytest.raises(ConfigurationError, match=r"^network\.name=fasterrcnn_resnet50_fpn"):
        Torchvision.check("fasterrcnn_resnet50_fpn")  # no classifier


def test_timm_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"^network=timm: timm is not installed.*pip install"):
        Timm.check("resnet18")


def test_a_transformer_of_timm_is_a_student() -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    network = check_student(Timm, name="vit_tiny_patch16_224", arguments=small)
    assert ("network.pos_embed", (1, 5, 24)) in network.layout  # of images of 32 px: 4 patches, and the class token


def test_an_unknown_name_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    with pytest.raises(ConfigurationError, match=r"^network\.name=resnet19: .*did you mean resnet18\?"):
        Timm.check("resnet19")


def test_arguments_are_given_on_the_command_line() -> None:
    words = ("network=torchvision", "network.name=resnet18", "network.arguments={zero_init_residual: true}")
    assert composed(*words).network.arguments == {"zero_init_residual": True}
    assert composed(*words[:2]).network.arguments is None
