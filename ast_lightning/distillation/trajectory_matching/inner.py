"""The inner problem: the student's loss, its gradient, and the second derivative that the adjoint needs."""

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
        theta: ``[P]``, or None if it was not requested.
        images: like the images, or None.
        labels: like the labels, or None.
    """

    slope: Tensor
    theta: Tensor | None
    images: Tensor | None
    labels: Tensor | None


class InnerProblem:
    """ℓ(θ, x, y) = CE(net_θ(x), y) and its derivatives.

    Uncompiled, the product is computed by differentiating the gradient again. Compiled, it is computed by
    differentiating the directional derivative Dℓ(θ)[u] = ⟨g, u⟩, which forward mode computes without forming g. This
    takes eight passes through the convolutions instead of nine, but it is only faster if the many small operations of
    forward mode are fused. torch cannot differentiate the forward mode of every layer: for batch and layer
    normalisation, terms are silently missing. Therefore both ways are compared once, in float64 on two images, and
    forward mode is used only if they agree.

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
        """Whether both derivatives are compiled, and why; off with the reason once a compilation has failed."""
        choices = [each.choice for each in (self._gradient, *self._products.values())]
        return next((choice for choice in choices if not choice.enabled), self._choice)

    @property
    def compiled(self) -> bool:
        """Whether the derivatives were to be compiled, even if a compilation has failed since."""
        return self._choice.enabled

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of ``images`` ``[B, C, H, W]``; labels ``[B]`` int64 or ``[B, classes]`` float."""
        return F.cross_entropy(self.network(theta, images), labels)

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """g = ∇_θ ℓ, ``[P]``, without a graph."""
        gradient: Tensor = self._gradient(theta, images, labels)
        return gradient

    def products(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Products:
        """The derivatives of ⟨g, direction⟩ with respect to those of (theta, images, labels) that are ``wanted``.

        Args:
            theta: ``[P]``.
            images: ``[B, C, H, W]``.
            labels: ``[B]`` or ``[B, classes]``.
            direction: u, ``[P]``.
            wanted: which derivatives are needed; the others are None in the result. Each choice is compiled by itself.
        """
        places = tuple(place for place, each in enumerate(wanted) if each)
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
        """The loss, in channels-last memory format on the CPU, where most operations are faster in this format."""
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
    """Whether forward and reverse mode give the same gradients of the directional derivative, in float64.

    Args:
        loss: (theta ``[P]``, images, labels) → a scalar.
        theta: parameters; floating-point tensors are converted to float64.
        images: a few images.
        labels: their labels.
    """
    direction = torch.randn(theta.shape, generator=keyed_generator("direction"), dtype=torch.float64)
    try:
        doubled = [each.detach().double() if each.is_floating_point() else each for each in (theta, images, labels)]
        doubled.append(direction.to(theta.device))
        forward, reverse = (_products(slope(loss), (0, 1))(*doubled) for slope in (_forward_slope, _reverse_slope))
    except (RuntimeError, TypeError):  # a layer has no forward mode, or the device has no float64
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
    """A pure function that returns ⟨g, u⟩ and its gradients in the arguments ``places`` of (theta, images, labels)."""

    def products(theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
        if not places:
            return (slope(theta, images, labels, direction),)
        gradients, value = grad_and_value(slope, argnums=places)(theta, images, labels, direction)
        return value, *gradients

    return products
