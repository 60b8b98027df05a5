"""Evaluation of a synthetic set: new networks are trained only on it and tested on real images.

The reported accuracy is that of the final network, not the best accuracy during training. Networks without state
besides their parameters can be trained together, as one computation over stacked parameters. The random draws of a
network depend only on (seed, purpose, index of the network), so that grouping does not change them.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torchmetrics.functional.classification import multiclass_accuracy

from ast_lightning.config.evaluation import EvaluationSettings
from ast_lightning.data import LabelledImages, SiameseAugmentation
from ast_lightning.images import circular_crops, draw_offsets
from ast_lightning.networks import FunctionalNetwork, NetworkFactory, build_network, is_dropout
from ast_lightning.randomness import Key, keyed_generator, keyed_global_state
from ast_lightning.synthetic.training_set import TrainingSet

_Batch = tuple[int, Tensor, Tensor]
"""Epoch, augmented images, labels."""
_DIVERGED = 1e4
"""A network has diverged if a logit reaches this size or is not finite; logits of trained networks stay below 100."""


@dataclass(frozen=True)
class Score:
    """Accuracies of several networks, in per cent.

    Attributes:
        accuracies: one for each network; NaN for a network that diverged.
        mean: their mean; NaN if a network diverged.
        std: their sample standard deviation; 0 for a single network, NaN if a network diverged.
        diverged: number of networks that diverged.
    """

    accuracies: tuple[float, ...]

    @property
    def diverged(self) -> int:
        return sum(map(math.isnan, self.accuracies))

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        if self.diverged:
            return math.nan
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    def __str__(self) -> str:
        if self.diverged:
            return f"{self.diverged} of {len(self.accuracies)} networks diverged"
        return f"{self.mean:.1f} ± {self.std:.1f} %" if len(self.accuracies) > 1 else f"{self.mean:.1f} %"


class NetworkEvaluator:
    """Trains new networks on training sets and tests them on real images.

    Args:
        network: builds a network.
        settings: how the networks are trained.
        splits: real images to test on by name, e.g. ``{"test": data.test}``.
        augmentation: augmentation of the training batches; None disables it.
        seed: seed of initial parameters, batch order and augmentation.
        purpose: part of the key of all random draws, so that networks used to select a set differ from those that
            evaluate it.

    Attributes:
        on_epoch: called after each epoch of a group of networks, e.g. to show progress.
    """

    def __init__(
        self,
        network: NetworkFactory,
        settings: EvaluationSettings,
        splits: Mapping[str, LabelledImages],
        *,
        augmentation: SiameseAugmentation | None = None,
        seed: int = 0,
        purpose: str = "evaluation",
    ) -> None:
        self.settings = settings
        self.splits = dict(splits)
        self.key: tuple[Key, ...] = (seed, purpose)
        self.on_epoch: Callable[[], None] = lambda: None
        self._factory = network
        self._functional = FunctionalNetwork(network)
        self._augmentation = augmentation if settings.augment and augmentation else SiameseAugmentation(None)
        example = build_network(network, 0, "skeleton")
        self._stateful = (
            any(map(is_dropout, example.modules()))
            or any(True for _ in example.buffers())
            or any(self._functional.impurity(real.images[0]) for real in self.splits.values())
        )

    def groups(self, networks: int | None = None, ranks: int = 1) -> list[list[int]]:
        """Split the indices of the networks into groups that are trained together, with one or more groups per rank."""
        indices = list(range(networks or self.settings.networks))
        size = 1 if self._stateful else min(self.settings.at_once, -(-len(indices) // ranks))
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def run(
        self, indices: Sequence[int], training_set: Callable[[int], TrainingSet], device: torch.device
    ) -> dict[str, list[float]]:
        """Train the networks ``indices`` and test each on every split.

        The computation uses the dtype of the sets or torch's default dtype, whichever is more precise.

        Args:
            indices: a group from :meth:`groups`, or an empty list.
            training_set: returns the training set of the network with a given index; all sets of a group have the
                same size.
            device: the device of the computation.

        Returns:
            Accuracies in per cent by split, in the order of ``indices``; NaN for a network that diverged.
        """
        if not indices:
            return {name: [] for name in self.splits}
        sets = [training_set(index) for index in indices]
        with torch.inference_mode(False), torch.enable_grad():
            if self._stateful:
                classify = self._train_module(indices[0], sets[0], device)
            else:
                classify = self._train_stacked(indices, sets, device)
        dtype = _precision(sets[0])
        return {name: self._test(classify, real, device, dtype) for name, real in self.splits.items()}

    def _train_stacked(
        self, indices: Sequence[int], sets: Sequence[TrainingSet], device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        dtype = _precision(sets[0])
        network = self._functional.to(device, dtype)
        initial = [network.initial_parameters(*self.key, "network", index) for index in indices]
        theta = [each.to(device, dtype).requires_grad_() for each in initial]
        streams = [self._batches(index, each, device) for index, each in zip(indices, sets, strict=True)]

        def batches() -> Iterator[_Batch]:
            for parts in zip(*streams, strict=True):
                yield parts[0][0], *(torch.stack([part[field] for part in parts]) for field in (1, 2))

        loss = functools.partial(_summed_loss, network, theta)
        self._fit([([own], each.learning_rate) for own, each in zip(theta, sets, strict=True)], batches(), loss)
        if len(indices) == 1:
            return lambda images: network(theta[0], images).unsqueeze(0)
        trained, stacked = torch.stack(theta).detach(), vmap(network, in_dims=(0, None))
        return lambda images: stacked(trained, images)

    def _train_module(self, index: int, training_set: TrainingSet, device: torch.device) -> Callable[[Tensor], Tensor]:
        module: nn.Module = build_network(self._factory, *self.key, "network", index)
        module.to(device, _precision(training_set)).train()
        groups = [(list(module.parameters()), training_set.learning_rate)]
        batches = self._batches(index, training_set, device)
        with keyed_global_state(*self.key, "dropout", index):
            self._fit(groups, batches, lambda x, y: F.cross_entropy(module(x), y))
        module.eval()
        return lambda images: module(images).unsqueeze(0)

    def _batches(self, index: int, training_set: TrainingSet, device: torch.device) -> Iterator[_Batch]:
        """(epoch, augmented images, labels) for every step of one network; canvases are cropped anew for each step."""
        dtype = _precision(training_set)
        images, labels = training_set.images.detach().to(device, dtype), training_set.labels.to(device)
        if labels.is_floating_point():
            labels = labels.to(dtype)
        sides, crop_size = (images.shape[2], images.shape[3]), training_set.crop_size
        for epoch in range(self.settings.epochs):
            generator = keyed_generator(*self.key, "batches", index, epoch)
            crops = keyed_generator(*self.key, "crops", index, epoch)
            for rows in torch.randperm(len(images), generator=generator).split(self.settings.batch_size):
                draw = self._augmentation.draw(len(rows), crop_size or sides, generator)
                rows = rows.to(device)
                batch = images[rows]
                if crop_size:
                    batch = circular_crops(batch, draw_offsets(len(batch), sides, crops), crop_size)
                yield epoch, self._augmentation.apply(batch, draw), labels[rows]

    def _fit(
        self,
        groups: Sequence[tuple[Sequence[Tensor], float]],
        batches: Iterator[_Batch],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Train with SGD. The learning rate of each group decays once, at which point the optimiser state is reset."""
        settings = self.settings

        def sgd(factor: float, momentum: float) -> torch.optim.SGD:
            named = [{"params": own, "lr": (settings.lr or rate) * factor} for own, rate in groups]
            return torch.optim.SGD(named, momentum=momentum, weight_decay=settings.weight_decay)

        optimizer, decayed, reached = sgd(1, settings.momentum), False, 0
        for epoch, images, labels in batches:
            if epoch > reached:
                self.on_epoch()
                reached = epoch
            if epoch > settings.decay_after and not decayed:
                optimizer, decayed = sgd(settings.lr_decay, settings.momentum_after_decay), True
            optimizer.zero_grad()
            loss(images, labels).backward()
            optimizer.step()
        self.on_epoch()

    @torch.no_grad()
    def _test(
        self, classify: Callable[[Tensor], Tensor], real: LabelledImages, device: torch.device, dtype: torch.dtype
    ) -> list[float]:
        parts = (part.to(device, dtype) for part in real.images.split(500))
        logits = torch.cat([classify(part).cpu() for part in parts], dim=1)
        classes = logits.shape[-1]
        return [
            100 * float(multiclass_accuracy(each, real.labels, num_classes=classes, average="micro"))
            if bool((each.abs() < _DIVERGED).all())
            else math.nan
            for each in logits
        ]


def _precision(training_set: TrainingSet) -> torch.dtype:
    return torch.promote_types(training_set.images.dtype, torch.get_default_dtype())


def _summed_loss(network: FunctionalNetwork, theta: Sequence[Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """The sum over networks of their mean losses, so that each of ``theta`` gets the gradient of its own network."""
    if len(theta) == 1:
        return F.cross_entropy(network(theta[0], images[0]), labels[0])
    logits = vmap(network)(torch.stack(list(theta)), images)
    each: Tensor = vmap(F.cross_entropy)(logits, labels)
    return each.sum()
