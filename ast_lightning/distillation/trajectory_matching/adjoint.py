"""Exact meta-gradients in constant memory: the adjoint of the unrolled training.

The forward pass, without a graph, with g_k = c ∇_θ ℓ(θ_k, x_k, y_k):

    b_{k+1} = μ b_k + g_k,   θ_{k+1} = θ_k − α b_{k+1}

Let λ be the derivative of the outer loss with respect to θ_{k+1} through all later steps. Because of the momentum, λ
also depends on all earlier gradients, and g_k is weighted with w_k = λ_{k+1} + μ w_{k+1}. The backward pass starts from
λ = ∂L/∂θ_K, w = 0. For k = K − 1 … 0:

    w ← μ w + λ
    ᾱ ← ᾱ − ⟨g_k, w⟩
    λ ← λ − α ∇_θ ⟨g_k, w⟩,   x̄_k = −α ∇_x ⟨g_k, w⟩,   ȳ_k = −α ∇_y ⟨g_k, w⟩
    λ ← λ + ∂L/∂θ_k   if θ_k is matched

⟨g_k, w⟩ is computed together with its gradients, so that neither b nor a division by α is needed. At k = 0, ∇_θ is not
needed. The backward pass starts at the last θ_k that the loss uses. x̄_k and ȳ_k are backpropagated to the tensors of
the synthetic set through the batch of step k, which is recomputed from the same random draws. Memory: the graph of one
step and θ_0 … θ_K; with ``recompute``, θ and b at every ⌈√K⌉-th step and the steps between two of them.

TESLA (ICML 2023) truncates this gradient: it ignores that g_k depends on the steps before k, so that without momentum
λ = ∂L/∂θ_K at every step and ∇_θ is never needed. With D = ‖θ_0 − θ*‖² and G = Σ g_k, this gives its formulas

    x̄_k = (2/D) ∇_x ⟨α (θ* − θ_0) + α² G, g_k⟩ with θ_k and G held fixed,   ᾱ = −(2/D) ⟨θ_0 − α G − θ*, G⟩
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ast_lightning.distillation.trajectory_matching.inner import InnerProblem

StepBatch = Callable[..., tuple[Tensor, Tensor]]
"""(inner step k, tensors of the set) → the batch of step k: images ``[B, C, H, W]``, labels ``[B]`` or
``[B, classes]``."""


class StepChooser(Protocol):
    """Selects which θ_k enter the loss after seeing all of them."""

    def see(self, step: int, theta: Tensor) -> None:
        """Receive θ_k ``[P]``, without a graph. Called once for each k = 1 … K, in order."""

    def chosen(self) -> Collection[int]:
        """The selected steps, in 1 … K. Called after :meth:`see` was called for all steps."""


Steps = Collection[int] | StepChooser


@dataclass(frozen=True)
class Student:
    """The training of a student, without the synthetic set and α.

    Attributes:
        problem: the inner loss and its derivatives.
        batch: the batch of each step, as a pure function.
        steps: K.
        momentum: μ.
        loss_scale: c.
        recompute: store only every ⌈√K⌉-th step.
        truncated: ignore in the backward pass that the gradient of a step depends on the steps before it.
    """

    problem: InnerProblem
    batch: StepBatch
    steps: int
    momentum: float
    loss_scale: float
    recompute: bool
    truncated: bool = False

    @property
    def stride(self) -> int:
        """Number of steps in a segment; the backward pass holds the parameters of one segment at a time."""
        return math.ceil(math.sqrt(self.steps)) if self.recompute else self.steps

    def segment(self, start: int) -> range:
        """The steps of the segment that begins at ``start``."""
        return range(start, min(start + self.stride, self.steps))

    def walk(
        self, theta: Tensor, velocity: Tensor, steps: range, tensors: tuple[Tensor, ...], learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Train over ``steps``: the parameters before each step and after the last ``[len(steps) + 1, P]``, and b."""
        # one allocation: many small ones between the larger ones of each step would fragment the memory
        thetas = theta.new_empty(len(steps) + 1, len(theta))
        thetas[0] = theta
        for place, step in enumerate(steps):
            gradient = self.problem.gradient(theta, *self.batch(step, *tensors))
            velocity = self.momentum * velocity + self.loss_scale * gradient
            theta = theta - learning_rate * velocity
            thetas[place + 1] = theta
        return thetas, velocity


class AdjointUnroll(torch.autograd.Function):
    """(α, tensors of the set) → the matched θ_k, with the derivatives given in the module's docstring.

    The matched steps are appended to ``matched``, in the order of the results.
    """

    @staticmethod
    def forward(
        ctx: Any,
        learning_rate: Tensor,
        theta: Tensor,
        student: Student,
        wanted: Steps,
        matched: list[int],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        known = wanted if isinstance(wanted, Collection) else ()
        velocity, found = torch.zeros_like(theta), {}
        kept: list[tuple[int, Tensor, Tensor]] = []
        for start in range(0, student.steps, student.stride):
            segment = student.segment(start)
            before = velocity
            thetas, velocity = student.walk(theta, velocity, segment, tensors, learning_rate)
            # the outputs are copies, so that in-place changes of them do not affect the backward pass
            found.update({step + 1: thetas[step + 1 - start].clone() for step in segment if step + 1 in known})
            if not isinstance(wanted, Collection):
                for step in segment:
                    wanted.see(step + 1, thetas[step + 1 - start])
            kept.append((start, theta.unsqueeze(0) if student.recompute else thetas, before))
            theta = thetas[-1].clone()
            del thetas
        matched += chosen_steps(wanted, student.steps)
        for step in matched:
            if step not in found:
                found[step] = _again(student, kept, step, tensors, learning_rate)
        ctx.student, ctx.matched, ctx.kept = student, tuple(matched), kept
        ctx.save_for_backward(learning_rate, *tensors)
        return tuple(found[step] for step in matched)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(cotangents[0].device.type, enabled=False):
            return walk_back(ctx, *cotangents)


def chosen_steps(wanted: Steps, steps: int) -> list[int]:
    """The selected steps k, in ascending order.

    Raises:
        ValueError: no step is selected, or one is outside 1 … K.
    """
    chosen = sorted({*(wanted if isinstance(wanted, Collection) else wanted.chosen())})
    if not chosen or chosen[0] < 1 or chosen[-1] > steps:
        raise ValueError(f"match_at={chosen} must lie in 1 … steps={steps}")
    return chosen


def _again(
    student: Student,
    kept: list[tuple[int, Tensor, Tensor]],
    step: int,
    tensors: tuple[Tensor, ...],
    learning_rate: Tensor,
) -> Tensor:
    """θ after ``step`` steps, selected only after the forward pass."""
    start, thetas, velocity = kept[(step - 1) // student.stride]
    if student.recompute:
        thetas, _ = student.walk(thetas[0], velocity, range(start, step), tensors, learning_rate)
    return thetas[step - start].clone()


def walk_back(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """The backward of :class:`AdjointUnroll`."""
    student: Student = ctx.student
    learning_rate, *tensors = ctx.saved_tensors
    by_rate, by_tensors = ctx.needs_input_grad[0], ctx.needs_input_grad[5:]
    into = dict(zip(ctx.matched, cotangents, strict=True))
    last = max(into)
    # detached copies of the tensors that accumulate the gradients of all steps
    gathered = [each.detach().requires_grad_(wanted) for each, wanted in zip(tensors, by_tensors, strict=True)]
    to_rate = torch.zeros_like(learning_rate)
    adjoint = weight = torch.zeros_like(cotangents[0])
    for start, thetas, velocity in reversed([each for each in ctx.kept if each[0] < last]):
        segment = range(start, min(student.segment(start).stop, last))
        if student.recompute:
            thetas, _ = student.walk(thetas[0], velocity, segment, tuple(tensors), learning_rate)
        for step in reversed(segment):
            if step + 1 in into:
                adjoint = adjoint + into[step + 1]
            weight = student.momentum * weight + adjoint
            with torch.enable_grad():
                x, y = student.batch(step, *gathered)
            # without ∇_θ, the first step would need a compilation of its own
            onwards = not student.truncated and (step > 0 or student.problem.compiled)
            wanted = (onwards, x.requires_grad, y.requires_grad)
            direction = student.loss_scale * weight
            theta = thetas[step - start].clone()  # forward mode does not support a view of another tensor
            found = student.problem.products(theta, x.detach(), y.detach(), direction, wanted)
            to_rate = to_rate - found.slope
            if found.theta is not None:
                adjoint = adjoint - learning_rate * found.theta
            for made, product in ((x, found.images), (y, found.labels)):
                if product is not None:
                    torch.autograd.backward(made, -learning_rate * product, retain_graph=made is x)
        del thetas  # before the next segment's
    return to_rate if by_rate else None, None, None, None, None, *(each.grad for each in gathered)
