"""Selection of real images: at random, representative of their classes, or classified correctly by an expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ast_lightning.data.sources import LabelledImages
from ast_lightning.data.splits import smallest_class
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import keyed_generator, keyed_seed

Logits = Callable[[Tensor], Tensor]
"""images ``[N, C, H, W]`` → logits ``[N, classes]`` of an expert."""

_PART = 256
"""Images that an expert classifies at once."""


def random_images(real: LabelledImages, class_names: Sequence[str], ipc: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw ``ipc`` real images of each class without replacement.

    Args:
        real: the preprocessed training images.
        class_names: names of all classes, in the order of the labels.
        ipc: images per class.
        seed: seed of the draw.

    Returns:
        Copies of the images, ``[classes · ipc, C, H, W]``, grouped by class, and labels ``[classes · ipc]`` int64.

    Raises:
        ConfigurationError: a class has fewer than ``ipc`` images.
    """

    def draw(members: Tensor, label: int) -> Tensor:
        return torch.randperm(len(members), generator=keyed_generator(seed, "real initialisation", label))[:ipc]

    return _select(real, class_names, ipc, draw)


def representative_images(
    real: LabelledImages, class_names: Sequence[str], ipc: int, seed: int, logits: Logits, clusters: int = 10
) -> tuple[Tensor, Tensor]:
    """Select the ``ipc`` images of each class that are nearest to the k-means centres of their logits.

    Args:
        logits: an expert; the other arguments and the result are those of :func:`random_images`.
        clusters: k-means clusters per class.

    Raises:
        ConfigurationError: a class has fewer than ``ipc`` images.
    """

    def nearest(members: Tensor, label: int) -> Tensor:
        features = torch.cat([logits(real.images[part]) for part in members.split(1024)])
        return representatives(features, ipc, clusters, keyed_seed(seed, "representative", label))

    return _select(real, class_names, ipc, nearest)


def correct_images(
    real: LabelledImages,
    class_names: Sequence[str],
    ipc: int,
    seed: int,
    experts: Callable[[], Iterable[Logits]],
) -> tuple[Tensor, Tensor]:
    """Draw ``ipc`` images of each class that an expert classifies correctly (DATM, ICLR 2024).

    The images of a class are visited in a random order, and those that the first expert classifies correctly are taken.
    If the class runs out, the next expert visits the images that are not yet taken, in the same order.

    Args:
        experts: returns an iterator over the experts, which each class starts anew; the other arguments and the result
            are those of :func:`random_images`.

    Raises:
        ConfigurationError: a class has fewer than ``ipc`` images, or fewer that some expert classifies correctly.
    """

    def pick(members: Tensor, label: int) -> Tensor:
        order = torch.randperm(len(members), generator=keyed_generator(seed, "correct initialisation", label))
        taken: list[int] = []
        for logits in experts():
            for part in order[~torch.isin(order, torch.tensor(taken, dtype=torch.int64))].split(_PART):
                right = logits(real.images[members[part]]).argmax(1) == label
                taken += part[right].tolist()
                if len(taken) >= ipc:
                    return torch.tensor(taken[:ipc])
        problem = f"the experts classify only {len(taken)} images of class {class_names[label]!r} correctly"
        remedy = "distill.init=real, or train experts for more epochs"
        if not taken:
            raise ConfigurationError("distill.init", "correct", problem, f"set {remedy}")
        raise ConfigurationError("distill.ipc", ipc, problem, f"set distill.ipc={len(taken)} or lower, {remedy}")

    return _select(real, class_names, ipc, pick)


def initial_logits(images: Tensor, labels: Tensor, experts: Iterable[Logits], *, correct: bool = True) -> Tensor:
    """Label logits of images before distillation (DATM, ICLR 2024).

    Z_i = Σ_e C_e(x_i) z_e(x_i) / Σ_e C_e(x_i), where z_e are the logits of expert e, and C_e(x_i) is 1 if it classifies
    x_i correctly and 0 otherwise. If no expert does, Z_i are the logits of the first one.

    Args:
        images: ``[N, C, H, W]``.
        labels: the classes, ``[N]`` int64.
        experts: at least one.
        correct: if False, all Z are the logits of the first expert.

    Returns:
        Z, ``[N, classes]``.
    """
    first, total, count = None, torch.zeros(()), torch.zeros(len(labels), 1)
    for expert in experts:
        logits = torch.cat([expert(part) for part in images.split(_PART)])
        if first is None:
            first = logits
        if not correct:
            break
        right = (logits.argmax(1) == labels).unsqueeze(1)
        total, count = total + right * logits, count + right
    assert first is not None
    return torch.where(count > 0, total / count.clamp_min(1), first)


def _select(
    real: LabelledImages, class_names: Sequence[str], ipc: int, pick: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, Tensor]:
    check_ipc(real.labels, class_names, ipc)
    chosen = []
    for label in range(len(class_names)):
        members = (real.labels == label).nonzero().flatten()
        chosen.append(members[pick(members, label)])
    return real.images[torch.cat(chosen)].clone(), torch.arange(len(class_names)).repeat_interleave(ipc)


def representatives(features: Tensor, count: int, clusters: int, seed: int) -> Tensor:
    """The samples nearest to the k-means centres of the features.

    The centres are visited in turn, largest cluster first. Each takes its nearest sample that is not yet taken, until
    ``count`` samples are taken. In contrast, the published code takes no sample if ``count`` is smaller than its ten
    clusters, and may take a sample twice.

    Args:
        features: ``[N, F]``, N ≥ count.
        count: number of samples to take.
        clusters: number of k-means clusters; at most ``count`` are used.
        seed: seed of k-means; the result depends only on it and on the features.

    Returns:
        ``[count]`` distinct int64 indices.
    """
    values = features.detach().double().cpu()
    clusters = min(clusters, count, len(values))
    model = KMeans(clusters, n_init=10, random_state=seed % 2**32).fit(values.numpy())
    centres = torch.from_numpy(model.cluster_centers_)
    sizes = torch.bincount(torch.from_numpy(model.labels_).long(), minlength=clusters)
    ranking = torch.cdist(values, centres).argsort(dim=0, stable=True)
    turns = [iter(ranking[:, centre].tolist()) for centre in sizes.argsort(descending=True, stable=True).tolist()]
    taken: dict[int, None] = {}
    while len(taken) < count:
        for turn in turns[: count - len(taken)]:
            taken[next(sample for sample in turn if sample not in taken)] = None
    return torch.tensor(list(taken))


def check_ipc(labels: Tensor, class_names: Sequence[str], ipc: int) -> None:
    """Check that every class has at least ``ipc`` images.

    Raises:
        ConfigurationError: a class has fewer images; the message gives its name and size.
    """
    name, count = smallest_class(labels, class_names)
    if ipc > count:
        problem = f"class {name!r} has only {count} training images"
        raise ConfigurationError("distill.ipc", ipc, problem, f"give at most {count}, or set distill.init=noise")
