"""GSAM against a plain loop, and where it is rejected."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ast_lightning.compilation import Compilation
from ast_lightning.config.settings import without_neutral
from ast_lightning.data import ImageDataModule
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts import GSAM, ExpertModule, ExpertObjective, ExpertSettings, TrajectoryRecorder
from ast_lightning.experts.optimizers import build_optimizer

CHOSEN = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "sam_rho": 0.3, "sam_alpha": 0.7}


def toy() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return network, torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3), torch.tensor([0, 1, 1, 0, 1])


def by_hand(settings: ExpertSettings, steps: int) -> Tensor:
    """The steps on a flat vector, tensor by tensor only inside of the network."""
    network, images, labels = toy()
    shapes = [each.shape for each in network.parameters()]
    theta = torch.cat([each.detach().flatten() for each in network.parameters()])

    def gradient(theta: Tensor) -> Tensor:
        leaf = theta.clone().requires_grad_()
        w, b, v, c = (p.view(s) for p, s in zip(leaf.split([s.numel() for s in shapes]), shapes, strict=True))
        loss = F.cross_entropy(torch.tanh(images @ w.T + b) @ v.T + c, labels)
        return torch.autograd.grad(loss, leaf)[0]

    velocity = torch.zeros_like(theta)
    for _ in range(steps):
        g = gradient(theta)
        if settings.sam_adaptive:
            epsilon = settings.sam_rho * theta**2 * g / ((theta.abs() * g).pow(2).sum().sqrt() + 1e-12)
        else:
            epsilon = settings.sam_rho * g / (g.pow(2).sum().sqrt() + 1e-12)
        p = gradient(theta + epsilon)
        norm_g, norm_p = g.pow(2).sum().sqrt(), p.pow(2).sum().sqrt()
        cosine = (g * p).sum() / (norm_g * norm_p + 1e-12)
        v = g - cosine * norm_g * p / (norm_p + 1e-12)
        velocity = settings.momentum * velocity + p - settings.sam_alpha * v + settings.weight_decay * theta
        theta = theta - settings.lr * velocity
    return theta


def steps_of(settings: ExpertSettings, steps: int) -> tuple[Tensor, int]:
    network, images, labels = toy()
    optimizer = build_optimizer(list(network.parameters()), settings)["optimizer"]  # type: ignore[call-overload,index]
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return torch.cat([each.detach().flatten() for each in network.parameters()]), calls


@pytest.mark.parametrize("adaptive", [True, False])
def test_two_steps_by_hand(adaptive: bool) -> None:
    settings = ExpertSettings(optimizer="gsam", sam_adaptive=adaptive, **CHOSEN)
    seen, calls = steps_of(settings, 2)
    torch.testing.assert_close(seen, by_hand(settings, 2), rtol=1e-12, atol=1e-14)
    assert calls == 4


@pytest.mark.parametrize("adaptive", [True, False])
def test_each_option_changes_the_step(adaptive: bool) -> None:
    changes: list[dict[str, Any]] = [{"sam_rho": 0.2}, {"sam_alpha": 0.5}, {"sam_adaptive": not adaptive}]
    settings = ExpertSettings(optimizer="gsam", sam_adaptive=adaptive, **CHOSEN)
    first, _ = steps_of(settings, 1)
    for change in changes:
        assert (steps_of(dataclasses.replace(settings, **change), 1)[0] - first).norm() > 1e-5


def test_without_radius_and_perpendicular_part_it_is_sgd() -> None:
    settings = ExpertSettings(**{**CHOSEN, "optimizer": "gsam", "sam_rho": 0.0, "sam_alpha": 0.0})
    plain = ExpertSettings(lr=0.05, momentum=0.9, weight_decay=0.01)
    assert torch.equal(steps_of(settings, 5)[0], steps_of(plain, 5)[0])


def test_parameters_without_a_gradient_stay() -> None:
    used, unused = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = GSAM([unused, used], rho=0.1, alpha=0.5, adaptive=True, lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert unused.tolist() == [1, 1]
    epsilon = 0.1 / 2**0.5  # in the direction of g, so that g⁺ is parallel to g and v = 0
    assert used.tolist() == pytest.approx([1 - 0.2 * (1 + epsilon)] * 2, rel=1e-12)


@pytest.mark.parametrize(("name", "value"), [("sam_rho", 0.1), ("sam_alpha", 1.0), ("sam_adaptive", False)])
def test_its_options_have_no_effect_with_sgd(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"expert\.{name}={value}: .*expert\.optimizer=gsam"):
        ExpertSettings(**{name: value})
    with pytest.raises(ConfigurationError, match=rf"expert\.{name}=-1"):
        ExpertSettings(optimizer="gsam", **{name: -1})
    settings = ExpertSettings(optimizer="gsam", **{name: value})
    assert settings.describe()[name] == value
    assert set(ExpertSettings().describe()) == set(settings.describe()) - {name, "optimizer"}
    values = {"optimizer": "gsam", "sam_rho": 0.01, "sam_alpha": 0.3, "sam_adaptive": True, name: value}
    assert set(without_neutral(ExpertSettings, values)) == {"optimizer", name}


def test_16_mixed_is_rejected(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(lab.settings, optimizer="gsam")
    for precision in ("32-true", "64-true", "bf16-mixed"):
        settings.check_precision(precision)
    lab.settings.check_precision("16-mixed")
    with pytest.raises(ConfigurationError, match=r"trainer\.precision=16-mixed: .*gsam.*bf16-mixed"):
        settings.check_precision("16-mixed")
    monkeypatch.setattr("lightning.Trainer.precision", "16-mixed")
    with pytest.raises(ConfigurationError, match=r"trainer\.precision=16-mixed"):
        lab.train(TrajectoryRecorder(None), 0, settings=settings)


@pytest.mark.slow
def test_the_compiled_objective_gives_the_same_expert(lab: Any) -> None:
    torch.compiler.reset()
    settings = dataclasses.replace(lab.settings, optimizer="gsam", sam_rho=0.1, gradient_penalty=0.0, epochs=1)
    usual, compiled = (
        ExpertObjective(lab.network, settings, choice) for choice in (None, Compilation(True, True, "test"))
    )
    data = ImageDataModule("digits", per_class=10, batch_size=50, augmentation="crop_rotate")  # one size to compile
    seen = [
        lab.train(TrajectoryRecorder(None), 0, settings=settings, data=data, objective=each, limit_val_batches=0)
        for each in (usual, compiled)
    ]
    assert compiled.compilation.enabled
    for pair in zip(*(each.network.parameters() for each in seen), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-5)
    torch.compiler.reset()


def test_an_expert_is_trained_with_it(lab: Any) -> None:
    expert = ExpertModule(functools.partial(lab.network), dataclasses.replace(lab.settings, optimizer="gsam"))
    built: Any = expert.configure_optimizers()
    optimizer = built["optimizer"]
    assert (type(optimizer), optimizer.rho, optimizer.alpha, optimizer.adaptive) == (GSAM, 0.01, 0.3, True)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.03, 0.9)
