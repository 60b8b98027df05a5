"""The functional view of a network: the same numbers as the module, from one flat vector."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import (
    ConvNet,
    FunctionalNetwork,
    NetworkFactory,
    build_network,
    describe_network,
    is_dropout,
)
from ast_lightning.networks.functional import parameter_layout
from tests.networks import own


def perturbed(network: FunctionalNetwork) -> Tensor:
    """Parameters that no initialisation has, so that a network that ignores them is found out."""
    noise = torch.randn(network.num_parameters, generator=torch.Generator().manual_seed(3))
    return network.initial_parameters(0, "test") + 0.2 * noise


def module_with(factory: NetworkFactory, theta: Tensor) -> nn.Module:
    module = factory().train()
    vector_to_parameters(theta.clone(), module.parameters())
    return module


def loss(network: FunctionalNetwork, images: Tensor, labels: Tensor, theta: Tensor) -> Tensor:
    return F.cross_entropy(network(theta, images), labels)


def test_equals_the_forward_of_the_module(factory: NetworkFactory, images: Tensor) -> None:
    network = FunctionalNetwork(factory)
    for theta in (network.initial_parameters(1), perturbed(network)):
        torch.testing.assert_close(network(theta, images), module_with(factory, theta)(images), rtol=0, atol=1e-6)


def test_gradient_equals_that_of_the_module(factory: NetworkFactory, images: Tensor, labels: Tensor) -> None:
    network = FunctionalNetwork(factory)
    theta = perturbed(network)
    module = module_with(factory, theta)
    F.cross_entropy(module(images), labels).backward()
    wanted = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()])  # type: ignore[union-attr]
    assert wanted.norm() > 0.01

    leaf = theta.clone().requires_grad_()
    (eager,) = torch.autograd.grad(loss(network, images, labels, leaf), leaf)
    pure = torch.func.grad(functools.partial(loss, network, images, labels))(theta)
    torch.testing.assert_close(eager, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(pure, wanted, rtol=1e-4, atol=1e-6)


def test_flatten_and_unflatten_are_inverse(factory: NetworkFactory) -> None:
    network = FunctionalNetwork(factory)
    theta = torch.arange(network.num_parameters, dtype=torch.float32)
    pieces = network.unflatten(theta)
    assert [(name, tuple(piece.shape)) for name, piece in pieces.items()] == network.layout
    assert torch.equal(network.flatten(pieces), theta)
    assert torch.equal(network.flatten(dict(reversed(pieces.items()))), theta)  # the layout says the order
    assert torch.equal(parameters_to_vector(pieces.values()), theta)
    assert sum(network.sizes) == network.num_parameters == sum(p.numel() for p in network.factory().parameters())


def test_unflattened_pieces_are_views_that_gradients_pass_through() -> None:
    network = FunctionalNetwork(functools.partial(nn.Linear, 3, 2))
    theta = torch.zeros(8, requires_grad=True)
    pieces = network.unflatten(theta)
    (pieces["weight"].sum() + 2 * pieces["bias"].sum()).backward()
    assert torch.equal(theta.grad, torch.tensor([1.0] * 6 + [2.0] * 2))
    storage = theta.untyped_storage().data_ptr()
    assert all(piece.untyped_storage().data_ptr() == storage for piece in pieces.values())


def test_vector_of_another_length_is_an_error() -> None:
    network = FunctionalNetwork(functools.partial(nn.Linear, 3, 2))
    for size in (7, 9):
        with pytest.raises(RuntimeError):
            network(torch.zeros(size), torch.zeros(1, 3))


def test_initial_parameters_depend_on_the_key_alone(factory: NetworkFactory) -> None:
    network = FunctionalNetwork(factory)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = network.initial_parameters(0, "expert", 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    torch.rand(10)
    assert torch.equal(network.initial_parameters(0, "expert", 1), first)
    assert torch.equal(FunctionalNetwork(factory).initial_parameters(0, "expert", 1), first)
    assert not torch.equal(network.initial_parameters(0, "expert", 2), first)
    assert first.dtype == torch.float32
    assert not first.requires_grad


def test_initial_parameters_are_those_of_build_network(factory: NetworkFactory) -> None:
    module = build_network(factory, 3, "expert", 0)
    vector = FunctionalNetwork(factory).initial_parameters(3, "expert", 0)
    assert torch.equal(parameters_to_vector(module.parameters()), vector)


def test_constructing_a_network_leaves_the_global_generator_alone(factory: NetworkFactory) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    FunctionalNetwork(factory)
    build_network(factory, 0)
    describe_network(factory)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batch_normalisation_uses_the_statistics_of_the_batch(
    batch_norm_factory: NetworkFactory, images: Tensor
) -> None:
    network = FunctionalNetwork(batch_norm_factory)
    theta = perturbed(network)
    first = network(theta, images)
    network(theta, 10 * images + 3)  # would move running statistics
    assert torch.equal(network(theta, images), first)
    # the first sample's logits depend on who else is in the batch: not so with stored statistics
    assert not torch.allclose(network(theta, images[:3])[0], first[0], atol=1e-4)


def test_batch_normalisation_differentiates_twice(
    batch_norm_factory: NetworkFactory, images: Tensor, labels: Tensor
) -> None:
    network = FunctionalNetwork(batch_norm_factory)
    theta, objective = perturbed(network), functools.partial(loss, network, images, labels)
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(4))
    leaf = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf), leaf, create_graph=True)
    (eager,) = torch.autograd.grad(gradient, leaf, direction)
    _, product = torch.func.vjp(torch.func.grad(objective), theta)
    torch.testing.assert_close(product(direction)[0], eager, rtol=1e-4, atol=1e-5)


def test_tied_parameters_count_once(tied_factory: NetworkFactory, images: Tensor) -> None:
    network = FunctionalNetwork(tied_factory)
    features = 2 * 4 * 6
    assert network.layout == [
        ("first.weight", (features, features)),
        ("head.weight", (3, features)),
        ("head.bias", (3,)),
    ]
    assert network.num_parameters == features**2 + 3 * features + 3
    theta = perturbed(network)
    pieces = network.unflatten(theta)
    hidden = torch.tanh(torch.tanh(images.flatten(1) @ pieces["first.weight"].T) @ pieces["first.weight"].T)
    wanted = 0.5 * (hidden @ pieces["head.weight"].T + pieces["head.bias"])
    torch.testing.assert_close(network(theta, images), wanted, rtol=1e-4, atol=1e-6)


def test_skeleton_keeps_nothing_of_a_call(factory: NetworkFactory, images: Tensor) -> None:
    """Two calls with different vectors do not see each other, and the factory is not called again."""
    calls = []

    def counted() -> nn.Module:
        calls.append(1)
        return factory()

    network = FunctionalNetwork(counted)
    made = len(calls)
    one, two = network.initial_parameters(1), network.initial_parameters(2)
    made += 2
    first = network(one, images)
    second = network(two, images)
    assert not torch.allclose(first, second)
    assert torch.equal(network(one, images), first)
    assert len(calls) == made


def test_double_precision_vectors_give_double_precision_logits(factory: NetworkFactory, images: Tensor) -> None:
    network = FunctionalNetwork(factory)
    theta = perturbed(network)
    logits = network(theta.double(), images.double())
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), network(theta, images), rtol=1e-3, atol=1e-4)


def test_dropout_is_off_in_a_pure_function(images: Tensor) -> None:
    factory = functools.partial(nn.Sequential, nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3))
    network = FunctionalNetwork(factory)
    theta = perturbed(network)
    pieces = network.unflatten(theta)
    torch.testing.assert_close(network(theta, images), images.flatten(1) @ pieces["2.weight"].T + pieces["2.bias"])
    assert [is_dropout(module) for module in factory()] == [False, True, False]


class Functional(nn.Module):
    """A network with state that no layer of torch's shows."""

    def __init__(self, state: str) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 3)
        self.register_buffer("count", torch.zeros(()))
        self.count: Tensor
        self.state = state

    def forward(self, images: Tensor) -> Tensor:
        if self.state == "random":
            images = F.dropout(images, 0.5, self.training)
        elif self.state == "moving":
            self.count += 1
        logits: Tensor = self.linear(images.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("state", "problem"), [("random", "uses random numbers"), ("moving", "its buffer count changes"), ("none", None)]
)
def test_a_student_is_a_pure_function(state: str, problem: str | None, images: Tensor) -> None:
    network = FunctionalNetwork(functools.partial(Functional, state))
    before = torch.get_rng_state()
    if problem is None:
        network.require_pure(images[0])
    else:
        with pytest.raises(ConfigurationError, match=rf"^network=.*Functional: {problem}|it {problem}"):
            network.require_pure(images[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (own.OneMore, ["returns [2, 4]", "[2, 3] are required"]),
        (own.Pair, ["returns a tuple", "one tensor"]),
        (own.Maps, ["returns [2, 3, 1, 1]"]),
        (own.Dice, ["logits differ"]),
        (own.Counter, ["logits differ"]),
        (own.Fails, ["raised RuntimeError", "own.py, line "]),
        (own.CannotBeBuilt, ["cannot be built", "raised ZeroDivisionError: 2 channels", "own.py, line "]),
        (own.no_module, ["torch.nn.Module"]),
    ],
)
def test_a_network_that_cannot_be_a_student_is_named_in_a_line(kind: Any, words: list[str], images: Tensor) -> None:
    factory = functools.partial(kind, channels=2, num_classes=3, image_size=(4, 6))
    with pytest.raises(ConfigurationError) as caught:
        FunctionalNetwork(factory).require_pure(images[0], 3)
    assert caught.value.option == "network"
    assert kind.__qualname__ in str(caught.value)
    assert all(word in str(caught.value) for word in words)
    assert str(caught.value).isprintable()


def test_attention_can_be_differentiated_twice(images: Tensor) -> None:
    network = FunctionalNetwork(functools.partial(own.Attention, channels=2, num_classes=3, image_size=(4, 6)))
    network.require_pure(images[0], 3)
    theta, images = network.initial_parameters(0).double().requires_grad_(), images.double().requires_grad_()

    def gradient(theta: Tensor, images: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(network(theta, images).square().sum(), theta, create_graph=True)
        return found

    assert torch.autograd.gradcheck(gradient, (theta, images))


def test_layers_of_torch_are_pure(images: Tensor) -> None:
    layers = (nn.BatchNorm2d(2), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3))
    FunctionalNetwork(functools.partial(nn.Sequential, *layers)).require_pure(images[0])


def test_frozen_parameters_are_refused() -> None:
    def frozen() -> nn.Module:
        network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        network[0].requires_grad_(False)
        return network

    with pytest.raises(ConfigurationError, match=r"^network=Sequential: its parameter 0\.weight is frozen"):
        FunctionalNetwork(frozen)


def test_description_of_a_user_network(tied_factory: NetworkFactory) -> None:
    description = describe_network(tied_factory)
    cls = tied_factory.func  # type: ignore[attr-defined]  # nested partials are flattened by functools
    assert description == {
        "target": f"{cls.__module__}.TiedNetwork",
        "arguments": {"channels": 2, "num_classes": 3, "image_size": [4, 6], "scale": 0.5},
        "parameters": [["first.weight", [48, 48]], ["head.weight", [3, 48]], ["head.bias", [3]]],
    }
    assert json.loads(json.dumps(description)) == description  # comparable with what a file gives back


def test_description_tells_networks_with_the_same_parameters_apart() -> None:
    named = [functools.partial(ConvNet, 1, 2, (4, 4), width=2, depth=1, activation=a) for a in ("relu", "gelu")]
    assert describe_network(named[0]) != describe_network(named[1])
    assert describe_network(named[0])["parameters"] == describe_network(named[1])["parameters"]
    assert describe_network(named[0])["target"] == "ast_lightning.networks.convnet.ConvNet"
    positional = [functools.partial(ConvNet, 1, 2, (4, 4), 2, 1, "instance", a) for a in ("relu", "gelu")]
    assert describe_network(positional[0]) != describe_network(positional[1])


def test_layout_is_that_of_named_parameters() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # buffers are no parameters
    assert parameter_layout(network) == [("0.weight", (2, 3)), ("0.bias", (2,)), ("1.weight", (2,)), ("1.bias", (2,))]


def test_network_without_parameters_is_refused() -> None:
    frozen = functools.partial(lambda: nn.Linear(2, 2).requires_grad_(False))
    for factory, problem in ((nn.Flatten, "no parameters"), (frozen, "weight is frozen")):
        with pytest.raises(ConfigurationError, match=problem) as caught:
            build_network(factory, 0)
        assert caught.value.option == "network"


def test_wrong_arguments_are_a_configuration_error() -> None:
    """As the docstring of build_network promises: a misspelt network option is the user's to put right."""
    with pytest.raises(ConfigurationError, match="widht"):
        build_network(functools.partial(ConvNet, 3, 10, (32, 32), widht=4), 0)  # type: ignore[call-arg]


def test_description_of_a_network_that_is_given_a_class_can_be_stored() -> None:
    """`activation=nn.GELU` is how many people's own networks are parametrised."""

    def network(width: int, activation: type[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), activation(), nn.Linear(width, 2))

    described = [describe_network(functools.partial(network, 4, activation)) for activation in (nn.GELU, nn.ReLU)]
    stored = [json.loads(json.dumps(description)) for description in described]
    assert stored[0] != stored[1]
    assert "GELU" in str(stored[0]["arguments"]["activation"])
