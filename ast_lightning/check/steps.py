"""A small step of an expert and a small iteration of distillation, on random images."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ast_lightning.compilation import Compilation
from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation.trajectory_matching import InnerProblem, matching_loss, unroll
from ast_lightning.experts import ExpertObjective, ExpertSettings
from ast_lightning.networks import ConvNet, FunctionalNetwork, build_network
from ast_lightning.randomness import keyed_generator

STEPS = 4
"""K, the student's steps in an iteration, which matches parameters after the second step and the fourth."""
_MATCHES = {STEPS // 2: 1, STEPS: 2}
_SIZE, _IMAGES = (32, 32), 10
_FACTORY = functools.partial(ConvNet, 3, 10, _SIZE, width=16, depth=2)


def expert_gradient(
    device: torch.device, dtype: torch.dtype = torch.float32, compilation: Compilation | None = None
) -> Tensor:
    """The gradient ``[P]`` of the expert objective with gradient penalty.

    Args:
        device: the device to compute on.
        dtype: the dtype of parameters and images.
        compilation: whether to compile the objective; None: not compiled.
    """
    network = build_network(_FACTORY, 0, "network").to(device, dtype)
    raw, labels = _images("expert").to(device, dtype), (torch.arange(_IMAGES) % 10).to(device)
    objective = ExpertObjective(_FACTORY, ExpertSettings(), compilation)
    objective(network, raw.flip(3), raw, labels, 0.5).total.backward()
    return torch.cat([each.grad.reshape(-1) for each in network.parameters() if each.grad is not None])


class Iteration(nn.Module):
    """The matching loss of a window of random parameters, as a module whose parameters are the images X and the rate α.

    Args:
        device: the device to compute on.
        dtype: float32 or float64.
        engine: the engine of the unroll.
        compilation: whether to compile the student's derivatives; None: not compiled.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        engine: str = "adjoint",
        compilation: Compilation | None = None,
    ) -> None:
        super().__init__()
        self.images = nn.Parameter(_images("synthetic").to(device, dtype))
        self.learning_rate = nn.Parameter(torch.tensor(0.01, device=device, dtype=dtype))
        network = FunctionalNetwork(_FACTORY).to(device)
        self._student = network, InnerProblem(network, compilation)  # in a tuple, so that it is not a submodule
        self._augmentation = SiameseAugmentation("color_crop_cutout_flip_scale_rotate")
        self._engine = engine

    def forward(self, window: int = 0) -> Tensor:
        """The loss; ``window`` seeds the parameters and the augmentation."""
        network, problem = self._student
        start, middle, end = (
            network.initial_parameters(0, "window", window, place).to(self.images) for place in range(3)
        )

        def batch(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            draw = self._augmentation.draw(len(images), _SIZE, keyed_generator(0, "augmentation", window, step))
            return self._augmentation.apply(images, draw), labels

        matched = unroll(
            problem,
            start,
            (self.images, (torch.arange(_IMAGES) % 10).to(self.images.device)),
            batch,
            self.learning_rate,
            steps=STEPS,
            momentum=0.9,
            match_at=list(_MATCHES),
            engine=self._engine,
        )
        return matching_loss(matched, _MATCHES, start, torch.stack([middle, end]), "aggregate").total

    def gradient(self, window: int = 0) -> Tensor:
        """The gradient of the loss with respect to X and α, as one vector."""
        gradients = torch.autograd.grad(self(window), list(self.parameters()))
        return torch.cat([each.reshape(-1) for each in gradients])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, in float64 on the CPU."""
    expected = expected.detach().cpu().double()
    return float((found.detach().cpu().double() - expected).norm() / expected.norm())


def _images(purpose: str) -> Tensor:
    return torch.randn(_IMAGES, 3, *_SIZE, generator=keyed_generator(0, "check", purpose))
