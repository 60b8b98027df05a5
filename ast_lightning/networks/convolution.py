"""Convolutions with efficient second derivatives.

To differentiate the input gradient of a convolution, torch uses a convolution with batch and channels exchanged and
whole images as kernels, which runs at a third of the usual speed. Here the input gradient is a transposed convolution,
whose derivatives are ordinary convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

Padding = tuple[int, ...]


def ease_second_derivatives(network: nn.Module) -> nn.Module:
    """Replace every plain Conv2d of ``network`` by one whose gradient is cheap to differentiate.

    The new layers share the parameters, and results are equal up to rounding. Convolutions with stride, dilation or
    groups, and those with a padding mode other than zeros, are not replaced.

    Returns:
        ``network``, changed in place, or its replacement if it is a plain Conv2d itself.
    """
    if type(network) is nn.Conv2d and _is_plain(network):
        channels = network.in_channels, network.out_channels
        eased = _Conv2d(*channels, network.kernel_size, padding=network.padding, device="meta")  # type: ignore[arg-type]
        eased.weight, eased.bias = network.weight, network.bias
        return eased.train(network.training)
    for name, child in network.named_children():
        setattr(network, name, ease_second_derivatives(child))
    return network


def _is_plain(module: nn.Conv2d) -> bool:
    once = set(module.stride) == set(module.dilation) == {1} and module.groups == 1
    return once and module.padding_mode == "zeros" and not isinstance(module.padding, str)


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        tensors = [input, self.weight, self.bias]
        if torch.is_autocast_enabled(input.device.type):  # the backward pass runs outside of autocast
            dtype = torch.get_autocast_dtype(input.device.type)
            tensors = [None if each is None else each.to(dtype) for each in tensors]
        convolved: Tensor = _convolve(*tensors, self.padding)
        return convolved


@torch.compiler.allow_in_graph  # if torch.compile traced into it, its second derivative would be lost
def _convolve(images: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding) -> Any:
    return _Convolution.apply(images, weight, bias, padding)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding) -> Tensor:
        return F.conv2d(images, weight, bias, padding=padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, weight, _, ctx.padding = inputs
        ctx.save_for_backward(images, weight)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        by_images, by_weight, by_bias, _ = ctx.needs_input_grad
        return (
            F.conv_transpose2d(cotangent, weight, padding=ctx.padding) if by_images else None,
            conv2d_weight(images, weight.shape, cotangent, padding=ctx.padding) if by_weight else None,
            cotangent.sum((0, 2, 3)) if by_bias else None,
            None,
        )
