"""The outer step: what turns the gradients of the synthetic set into an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.parts import resolve

Groups = list[dict[str, Any]]
OuterStep = Callable[[Groups, DistillSettings], OptimizerLRScheduler]
"""(parameter groups with learning rates, settings) → an optimiser, or one with a scheduler as Lightning takes it."""


def sgd(groups: Groups, settings: DistillSettings) -> OptimizerLRScheduler:
    """SGD with momentum, as published."""
    return torch.optim.SGD(groups, momentum=settings.outer_momentum)


def outer_step(settings: DistillSettings) -> OuterStep:
    """The outer step that ``distill.outer`` names.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    step: OuterStep = resolve(settings.outer, {"sgd": sgd}, "distill.outer")
    return step
