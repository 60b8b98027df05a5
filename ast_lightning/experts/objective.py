"""The objective of a smooth expert, as one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Apply = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(parameters by name, images ``[N, C, H, W]``) → logits ``[N, classes]``."""


class ExpertLoss(NamedTuple):
    """Scalars of one batch.

    Attributes:
        total: clip · cross_entropy + λ · penalty.
        cross_entropy: of the augmented batch, unscaled.
        penalty: mean (‖g‖ − 1)², unscaled; zero where λ = 0.
        logits: ``[N, classes]`` of the augmented batch, detached.
    """

    total: Tensor
    cross_entropy: Tensor
    penalty: Tensor
    logits: Tensor


def gradient_penalty(apply: Apply, parameters: Mapping[str, Tensor], images: Tensor, norm: str) -> Tensor:
    """mean (‖g‖₂ − 1)² with g = ∂(Σ logits)/∂images, differentiable in the parameters.

    Args:
        apply: the network.
        parameters: its parameters by name.
        images: the un-augmented batch ``[N, C, H, W]``.
        norm: ``pixel``: one norm for each pixel, over C, mean over N·H·W (the published AST code); ``sample``: one
            norm for each image, over C·H·W, mean over N (WGAN-GP, Gulrajani et al. 2017).
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(apply(parameters, images).sum(), images, create_graph=True)
    norms = (gradient if norm == "pixel" else gradient.flatten(1)).norm(dim=1)
    return (norms - 1).square().mean()


def expert_objective(
    apply: Apply,
    parameters: Mapping[str, Tensor],
    augmented: Tensor,
    raw: Tensor,
    labels: Tensor,
    *,
    clip_factor: float,
    penalty_weight: float,
    penalty_norm: str = "pixel",
) -> ExpertLoss:
    """Clipping loss plus gradient penalty (AST, arXiv 2310.10541, section 3).

    loss = clip · CE(net(augmented), labels) + λ · mean (‖∂Σnet(raw)/∂raw‖ − 1)². The penalty is not scaled by the
    clip factor.

    Args:
        apply: the network.
        parameters: its parameters by name.
        augmented: ``[N, C, H, W]``.
        raw: the same images before augmentation.
        labels: ``[N]`` int64.
        clip_factor: scale of the cross-entropy, in [0, 1].
        penalty_weight: λ ≥ 0; with 0 the penalty is not computed.
        penalty_norm: see :func:`gradient_penalty`.
    """
    logits = apply(parameters, augmented)
    cross_entropy = F.cross_entropy(logits, labels)
    if penalty_weight > 0:
        penalty = gradient_penalty(apply, parameters, raw, penalty_norm)
    else:
        penalty = torch.zeros_like(cross_entropy)
    return ExpertLoss(
        total=clip_factor * cross_entropy + penalty_weight * penalty,
        cross_entropy=cross_entropy.detach(),
        penalty=penalty.detach(),
        logits=logits.detach(),
    )
