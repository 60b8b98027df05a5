"""Weight perturbation of the student's initial parameters (AST, arXiv 2310.10541)."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_lightning.networks import ParameterLayout


def perturb(theta: Tensor, layout: ParameterLayout, scale: float, generator: torch.Generator) -> Tensor:
    """w ← w + η · d ⊙ w for each convolution weight w, with d ~ N(0, I) scaled to ‖d‖_F = 1.

    Args:
        theta: ``[P]``, on any device; not modified.
        layout: names and shapes; tensors with four dimensions are perturbed.
        scale: η ≥ 0; 0 returns ``theta``.
        generator: CPU generator of the directions.
    """
    if scale == 0:
        return theta
    perturbed = theta.clone()
    offset = 0
    for _, shape in layout:
        size = torch.Size(shape).numel()
        if len(shape) == 4:
            # always drawn in float32, so that the draw is the same at every precision
            direction = torch.randn(size, generator=generator, dtype=torch.float32).to(theta.dtype)
            direction = (direction / direction.norm()).to(theta.device)
            perturbed[offset : offset + size] *= 1 + scale * direction
        offset += size
    return perturbed
