"""Callbacks around a run: progress, pictures, the artifact."""

from ast_lightning.callbacks.checkpoints import StateOfEpochs, StateOfIterations
from ast_lightning.callbacks.progress import RunProgress
from ast_lightning.callbacks.synthetic import ArtifactWriter, MakeDataset, SyntheticImageLogger
from ast_lightning.terminal import format_seconds, is_rank_zero, say

__all__ = [
    "ArtifactWriter",
    "MakeDataset",
    "RunProgress",
    "StateOfEpochs",
    "StateOfIterations",
    "SyntheticImageLogger",
    "format_seconds",
    "is_rank_zero",
    "say",
]
