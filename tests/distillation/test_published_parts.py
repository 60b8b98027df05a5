"""The parts of published methods against plain loops in float64: ATT's step, PAD's entries, TESLA's gradient, MTT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.distillation import DistillModule, TrajectoryMatching
from ast_lightning.distillation.trajectory_matching import Guide, Window, relative_distance
from ast_lightning.distillation.trajectory_matching.matching import NearestMatch
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ConvNet
from ast_lightning.trajectories import TrajectoryStore

Make = Callable[..., Any]
PLAIN: dict[str, Any] = {
    "momentum": 0.0, "balance": False, "perturbation": 0.0, "intermediate": "none", "augment": False,
    "batch_syn": None, "syn_steps": 6,
}  # fmt: skip


@pytest.fixture
def store(make_store: Make) -> TrajectoryStore:
    found: TrajectoryStore = make_store()
    return found


@pytest.fixture
def plain_gradient(network: Callable[[], ConvNet]) -> Callable[..., Tensor]:
    """∇_θ of the cross-entropy at flat parameters, by torch alone."""
    model = network().double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [each.shape for each in model.parameters()]

    def gradient(theta: Tensor, images: Tensor, labels: Tensor, create_graph: bool = False) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes])
        named = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        loss = F.cross_entropy(functional_call(model, named, (images,)), labels)
        return torch.autograd.grad(loss, theta, create_graph=create_graph)[0]

    return gradient


def walk(gradient: Callable[..., Tensor], start: Tensor, images: Tensor, labels: Tensor, rate: Tensor) -> list[Tensor]:
    """θ_0 … θ_6 with the graph of every step."""
    thetas = [start.clone().requires_grad_()]
    for _ in range(6):
        thetas.append(thetas[-1] - rate * gradient(thetas[-1], images, labels, create_graph=True))
    return thetas


def measured(module: DistillModule, window: Window) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The loss of a window, its gradients in X and α, and what is logged."""
    module.double()
    loss, logged = module.method.loss(window, module.synthetic)
    by_images, by_rate = torch.autograd.grad(loss, [module.synthetic.images, module.synthetic.learning_rate])
    return loss.detach(), by_images, by_rate, logged


def windows_of(module: DistillModule, count: int = 4) -> list[Window]:
    assert isinstance(module.method, TrajectoryMatching)
    return [module.method.windows.window(index) for index in range(count)]


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-9 * expected.norm()


def leaves(module: DistillModule) -> tuple[Tensor, Tensor, Tensor]:
    values = module.synthetic.images, module.synthetic.learning_rate
    images, rate = (each.detach().double().clone().requires_grad_() for each in values)
    return images, rate, module.synthetic.labels


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_the_nearest_step_is_that_of_a_plain_loop(
    make_module: Make, ast_settings: Make, store: TrajectoryStore, plain_gradient: Make, ratio: float
) -> None:
    module = make_module(store, ast_settings(**PLAIN, matching="nearest", drop_ratio=ratio, lr_teacher=0.4))
    steps = set()
    for window, near in zip(windows_of(module), (2, 4, 5, 6), strict=True):
        images, rate, labels = leaves(module)
        start = window.start.double()
        thetas = walk(plain_gradient, start, images, labels, rate)
        window = window._replace(targets=0.01 * window.targets + thetas[near].detach())
        target = window.targets[-1]
        distances = [float((theta - target).detach().abs().sum()) for theta in thetas[1:]]
        nearest = 1 + max(k for k in range(6) if distances[k] == min(distances))
        apart, initial = (thetas[nearest] - target).square(), (start - target).square()
        kept = torch.ones(len(start), dtype=torch.bool)
        kept[apart.sort(stable=True).indices[: int(ratio * len(start))]] = False
        loss = apart[kept].sum() / initial[kept].sum()
        expected = loss.detach(), *torch.autograd.grad(loss, [images, rate])
        *found, logged = measured(module, window)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
        assert int(logged["train/matched_step"]) == nearest
        steps.add(nearest)
    assert len(steps) > 2


def test_of_equally_near_steps_the_last_is_taken() -> None:
    settings = TrajectoryMatchingSettings(matching="nearest", intermediate="none")
    match = NearestMatch(Guide(torch.zeros(2), torch.tensor([[9.0, 9.0], [1.0, 0.0]])), settings)
    for step, theta in enumerate([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0], [3.0, 0.0], [4.0, 0.0]], 1):
        match.see(step, torch.tensor(theta))
    assert match.chosen() == [3]
    loss = match.loss({3: torch.tensor([0.0, 0.5])})
    assert (float(loss.total), {key: float(part) for key, part in loss.parts.items()}) == (1.25, {2: 1.25})


def test_steps_after_the_nearest_are_not_walked_back(
    make_module: Make, ast_settings: Make, store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(store, ast_settings(**PLAIN, matching="nearest", lr_teacher=0.4))
    products, count = module.method._problem.products, []
    monkeypatch.setattr(module.method._problem, "products", lambda *a: count.append(1) or products(*a))
    for window in windows_of(module):
        count.clear()
        *_, logged = measured(module, window)
        assert len(count) == int(logged["train/matched_step"])


@pytest.mark.parametrize("intermediate", ["none", "adaptive"])
def test_entries_left_out_of_every_term(
    make_module: Make, ast_settings: Make, store: TrajectoryStore, plain_gradient: Make, intermediate: str
) -> None:
    changes = {**PLAIN, "intermediate": intermediate, "drop_ratio": 0.3}
    module = make_module(store, ast_settings(**changes))
    for window in windows_of(module, 2):
        images, rate, labels = leaves(module)
        start, targets = window.start.double(), window.targets.double()
        thetas = walk(plain_gradient, start, images, labels, rate)
        total = torch.zeros((), dtype=torch.float64)
        for step, offset, weight in [(2, 1, 1 / 3), (4, 2, 2 / 3), (6, 3, 1.0)]:
            if intermediate == "none" and offset < 3:
                continue
            apart, initial = ((each - targets[offset - 1]).square() for each in (thetas[step], start))
            bound = apart.detach().kthvalue(int(0.3 * len(start))).values
            total = total + weight * apart[apart > bound].sum() / initial[apart > bound].sum()
        expected = total.detach(), *torch.autograd.grad(total, [images, rate])
        for one, other in zip(measured(module, window)[:3], expected, strict=True):
            assert_close(one, other)


def test_the_entries_that_differ_least_are_left_out() -> None:
    theta, target, start = torch.tensor([1.0, -3.0, 2.0, 0.5]), torch.zeros(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    theta.requires_grad_()
    loss = relative_distance(theta, target, start, 0.74)  # ⌊0.74 · 4⌋ = 2
    assert float(loss.detach()) == pytest.approx((9 + 4) / (4 + 9))
    (gradient,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(gradient, 2 / 13 * torch.tensor([0.0, -3.0, 2.0, 0.0]))
    ties = relative_distance(torch.ones(3), torch.zeros(3), torch.tensor([1.0, 2.0, 4.0]), 0.4)
    assert float(ties) == pytest.approx(2 / 20)  # the first one goes


@pytest.mark.parametrize("recompute", [False, True])
def test_the_truncated_gradient_is_that_of_teslas_formulas(
    make_module: Make, ast_settings: Make, store: TrajectoryStore, plain_gradient: Make, recompute: bool
) -> None:
    module = make_module(store, ast_settings(**PLAIN, engine="truncated", recompute=recompute))
    exact = make_module(store, ast_settings(**PLAIN))
    for window in windows_of(module, 2):
        images, rate, labels = leaves(module)
        start, target = window.start.double(), window.targets[-1].double()
        theta, total, sources = start, torch.zeros_like(start), []
        for _ in range(6):
            at = theta.clone().requires_grad_()
            sources.append(plain_gradient(at, images, labels, create_graph=True))
            total = total + sources[-1].detach()
            theta = start - rate.detach() * total
        alpha, scale = rate.detach(), 2 / (start - target).square().sum()
        fixed = alpha * (target - start) + alpha**2 * total
        (by_images,) = torch.autograd.grad(scale * sum(fixed @ source for source in sources), images)
        by_rate = -scale * (start - alpha * total - target) @ total
        loss = (start - alpha * total - target).square().sum() / (start - target).square().sum()
        found = measured(module, window)
        for one, other in zip(found[:3], (loss, by_images, by_rate), strict=True):
            assert_close(one, other)
        assert not torch.allclose(found[1], measured(exact, window)[1], rtol=1e-3)


def test_one_truncated_step_is_exact(make_module: Make, ast_settings: Make, store: TrajectoryStore) -> None:
    common = {**PLAIN, "syn_steps": 1, "balance": True, "drop_ratio": 0.2}
    modules = [make_module(store, ast_settings(**common, engine=engine)) for engine in ("truncated", "adjoint")]
    for window in windows_of(modules[0], 2):
        truncated, exact = (measured(module, window) for module in modules)
        for one, other in zip(truncated[:3], exact[:3], strict=True):
            assert_close(one, other)


def test_the_truncated_gradient_of_a_nearest_step(
    make_module: Make, ast_settings: Make, store: TrajectoryStore
) -> None:
    """It is the one of a student that ends there."""
    nearest = make_module(store, ast_settings(**PLAIN, engine="truncated", matching="nearest", lr_teacher=0.4))
    steps = []
    for window in windows_of(nearest):
        *found, logged = measured(nearest, window)
        steps.append(int(logged["train/matched_step"]))
        changes = {**PLAIN, "syn_steps": steps[-1], "engine": "truncated", "lr_teacher": 0.4}
        for one, other in zip(found, measured(make_module(store, ast_settings(**changes)), window)[:3], strict=True):
            assert_close(one, other)
    assert min(steps) < 6


def test_a_truncated_step_needs_no_product_in_the_parameters(
    make_module: Make, ast_settings: Make, store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(store, ast_settings(**PLAIN, engine="truncated"))
    products, wanted = module.method._problem.products, []
    monkeypatch.setattr(module.method._problem, "products", lambda *a: wanted.append(a[-1]) or products(*a))
    measured(module, windows_of(module, 1)[0])
    assert wanted == [(False, True, False)] * 6


@pytest.mark.parametrize(
    ("option", "changes", "words"),
    [
        ("engine", {"engine": "truncated", "momentum": 0.9}, r"distill\.momentum=0\.9.*distill\.engine=adjoint"),
        ("engine", {"engine": "truncated", "intermediate": "adaptive"}, r"distill\.intermediate=none"),
        ("matching", {"matching": "nearest", "intermediate": "aggregate"}, r"distill\.intermediate=none"),
        ("first_start_bound", {"first_start_bound": 3}, r"distill\.expansion_end"),
        ("expansion_end", {"expansion_end": 3}, r"distill\.first_start_bound"),
        ("waypoints", {"waypoints": [0]}, "ascending order from 0"),
        ("waypoints", {"waypoints": [1, 3]}, "ascending order from 0"),
        ("waypoints", {"waypoints": [0, 3, 3]}, "ascending order from 0"),
        ("drop_ratio", {"drop_ratio": 1.0}, "below 1"),
        ("max_loss", {"max_loss": 0.0}, "above 0"),
    ],
)
def test_settings_that_exclude_each_other(ast_settings: Make, option: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        ast_settings(**{**PLAIN, **changes})
    assert caught.value.option == f"distill.{option}"
