"""The objective of smooth experts: as pure functions, and as a compiled function shared by all experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from ast_lightning.compilation import Compilation, Compiled
from ast_lightning.config.expert import ExpertSettings
from ast_lightning.config.parts import resolve
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import NetworkFactory, build_network, ease_second_derivatives, mathematical_attention

Tensors = Mapping[str, Tensor]
Apply = Callable[[Tensors, Tensor], Tensor]
"""(parameters by name, images ``[N, C, H, W]``) → logits ``[N, classes]``."""
Regularizer = Callable[[Apply, Tensors, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(apply, parameters by name, augmented images, the same images before augmentation, labels, epoch) → a scalar that is
added to the loss without further weighting.

The scalar is differentiated with respect to the parameters. The function must be pure: with ``compile=true`` it is
compiled with the rest of the objective. ``apply`` does not update buffers, such as running statistics. The epoch is a
0-d int64 tensor, so that the same compiled code runs in all epochs; use ``torch.where`` instead of ``if``. Return a
mean over images: on several devices, each device has a part of the batch, and the result is averaged over devices,
weighted by the sizes of the parts.
"""


class ExpertLoss(NamedTuple):
    """Scalars of one batch.

    Attributes:
        total: clip · cross_entropy + λ · penalty + regularization.
        cross_entropy: cross-entropy of the augmented batch, unscaled.
        penalty: mean (‖g‖ − 1)², unscaled; zero if λ = 0.
        logits: ``[N, classes]`` of the augmented batch, detached.
        regularization: sum of the further regularisers; None if there are none.
    """

    total: Tensor
    cross_entropy: Tensor
    penalty: Tensor
    logits: Tensor
    regularization: Tensor | None = None


def gradient_penalty(apply: Apply, parameters: Tensors, images: Tensor, norm: str) -> Tensor:
    """mean (‖g‖₂ − 1)² with g = ∂(Σ logits)/∂images, differentiable in the parameters.

    Args:
        apply: the network.
        parameters: its parameters by name.
        images: the un-augmented batch ``[N, C, H, W]``.
        norm: ``pixel``: the norm of each pixel over C, averaged over N·H·W (the published AST code); ``sample``: the
            norm of each image over C·H·W, averaged over N (WGAN-GP, Gulrajani et al. 2017).
    """
    if torch.compiler.is_compiling():  # only torch.func.grad can be traced as a part of a compiled graph
        gradient = grad(lambda at: apply(parameters, at).sum())(images)
    else:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(apply(parameters, images).sum(), images, create_graph=True)
    norms = (gradient if norm == "pixel" else gradient.flatten(1)).norm(dim=1)
    return (norms - 1).square().mean()


def expert_objective(
    apply: Apply,
    parameters: Tensors,
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
    terms = _terms(apply, apply, parameters, augmented, raw, labels, penalty_norm if penalty_weight > 0 else None)
    return _total(terms, clip_factor, penalty_weight)


class ExpertObjective:
    """The objective of a set of experts, compiled once for all of them.

    Args:
        network: builds the network of the experts.
        settings: the regularisers.
        compilation: whether to compile; None does not compile.
    """

    def __init__(
        self, network: NetworkFactory, settings: ExpertSettings, compilation: Compilation | None = None
    ) -> None:
        self._settings = settings
        # parameters and buffers are arguments, so that all experts share the compiled code
        skeleton = ease_second_derivatives(build_network(network, 0, "skeleton").train())
        norm = settings.penalty_norm if settings.gradient_penalty > 0 else None
        parts = [resolve(each, {}, f"expert.regularizers[{i}]") for i, each in enumerate(settings.regularizers)]

        def objective(
            parameters: Tensors, buffers: Tensors, augmented: Tensor, raw: Tensor, labels: Tensor, epoch: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            def apply(parameters: Tensors, images: Tensor) -> Tensor:
                with mathematical_attention():
                    logits: Tensor = functional_call(skeleton, {**parameters, **buffers}, (images,))
                return logits

            def aside(parameters: Tensors, images: Tensor) -> Tensor:
                copies = {name: buffer.clone() for name, buffer in buffers.items()}
                with mathematical_attention():
                    logits: Tensor = functional_call(skeleton, {**parameters, **copies}, (images,))
                return logits

            terms = _terms(apply, aside, parameters, augmented, raw, labels, norm)
            return *terms, None if epoch is None else _sum(parts, aside, parameters, augmented, raw, labels, epoch)

        self._terms = Compiled("the expert objective", objective, compilation or Compilation())

    @property
    def compilation(self) -> Compilation:
        """Whether it is compiled, and why; off with the reason once compilation has failed."""
        return self._terms.choice

    def __call__(
        self,
        network: nn.Module,
        augmented: Tensor,
        raw: Tensor,
        labels: Tensor,
        clip_factor: float,
        epoch: int = 0,
        *,
        keep_buffers: bool = False,
    ) -> ExpertLoss:
        """The losses of one expert, see :func:`expert_objective`, with the regularisers of the settings.

        The forward pass of the augmented batch updates the buffers of ``network``, such as running statistics, unless
        ``keep_buffers`` is set. The penalty and the regularisers do not update them.
        """
        parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
        if keep_buffers:
            buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        now = torch.tensor(epoch, device=raw.device) if self._settings.regularizers else None
        *terms, regularization = self._terms(parameters, buffers, augmented, raw, labels, now)
        loss = _total(tuple(terms), clip_factor, self._settings.gradient_penalty)
        if regularization is None:
            return loss
        return loss._replace(total=loss.total + regularization, regularization=regularization.detach())


def _terms(
    apply: Apply, aside: Apply, parameters: Tensors, augmented: Tensor, raw: Tensor, labels: Tensor, norm: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, penalty (0 if ``norm`` is None) and logits: the terms that need the network.

    ``aside`` is the network for the penalty. It must not update buffers: a compiled derivative must have no side
    effects.
    """
    logits = apply(parameters, augmented)
    cross_entropy = F.cross_entropy(logits, labels)
    penalty = torch.zeros_like(cross_entropy) if norm is None else gradient_penalty(aside, parameters, raw, norm)
    return cross_entropy, penalty, logits.detach()


def _sum(regularizers: Sequence[Regularizer], *arguments: Any) -> Tensor:
    values = [regularizer(*arguments) for regularizer in regularizers]
    for value in values:
        if value.ndim:
            problem = f"a regulariser returned a tensor of shape {list(value.shape)}"
            raise ConfigurationError("expert.regularizers", "[…]", problem, "return a scalar, such as a mean")
    return torch.stack(values).sum()


def _total(terms: tuple[Tensor, Tensor, Tensor], clip_factor: float, penalty_weight: float) -> ExpertLoss:
    """Combine the terms outside of the compiled function, because the clip factor changes with each epoch."""
    cross_entropy, penalty, logits = terms
    total = clip_factor * cross_entropy + penalty_weight * penalty
    return ExpertLoss(total, cross_entropy.detach(), penalty.detach(), logits)
