"""EvaluationModule: the evaluation as a Lightning test, distributed over devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from lightning import LightningModule
from torch.utils.data import DataLoader, Dataset

from ast_lightning.evaluation.evaluator import NetworkEvaluator, Score
from ast_lightning.synthetic import TrainingSet
from ast_lightning.terminal import say


def evaluation_loader(groups: Sequence[list[int]], rank: int, world_size: int) -> DataLoader[list[int]]:
    """Loader of the groups of networks that rank r of R trains: groups r, r + R, …, or one empty group."""
    return DataLoader(cast("Dataset[list[int]]", groups[rank::world_size] or [[]]), batch_size=None)


def gather_scores(
    module: LightningModule, accuracies: Mapping[int, Mapping[str, float]], splits: Sequence[str]
) -> dict[str, Score]:
    """Combine the accuracies ``{network index: {split: per cent}}`` of all ranks into scores by split."""
    count = torch.tensor(max(accuracies, default=-1) + 1, device=module.device)
    networks = int(module.trainer.strategy.reduce(count, reduce_op="max"))
    # each rank fills in its own networks and leaves zeros elsewhere; the sum over ranks is the complete table
    table = torch.zeros(len(splits), networks, dtype=torch.float64)
    for index, by_split in accuracies.items():
        for row, split in enumerate(splits):
            table[row, index] = by_split[split]
    if module.device.type == "mps":
        table = table.float()
    summed = module.trainer.strategy.reduce(table.to(module.device), reduce_op="sum")
    assert isinstance(summed, torch.Tensor)
    scores = {split: Score(tuple(summed[row].tolist())) for row, split in enumerate(splits)}
    for split, score in scores.items():
        if score.diverged:
            say(f"note: {score}, so there is no {split} accuracy")
    return scores


class EvaluationModule(LightningModule):
    """Evaluates one training set, or one for each network, in ``trainer.test(module)``.

    Create the Trainer with ``inference_mode=False``.

    Args:
        evaluator: trains and tests the networks.
        training_set: returns the training set of the network with a given index.
        name: prefix of the logged accuracy.

    Attributes:
        scores: after the test, a :class:`Score` by split.
    """

    def __init__(self, evaluator: NetworkEvaluator, training_set: Callable[[int], TrainingSet], name: str) -> None:
        super().__init__()
        self.scores: dict[str, Score] = {}
        self._name = name
        self._evaluator = evaluator
        self._training_set = training_set
        self._accuracies: dict[int, dict[str, float]] = {}

    def test_dataloader(self) -> DataLoader[list[int]]:
        ranks = self.trainer.world_size
        return evaluation_loader(self._evaluator.groups(ranks=ranks), self.global_rank, ranks)

    def on_test_epoch_start(self) -> None:
        self._accuracies = {}

    def test_step(self, indices: list[int], batch_index: int) -> None:
        accuracies = self._evaluator.run(indices, self._training_set, self.device)
        for position, index in enumerate(indices):
            self._accuracies[index] = {split: values[position] for split, values in accuracies.items()}

    def on_test_epoch_end(self) -> None:
        self.scores = gather_scores(self, self._accuracies, list(self._evaluator.splits))
        for split, score in self.scores.items():
            self.log(f"{self._name}/{split}_accuracy", score.mean, rank_zero_only=True)
