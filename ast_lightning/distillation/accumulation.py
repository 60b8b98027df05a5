"""Gradients that are known before the backward pass: windows one after the other, in the memory of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class KnownGradients(torch.autograd.Function):
    """(value, gradients of the parameters, the parameters) → the value, as if it had been computed from them.

    A graph that waits for the backward pass keeps the trajectories of all its students. Here each window's is
    differentiated at once, and the backward pass, which optimisers and DistributedDataParallel rely on, only hands the
    sums on.

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
