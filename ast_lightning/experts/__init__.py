"""Expert training: the objective, its LightningModule, and the recorder of trajectories."""

from ast_lightning.config.expert import ExpertSettings
from ast_lightning.experts.module import ExpertModule
from ast_lightning.experts.objective import ExpertLoss, ExpertObjective, expert_objective, gradient_penalty
from ast_lightning.experts.recorder import TrajectoryRecorder

__all__ = [
    "ExpertLoss",
    "ExpertModule",
    "ExpertObjective",
    "ExpertSettings",
    "TrajectoryRecorder",
    "expert_objective",
    "gradient_penalty",
]
