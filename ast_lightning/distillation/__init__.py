"""Distillation: windows, the unrolled student, the matching loss, and the module that trains the images."""

from ast_lightning.config.distill import TrajectoryMatchingSettings, check_precision
from ast_lightning.distillation.initialization import check_ipc, initial_images, representatives
from ast_lightning.distillation.module import DistillModule
from ast_lightning.distillation.trajectory_matching.inner import InnerProblem
from ast_lightning.distillation.trajectory_matching.matching import (
    MatchingLoss,
    balance_factor,
    intermediate_weight,
    matching_loss,
    matching_steps,
)
from ast_lightning.distillation.trajectory_matching.perturbation import perturb
from ast_lightning.distillation.trajectory_matching.split import SplitProblem
from ast_lightning.distillation.trajectory_matching.unroll import unroll
from ast_lightning.distillation.trajectory_matching.windows import (
    TrajectoryWindows,
    Window,
    check_window,
    choose_window,
)

__all__ = [
    "DistillModule",
    "InnerProblem",
    "MatchingLoss",
    "SplitProblem",
    "TrajectoryMatchingSettings",
    "TrajectoryWindows",
    "Window",
    "balance_factor",
    "check_ipc",
    "check_precision",
    "check_window",
    "choose_window",
    "initial_images",
    "intermediate_weight",
    "matching_loss",
    "matching_steps",
    "perturb",
    "representatives",
    "unroll",
]
