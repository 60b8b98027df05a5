"""Synthetic sets: the images, their labels, and the learning rate of networks that train on them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ast_lightning.config.distill import DistillSettings
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import Key
from ast_lightning.synthetic import TrainingSet


class BatchDraw(NamedTuple):
    """The random choices of one batch.

    Attributes:
        rows: int64 ``[B]`` on the CPU: indices into the set.
        key: key of all further random draws of this batch, such as the crops of a texture.
    """

    rows: Tensor
    key: tuple[Key, ...]


class SyntheticSet(nn.Module, ABC):
    """The parameters that distillation trains, and the batches built from them.

    A method differentiates with respect to :meth:`tensors` and builds its batches only from them. :meth:`batch` is a
    pure function, so that a batch can be recomputed in the backward pass through the student's training. Functions that
    produce the tensors from the parameters (a decoder, a softmax, an exponential) are differentiated by autograd.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """``[N, C, H, W]`` of the images."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that batches are built from, followed by the learning rate; computed anew for each work item."""

    @abstractmethod
    def batch(self, draw: BatchDraw, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """One batch, before augmentation.

        Args:
            draw: the random choices.
            tensors: the result of :meth:`tensors` without the learning rate.

        Returns:
            Images ``[B, C, H, W]`` and labels, int64 ``[B]`` or float ``[B, classes]``.
        """

    @abstractmethod
    def groups(self, settings: DistillSettings) -> list[dict[str, Any]]:
        """The parameter groups of the outer optimiser, each with its learning rate. The images come first."""

    @abstractmethod
    def training_set(self) -> TrainingSet:
        """The current set, detached, for evaluation and saving."""

    def keep_average(self, decay: float) -> None:
        """Average the images over the iterations, and return the average from :meth:`training_set`.

        Called once, before training, if ``distill.ema`` is set.

        Args:
            decay: δ, in (0, 1).

        Raises:
            ConfigurationError: this kind of set has no average.
        """
        problem = f"the synthetic set {type(self).__name__} has no average"
        raise ConfigurationError("distill.ema", decay, problem, "leave it out")

    def after_iteration(self) -> None:
        """Called after each iteration, with or without an update; not after one that restores earlier values."""

    def logged(self) -> dict[str, Tensor]:
        """Scalars to log at each iteration."""
        return {}

    def problem(self, settings: DistillSettings) -> tuple[str, str] | None:
        """Why the last update has made the set unusable, and the remedy; None if the set is usable."""
        return None


class SyntheticImages(SyntheticSet):
    """Pixels as parameters, hard labels, and a learned or fixed learning rate α.

    With :meth:`keep_average`, the set also holds an exponential moving average of its images, as in FTD (CVPR 2023,
    section 3: X̄ ← δ X̄ + (1 − δ) X after every iteration). X̄ starts as the initial images and has no bias correction.
    It is a buffer, so that checkpoints contain it and a recovery from divergence restores it with the images. An
    iteration whose update is skipped counts like any other, with unchanged X.

    Args:
        images: X before distillation, ``[N, C, H, W]`` float32 or float64, preprocessed like the real images.
        labels: Y, ``[N]`` int64.
        learning_rate: α before distillation.
        alpha: ``log``: the parameter is log α, so that α stays positive; ``raw``: the parameter is α; ``fixed``: α is
            not trained.
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
        self.register_buffer("average", None)
        self.average: Tensor | None
        self.decay = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape)

    @property
    def alpha(self) -> Tensor:
        """α, a scalar; differentiable if it is learned."""
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
        images = self.images if self.average is None else self.average
        return TrainingSet(images.detach(), self.labels, float(self.alpha.detach()))

    def keep_average(self, decay: float) -> None:
        self.decay, self.average = decay, self.images.detach().clone()

    @torch.no_grad()
    def after_iteration(self) -> None:
        if self.average is not None:
            self.average.lerp_(self.images, 1 - self.decay)

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
