"""The networks of the field against the published counts and shapes, and against their definitions in plain tensors."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ast_lightning.distillation.trajectory_matching import unroll
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts import ExpertSettings
from ast_lightning.experts.objective import ExpertObjective
from ast_lightning.networks import MLP, VGG, AlexNet, FunctionalNetwork, LeNet, ResNet18, build_network
from tests.threads import one_thread

Make = Callable[..., nn.Module]
NETWORKS: dict[str, Make] = {
    "mlp": MLP,
    "lenet": LeNet,
    "alexnet": AlexNet,
    **{f"vgg{layers}": functools.partial(VGG, layers=layers) for layers in (11, 13, 16, 19)},
    "resnet18": ResNet18,
    "resnet18_ap": functools.partial(ResNet18, downsampling="avg_pool"),
    "resnet18_imagenet": functools.partial(ResNet18, stem="imagenet"),
}
COUNTS = {  # 3×32×32 with 10 and 100 classes; 1×28×28 with 10
    "mlp": (411_146, 422_756, 118_282),
    "lenet": (62_006, 69_656, 61_706),
    "alexnet": (1_872_202, 2_148_772, 1_865_802),
    "vgg11": (9_231_114, None, None),
    "vgg13": (9_416_010, None, None),
    "vgg16": (14_728_266, None, None),
    "vgg19": (20_040_522, None, None),
    "resnet18": (11_173_962, 11_220_132, 11_172_810),
    "resnet18_ap": (11_250_762, 11_988_132, 11_213_770),
}
SMALLEST = {"mlp": 8, "lenet": 16, "alexnet": 8, "vgg11": 32, "resnet18": 16, "resnet18_ap": 16}


@pytest.fixture(scope="module", autouse=True)
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


def shapes(make: Make, *arguments: Any) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        return [tuple(parameter.shape) for parameter in make(*arguments).parameters()]


def count(make: Make, *arguments: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make(*arguments).parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_the_field(name: str) -> None:
    make, (ten, hundred, grey) = NETWORKS[name], COUNTS[name]
    assert count(make, 3, 10, (32, 32)) == ten
    assert hundred is None or count(make, 3, 100, (32, 32)) == hundred
    assert grey is None or count(make, 1, 10, (28, 28)) == grey


def test_the_form_for_imagenet() -> None:
    assert count(NETWORKS["resnet18_imagenet"], 3, 10, (64, 64)) == 11_181_642
    assert shapes(NETWORKS["resnet18_imagenet"], 3, 10, (64, 64))[0] == (64, 3, 7, 7)


def test_parameters_are_in_the_order_of_published_buffers() -> None:
    linear = [(128, 3072), (128,), (128, 128), (128,), (10, 128), (10,)]
    assert shapes(MLP, 3, 10, (32, 32)) == linear
    convolutions = [(6, 3, 5, 5), (6,), (16, 6, 5, 5), (16,)]
    assert shapes(LeNet, 3, 10, (32, 32)) == [*convolutions, (120, 400), (120,), (84, 120), (84,), (10, 84), (10,)]
    wide = [(128, 3, 5, 5), (192, 128, 5, 5), (256, 192, 3, 3), (192, 256, 3, 3), (192, 192, 3, 3), (10, 3072)]
    assert shapes(AlexNet, 3, 10, (32, 32)) == [each for shape in wide for each in (shape, shape[:1])]
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    expected = [
        each
        for before, after in itertools.pairwise(widths)
        for each in ((after, before, 3, 3), (after,), (after,), (after,))
    ]
    assert shapes(VGG, 3, 10, (32, 32)) == [*expected, (10, 512), (10,)]


@pytest.mark.parametrize("name", ["resnet18", "resnet18_ap"])
def test_a_residual_network_has_62_tensors_in_the_published_order(name: str) -> None:
    expected: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    for before, after in ((64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)):
        expected += [(after, before, 3, 3), (after,), (after,), (after, after, 3, 3), (after,), (after,)]
        expected += [(after, before, 1, 1), (after,), (after,)] if after != before else []
    features = 512 * (16 if name == "resnet18_ap" else 1)
    assert shapes(NETWORKS[name], 3, 10, (32, 32)) == [*expected, (10, features), (10,)]
    assert len(expected) + 2 == 62


@pytest.mark.parametrize("normalization", ["instance", "batch", "layer", "layer_chw", "group", "none"])
@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18", "resnet18_ap", "resnet18_imagenet"])
def test_every_normalisation_fits(name: str, normalization: str) -> None:
    with torch.device("meta"):
        for size in ((64, 64), (72, 100)):
            network = NETWORKS[name](3, 10, size, normalization=normalization)
            assert network(torch.empty(2, 3, *size)).shape == (2, 10)


@pytest.mark.parametrize("size", [28, 32, 64, 100, 256])
@pytest.mark.parametrize("name", NETWORKS)
def test_images_from_28_to_256_pixels_with_one_and_three_channels(name: str, size: int) -> None:
    with torch.device("meta"):
        for channels in (1, 3):
            if name == "resnet18_imagenet" and size < 64:
                with pytest.raises(ConfigurationError, match="64×64 pixels or more"):
                    NETWORKS[name](channels, 7, (size, size))
            else:
                images = torch.empty(2, channels, size, size)
                assert NETWORKS[name](channels, 7, (size, size))(images).shape == (2, 7)


@pytest.mark.parametrize("name", ["lenet", "vgg11", "vgg19", "resnet18", "resnet18_ap", "resnet18_imagenet"])
def test_smaller_images_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        NETWORKS[name](1, 10, (8, 8))
    assert caught.value.option == "network"
    assert "or more, and these have 8×8" in caught.value.problem
    assert "set data.image_size=" in caught.value.remedy


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


def residual_by_hand(parameters: Iterator[Tensor], x: Tensor, pools: bool) -> Tensor:
    def convolved(x: Tensor, stride: int, padding: int, pool: bool, before: bool = False) -> Tensor:
        weight, scale, shift = (next(parameters) for _ in range(3))
        x = F.conv2d(x, weight, stride=stride, padding=padding)
        x = F.avg_pool2d(x, 2) if pool and before else x
        return normalised(x, scale, shift)

    x = convolved(x, 1, 1, False).clamp(min=0)
    for block in range(8):
        shrinks = block in (2, 4, 6)
        stride = 2 if shrinks and not pools else 1
        inner = convolved(x, stride, 1, False).clamp(min=0)
        inner = F.avg_pool2d(inner, 2) if shrinks and pools else inner
        inner = convolved(inner, 1, 1, False)
        x = (inner + (convolved(x, stride, 0, pools, before=True) if shrinks else x)).clamp(min=0)
    return x if pools else x.mean((2, 3))


def stacked_by_hand(parameters: Iterator[Tensor], x: Tensor, plan: str, padding: int, norm: bool) -> Tensor:
    for each in plan:
        if each == "M":
            x = F.max_pool2d(x, 2)
        else:
            weight, bias = next(parameters), next(parameters)
            x = F.conv2d(x, weight, bias, padding=padding or weight.shape[-1] // 2)
            x, padding = normalised(x, next(parameters), next(parameters)) if norm else x, 0
            x = x.clamp(min=0)
    return x


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18", "resnet18_ap"])
def test_a_network_is_what_its_description_says(name: str, channels: int) -> None:
    size, generator = 32 if channels == 3 else 28, torch.Generator().manual_seed(1)
    network = build_network(functools.partial(NETWORKS[name], channels, 10, (size, size)), 0).double()
    with torch.no_grad():
        for parameter in network.parameters():  # scales other than 1 and shifts other than 0
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        images = torch.randn(2, channels, size, size, generator=generator, dtype=torch.float64)
        parameters, grey = iter(network.parameters()), channels == 1
        if name == "alexnet":
            x = stacked_by_hand(parameters, images, "CMCMCCCM", 4 if grey else 2, norm=False)
        elif name == "vgg11":
            x = stacked_by_hand(parameters, images, "CMCMCCMCCMCCM", 3 if grey else 1, norm=True)
        else:
            x = residual_by_hand(parameters, images, pools=name == "resnet18_ap")
        weight, bias = parameters
        torch.testing.assert_close(network(images), x.flatten(1) @ weight.T + bias)


def test_lenet_pads_images_of_28_pixels() -> None:
    network = LeNet(1, 10, (28, 28))
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    same = LeNet(1, 10, (32, 32))
    same.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(images), same(F.pad(images, (2, 2, 2, 2))))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (SMALLEST[name] >= 16 and name != "lenet")) for name in SMALLEST],
)
def test_the_adjoint_of_a_student_step_equals_autograd(name: str) -> None:
    size = SMALLEST[name]
    network = FunctionalNetwork(functools.partial(NETWORKS[name], 1, 3, (size, size)))
    generator = torch.Generator().manual_seed(2)
    theta = network.initial_parameters(0).double()
    target = torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    found = []
    for engine in ("adjoint", "autograd"):
        generator.manual_seed(3)
        images = torch.randn(2, 1, size, size, generator=generator, dtype=torch.float64).requires_grad_()
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        matched = unroll(
            network,
            theta,
            (images,),
            lambda step, x: (x, torch.tensor([0, 2])),
            rate,
            steps=1,
            match_at=[1],
            engine=engine,
        )
        found.append(torch.autograd.grad((matched[1] * target).sum(), (images, rate)))
    for adjoint, reference in zip(*found, strict=True):
        assert reference.abs().sum() > 0
        torch.testing.assert_close(adjoint, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_step_of_an_expert_with_the_gradient_penalty(name: str) -> None:
    size = SMALLEST[name]
    factory = functools.partial(NETWORKS[name], 1, 3, (size, size))
    network, settings = build_network(factory, 0), ExpertSettings(epochs=1, gradient_penalty=2.0)
    images = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(4))
    loss = ExpertObjective(factory, settings)(network, images, images, torch.tensor([0, 2]), 1.0)
    loss.total.backward()
    assert loss.penalty > 0
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    assert all(weight.grad.abs().sum() > 0 for weight in weights)  # type: ignore[union-attr]
