"""An inner batch split over processes: each takes its rows, and what they find is summed.

ℓ is a mean over the B rows of a batch. The process with b of them scales what it finds by b / B, so that the sums are
those of the whole batch: of the gradient, and of ⟨g, u⟩ and its ∇_θ. θ, and the adjoint λ on the way back, are then
the same on all. The derivatives in images and labels stay where their rows are, multiplied by the number of processes:
their mean over processes, taken once at the end of an outer iteration, is that of the whole batch.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from ast_lightning.compilation import Compilation
from ast_lightning.distillation.trajectory_matching.inner import Apply, InnerProblem, Products
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import NetworkFactory, build_network


class SplitProblem(InnerProblem):
    """An inner problem whose batches are divided among the processes of a group, which all call it with the same.

    Args:
        network: the student, a pure function that sees each image by itself, see :func:`check_network`.
        compilation: whether both derivatives are compiled.
        group: the processes; None takes all.
    """

    def __init__(
        self, network: Apply, compilation: Compilation | None = None, group: ProcessGroup | None = None
    ) -> None:
        super().__init__(network, compilation)
        self.group = group
        self.rank = torch.distributed.get_rank(group)
        self.ranks = torch.distributed.get_world_size(group)

    def rows(self, count: int) -> slice:
        """Which of ``count`` rows this process takes; none where there are fewer rows than processes."""
        return slice(count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks)

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        rows, share = self._share(len(images))
        total = torch.zeros_like(theta)
        if share:
            total = share * super().gradient(theta, images[rows], labels[rows])
        torch.distributed.all_reduce(total, group=self.group)
        return total

    def products(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Products:
        """As of :class:`InnerProblem`; those in images and labels are 0 in the rows of other processes."""
        rows, share = self._share(len(images))
        total = theta.new_zeros(1 + (len(theta) if wanted[0] else 0))  # the slope and ∇_θ, in one message
        parts = [torch.zeros_like(images) if wanted[1] else None, torch.zeros_like(labels) if wanted[2] else None]
        if share:
            found = super().products(theta, images[rows], labels[rows], share * direction, wanted)
            total[0] = found.slope
            if wanted[0]:
                assert found.theta is not None
                total[1:] = found.theta
            for part, own in zip(parts, (found.images, found.labels), strict=True):
                if part is not None:
                    assert own is not None
                    part[rows] = self.ranks * own
        torch.distributed.all_reduce(total, group=self.group)
        return Products(total[0], total[1:] if wanted[0] else None, *parts)

    def _share(self, count: int) -> tuple[slice, float]:
        rows = self.rows(count)
        return rows, (rows.stop - rows.start) / count


def check_network(network: NetworkFactory) -> None:
    """Refuse students whose layers look at the whole batch: a device would see a part of it.

    Raises:
        ConfigurationError: naming the layer.
    """
    for name, module in build_network(network, 0, "skeleton").named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigurationError(
                "distill.split",
                "batch",
                f"the layer {name} ({type(module).__name__}) takes its statistics over the batch, and each device "
                "would take those of its part",
                "set distill.split=windows, or take a network without batch normalisation",
            )
