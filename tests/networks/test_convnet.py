"""ConvNet against the published counts and against its definition, written out with plain tensor arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ConvNet

NORMALIZATIONS = ("instance", "layer", "layer_chw", "group", "batch", "none")
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "sigmoid")
POOLINGS = ("avg", "max", "none")


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def normalized(x: Tensor, kind: str) -> Tensor:
    """(x − mean) / √(variance + 1e-5), over what the kind says; weights are 1 and biases 0 at the start."""
    number, width, height, breadth = x.shape
    if kind == "none":
        return x
    if kind == "batch":
        axes = x.transpose(0, 1).reshape(1, width, -1)
    else:
        groups = {"instance": width, "layer": 1, "layer_chw": 1, "group": 4}[kind]
        axes = x.reshape(number, groups, -1)
    mean = axes.mean(-1, keepdim=True)
    variance = ((axes - mean) ** 2).mean(-1, keepdim=True)
    axes = (axes - mean) / (variance + 1e-5).sqrt()
    if kind == "batch":
        return axes.reshape(width, number, height, breadth).transpose(0, 1)
    return axes.reshape(x.shape)


def activated(x: Tensor, kind: str) -> Tensor:
    logistic = 1 / (1 + torch.exp(-x))
    return {
        "relu": x * (x > 0),
        "leaky_relu": torch.where(x > 0, x, 0.01 * x),
        "gelu": x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "silu": x * logistic,
        "sigmoid": logistic,
    }[kind]


def pooled(x: Tensor, kind: str) -> Tensor:
    if kind == "none":
        return x
    height, width = x.shape[2] // 2, x.shape[3] // 2
    corners = torch.stack([x[:, :, i : 2 * height : 2, j : 2 * width : 2] for i in (0, 1) for j in (0, 1)])
    return corners.mean(0) if kind == "avg" else corners.amax(0)


def by_hand(parameters: list[Tensor], x: Tensor, depth: int, kinds: tuple[str, str, str], padding: int = 1) -> Tensor:
    """The network's definition; the affine parameters of the normalisations are assumed to be 1 and 0."""
    normalization, activation, pooling = kinds
    step = 2 if normalization == "none" else 4
    for block in range(depth):
        weight, bias = parameters[step * block : step * block + 2]
        x = F.conv2d(x, weight, bias, padding=padding if block == 0 else 1)
        x = pooled(activated(normalized(x, normalization), activation), pooling)
    return x.flatten(1) @ parameters[-2].T + parameters[-1]


def test_parameter_counts_of_the_field() -> None:
    assert count(ConvNet(3, 10, (32, 32))) == 320_010
    assert count(ConvNet(3, 100, (32, 32))) == 320_010 + 90 * (128 * 16 + 1)
    # MNIST: 28 + 2·2 = 32 → 16 → 8 → 4, so the classifier sees 128·16 features
    assert count(ConvNet(1, 10, (28, 28))) == 317_706
    # Tiny ImageNet: one block more, again 4×4 at the end
    assert count(ConvNet(3, 200, (64, 64), depth=4)) == 320_010 + 190 * 2049 + (128 * 128 * 9 + 3 * 128)


def test_parameters_are_in_the_order_of_published_buffers() -> None:
    shapes = [tuple(parameter.shape) for parameter in ConvNet(3, 10, (32, 32)).parameters()]
    block = [(128,), (128,), (128,)]
    assert shapes == [
        *[(128, 3, 3, 3), *block],
        *[(128, 128, 3, 3), *block],
        *[(128, 128, 3, 3), *block],
        *[(10, 2048), (10,)],
    ]
    names = [name.rsplit(".", 1)[1] for name, _ in ConvNet(3, 10, (32, 32)).named_parameters()]
    assert names == ["weight", "bias"] * 7


def test_the_third_and_fourth_parameters_are_the_weight_and_bias_of_the_normalisation() -> None:
    parameters = list(ConvNet(3, 10, (8, 8), width=4, depth=1).parameters())
    assert torch.equal(parameters[2], torch.ones(4))
    assert torch.equal(parameters[3], torch.zeros(4))


@pytest.mark.parametrize(
    ("channels", "size", "depth", "padding"),
    [
        (1, (28, 28), 3, 3),
        (3, (28, 28), 3, 1),  # only one-channel images are padded
        (1, (32, 32), 3, 1),
        (1, (8, 8), 1, 1),
        (3, (17, 9), 2, 1),
        (2, (4, 4), 2, 1),
        (1, (28, 28), 5, 3),  # 32 px after padding: five poolings fit
    ],
)
def test_shapes_and_padding(channels: int, size: tuple[int, int], depth: int, padding: int) -> None:
    torch.manual_seed(0)
    network = ConvNet(channels, 5, size, width=6, depth=depth)
    images = torch.randn(3, channels, *size)
    logits = network(images)
    assert logits.shape == (3, 5)
    wanted = by_hand(list(network.parameters()), images, depth, ("instance", "relu", "avg"), padding)
    torch.testing.assert_close(logits, wanted)


@pytest.mark.parametrize(
    ("channels", "size", "padding"), [(1, (32, 32), 3), (1, (8, 8), 3), (3, (9, 9), 0), (1, (28, 28), 1)]
)
def test_the_first_padding_can_be_given(channels: int, size: tuple[int, int], padding: int) -> None:
    """3 for one channel of any size is the rule of the published codes."""
    torch.manual_seed(0)
    network = ConvNet(channels, 5, size, width=6, depth=2, first_padding=padding)
    images = torch.randn(3, channels, *size)
    wanted = by_hand(list(network.parameters()), images, 2, ("instance", "relu", "avg"), padding)
    torch.testing.assert_close(network(images), wanted)


def test_layer_normalisation_of_the_field_has_a_weight_for_each_element() -> None:
    assert count(ConvNet(3, 10, (32, 32), width=32, normalization="layer_chw")) == 110_538
    assert count(ConvNet(3, 10, (32, 32), width=32, normalization="layer")) == 24_714
    torch.manual_seed(0)
    network = ConvNet(1, 2, (6, 4), width=3, depth=1, normalization="layer_chw", first_padding=3)
    weight, bias = torch.randn(2, 3, 10, 8)
    parameters = list(network.parameters())
    with torch.no_grad():
        parameters[2].copy_(weight)
        parameters[3].copy_(bias)
    images = torch.randn(2, 1, 6, 4)
    x = normalized(F.conv2d(images, *parameters[:2], padding=3), "layer_chw") * weight + bias
    wanted = pooled(activated(x, "relu"), "avg").flatten(1) @ parameters[4].T + parameters[5]
    torch.testing.assert_close(network(images), wanted)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_choice_is_what_its_name_says(normalization: str, activation: str, pooling: str) -> None:
    torch.manual_seed(1)
    network = ConvNet(2, 3, (8, 6), 64, 2, normalization, activation, pooling)  # "group" has four, as published
    images = torch.randn(4, 2, 8, 6)
    wanted = by_hand(list(network.parameters()), images, 2, (normalization, activation, pooling))
    torch.testing.assert_close(network(images), wanted, rtol=1e-4, atol=1e-5)


def test_group_normalisation_is_not_layer_normalisation() -> None:
    outputs = []
    for kind in ("group", "layer"):
        torch.manual_seed(2)
        network = ConvNet(3, 4, (8, 8), 64, 1, kind)
        outputs.append(network(torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8).sin()))
    assert not torch.allclose(*outputs, atol=1e-4)


@pytest.mark.parametrize("width", [1, 31, 33, 64, 65, 100, 128])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_width_can_be_normalised_or_is_refused(width: int, normalization: str) -> None:
    try:
        network = ConvNet(1, 2, (4, 4), width=width, depth=1, normalization=normalization)
    except ConfigurationError as error:
        assert error.option in ("network.width", "network.normalization")  # noqa: PT017
    else:
        assert network(torch.ones(2, 1, 4, 4)).shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "option", "says"),
    [
        ({"normalization": "instnace"}, "network.normalization", "instance, batch, layer, layer_chw, group or none"),
        ({"activation": "tanh"}, "network.activation", "relu, leaky_relu, gelu, silu or sigmoid"),
        ({"pooling": "average"}, "network.pooling", "avg, max or none"),
        ({"width": 0}, "network.width", "from 1"),
        ({"depth": 0}, "network.depth", "from 1"),
        ({"depth": -1}, "network.depth", "from 1"),
        ({"depth": 4}, "network.depth", "8×12 pixels"),
        ({"first_padding": -1}, "network.first_padding", "from 0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(arguments: dict[str, object], option: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConvNet(3, 10, (8, 12), **arguments)  # type: ignore[arg-type]
    assert caught.value.option == option
    assert caught.value.value == next(iter(arguments.values()))
    assert says in str(caught.value)
    assert "Remedy: " in str(caught.value)


def test_the_deepest_network_that_fits_is_not_refused() -> None:
    assert ConvNet(3, 10, (8, 12), width=2, depth=3)(torch.zeros(1, 3, 8, 12)).shape == (1, 10)
    assert ConvNet(3, 10, (8, 8), width=2, depth=4, pooling="none")(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
