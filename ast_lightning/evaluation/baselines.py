"""Baselines of a synthetic set: networks trained on the same number of real images, and on the whole dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from ast_lightning.data import LabelledImages
from ast_lightning.data.selection import Logits, random_images, representative_images
from ast_lightning.data.splits import smallest_class
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation.evaluator import Score
from ast_lightning.networks import FunctionalNetwork, NetworkFactory, build_network
from ast_lightning.randomness import keyed_generator, keyed_seed
from ast_lightning.synthetic.training_set import TrainingSet
from ast_lightning.trajectories import TrajectoryStore

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Grid of the baselines' learning rates; the same for all data, networks and images per class."""
MOST_HELD_OUT = 5000
"""Maximum number of held-out training images on which learning rates are compared."""
NEED_EXPERTS = ("representative", "whole")
RANDOM_DRAWS = 10
"""Minimum number of networks for random real images, since each network has its own draw."""


def random_sets(
    real: LabelledImages, class_names: Sequence[str], ipc: int, seed: int, learning_rate: float
) -> Callable[[int], TrainingSet]:
    """Random real images, drawn anew for each network.

    Args:
        real: the preprocessed training images.
        class_names: names of all classes, in the order of the labels.
        ipc: images per class.
        seed: seed of the draws.
        learning_rate: learning rate of SGD.

    Returns:
        A function that returns the training set of the network with a given index.

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
        logits: an expert, see :func:`expert_logits`; the other arguments are those of :func:`random_sets`.
        clusters: k-means clusters per class.

    Raises:
        ConfigurationError: a class has fewer than ``ipc`` images.
    """
    _check_ipc("representative", real, class_names, ipc)
    images, labels = representative_images(real, class_names, ipc, seed, logits, clusters)
    return TrainingSet(images, labels, learning_rate)


def held_out(real: LabelledImages, chosen: Tensor, seed: int) -> LabelledImages:
    """Random training images for comparing networks that were trained on ``chosen``.

    Args:
        real: the preprocessed training images.
        chosen: ``[N, C, H, W]``, a subset of ``real``.
        seed: seed of the draw.

    Returns:
        At most ``MOST_HELD_OUT`` images that are not in ``chosen``. If every drawn image is in ``chosen``, all drawn
        images.
    """
    order = torch.randperm(len(real), generator=keyed_generator(seed, "held-out images"))[:MOST_HELD_OUT]
    known = {image.numpy().tobytes() for image in chosen}
    free = torch.tensor([image.numpy().tobytes() not in known for image in real.images[order]])
    return real.take(order[free] if free.any() else order)


def expert_logits(network: NetworkFactory, store: TrajectoryStore, expert: int | None = None) -> Logits:
    """An expert of a store after its last epoch, as a function of images.

    Batch normalisation uses the running statistics of the expert, or those of the batch if they are not stored.

    Args:
        network: builds a network with the architecture of the experts.
        store: the trajectories; at least one expert must be complete.
        expert: index of the expert; None: the first one.
    """
    index = store.experts()[0] if expert is None else expert
    functional, theta = FunctionalNetwork(network), store.read_snapshot(index, store.epochs)
    statistics, module = store.read_statistics(index, store.epochs), build_network(network, 0, "skeleton").eval()
    state = {**functional.unflatten(theta), **statistics}

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return functional_call(module, state, (images,)) if statistics else functional(theta, images)

    return logits


def whole_score(store: TrajectoryStore, experts: Sequence[int]) -> Score:
    """The test accuracies of these experts, which are trained on the whole dataset, after their last epoch.

    Raises:
        ConfigurationError: the test accuracy of an expert was not recorded.
    """
    final = [store.summary(index).get("metrics", {}).get("test/accuracy") for index in experts]
    if None in final:
        problem = f"no test accuracy of the experts in {store.folder} was recorded"
        raise ConfigurationError("baselines", "whole", problem, "leave whole out of baselines")
    return Score(tuple(100 * accuracy for accuracy in final))


def _check_ipc(name: str, real: LabelledImages, class_names: Sequence[str], ipc: int) -> None:
    smallest, count = smallest_class(real.labels, class_names)
    if ipc > count:
        problem = (
            f"class {smallest!r} has only {count} training images, fewer than the {ipc} images per class of the set"
        )
        raise ConfigurationError("baselines", name, problem, f"leave {name} out of baselines")
