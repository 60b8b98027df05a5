"""Inner batches split over processes: each process computes its rows, and the results are summed.

ℓ is a mean over the B rows of a batch. A process with b rows scales its results by b / B, so that the sums over
processes are those of the whole batch: the gradient, ⟨g, u⟩ and its ∇_θ. θ and, in the backward pass, the adjoint λ are
then the same on all processes. The derivatives with respect to images and labels stay on the process that has the rows,
multiplied by the number of processes. Their mean over processes, taken once at the end of an outer iteration, is that
of the whole batch.
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
    """An inner problem whose batches are divided among the processes of a group. All call it with the same arguments.

    Args:
        network: the student, a pure function that treats images independently, see :func:`check_network`.
        compilation: whether both derivatives are compiled.
        group: the process group; None uses all processes.
    """

    def __init__(
        self, network: Apply, compilation: Compilation | None = None, group: ProcessGroup | None = None
    ) -> None:
        super().__init__(network, compilation)
        self.group = group
        self.rank = torch.distributed.get_rank(group)
        self.ranks = torch.distributed.get_world_size(group)

    def rows(self, count: int) -> slice:
        """The rows of this process out of ``count``; may be empty if there are fewer rows than processes."""
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
        """As in :class:`InnerProblem`; derivatives of images and labels are 0 in the rows of other processes."""
        rows, share = self._share(len(images))
        total = theta.new_zeros(1 + (len(theta) if wanted[0] else 0))  # the slope and ∇_θ, in one all-reduce
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
    """Reject students with batch normalisation: each device would use the statistics of its part of the batch.

    Raises:
        ConfigurationError: the network has such a layer, which the message names.
    """
    for name, module in build_network(network, 0, "skeleton").named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigurationError(
                "distill.split",
                "batch",
                f"the layer {name} ({type(module).__name__}) computes statistics over the batch, and each "
                "device would compute them over its part",
                "set distill.split=windows, or choose a network without batch normalisation",
            )
