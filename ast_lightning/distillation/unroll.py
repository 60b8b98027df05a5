"""The student's training, unrolled: parameters after K steps as a differentiable function of the synthetic images.

With the heavy-ball momentum μ and the gradient g_k = c · ∇_θ CE(net_θk(x_k), y_k):

    b_1 = g_0,   b_{k+1} = μ b_k + g_k,   θ_{k+1} = θ_k − α b_{k+1}

Tensors in, tensors out: nothing here knows of files, trainers or configuration. The engine is plain autograd, which
keeps the graph of all K steps; another engine only has to give the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

Apply = Callable[[Tensor, Tensor], Tensor]
"""(theta ``[P]``, images ``[B, C, H, W]``) → logits ``[B, classes]``."""

StepBatch = Callable[[int], tuple[Tensor, Tensor]]
"""Inner step k → what it trains on: augmented images ``[B, C, H, W]``, labels ``[B]`` or ``[B, classes]``."""


def unroll(
    network: Apply,
    theta: Tensor,
    batch: StepBatch,
    learning_rate: Tensor,
    *,
    steps: int,
    momentum: float = 0.0,
    loss_scale: float = 1.0,
    match_at: Collection[int],
) -> dict[int, Tensor]:
    """Train the student for K steps.

    Args:
        network: the student.
        theta: θ_0, ``[P]``; no gradient flows to it.
        batch: gives the batch of each step; called once for every k = 0 … K − 1 in order.
        learning_rate: α, a scalar tensor.
        steps: K ≥ 1.
        momentum: μ in [0, 1).
        loss_scale: c, the balance factor of the inner loss.
        match_at: numbers of steps, in 1 … K, after which the parameters are wanted.

    Returns:
        θ_k ``[P]`` by k for every k in ``match_at``; differentiable in the images, labels and learning rate.

    Raises:
        ValueError: a matching step outside 1 … K.

    >>> linear = lambda theta, images: images.flatten(1) @ theta.view(1, 2)
    >>> x, y = torch.ones(1, 1, 1, 1, requires_grad=True), torch.tensor([0])
    >>> matched = unroll(linear, torch.zeros(2), lambda k: (x, y), torch.tensor(1.0), steps=1, match_at=[1])
    >>> matched[1].tolist()
    [0.5, -0.5]
    """
    if not match_at or min(match_at) < 1 or max(match_at) > steps:
        raise ValueError(f"match_at={sorted(match_at)} must lie in 1 … steps={steps}")
    matched: dict[int, Tensor] = {}
    theta = theta.detach().requires_grad_()
    velocity: Tensor | None = None
    for step in range(steps):
        images, labels = batch(step)
        loss = loss_scale * F.cross_entropy(network(theta, images), labels)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = gradient if velocity is None or momentum == 0 else momentum * velocity + gradient
        theta = theta - learning_rate * velocity
        if step + 1 in match_at:
            matched[step + 1] = theta
    return matched
