"""The trajectory store: expert parameters after every epoch, on disk."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ast_lightning.trajectories.store import TrajectoryStore

__all__ = ["TrajectoryStore"]


def __getattr__(name: str) -> Any:
    """Import the store when it is first asked for: the command line answers ``--help`` without torch."""
    if name == "TrajectoryStore":
        from ast_lightning.trajectories.store import TrajectoryStore

        return TrajectoryStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
