"""What a synthetic set is compared with: networks trained on as many real images, and on the whole dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ast_lightning.data import LabelledImages
from ast_lightning.data.selection import Logits, random_images, representative_images
from ast_lightning.data.splits import smallest_class
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation.evaluator import Score
from ast_lightning.networks import FunctionalNetwork, NetworkFactory
from ast_lightning.randomness import keyed_seed
from ast_lightning.synthetic.training_set import TrainingSet
from ast_lightning.trajectories import TrajectoryStore

NEED_EXPERTS = ("representative", "whole")
RANDOM_DRAWS = 10
"""The least number of networks for random real images, since each of them has its own draw."""


def random_sets(
    real: LabelledImages, class_names: Sequence[str], ipc: int, seed: int, learning_rate: float
) -> Callable[[int], TrainingSet]:
    """Random real images, drawn anew for each network.

    Args:
        real: the preprocessed training images.
        class_names: of all classes, in the order of the labels.
        ipc: images per class.
        seed: of the draws.
        learning_rate: of SGD.

    Returns:
        The training set of the network of a given index.

    Raises:
        ConfigurationError: a class has fewer than ``ipc`` images.
    """
    _check_ipc("random", real, class_names, ipc)

    def draw(index: int) -> TrainingSet:
        images, labels = random_images(real, class_names, ipc, keyed_seed(seed, "random real images", index))
        return TrainingSet(images, labels, learning_rate)

    return draw


def representative_set(
    real: LabelledImages,
    class_names: Sequence[str],
    ipc: int,
    seed: int,
    learning_rate: float,
    logits: Logits,
    clusters: int = 10,
) -> TrainingSet:
    """The real images that are nearest to the k-means centres of their class.

    Args:
        logits: of an expert, see :func:`expert_logits`; the other arguments are those of :func:`random_sets`.
        clusters: k-means clusters per class.

    Raises:
        ConfigurationError: a class has fewer than ``ipc`` images.
    """
    _check_ipc("representative", real, class_names, ipc)
    images, labels = representative_images(real, class_names, ipc, seed, logits, clusters)
    return TrainingSet(images, labels, learning_rate)


def expert_logits(network: NetworkFactory, store: TrajectoryStore) -> Logits:
    """The first expert of a store, which must have one, after its last epoch.

    Args:
        network: builds a network like the experts.
        store: of the experts.
    """
    functional, theta = FunctionalNetwork(network), store.read_snapshot(store.experts()[0], store.epochs)

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return functional(theta, images)

    return logits


def whole_score(store: TrajectoryStore) -> Score:
    """The test accuracies that the experts, which were trained on the whole dataset, reached after their last epoch.

    Raises:
        ConfigurationError: an expert was trained without being tested.
    """
    final = [store.summary(index)["metrics"].get("test/accuracy") for index in store.experts()]
    if None in final:
        problem = f"the experts in {store.folder} were trained without being tested"
        raise ConfigurationError("baselines", "whole", problem, "leave whole out of baselines")
    return Score(tuple(100 * accuracy for accuracy in final))


def _check_ipc(name: str, real: LabelledImages, class_names: Sequence[str], ipc: int) -> None:
    smallest, count = smallest_class(real.labels, class_names)
    if ipc > count:
        problem = (
            f"class {smallest!r} has only {count} training images, fewer than the {ipc} images per class of the set"
        )
        raise ConfigurationError("baselines", name, problem, f"leave {name} out of baselines")
