"""What a method of distillation is: a stream of work items, and the loss of one."""

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
from ast_lightning.distillation.synthetic_set import SyntheticImages, SyntheticSet
from ast_lightning.evaluation.baselines import expert_logits
from ast_lightning.networks import NetworkFactory
from ast_lightning.trajectories import TrajectoryStore


@dataclass(frozen=True)
class Context:
    """What a method can ask for. Nothing is read or computed before it asks.

    Attributes:
        data: the real images.
        make_network: builds a network from ``channels``, ``num_classes`` and ``image_size``.
        seed: of every draw.
        ranks: how many processes share an iteration.
        open_experts: the trajectory store and the experts to use, as its records name them; reads no image.
        check_experts: compares the store with the data and the network of this run.
        choose_compilation: (forward passes of an image in the whole run, why it must not be compiled or None) → the
            choice.
        schedule: the epochs that the experts of this run store; None where a folder of experts was named.
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
            ConfigurationError: they are missing, incomplete, or those of other data or another network.
        """
        store, experts = self.open_experts()
        self.check_experts(store)
        return store, experts

    def expert_logits(self) -> Logits:
        """The first expert after its last epoch, as a function of images."""
        return expert_logits(self.network, self.experts()[0])


class Method(ABC):
    """How synthetic images are distilled. ``distill._target_`` names a class of this kind.

    The gradients of an item are such that their mean over the items of all ranks is that of the iteration. Every draw
    is keyed by (seed, purpose, iteration, item), so that resumed runs and other numbers of devices agree.

    Attributes:
        Settings: the dataclass of its options, which are the keys of section ``distill``.
        settings: the options of this run.
        compilation: whether its derivatives are compiled, and why.
    """

    Settings: ClassVar[type[DistillSettings]] = DistillSettings
    settings: DistillSettings
    compilation: Compilation = Compilation(reason="nothing to compile")

    @classmethod  # noqa: B027 - most methods have nothing to add
    def check(cls, settings: Any, context: Context) -> None:
        """Reject settings that cannot work, before anything is read.

        Raises:
            ConfigurationError: naming the option.
        """

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, context: Context) -> Method:
        """The method of a run.

        Raises:
            ConfigurationError: what it needs is missing or does not fit.
        """

    @classmethod
    def inputs(cls, settings: Any, context: Context) -> dict[str, Any]:
        """What images depend on beside settings and data: plain values, such as a checksum of the trajectories.

        A checkpoint or result with other inputs is not continued.
        """
        return {}

    def lineage(self) -> dict[str, Any]:
        """Plain containers that a distilled dataset records of its inputs."""
        return {}

    def announce(self) -> str:
        """What is about to be computed, for the terminal."""
        return ""

    def synthetic_set(self, images: Tensor, labels: Tensor, learning_rate: float) -> SyntheticSet:
        """What is distilled, from its initial images ``[N, C, H, W]``, labels ``[N]`` and learning rate."""
        return SyntheticImages(images, labels, learning_rate)

    def start(self, device: torch.device, dtype: torch.dtype) -> None:  # noqa: B027
        """Move what the losses need to the device; called once, before the first item."""

    @abstractmethod
    def work(self, step: int, rank: int, ranks: int) -> Iterator[list[Any]]:
        """This rank's items of iteration ``step``, of the next one, and so on, without end."""

    @abstractmethod
    def loss(self, item: Any, synthetic: SyntheticSet) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one item, differentiable in the parameters of the set.

        Returns:
            The loss, and detached scalars to log by name, the same names for each item; ``train/loss`` among them.
        """

    def accepts(self, means: Mapping[str, Tensor]) -> bool:
        """Whether the update of an iteration is made, from what was logged of it, averaged over all ranks."""
        return True
