"""Gradient accumulation over windows, in the memory of one window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class KnownGradients(torch.autograd.Function):
    """Return a value whose backward pass assigns gradients that were computed before.

    Takes (value, gradients of the parameters, the parameters). A single graph over all windows would keep the
    trajectories of all students in memory until the backward pass. Instead, each window is differentiated immediately.
    The backward pass, which optimisers and DistributedDataParallel rely on, only passes on the accumulated gradients.

    >>> weight = torch.tensor(3.0, requires_grad=True)
    >>> loss = KnownGradients.apply(torch.tensor(9.0), [torch.tensor(6.0)], weight)
    >>> loss.backward()
    >>> loss.item(), weight.grad.item()
    (9.0, 6.0)
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(outer * gradient for gradient in ctx.gradients)
