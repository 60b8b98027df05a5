"""Expert training: the objective, its LightningModule, and the recorder of trajectories."""

from ast_lightning.config.expert import ExpertSettings
from ast_lightning.experts.module import ExpertModule
from ast_lightning.experts.objective import ExpertObjective, Regularizer, expert_objective, gradient_penalty
from ast_lightning.experts.optimizers import with_decay
from ast_lightning.experts.recorder import TrajectoryRecorder

__all__ = [
    "ExpertModule",
    "ExpertObjective",
    "ExpertSettings",
    "Regularizer",
    "TrajectoryRecorder",
    "expert_objective",
    "gradient_penalty",
    "with_decay",
]
