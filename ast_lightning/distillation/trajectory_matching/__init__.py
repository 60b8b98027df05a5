"""Trajectory matching: match students with windows of expert trajectories (MTT, CVPR 2022; AST, arXiv 2310.10541)."""

from ast_lightning.distillation.trajectory_matching.adjoint import StepChooser
from ast_lightning.distillation.trajectory_matching.inner import InnerProblem
from ast_lightning.distillation.trajectory_matching.matching import (
    Guide,
    Match,
    MatchingLoss,
    balance_factor,
    intermediate_weight,
    matching_loss,
    matching_steps,
    relative_distance,
)
from ast_lightning.distillation.trajectory_matching.method import TrajectoryMatching
from ast_lightning.distillation.trajectory_matching.perturbation import perturb
from ast_lightning.distillation.trajectory_matching.unroll import unroll
from ast_lightning.distillation.trajectory_matching.windows import (
    TrajectoryWindows,
    Window,
    check_window,
    check_windows,
    choose_window,
)

__all__ = [
    "Guide",
    "InnerProblem",
    "Match",
    "MatchingLoss",
    "StepChooser",
    "TrajectoryMatching",
    "TrajectoryWindows",
    "Window",
    "balance_factor",
    "check_window",
    "check_windows",
    "choose_window",
    "intermediate_weight",
    "matching_loss",
    "matching_steps",
    "perturb",
    "relative_distance",
    "unroll",
]
