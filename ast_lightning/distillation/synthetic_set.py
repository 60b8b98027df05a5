"""What is distilled: a few synthetic images, their labels, and the learning rate of networks that train on them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ast_lightning.config.distill import DistillSettings
from ast_lightning.randomness import Key
from ast_lightning.synthetic import TrainingSet


class BatchDraw(NamedTuple):
    """The random choices of one batch.

    Attributes:
        rows: int64 ``[B]`` on the CPU: which items of the set.
        key: names every further draw of this batch, such as the crops of a texture.
    """

    rows: Tensor
    key: tuple[Key, ...]


class SyntheticSet(nn.Module, ABC):
    """The parameters that distillation trains, and how they become batches.

    A method differentiates :meth:`tensors`, and makes its batches from them alone: :meth:`batch` is a pure function, so
    that a batch can be made again on the way back through the student's training. What stands in front of the tensors
    (a decoder, a softmax, an exponential) is plain autograd.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """``[N, C, H, W]`` of the images."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What one work item differentiates, made anew for each: the tensors of batches, and last the learning rate."""

    @abstractmethod
    def batch(self, draw: BatchDraw, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """One batch, before augmentation.

        Args:
            draw: the random choices.
            tensors: those of :meth:`tensors`, without the learning rate.

        Returns:
            Images ``[B, C, H, W]`` and labels, int64 ``[B]`` or float ``[B, classes]``.
        """

    @abstractmethod
    def groups(self, settings: DistillSettings) -> list[dict[str, Any]]:
        """The parameter groups of the outer optimiser, the images first, each with its learning rate."""

    @abstractmethod
    def training_set(self) -> TrainingSet:
        """The set as it is now, detached: what is evaluated and saved."""

    def logged(self) -> dict[str, Tensor]:
        """Scalars to log at each iteration."""
        return {}

    def problem(self, settings: DistillSettings) -> tuple[str, str] | None:
        """Why the last update has made the set unusable, with the remedy; None where it has not."""
        return None


class SyntheticImages(SyntheticSet):
    """Pixels as parameters, hard labels, and a learning rate α that is learned or fixed.

    Args:
        images: X before distillation, ``[N, C, H, W]`` float32 or float64, preprocessed like the real images.
        labels: Y, ``[N]`` int64.
        learning_rate: α before distillation.
        alpha: ``log``: the parameter is log α, so that α stays positive; ``raw``: α itself; ``fixed``: none.
    """

    def __init__(self, images: Tensor, labels: Tensor, learning_rate: float, *, alpha: str = "fixed") -> None:
        super().__init__()
        self.images = nn.Parameter(images.detach().clone())
        rate = torch.tensor(learning_rate, dtype=images.dtype)
        if alpha == "log":
            self.log_learning_rate = nn.Parameter(rate.log())
        elif alpha == "raw":
            self.learning_rate: Tensor = nn.Parameter(rate)
        else:
            self.register_buffer("learning_rate", rate)
        self.register_buffer("labels", labels.clone())
        self.labels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape)

    @property
    def alpha(self) -> Tensor:
        """α, a scalar, differentiable where it is learned."""
        return self.log_learning_rate.exp() if hasattr(self, "log_learning_rate") else self.learning_rate

    def tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.labels, self.alpha

    def batch(self, draw: BatchDraw, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = tensors
        rows = draw.rows.to(images.device)
        return images[rows], labels[rows]

    def groups(self, settings: DistillSettings) -> list[dict[str, Any]]:
        others = [each for each in self.parameters() if each is not self.images]
        rates = [{"params": others, "lr": getattr(settings, "lr_lr", 0.0)}] if others else []
        return [{"params": [self.images], "lr": settings.lr_img}, *rates]

    def training_set(self) -> TrainingSet:
        return TrainingSet(self.images.detach(), self.labels, float(self.alpha.detach()))

    def logged(self) -> dict[str, Tensor]:
        return {"train/student_lr": self.alpha.detach()}

    def problem(self, settings: DistillSettings) -> tuple[str, str] | None:
        rate = float(self.alpha.detach())
        if not bool(self.images.isfinite().all()):
            return "the images are no longer finite", f"lower distill.lr_img ({settings.lr_img:g})"
        if 0 < rate < math.inf:
            return None
        lr_lr = getattr(settings, "lr_lr", 0.0)
        remedy = f"lower distill.lr_lr ({lr_lr:g}), or set distill.alpha=fixed"
        return f"the student learning rate became {rate:g}", remedy
