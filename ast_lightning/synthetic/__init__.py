"""The result: a self-describing distilled dataset, and the honest measure of it."""

from ast_lightning.synthetic.dataset import DistilledDataset, load_distilled, save_distilled
from ast_lightning.synthetic.evaluation import NetworkEvaluator, Score, TrainingSet
from ast_lightning.synthetic.module import EvaluationModule, evaluation_loader, gather_scores
from ast_lightning.synthetic.pictures import picture, save_picture
from ast_lightning.synthetic.settings import EvaluationSettings

__all__ = [
    "DistilledDataset",
    "EvaluationModule",
    "EvaluationSettings",
    "NetworkEvaluator",
    "Score",
    "TrainingSet",
    "evaluation_loader",
    "gather_scores",
    "load_distilled",
    "picture",
    "save_distilled",
    "save_picture",
]
