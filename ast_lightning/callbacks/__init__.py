"""Callbacks around a run: progress, estimates, pictures, the artifact."""

from ast_lightning.callbacks.progress import RunEstimate, RunProgress, format_seconds, is_rank_zero, say
from ast_lightning.callbacks.states import StateOfEpochs, StateOfIterations
from ast_lightning.callbacks.synthetic import ArtifactWriter, MakeDataset, SyntheticImageLogger

__all__ = [
    "ArtifactWriter",
    "MakeDataset",
    "RunEstimate",
    "RunProgress",
    "StateOfEpochs",
    "StateOfIterations",
    "SyntheticImageLogger",
    "format_seconds",
    "is_rank_zero",
    "say",
]
