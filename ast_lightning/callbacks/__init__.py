"""Callbacks around a run: progress, estimates, pictures, the artifact."""

from ast_lightning.callbacks.progress import RunEstimate, RunProgress, format_seconds, is_rank_zero, say
from ast_lightning.callbacks.synthetic import ArtifactWriter, SyntheticImageLogger

__all__ = [
    "ArtifactWriter",
    "RunEstimate",
    "RunProgress",
    "SyntheticImageLogger",
    "format_seconds",
    "is_rank_zero",
    "say",
]
