"""The inner problem: the student's loss, its gradient, and the one second derivative that the adjoint needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value, jvp

from ast_lightning.compilation import Compilation, Compiled
from ast_lightning.randomness import keyed_generator

Apply = Callable[[Tensor, Tensor], Tensor]
"""(theta ``[P]``, images ``[B, C, H, W]``) → logits ``[B, classes]``."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta, images, labels) → ℓ."""
Slope = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(theta, images, labels, direction) → ⟨∇_θ ℓ, direction⟩."""


class Products(NamedTuple):
    """⟨g, u⟩ and its gradients: the vector-Jacobian products of g = ∇_θ ℓ with the cotangent u.

    Attributes:
        slope: ⟨g, u⟩, the derivative of the loss in the direction u.
        theta: ``[P]``, or None where it was not asked for.
        images: like the images, or None.
        labels: like the labels, or None.
    """

    slope: Tensor
    theta: Tensor | None
    images: Tensor | None
    labels: Tensor | None


class InnerProblem:
    """ℓ(θ, x, y) = CE(net_θ(x), y) and its derivatives.

    Uncompiled, the product differentiates the gradient once more. Compiled, it differentiates the directional
    derivative Dℓ(θ)[u] = ⟨g, u⟩, which forward mode gives without forming g: eight passes through the convolutions in
    place of nine. Forward mode's many small operations cost more than that saves unless they are fused. And torch
    cannot differentiate every layer's forward mode: that of batch and layer normalisation loses terms without a word.
    So both ways are compared once, in float64 on two images, and forward mode is taken where they agree.

    Args:
        network: the student, a pure function.
        compilation: whether both derivatives are compiled.
    """

    def __init__(self, network: Apply, compilation: Compilation | None = None) -> None:
        self.network = network
        self._choice = compilation or Compilation()
        self._gradient = Compiled("the inner gradient", grad(self._fused_loss), self._choice, self._plain_gradient)
        self._products: dict[tuple[int, ...], Compiled] = {}
        self._forward_mode: bool | None = None  # not known yet

    @property
    def compilation(self) -> Compilation:
        """Whether both derivatives are compiled, and why: the choice, or off with the reason once one has failed."""
        choices = [each.choice for each in (self._gradient, *self._products.values())]
        return next((choice for choice in choices if not choice.enabled), self._choice)

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of ``images`` ``[B, C, H, W]``; labels ``[B]`` int64 or ``[B, classes]`` float."""
        return F.cross_entropy(self.network(theta, images), labels)

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """g = ∇_θ ℓ, ``[P]``, with no graph."""
        gradient: Tensor = self._gradient(theta, images, labels)
        return gradient

    def products(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Products:
        """The derivatives of ⟨g, direction⟩ in those of (theta, images, labels) that are ``wanted``.

        Args:
            theta: ``[P]``.
            images: ``[B, C, H, W]``.
            labels: ``[B]`` or ``[B, classes]``.
            direction: u, ``[P]``.
            wanted: what is not wanted is None in the result, and is not computed where that saves anything.
        """
        # the last step of the walk back could do without ∇_θ, but would have to be compiled for itself
        asked = (wanted[0] or self._choice.enabled, *wanted[1:])
        places = tuple(place for place, each in enumerate(asked) if each)
        if places not in self._products:
            plain = functools.partial(self._plain_products, places)
            fused = _products(self._fused_slope(theta, images, labels), places)
            self._products[places] = Compiled("the product with it", fused, self.compilation, plain)
        slope, *gradients = self._products[places](theta, images, labels, direction)
        found: list[Tensor | None] = [None, None, None]
        for place, gradient in zip(places, gradients, strict=True):
            found[place] = gradient
        return Products(slope, *found)

    def _fused_loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss with channels last in memory on the CPU: there, all that is fused and most convolutions like it."""
        if images.device.type == "cpu" and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.loss(theta, images, labels)

    def _fused_slope(self, theta: Tensor, images: Tensor, labels: Tensor) -> Slope:
        if self._forward_mode is None and self._choice.enabled:
            self._forward_mode = forward_mode_is_exact(self.loss, theta, images[:2], labels[:2])
        return (_forward_slope if self._forward_mode else _reverse_slope)(self._fused_loss)

    def _plain_gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.loss(theta, images.detach(), labels.detach()), theta)
        return gradient

    def _plain_products(
        self, places: tuple[int, ...], theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor
    ) -> tuple[Tensor, ...]:
        inputs = [each.detach() for each in (theta, images, labels)]
        for place in {0, *places}:
            inputs[place].requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.loss(*inputs), inputs[0], create_graph=bool(places))
            slope = gradient.detach() @ direction
            if not places:
                return (slope,)
            wanted = [inputs[place] for place in places]
            return slope, *torch.autograd.grad(gradient, wanted, direction, materialize_grads=True)


def forward_mode_is_exact(loss: Loss, theta: Tensor, images: Tensor, labels: Tensor) -> bool:
    """Whether the directional derivative has the same gradients by forward as by reverse mode, in float64.

    Args:
        loss: (theta ``[P]``, images, labels) → a scalar.
        theta: where; every tensor is taken in float64.
        images: a few.
        labels: theirs.
    """
    direction = torch.randn(theta.shape, generator=keyed_generator("direction"), dtype=torch.float64)
    try:
        doubled = [each.detach().double() if each.is_floating_point() else each for each in (theta, images, labels)]
        doubled.append(direction.to(theta.device))
        forward, reverse = (_products(slope(loss), (0, 1))(*doubled) for slope in (_forward_slope, _reverse_slope))
    except (RuntimeError, TypeError):  # no forward mode for a layer, or no float64 on this device
        return False
    return all(bool((a - b).norm() < 1e-6 * b.norm()) for a, b in zip(forward, reverse, strict=True))


def _forward_slope(loss: Loss) -> Slope:
    def slope(theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Tensor:
        derivative: Tensor = jvp(lambda at: loss(at, images, labels), (theta,), (direction,))[1]
        return derivative

    return slope


def _reverse_slope(loss: Loss) -> Slope:
    def slope(theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Tensor:
        gradient: Tensor = grad(loss)(theta, images, labels)
        return gradient @ direction

    return slope


def _products(slope: Slope, places: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """⟨g, u⟩ and its gradients in those of (theta, images, labels) that ``places`` name, as one pure function."""

    def products(theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
        if not places:
            return (slope(theta, images, labels, direction),)
        gradients, value = grad_and_value(slope, argnums=places)(theta, images, labels, direction)
        return value, *gradients

    return products
