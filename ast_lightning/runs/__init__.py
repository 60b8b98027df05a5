"""The three commands: from a configuration to files on disk."""

from ast_lightning.runs.distill import distill
from ast_lightning.runs.evaluate import evaluate
from ast_lightning.runs.run import Run
from ast_lightning.runs.train_experts import train_experts

__all__ = ["Run", "distill", "evaluate", "train_experts"]
