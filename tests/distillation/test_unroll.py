"""Both engines of the unroll against torch.optim.SGD and finite differences."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ast_lightning.config.trajectory_matching import EXACT_ENGINES
from ast_lightning.distillation.trajectory_matching import unroll
from ast_lightning.networks import ConvNet, FunctionalNetwork

pytestmark = pytest.mark.parametrize("engine", EXACT_ENGINES)

smooth_convnet = functools.partial(
    ConvNet, channels=2, num_classes=3, image_size=(4, 4), width=3, depth=1, activation="gelu"
)


def smooth_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images, labels


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("loss_scale", [1.0, 1.7])
def test_forward_is_sgd_training(engine: str, momentum: float, loss_scale: float) -> None:
    images, labels = normal(6, 2, 4, 4, seed=0), torch.tensor([0, 1, 2, 2, 1, 0])
    rows = [torch.tensor(each) for each in ([0, 1], [2, 3, 4, 5], [5, 1, 3], [0], [4, 2, 1, 0])]
    network = FunctionalNetwork(smooth_convnet)
    theta = network.initial_parameters(1).double()

    module = smooth_convnet().double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(network.unflatten(theta)[name])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=momentum)
    trained = []
    for chosen in rows:
        optimizer.zero_grad()
        (loss_scale * F.cross_entropy(module(images[chosen]), labels[chosen])).backward()
        optimizer.step()
        trained.append(torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()]))

    matched = unroll(
        network,
        theta,
        (images, labels),
        lambda step, x, y: (x[rows[step]], y[rows[step]]),
        torch.tensor(0.3, dtype=torch.float64),
        steps=5,
        momentum=momentum,
        loss_scale=loss_scale,
        match_at=[1, 3, 5],
        engine=engine,
    )

    assert sorted(matched) == [1, 3, 5]
    for step, student in matched.items():
        assert (student - theta).norm() > 0.01
        torch.testing.assert_close(student, trained[step - 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_match_finite_differences(engine: str, momentum: float, soft: bool) -> None:
    network = FunctionalNetwork(smooth_mlp)
    theta = network.initial_parameters(2).double()
    hard = torch.tensor([0, 1, 1, 0])
    labels = torch.softmax(normal(4, 2, seed=5), dim=1) if soft else hard
    rows = [torch.tensor(each) for each in ([1], [3, 0, 2], [2, 1], [0, 3])]

    def student(images: Tensor, learning_rate: Tensor, labels: Tensor = labels) -> tuple[Tensor, ...]:
        matched = unroll(
            network,
            theta,
            (images, labels),
            lambda step, x, y: (x[rows[step]], y[rows[step]]),
            learning_rate,
            steps=4,
            momentum=momentum,
            loss_scale=1.3,
            match_at={2, 3, 4},
            engine=engine,
        )
        return tuple(matched[step] for step in (2, 3, 4))

    images = normal(4, 1, 2, 2, seed=3).requires_grad_()
    learning_rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    inputs = (images, learning_rate, labels.requires_grad_()) if soft else (images, learning_rate)
    assert torch.autograd.gradcheck(student, inputs)
    assert all(part.abs().sum() > 0 for part in torch.autograd.grad(student(*inputs)[-1].square().sum(), inputs))


def test_no_gradient_reaches_the_start(engine: str) -> None:
    network = FunctionalNetwork(smooth_mlp)
    leaf = network.initial_parameters(2).requires_grad_()
    before = leaf.detach().clone()
    images = normal(2, 1, 2, 2, seed=1).float().requires_grad_()
    # even where the start has a history of its own, as a perturbed one would
    labels, rate = torch.tensor([0, 1]), torch.tensor(0.1)
    matched = unroll(network, 2 * leaf, (images, labels), whole, rate, steps=3, match_at=[3], engine=engine)
    matched[3].square().sum().backward()
    assert leaf.grad is None
    assert torch.equal(leaf.detach(), before)
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_one_step_by_hand(engine: str) -> None:
    """Logits θ·x of a single pixel x: at θ = 0 the gradient for class 0 is c · x · (softmax − onehot) = c·x·(−½, ½)."""

    def linear(theta: Tensor, images: Tensor) -> Tensor:
        return images.flatten(1) * theta

    image = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    rate = torch.tensor(0.25, requires_grad=True)
    matched = unroll(
        linear,
        torch.zeros(2),
        (image, torch.tensor([0])),
        whole,
        rate,
        steps=1,
        momentum=0.9,
        loss_scale=2.0,
        match_at=[1],
        engine=engine,
    )
    assert matched[1].tolist() == pytest.approx([0.75, -0.75])
    by_image, by_rate = torch.autograd.grad(matched[1][0], (image, rate))
    assert float(by_image) == pytest.approx(0.25 * 2 * 0.5)
    assert float(by_rate) == pytest.approx(3 * 2 * 0.5)


def test_batches_are_asked_for_once_each_in_order(engine: str) -> None:
    asked = []
    image, label = torch.ones(1, 1, 2, 2), torch.tensor([0])

    def batch(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(step)
        return images, labels

    network = FunctionalNetwork(smooth_mlp)
    theta, rate = network.initial_parameters(0), torch.tensor(0.1)
    unroll(network, theta, (image, label), batch, rate, steps=4, match_at=[1, 4], engine=engine)
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("match_at", [[], [0, 2], [4], [-1]])
def test_match_at_outside_the_steps_is_refused(engine: str, match_at: list[int]) -> None:
    network = FunctionalNetwork(smooth_mlp)
    image, label, theta = torch.ones(1, 1, 2, 2), torch.tensor([0]), network.initial_parameters(0)
    with pytest.raises(ValueError, match=r"match_at=.*steps=3"):
        unroll(network, theta, (image, label), whole, torch.tensor(0.1), steps=3, match_at=match_at, engine=engine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_refused(engine: str, dtype: torch.dtype) -> None:
    network = FunctionalNetwork(smooth_mlp)
    image, label, theta = torch.ones(1, 1, 2, 2), torch.tensor([0]), network.initial_parameters(0).to(dtype)
    with pytest.raises(TypeError, match=r"float32 or float64 parameters, not torch.b?float16"):
        unroll(network, theta, (image, label), whole, torch.tensor(0.1), steps=1, match_at=[1], engine=engine)


def test_autocast_does_not_reach_in(engine: str) -> None:
    network = FunctionalNetwork(functools.partial(smooth_convnet, activation="relu"))
    theta, labels = network.initial_parameters(0), torch.tensor([0, 1, 2])

    def outcome() -> tuple[Tensor, Tensor]:
        images = normal(3, 2, 4, 4, seed=2).float().requires_grad_()
        matched = unroll(
            network, theta, (images, labels), whole, torch.tensor(0.3), steps=3, match_at=[3], engine=engine
        )[3]
        (gradient,) = torch.autograd.grad(matched.square().sum(), images)
        return matched.detach(), gradient

    expected = outcome()
    with torch.autocast("cpu", torch.bfloat16):
        seen = outcome()
    assert torch.equal(seen[0], expected[0])
    assert seen[0].dtype == torch.float32
    if engine == "adjoint":  # autograd replays its graph outside the unroll, under whatever autocast is then on
        assert torch.equal(seen[1], expected[1])


class Nearest:
    """Chooses the θ_k that is nearest to a target, and the first one."""

    def __init__(self, target: Tensor) -> None:
        self.target, self.seen = target, [torch.empty(0)]

    def see(self, step: int, theta: Tensor) -> None:
        assert step == len(self.seen)
        assert not theta.requires_grad
        self.seen.append(theta.clone())

    def chosen(self) -> list[int]:
        distances = [float((theta - self.target).norm()) for theta in self.seen[1:]]
        return [1, 1 + distances.index(min(distances))]


@pytest.mark.parametrize("recompute", [False, True])
def test_steps_that_are_chosen_after_they_were_seen(engine: str, recompute: bool) -> None:
    if recompute and engine == "autograd":
        pytest.skip("the autograd engine keeps every step")
    network = FunctionalNetwork(smooth_mlp)
    theta = network.initial_parameters(0).double()
    images = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tensors, rate = (images.requires_grad_(), torch.tensor([0, 1, 1])), torch.tensor(0.5, dtype=torch.float64)
    asked: list[int] = []

    def counted(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(step)
        return x, y

    options = {"steps": 7, "momentum": 0.5, "engine": engine}
    path = unroll(network, theta, tensors, counted, rate, match_at=range(1, 8), **options)
    chooser = Nearest(path[3].detach() + 1e-3)
    asked.clear()
    matched = unroll(network, theta, tensors, counted, rate, match_at=chooser, recompute=recompute, **options)
    assert list(matched) == [1, 3]
    total = matched[3].square().sum() + matched[1].sum()
    known = path[3].square().sum() + path[1].sum()
    walked = len(asked)
    (found,) = torch.autograd.grad(total, images)
    if engine == "adjoint":
        assert max(asked[walked:]) == 2  # the way back begins at the last step that was chosen
    torch.testing.assert_close(found, torch.autograd.grad(known, images)[0], rtol=1e-12, atol=1e-14)
    for seen, step in zip(chooser.seen[1:], range(1, 8), strict=True):
        torch.testing.assert_close(seen, path[step].detach(), rtol=1e-12, atol=1e-14)
