"""The result: a self-describing distilled dataset."""

from ast_lightning.synthetic.dataset import DistilledDataset, load_distilled, save_distilled
from ast_lightning.synthetic.pictures import picture, save_picture
from ast_lightning.synthetic.training_set import TrainingSet

__all__ = ["DistilledDataset", "TrainingSet", "load_distilled", "picture", "save_distilled", "save_picture"]
