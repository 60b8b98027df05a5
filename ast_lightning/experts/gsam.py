"""GSAM, the optimiser of flat expert trajectories (FTD, Du et al., CVPR 2023; GSAM: Zhuang et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

_TINY = 1e-12


class GSAM(SGD):
    """SGD along a gradient that is taken at a nearby point with a higher loss.

    With all parameters θ as one vector and g = ∇L(θ), a step evaluates the loss of the same batch twice:

        ε  = ρ θ² ⊙ g / (‖ |θ| ⊙ g ‖ + 10⁻¹²)   if adaptive, otherwise ρ g / (‖g‖ + 10⁻¹²)
        g⁺ = ∇L(θ + ε)
        c  = ⟨g, g⁺⟩ / (‖g‖ ‖g⁺‖ + 10⁻¹²),   v = g − c ‖g‖ g⁺ / (‖g⁺‖ + 10⁻¹²)

    v is the part of g that is perpendicular to g⁺. SGD then takes its step from θ along g⁺ − a v. With ρ = 0 and a = 0
    this is SGD.

    Args:
        parameters: the parameters of the whole network.
        rho: ρ ≥ 0.
        alpha: a ≥ 0.
        adaptive: whether ε is scaled by the squares of the parameters (ASAM, Kwon et al., ICML 2021).
        options: arguments of :class:`torch.optim.SGD`, such as ``lr``.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, rho: float, alpha: float, adaptive: bool, **options: Any
    ) -> None:
        super().__init__(parameters, **options)
        self.rho, self.alpha, self.adaptive = rho, alpha, adaptive

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take a step.

        Args:
            closure: evaluates the loss, stores its gradient in ``.grad`` and returns the loss.

        Returns:
            The loss at θ.
        """
        with torch.enable_grad():
            loss = closure()
        parameters = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        before = [each.clone() for each in parameters]
        theta, first = _flat(parameters), _flat(each.grad for each in parameters)
        _add(parameters, self._ascent(theta, first))
        with torch.enable_grad():
            closure()
        for each, old in zip(parameters, before, strict=True):
            each.copy_(old)
        second = _flat(each.grad for each in parameters)
        norm, other = first.norm(), second.norm()
        cosine = (first @ second) / (norm * other + _TINY)
        perpendicular = first - cosine * norm * second / (other + _TINY)
        _add([each.grad for each in parameters], -self.alpha * perpendicular)
        super().step()
        return loss

    def _ascent(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """ε, ``[P]``."""
        if self.adaptive:
            return self.rho * theta.square() * gradient / ((theta.abs() * gradient).norm() + _TINY)
        return self.rho * gradient / (gradient.norm() + _TINY)


def _flat(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([each.reshape(-1) for each in tensors if each is not None])


def _add(tensors: list[Any], change: Tensor) -> None:
    """Add the parts of ``change`` ``[P]`` to the tensors in place."""
    for each, part in zip(tensors, change.split([each.numel() for each in tensors]), strict=True):
        each.add_(part.view_as(each))
