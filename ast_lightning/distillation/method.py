"""The interface of a distillation method: a stream of work items, and the loss of an item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ast_lightning.compilation import Compilation
from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.schedule import Schedule
from ast_lightning.data import ImageDataModule
from ast_lightning.data.selection import Logits
from ast_lightning.distillation.synthetic_set import SyntheticSet
from ast_lightning.distillation.textures import images_or_textures
from ast_lightning.evaluation.baselines import expert_logits
from ast_lightning.networks import NetworkFactory
from ast_lightning.trajectories import TrajectoryStore


@dataclass(frozen=True)
class Context:
    """The inputs available to a method. They are read or computed on first use.

    Attributes:
        data: the real images.
        make_network: builds a network from ``channels``, ``num_classes`` and ``image_size``.
        seed: seed of all random draws.
        ranks: number of processes that share an iteration.
        open_experts: opens the trajectory store and returns it with the experts to use; reads no images.
        check_experts: compares the store with the data and the network of this run.
        choose_compilation: (forward passes of single images in the whole run, reason not to compile or None) →
            whether to compile.
        schedule: the epochs that the experts of this run store; None if a folder of experts was given.
    """

    data: ImageDataModule
    make_network: Callable[..., nn.Module]
    seed: int
    ranks: int
    open_experts: Callable[[], tuple[TrajectoryStore, list[int]]]
    check_experts: Callable[[TrajectoryStore], None]
    choose_compilation: Callable[[int, str | None], Compilation]
    schedule: Schedule | None = None

    @property
    def network(self) -> NetworkFactory:
        """Builds a network for the data."""
        return partial(self.make_network, **self.data.network_arguments)

    def experts(self) -> tuple[TrajectoryStore, list[int]]:
        """The trajectory store and the experts to use.

        Raises:
            ConfigurationError: they are missing, incomplete, or were trained on other data or with another network.
        """
        store, experts = self.open_experts()
        self.check_experts(store)
        return store, experts

    def expert_logits(self) -> Iterator[Logits]:
        """The experts of the run after their last epoch, as functions of images; each is read when it is reached."""
        store, experts = self.experts()
        return (expert_logits(self.network, store, index) for index in experts)


class Method(ABC):
    """Base class of distillation methods. ``distill._target_`` selects a subclass.

    The gradient of an iteration is the mean of the gradients of its items over all ranks. Every random draw is keyed by
    (seed, purpose, iteration, item), so that results do not depend on interruptions or on the number of devices.

    Attributes:
        Settings: the dataclass of its options, which are the keys of section ``distill``.
        settings: the options of this run.
        compilation: whether the derivatives are compiled, and why.
    """

    Settings: ClassVar[type[DistillSettings]] = DistillSettings
    settings: DistillSettings
    compilation: Compilation = Compilation(reason="nothing to compile")

    @classmethod  # noqa: B027 - optional for subclasses
    def check(cls, settings: Any, context: Context) -> None:
        """Reject invalid settings before any file is read.

        Raises:
            ConfigurationError: an option is invalid.
        """

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, context: Context) -> Method:
        """Build the method of a run.

        Raises:
            ConfigurationError: an input is missing or does not match.
        """

    @classmethod
    def inputs(cls, settings: Any, context: Context) -> dict[str, Any]:
        """Inputs of the distillation besides settings and data, as plain values, e.g. a checksum of the trajectories.

        Checkpoints and results with other inputs are rejected.
        """
        return {}

    def lineage(self) -> dict[str, Any]:
        """Description of the inputs, as plain containers, to be recorded with the distilled dataset."""
        return {}

    def announce(self) -> str:
        """Description of the planned computation, for the terminal."""
        return ""

    def synthetic_set(self, images: Tensor, labels: Tensor, learning_rate: float) -> SyntheticSet:
        """Build the synthetic set from initial images or canvases ``[N, C, H, W]``, labels and the learning rate.

        The labels are those of :func:`~ast_lightning.distillation.starting_point`: ``[N]`` int64, unless the settings
        have an option ``labels`` with another value than ``hard``.
        """
        return images_or_textures(self.settings, images, labels, learning_rate)

    def start(self, device: torch.device, dtype: torch.dtype) -> None:  # noqa: B027
        """Move everything that the loss needs to the device. Called once, before the first item."""

    @abstractmethod
    def work(self, step: int, rank: int, ranks: int) -> Iterator[list[Any]]:
        """An endless iterator over the iterations from ``step`` on; each element is the list of this rank's items."""

    @abstractmethod
    def loss(self, item: Any, synthetic: SyntheticSet) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one item, differentiable in the parameters of the set.

        Returns:
            The loss, and detached scalars to log by name. Every item returns the same names, including ``train/loss``.
        """

    def accepts(self, means: Mapping[str, Tensor]) -> bool | None:
        """Whether to apply the update of an iteration, given its logged values averaged over all ranks.

        Without the update, parameters and the state of the optimiser stay as they are. ``train/skipped`` is logged,
        unless the result is None: the method applies every update.
        """
        return None
