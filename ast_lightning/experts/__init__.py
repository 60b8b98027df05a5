"""Expert training: the objective, its LightningModule, and the recorder of trajectories."""

from ast_lightning.config.expert import ExpertSettings
from ast_lightning.experts.curriculum import curriculum, difficulty, kept_in
from ast_lightning.experts.gsam import GSAM
from ast_lightning.experts.module import ExpertModule, check_devices
from ast_lightning.experts.objective import ExpertObjective, Regularizer, expert_objective, gradient_penalty
from ast_lightning.experts.optimizers import with_decay
from ast_lightning.experts.recorder import TrajectoryRecorder

__all__ = [
    "GSAM",
    "ExpertModule",
    "ExpertObjective",
    "ExpertSettings",
    "Regularizer",
    "TrajectoryRecorder",
    "check_devices",
    "curriculum",
    "difficulty",
    "expert_objective",
    "gradient_penalty",
    "kept_in",
    "with_decay",
]
