"""Distillation: the synthetic set (SyntheticSet), the method (Method) and the outer loop (DistillModule)."""

from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.distillation.initialization import initial_images, starting_point
from ast_lightning.distillation.method import Context, Method
from ast_lightning.distillation.module import DistillModule
from ast_lightning.distillation.synthetic_set import BatchDraw, SyntheticImages, SyntheticSet
from ast_lightning.distillation.textures import Textures
from ast_lightning.distillation.trajectory_matching import TrajectoryMatching

__all__ = [
    "BatchDraw",
    "Context",
    "DistillModule",
    "DistillSettings",
    "Method",
    "SyntheticImages",
    "SyntheticSet",
    "Textures",
    "TrajectoryMatching",
    "TrajectoryMatchingSettings",
    "initial_images",
    "starting_point",
]
