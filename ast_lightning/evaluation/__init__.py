"""Evaluation of a synthetic set: networks are trained only on it and tested on real images."""

from ast_lightning.config.evaluation import EvaluationSettings
from ast_lightning.evaluation.evaluator import NetworkEvaluator, Score
from ast_lightning.evaluation.module import EvaluationModule, evaluation_loader, gather_scores

__all__ = [
    "EvaluationModule",
    "EvaluationSettings",
    "NetworkEvaluator",
    "Score",
    "evaluation_loader",
    "gather_scores",
]
