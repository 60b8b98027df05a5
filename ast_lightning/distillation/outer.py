"""The outer step: the optimiser of the synthetic set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.parts import resolve

Groups = list[dict[str, Any]]
OuterStep = Callable[[Groups, DistillSettings], OptimizerLRScheduler]
"""(parameter groups with learning rates, settings) → an optimiser, or Lightning's dictionary of one and a scheduler."""


class NormalizedSGD(torch.optim.Optimizer):
    """SGD with momentum on gradients divided by their running root mean square over the whole tensor.

    With g of n entries and s = ‖g‖² / n: v ← β v + (1 − β) s, m ← μ m + g / √max(v / (1 − βᵗ), s),
    x ← x − lr · unit · m. The contribution of a gradient to the step, lr · unit · g / √max(…), has a root mean square
    of at most lr · unit. The steps do not change if the loss is multiplied by a constant. ``unit`` is the standard
    deviation of the initial values, so that steps are proportional to the scale of the images.

    Args:
        groups: parameter groups with ``lr``, in multiples of ``unit``. ``unit`` in a group replaces the standard
            deviation of each of its tensors; set it for tensors with one entry.
        momentum: μ.
        beta: β.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.5, beta: float = 0.99) -> None:
        super().__init__(groups, {"lr": 0.1, "momentum": momentum, "beta": beta, "unit": None})
        for group in self.param_groups:
            if group["unit"] is None:
                group["unit"] = [float(each.detach().std(correction=0)) or 1.0 for each in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter, unit in zip(group["params"], group["unit"], strict=True):
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * unit * self._direction(parameter, group))
        return loss

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, beta, gradient = self.state[parameter], group["beta"], parameter.grad
        assert gradient is not None
        if not state:
            state.update(step=0, mean_square=gradient.new_zeros(()), momentum=torch.zeros_like(parameter))
        state["step"] += 1
        square = gradient.square().mean()
        state["mean_square"].mul_(beta).add_(square, alpha=1 - beta)
        size = (state["mean_square"] / (1 - beta ** state["step"])).maximum(square).sqrt()
        normalized = torch.where(size > 0, gradient / size, 0.0)
        direction: Tensor = state["momentum"].mul_(group["momentum"]).add_(normalized)
        return direction


def normalized(groups: Groups, settings: DistillSettings) -> OptimizerLRScheduler:
    """Steps of ``lr_img`` standard deviations of the initial images, independent of the scale of images and loss."""
    return _scheduled(NormalizedSGD(groups, settings.outer_momentum), settings)


def sgd(groups: Groups, settings: DistillSettings) -> OptimizerLRScheduler:
    """SGD with momentum, as in the published code."""
    return _scheduled(torch.optim.SGD(groups, momentum=settings.outer_momentum), settings)


def _scheduled(optimizer: torch.optim.Optimizer, settings: DistillSettings) -> OptimizerLRScheduler:
    if settings.schedule == "constant":
        return optimizer

    def inverse_sqrt(step: int) -> float:
        return 1 / math.sqrt(1 + step / 20)

    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.max_steps)))

    factor = inverse_sqrt if settings.schedule == "inverse_sqrt" else cosine
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def outer_step(settings: DistillSettings) -> OuterStep:
    """The outer step selected by ``distill.outer``.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    step: OuterStep = resolve(settings.outer, {"normalized": normalized, "sgd": sgd}, "distill.outer")
    return step
