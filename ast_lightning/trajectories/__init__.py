"""The trajectory store: expert parameters after every epoch, on disk."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ast_lightning.trajectories.store import TrajectoryStore

__all__ = ["TrajectoryStore"]


def __getattr__(name: str) -> Any:
    """Import the store on first access, so that the command line prints ``--help`` without importing torch."""
    if name == "TrajectoryStore":
        from ast_lightning.trajectories.store import TrajectoryStore

        return TrajectoryStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
