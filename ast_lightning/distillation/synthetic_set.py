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
        """The parameter groups of the outer optimiser, each with its learning rate. The images come first.

        A group may have a ``name``: the option of its rate without its section, which messages recommend to lower.
        """

    @abstractmethod
    def training_set(self) -> TrainingSet:
        """The current set, detached, for evaluation and saving."""

    def accept(self) -> None:
        """Called once in each iteration whose update is accepted, before the update is applied."""

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
    """Pixels as parameters, labels, and a learned or fixed learning rate α.

    With :meth:`keep_average`, the set also holds an exponential moving average of its images, as in FTD (CVPR 2023,
    section 3: X̄ ← δ X̄ + (1 − δ) X after every iteration). X̄ starts as the initial images and has no bias correction.
    It is a buffer, so that checkpoints contain it and a recovery from divergence restores it with the images. An
    iteration whose update is skipped counts like any other, with unchanged X.

    Args:
        images: X before distillation, ``[N, C, H, W]`` float32 or float64, preprocessed like the real images.
        labels: ``[N]`` int64 for hard labels, otherwise ``[N, classes]`` float, see ``label_kind``.
        learning_rate: α before distillation.
        alpha: ``log``: the parameter is log α, so that α stays positive; ``raw``: the parameter is α; ``fixed``: α is
            not trained.
        label_kind: ``hard``: Y = ``labels`` is not trained; ``soft``: the parameter is Z = ``labels``, and Y =
            softmax(Z) (DATM, ICLR 2024); ``teacher``: Y = ``labels`` until :meth:`propose` replaces it (TESLA, ICML
            2023).

    Raises:
        ValueError: the shape or dtype of the labels does not match their kind.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        learning_rate: float,
        *,
        alpha: str = "fixed",
        label_kind: str = "hard",
    ) -> None:
        super().__init__()
        if label_kind != "hard" and not (labels.ndim == 2 and labels.is_floating_point()):
            raise ValueError(
                f"{label_kind} labels begin as [N, classes] float, not {list(labels.shape)} {labels.dtype}"
            )
        self.images = nn.Parameter(images.detach().clone())
        rate = torch.tensor(learning_rate, dtype=images.dtype)
        if alpha == "log":
            self.log_learning_rate = nn.Parameter(rate.log())
        elif alpha == "raw":
            self.learning_rate: Tensor = nn.Parameter(rate)
        else:
            self.register_buffer("learning_rate", rate)
        self._proposed: Tensor | None = None
        if label_kind == "soft":
            self.label_logits = nn.Parameter(labels.detach().to(images.dtype, copy=True))
        elif label_kind == "teacher":  # a parameter, so that a run that diverged goes back to earlier labels too
            self.labels: Tensor = nn.Parameter(labels.detach().to(images.dtype, copy=True), requires_grad=False)
        else:
            self.register_buffer("labels", labels.clone())
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

    @property
    def targets(self) -> Tensor:
        """Y: ``[N]`` int64, or ``[N, classes]`` float; differentiable if it is learned."""
        return self.label_logits.softmax(1) if hasattr(self, "label_logits") else self.labels

    def tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.targets, self.alpha

    def propose(self, labels: Tensor) -> None:
        """Replace Y of ``label_kind=teacher`` by probabilities ``[N, classes]`` if the update is accepted."""
        self._proposed = labels

    @torch.no_grad()
    def accept(self) -> None:
        if self._proposed is not None:
            self.labels.copy_(self._proposed)
            self._proposed = None

    def batch(self, draw: BatchDraw, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = tensors
        rows = draw.rows.to(images.device)
        return images[rows], labels[rows]

    def groups(self, settings: DistillSettings) -> list[dict[str, Any]]:
        named = {name: each for name, each in self.named_parameters() if each.requires_grad}
        groups: list[dict[str, Any]] = [{"name": "lr_img", "params": [named.pop("images")], "lr": settings.lr_img}]
        logits = named.pop("label_logits", None)
        if named:
            groups.append({"name": "lr_lr", "params": list(named.values()), "lr": getattr(settings, "lr_lr", 0.0)})
        if logits is not None:
            rate, momentum = getattr(settings, "lr_labels", 0.0), getattr(settings, "label_momentum", 0.9)
            groups.append({"name": "lr_labels", "params": [logits], "lr": rate, "momentum": momentum})
        return groups

    def training_set(self) -> TrainingSet:
        images = self.images if self.average is None else self.average
        return TrainingSet(images.detach(), self.targets.detach(), float(self.alpha.detach()))

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
        if hasattr(self, "label_logits") and not bool(self.label_logits.isfinite().all()):
            lr_labels = getattr(settings, "lr_labels", 0.0)
            return "the label logits are no longer finite", f"lower distill.lr_labels ({lr_labels:g})"
        if 0 < rate < math.inf:
            return None
        lr_lr = getattr(settings, "lr_lr", 0.0)
        remedy = f"lower distill.lr_lr ({lr_lr:g}), or set distill.alpha=fixed"
        return f"the student learning rate became {rate:g}", remedy
