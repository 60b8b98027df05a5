"""Dataset distillation by matching smooth expert trajectories, on PyTorch Lightning and Hydra."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ast_lightning.commands.api import distill

__version__ = "0.1.0"
__all__ = ["distill"]


def __getattr__(name: str) -> Any:
    """Import :func:`distill` on first access, so that the command line starts without importing torch."""
    if name == "distill":
        from ast_lightning.commands.api import distill

        return distill
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
