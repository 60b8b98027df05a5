"""Initialisation of the synthetic set: real images, noise, or an earlier distilled set, and labels from experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ast_lightning.config.distill import MOST_IMAGES, DistillSettings
from ast_lightning.config.parts import resolve
from ast_lightning.data import ImageDataModule, LabelledImages
from ast_lightning.data.selection import (
    Logits,
    check_ipc,
    correct_images,
    initial_logits,
    random_images,
    representative_images,
)
from ast_lightning.data.splits import smallest_class
from ast_lightning.distillation.method import Context
from ast_lightning.distillation.textures import tiled
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import keyed_generator
from ast_lightning.synthetic import DistilledDataset, load_distilled
from ast_lightning.terminal import say

Experts = Callable[[], Iterator[Logits]]
"""Returns an iterator over all trained experts."""
Initialization = Callable[[LabelledImages, Sequence[str], DistillSettings, int, Experts], tuple[Tensor, Tensor]]
"""The type of ``distill.init``: (real training images, class names, settings, seed, experts) → images ``[classes · ipc,
C, H, W]`` grouped by class, and labels ``[classes · ipc]`` int64."""


def representative(
    real: LabelledImages, class_names: Sequence[str], settings: DistillSettings, seed: int, experts: Experts
) -> tuple[Tensor, Tensor]:
    """The real images nearest to the k-means centres of the first expert's logits."""
    check_ipc(real.labels, class_names, settings.ipc)
    return representative_images(real, class_names, settings.ipc, seed, next(experts()), settings.init_clusters)


def random_real(
    real: LabelledImages, class_names: Sequence[str], settings: DistillSettings, seed: int, experts: Experts
) -> tuple[Tensor, Tensor]:
    """Random real images."""
    return random_images(real, class_names, settings.ipc, seed)


def noise(
    real: LabelledImages, class_names: Sequence[str], settings: DistillSettings, seed: int, experts: Experts
) -> tuple[Tensor, Tensor]:
    """Standard normal values."""
    labels = torch.arange(len(class_names)).repeat_interleave(settings.ipc)
    shape = (len(labels), *real.images.shape[1:])
    return torch.randn(shape, generator=keyed_generator(seed, "noise initialisation")), labels


def correct(
    real: LabelledImages, class_names: Sequence[str], settings: DistillSettings, seed: int, experts: Experts
) -> tuple[Tensor, Tensor]:
    """Random real images that one of the experts classifies correctly."""
    return correct_images(real, class_names, settings.ipc, seed, experts)


INITIALIZATION: dict[str, Initialization] = {
    "representative": representative,
    "real": random_real,
    "noise": noise,
    "correct": correct,
}


def initial_images(
    settings: DistillSettings,
    real: LabelledImages,
    class_names: Sequence[str],
    *,
    seed: int,
    experts: Experts | None = None,
) -> tuple[Tensor, Tensor]:
    """Initialise the images and labels as ``distill.init`` specifies.

    A canvas is tiled with ``canvas``² different images of its class.

    Args:
        settings: ``init``, ``init_clusters``, ``ipc`` and ``canvas`` are used.
        real: the preprocessed training images.
        class_names: names of all classes, in the order of the labels.
        seed: seed of all random draws.
        experts: returns an iterator over all trained experts; needed for ``representative`` and ``correct``.

    Returns:
        images or canvases ``[classes · ipc, C, H, W]`` float32, grouped by class, and labels ``[classes · ipc]`` int64.

    Raises:
        ConfigurationError: a class has fewer than ``ipc`` real images (for canvases ``ipc · canvas²``), the
            initialisation is unknown, or an expert is needed and none is given.
    """

    def none() -> Any:
        raise ConfigurationError("distill.init", settings.init, "it needs a trained expert", "set distill.init=real")

    if settings.canvas > 1:
        tiles = settings.canvas**2
        _check_tiles(settings, real, class_names, tiles)
        one_image = replace(settings, ipc=settings.ipc * tiles, canvas=1, crops=1)
        try:
            images, labels = initial_images(one_image, real, class_names, seed=seed, experts=experts)
        except ConfigurationError as error:
            if error.option != "distill.ipc":
                raise
            problem = f"each canvas is tiled with {tiles} images, {one_image.ipc} per class, and {error.problem}"
            raise settings.refused("canvas", problem, "lower it or distill.ipc, or set distill.init=noise") from error
        return tiled(images, settings.canvas), labels[::tiles]
    initialize: Initialization = resolve(settings.init, INITIALIZATION, "distill.init")
    images, labels = initialize(real, class_names, settings, seed, experts or none)
    shape = (len(class_names) * settings.ipc, *real.images.shape[1:])
    if tuple(images.shape) != shape or labels.tolist() != sorted(labels.tolist()):
        raise ConfigurationError(
            "distill.init",
            settings.init,
            f"it returns images {tuple(images.shape)}, but {shape}, grouped by class, are required",
            "correct the function",
        )
    return images, labels


def _check_tiles(settings: DistillSettings, real: LabelledImages, class_names: Sequence[str], tiles: int) -> None:
    if settings.ipc * tiles > MOST_IMAGES:
        problem = f"each canvas is tiled with {tiles} images: {settings.ipc * tiles} per class, more than {MOST_IMAGES}"
        raise settings.refused("canvas", problem, "lower it or distill.ipc")
    name, count = smallest_class(real.labels, class_names)
    if isinstance(settings.init, str) and settings.init != "noise" and settings.ipc * tiles > count:
        problem = (
            f"each canvas is tiled with {tiles} images, {settings.ipc * tiles} per class, and class {name!r} has only "
            f"{count} training images"
        )
        raise settings.refused("canvas", problem, "lower it or distill.ipc, or set distill.init=noise")


def starting_point(settings: DistillSettings, context: Context) -> tuple[Tensor, Tensor, float]:
    """X, labels and α before distillation, from ``distill.init`` or from the set in ``distill.warm_start``.

    Returns:
        Images ``[N, C, H, W]`` float32, grouped by class; the labels; the learning rate. With hard labels, the labels
        are ``[N]`` int64. With ``distill.labels=soft`` they are logits ``[N, classes]`` float32: those of experts, see
        :func:`~ast_lightning.data.selection.initial_logits`, or the logarithm of the soft labels of the earlier set.
        With ``distill.labels=teacher`` they are probabilities ``[N, classes]`` float32.

    Raises:
        ConfigurationError: see :func:`initial_images`; or the earlier set does not match this run.
    """
    if not settings.warm_start:
        data = context.data
        images, labels = initial_images(
            settings, data.train, data.class_names, seed=context.seed, experts=context.expert_logits
        )
        return images, _labels(settings, context, images, labels), settings.lr_teacher
    earlier = load_distilled(settings.warm_start, "distill.warm_start")
    _check_warm_start(earlier, context.data, settings)
    if not math.isclose(settings.lr_teacher, earlier.learning_rate, rel_tol=1e-6):  # stored as float32
        rates = f"{earlier.learning_rate:.4g} of {settings.warm_start}, not with distill.lr_teacher"
        say(f"note: the learning rate starts with {rates}={settings.lr_teacher:.4g}")
    soft = earlier.labels if earlier.has_soft_labels else None
    if soft is not None and getattr(settings, "labels", "hard") == "hard":
        say(f"note: the soft labels of {settings.warm_start} are not used: distill.labels=hard")
    return earlier.images, _labels(settings, context, earlier.images, earlier.targets, soft), earlier.learning_rate


def _labels(
    settings: DistillSettings, context: Context, images: Tensor, classes: Tensor, soft: Tensor | None = None
) -> Tensor:
    """The labels of :func:`starting_point`, given the class of each image and the soft labels of an earlier set."""
    kind = getattr(settings, "labels", "hard")
    if kind == "hard":
        return classes
    if kind == "teacher":
        return F.one_hot(classes, context.data.num_classes).float() if soft is None else soft
    if soft is not None:
        return soft.clamp_min(torch.finfo(soft.dtype).tiny).log()
    unfiltered = not settings.warm_start and settings.init in ("real", "noise")
    return initial_logits(images, classes, context.expert_logits(), correct=not unfiltered)


def _check_warm_start(earlier: DistilledDataset, data: ImageDataModule, settings: DistillSettings) -> None:
    sides = (settings.canvas * side for side in data.image_size)
    shape = (data.num_classes * settings.ipc, data.channels, *sides)
    same_images = earlier.image_shape == (data.channels, *data.image_size)
    if tuple(earlier.images.shape) != shape or not same_images or earlier.class_names != data.class_names:
        crops = "" if earlier.crop_size is None else f" with crops {earlier.crop_size}"
        raise ConfigurationError(
            "distill.warm_start",
            settings.warm_start,
            f"its images {tuple(earlier.images.shape)}{crops} of {len(earlier.class_names)} classes are not the "
            f"{shape} of this run",
            "set distill.ipc, distill.canvas and the data options to those of the earlier distillation",
        )
    different = data.preprocessing.difference(earlier.preprocessing)
    if different:
        raise ConfigurationError(
            "distill.warm_start",
            settings.warm_start,
            f"the {different} of its preprocessing ({earlier.preprocessing.kind}) is not that of this run "
            f"({data.preprocessing.kind})",
            "set the data and preprocessing options to those of the earlier distillation",
        )
