"""Callbacks of a run: progress, checkpoints, pictures of the images, the distilled dataset on disk."""

from ast_lightning.callbacks.averaging import ImageAverage
from ast_lightning.callbacks.checkpoints import StateOfEpochs, StateOfIterations
from ast_lightning.callbacks.progress import RunProgress, SharedProgress
from ast_lightning.callbacks.synthetic import ArtifactWriter, MakeDataset, SyntheticImageLogger

__all__ = [
    "ArtifactWriter",
    "ImageAverage",
    "MakeDataset",
    "RunProgress",
    "SharedProgress",
    "StateOfEpochs",
    "StateOfIterations",
    "SyntheticImageLogger",
]
