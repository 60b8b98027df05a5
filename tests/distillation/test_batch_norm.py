"""Students with batch normalisation against an ordinary module in training mode, in float64."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation.trajectory_matching import TrajectoryMatching, unroll
from ast_lightning.distillation.trajectory_matching.windows import Window
from ast_lightning.evaluation.baselines import expert_logits
from ast_lightning.networks import ConvNet, FunctionalNetwork, build_network, describe_network
from ast_lightning.trajectories import TrajectoryStore

CLASSES, RATE, MOMENTUM = 3, 0.1, 0.9
network = functools.partial(
    ConvNet, channels=3, num_classes=CLASSES, image_size=(8, 8), width=4, depth=2, normalization="batch"
)


def walk(theta: Tensor, batches: list[tuple[Tensor, Tensor]], scale: float = 1.0) -> Tensor:
    """θ_K of a module in training mode, which normalises with the statistics of the batch; with the graph of all."""
    module = build_network(network, 0).double().train()
    names, shapes = zip(*((name, each.shape) for name, each in module.named_parameters()), strict=True)
    velocity = torch.zeros_like(theta)
    for images, labels in batches:
        if not theta.requires_grad:
            theta = theta.requires_grad_()
        pieces = theta.split([each.numel() for each in shapes])
        state = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        loss = scale * F.cross_entropy(functional_call(module, state, (images,)), labels)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = MOMENTUM * velocity + gradient
        theta = theta - RATE * velocity
    return theta


def close(seen: Tensor, wanted: Tensor) -> None:
    assert (seen - wanted).norm() <= 1e-9 * wanted.norm()
    assert wanted.norm() > 0


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("engine", ["adjoint", "autograd"])
@pytest.mark.parametrize("size", [6, 4])
def test_the_gradient_of_the_images_equals_that_of_a_module(images: Tensor, engine: str, size: int) -> None:
    """Whole batches, and chunks of four and two images, whose statistics are their own."""
    labels, target = torch.arange(6) % CLASSES, torch.tensor(0.01, dtype=torch.float64)
    chunks = torch.arange(6).split(size)
    student = FunctionalNetwork(network)
    theta = student.initial_parameters(1).double()
    x, plain = (images.clone().requires_grad_() for _ in range(2))

    def batch(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rows = chunks[step % len(chunks)]
        return images[rows], labels[rows]

    rate = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    seen = unroll(
        student.to("cpu", torch.float64), theta, (x, labels), batch, rate, steps=4, momentum=MOMENTUM, match_at=[4],
        engine=engine,
    )[4]  # fmt: skip
    wanted = walk(theta.clone(), [batch(step, plain, labels) for step in range(4)])
    close(seen.detach(), wanted.detach())
    (seen - target).square().sum().backward()
    (wanted - target).square().sum().backward()
    assert x.grad is not None
    assert plain.grad is not None
    close(x.grad, plain.grad)


def make_store(folder: Path) -> TrajectoryStore:
    """An expert of a few steps on noise, with its running statistics."""
    metadata = {
        "network": describe_network(network), "data": {}, "expert": {}, "epochs": 2, "seed": 0, "versions": {},
    }  # fmt: skip
    store, module = TrajectoryStore.create(folder, metadata), build_network(network, 3).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    generator = torch.Generator().manual_seed(2)
    for epoch in range(3):
        if epoch:
            optimizer.zero_grad()
            F.cross_entropy(module(torch.randn(9, 3, 8, 8, generator=generator) + 1), torch.arange(9) % 3).backward()
            optimizer.step()
        store.write_snapshot(0, epoch, module.state_dict())
    store.finish(0, {})
    return store


def test_the_loss_of_trajectory_matching_equals_that_of_a_loop(
    images: Tensor, ast_settings: Any, tmp_path: Path
) -> None:
    store, labels = make_store(tmp_path / "store"), torch.arange(CLASSES).repeat_interleave(2)
    settings = ast_settings(
        syn_steps=3, expert_epochs=2, max_start_epoch=1, batch_syn=4, augment=False, perturbation=0.0, balance=False,
        intermediate="none", momentum=MOMENTUM, lr_teacher=RATE,
    )  # fmt: skip
    method = TrajectoryMatching(settings, network, store, augmentation=SiameseAugmentation(None), seed=5)
    synthetic = method.synthetic_set(images, labels, RATE).double()
    method.start(torch.device("cpu"), torch.float64)
    (window,) = next(iter(method.work(0, 0, 1)))
    assert isinstance(window, Window)
    loss, _ = method.loss(window, synthetic)
    loss.backward()
    (x, *_) = [each for each in synthetic.tensors() if each.grad is not None and each.ndim == 4]

    plain = images.clone().requires_grad_()
    batch = method.inner_batches(window.index, synthetic)
    start, target = (store.read_snapshot(0, epoch).double() for epoch in (0, 2))
    found = walk(start.clone(), [batch(step, plain, labels) for step in range(3)])
    wanted = (found - target).square().sum() / (start - target).square().sum()
    wanted.backward()
    close(loss.detach(), wanted.detach())
    assert x.grad is not None
    assert plain.grad is not None
    close(x.grad, plain.grad)


def test_an_expert_is_evaluated_with_its_running_statistics(tmp_path: Path) -> None:
    """The logits of an image do not depend on the other images of the batch."""
    store, module = make_store(tmp_path / "store"), build_network(network, 4).eval()
    statistics = store.read_statistics(0, 2)
    assert set(statistics) == {name for name, _ in module.named_buffers()}
    layout = FunctionalNetwork(network).unflatten(store.read_snapshot(0, 2))
    module.load_state_dict({**layout, **statistics})
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 1
    logits = expert_logits(network, store)
    assert torch.equal(logits(images), module(images))
    torch.testing.assert_close(logits(images[:2]), module(images)[:2])
    assert not torch.allclose(module.train()(images), logits(images), atol=1e-2)


def test_experts_without_statistics_use_those_of_the_batch(tmp_path: Path) -> None:
    """Published buffers hold parameters only."""
    store, module = make_store(tmp_path / "store"), build_network(network, 4)
    parameters = dict(build_network(network, 5).named_parameters())
    for epoch in range(3):
        store.write_snapshot(0, epoch, parameters)
    store.finish(0, {})
    assert store.read_statistics(0, 2) == {}
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = functional_call(module.train(), parameters, (images,))
    torch.testing.assert_close(expert_logits(network, store)(images), wanted.detach())
