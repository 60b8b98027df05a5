"""Expert training: the objective, its LightningModule, and the recorder of trajectories."""

from ast_lightning.config.expert import ExpertSettings
from ast_lightning.experts.module import ExpertModule
from ast_lightning.experts.objective import ExpertLoss, ExpertObjective, Regularizer, expert_objective, gradient_penalty
from ast_lightning.experts.optimizers import OPTIMIZERS, SingleDecay, with_decay
from ast_lightning.experts.recorder import TrajectoryRecorder

__all__ = [
    "OPTIMIZERS",
    "ExpertLoss",
    "ExpertModule",
    "ExpertObjective",
    "ExpertSettings",
    "Regularizer",
    "SingleDecay",
    "TrajectoryRecorder",
    "expert_objective",
    "gradient_penalty",
    "with_decay",
]
