"""Distribution matching (DM, Zhao and Bilen, WACV 2023): match the mean features of real and synthetic images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ast_lightning.config.distill import DistributionMatchingSettings
from ast_lightning.data import LabelledImages, SiameseAugmentation
from ast_lightning.distillation.method import Context, Method
from ast_lightning.distillation.synthetic_set import BatchDraw, SyntheticSet
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import NetworkFactory, build_network, is_dropout
from ast_lightning.randomness import keyed_generator


class Share(NamedTuple):
    """One rank's part of an iteration.

    Attributes:
        iteration: the outer iteration; part of the key of every random draw.
        classes: the classes whose means are compared.
        scale: factor of their loss, such that the mean over ranks is the loss of all classes.
    """

    iteration: int
    classes: list[int]
    scale: float


class DistributionMatching(Method):
    """Compares mean features under a new, randomly initialised network at each iteration. Experts are not needed.

        L = Σ_c ‖ mean f(aug(real images of class c)) − mean f(aug(synthetic images of class c)) ‖²

    f is the input of the network's last linear layer. Real and synthetic images of a class are augmented with the same
    transform and the same parameters. The classes are divided among the ranks. With batch normalisation, whose
    statistics depend on all classes together, each rank computes all classes.

    Args:
        settings: the options.
        network: builds the networks, whose last layer must be linear.
        real: the preprocessed training images.
        augmentation: Siamese augmentation of both; None disables it.
        seed: seed of all random draws.

    Raises:
        ConfigurationError: the network has no linear layer.
    """

    Settings = DistributionMatchingSettings
    settings: DistributionMatchingSettings

    def __init__(
        self,
        settings: DistributionMatchingSettings,
        network: NetworkFactory,
        real: LabelledImages,
        *,
        augmentation: SiameseAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings
        self._network = network
        self._real = real
        self._members = [(real.labels == label).nonzero().flatten() for label in range(int(real.labels.max()) + 1)]
        self._augmentation = augmentation if settings.augment and augmentation else SiameseAugmentation(None)
        self._seed = seed
        self._device, self._dtype = torch.device("cpu"), torch.float32
        example = build_network(network, 0, "skeleton")
        _last_linear(example)
        self._together = any(isinstance(module, _BatchNorm) for module in example.modules())

    @classmethod
    def build(cls, settings: DistributionMatchingSettings, context: Context) -> DistributionMatching:
        data = context.data
        method = cls(settings, context.network, data.train, augmentation=data.augmentation, seed=context.seed)
        method.compilation = context.choose_compilation(0, "distribution matching is not compiled")
        return method

    def announce(self) -> str:
        return f"{self.settings.max_steps} iterations of {self.settings.real_batch} real images of each class"

    def start(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype

    def work(self, step: int, rank: int, ranks: int) -> Iterator[list[Share]]:
        every = list(range(len(self._members)))
        classes, scale = (every, 1.0) if self._together else (every[rank::ranks], float(ranks))
        while True:
            yield [Share(step, classes, scale)]
            step += 1

    def loss(self, item: Share, synthetic: SyntheticSet) -> tuple[Tensor, dict[str, Tensor]]:
        network = build_network(self._network, self._seed, "distribution matching", item.iteration)
        features = _Features(network.to(self._device, self._dtype))
        *tensors, _ = synthetic.tensors()
        labels = synthetic.training_set().labels.cpu()
        real = [self._real_batch(item.iteration, label) for label in item.classes]
        made = []
        for label in item.classes:
            draw = BatchDraw((labels == label).nonzero()[:, 0], (self._seed, "synthetic batch", item.iteration, label))
            made.append(self._augmented(synthetic.batch(draw, *tensors)[0], item.iteration, label))
        with torch.no_grad():
            targets = self._means(features, real)
        distances = [(a - b).square().sum() for a, b in zip(targets, self._means(features, made), strict=True)]
        total = item.scale * sum(distances, start=0.0 * tensors[0].sum())  # 0 if this rank has no class
        return total, {"train/loss": total.detach()}

    def _means(self, features: _Features, batches: list[Tensor]) -> list[Tensor]:
        """The mean features ``[F]`` of each batch."""
        if not self._together:
            return [features(batch).mean(0) for batch in batches]
        parts = features(torch.cat(batches)).split([len(batch) for batch in batches])
        return [part.mean(0) for part in parts]

    def _real_batch(self, iteration: int, label: int) -> Tensor:
        members = self._members[label]
        order = torch.randperm(len(members), generator=keyed_generator(self._seed, "real batch", iteration, label))
        images = self._real.images[members[order[: self.settings.real_batch]]].to(self._device, self._dtype)
        return self._augmented(images, iteration, label)

    def _augmented(self, images: Tensor, iteration: int, label: int) -> Tensor:
        """Augment all images of a class with the same draw."""
        height, width = images.shape[-2:]
        draw = self._augmentation.draw(1, (height, width), keyed_generator(self._seed, "siamese", iteration, label))
        return self._augmentation.apply(images, draw.rows(torch.zeros(len(images), dtype=torch.int64)))


class _Features:
    """Images → inputs of the last linear layer of a network with fixed parameters, ``[N, F]``."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.requires_grad_(False).train()
        for module in network.modules():
            if is_dropout(module):
                module.eval()
        self._seen: Tensor | None = None
        _last_linear(network).register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen = inputs[0]

    def __call__(self, images: Tensor) -> Tensor:
        self._network(images)
        if self._seen is None:
            raise _without_linear(self._network)
        return self._seen.flatten(1)


def _last_linear(network: nn.Module) -> nn.Linear:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise _without_linear(network)
    return layers[-1]


def _without_linear(network: nn.Module) -> ConfigurationError:
    problem = "distribution matching compares what enters the last linear layer, and there is none in use"
    name = type(network).__name__
    return ConfigurationError("network._target_", name, problem, "choose a network that ends in torch.nn.Linear")
