"""The unrolled training of the student: parameters after K steps as a differentiable function of the synthetic images.

With momentum μ and the gradient g_k = c · ∇_θ CE(net_θk(x_k), y_k):

    b_1 = g_0,   b_{k+1} = μ b_k + g_k,   θ_{k+1} = θ_k − α b_{k+1}

There are two engines with the same results: ``adjoint`` (adjoint.py) in constant memory, and ``autograd``, which keeps
the graph of all K steps and serves as the reference. A third, ``truncated``, approximates the gradient as TESLA does.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ast_lightning.config.trajectory_matching import ENGINES
from ast_lightning.distillation.trajectory_matching.adjoint import (
    AdjointUnroll,
    StepBatch,
    Steps,
    Student,
    chosen_steps,
)
from ast_lightning.distillation.trajectory_matching.inner import Apply, InnerProblem


def unroll(
    problem: InnerProblem | Apply,
    theta: Tensor,
    tensors: tuple[Tensor, ...],
    batch: StepBatch,
    learning_rate: Tensor,
    *,
    steps: int,
    momentum: float = 0.0,
    loss_scale: float = 1.0,
    match_at: Steps,
    engine: str = "adjoint",
    recompute: bool = False,
) -> dict[int, Tensor]:
    """Train the student for K steps.

    Args:
        problem: the inner problem, or the student itself, uncompiled.
        theta: θ_0, ``[P]`` float32 or float64; it gets no gradient.
        tensors: inputs of ``batch``, e.g. X ``[N, C, H, W]`` and Y, ``[N]`` int64 or ``[N, classes]`` float.
        batch: (k, *tensors) → images and labels of step k, differentiable in the tensors. It must be deterministic,
            because the adjoint engine calls it more than once for each step.
        learning_rate: α, a scalar tensor.
        steps: K ≥ 1.
        momentum: μ in [0, 1).
        loss_scale: c, the balance factor of the inner loss.
        match_at: the steps, in 1 … K, after which the parameters are returned; or a :class:`StepChooser`, which selects
            them after seeing each θ_k.
        engine: ``adjoint``: memory of one step and K·P floats; ``autograd``: memory of K steps; ``truncated``: as
            ``adjoint``, without the dependence of a step's gradient on earlier steps, for μ = 0 (TESLA, ICML 2023).
        recompute: store only every ⌈√K⌉-th step, and recompute the others in the backward pass; not with ``autograd``.

    Returns:
        θ_k ``[P]`` by k for every selected k; differentiable any number of times in the tensors and α with
        ``autograd``, once with the other engines. Autocast is disabled inside.

    Raises:
        ValueError: a matching step is outside 1 … K, the engine is unknown, or it is ``truncated`` with momentum.
        TypeError: the parameters are neither float32 nor float64.

    >>> linear = lambda theta, images: images.flatten(1) @ theta.view(1, 2)
    >>> x, y = torch.ones(1, 1, 1, 1, requires_grad=True), torch.tensor([0])
    >>> whole = lambda step, images, labels: (images, labels)
    >>> matched = unroll(linear, torch.zeros(2), (x, y), whole, torch.tensor(1.0), steps=1, match_at=[1])
    >>> matched[1].tolist()
    [0.5, -0.5]
    """
    if isinstance(match_at, Collection):
        chosen_steps(match_at, steps)
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} must be one of {', '.join(ENGINES)}")
    if engine == "truncated" and momentum:
        raise ValueError(f"engine=truncated is not defined for momentum={momentum}")
    if theta.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the unroll needs float32 or float64 parameters, not {theta.dtype}")
    if not isinstance(problem, InnerProblem):
        problem = InnerProblem(problem)
    student = Student(problem, batch, steps, momentum, loss_scale, recompute, engine == "truncated")
    with torch.autocast(theta.device.type, enabled=False):
        if engine == "autograd":
            return _differentiable_walk(student, theta, tensors, learning_rate, match_at)
        matched: list[int] = []
        outputs = AdjointUnroll.apply(learning_rate, theta.detach(), student, match_at, matched, *tensors)
    return dict(zip(matched, outputs, strict=True))


def _differentiable_walk(
    student: Student, theta: Tensor, tensors: tuple[Tensor, ...], learning_rate: Tensor, match_at: Steps
) -> dict[int, Tensor]:
    walked: dict[int, Tensor] = {}
    theta = theta.detach().requires_grad_()
    velocity: Tensor | None = None
    for step in range(student.steps):
        loss = student.loss_scale * student.problem.loss(theta, *student.batch(step, *tensors))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = gradient if velocity is None else student.momentum * velocity + gradient
        theta = theta - learning_rate * velocity
        if isinstance(match_at, Collection):
            if step + 1 in match_at:
                walked[step + 1] = theta
        else:
            match_at.see(step + 1, theta.detach())
            walked[step + 1] = theta
    return {step: walked[step] for step in chosen_steps(match_at, student.steps)}
