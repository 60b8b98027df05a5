"""The result: a self-describing distilled dataset."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ast_lightning.synthetic.dataset import DistilledDataset, load_distilled, save_distilled
    from ast_lightning.synthetic.pictures import picture, save_picture
    from ast_lightning.synthetic.training_set import TrainingSet

__all__ = ["DistilledDataset", "TrainingSet", "load_distilled", "picture", "save_distilled", "save_picture"]


def __getattr__(name: str) -> Any:
    """Import a name on first access, so that the command line prints ``--help`` without importing torch."""
    for module in ("dataset", "pictures", "training_set") if name in __all__ else ():
        found = vars(import_module(f"{__name__}.{module}")).get(name)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
