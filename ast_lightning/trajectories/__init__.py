"""The trajectory store: expert parameters after every epoch, on disk."""

from ast_lightning.trajectories.store import TrajectoryStore

__all__ = ["TrajectoryStore"]
