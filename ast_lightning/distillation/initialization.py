"""Where the synthetic images start from: representative real images, random real images, or noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ast_lightning.config.distill import INITIALIZATIONS
from ast_lightning.data import LabelledImages
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import keyed_generator, keyed_seed

Logits = Callable[[Tensor], Tensor]
"""images ``[N, C, H, W]`` → logits ``[N, classes]`` of an expert."""


def initial_images(
    init: str,
    real: LabelledImages,
    class_names: Sequence[str],
    ipc: int,
    *,
    seed: int,
    logits: Logits | None = None,
    clusters: int = 10,
) -> tuple[Tensor, Tensor]:
    """The synthetic set before distillation.

    Args:
        init: ``representative``, ``real`` or ``noise``.
        real: the preprocessed training images.
        class_names: of all classes, in the order of the labels.
        ipc: images per class.
        seed: of every draw.
        logits: an expert, for ``representative``.
        clusters: k-means clusters a class, for ``representative``.

    Returns:
        images ``[classes · ipc, C, H, W]`` float32, grouped by class, and labels ``[classes · ipc]`` int64.

    Raises:
        ConfigurationError: fewer than ``ipc`` real images in a class, or no such initialisation.
    """
    if init not in INITIALIZATIONS:
        raise ConfigurationError(
            "distill.init", init, "there is no such choice", f"take one of {', '.join(INITIALIZATIONS)}"
        )
    labels = torch.arange(len(class_names)).repeat_interleave(ipc)
    if init == "noise":
        shape = (len(labels), *real.images.shape[1:])
        return torch.randn(shape, generator=keyed_generator(seed, "noise initialisation")), labels
    check_ipc(real.labels, class_names, ipc)
    chosen = []
    for label in range(len(class_names)):
        members = (real.labels == label).nonzero().flatten()
        if init == "real":
            order = torch.randperm(len(members), generator=keyed_generator(seed, "real initialisation", label))
            picked = order[:ipc]
        else:
            if logits is None:
                raise ValueError("representative initialisation needs the logits of an expert")
            features = torch.cat([logits(real.images[part]) for part in members.split(1024)])
            picked = representatives(features, ipc, clusters, keyed_seed(seed, "representative", label))
        chosen.append(members[picked])
    return real.images[torch.cat(chosen)].clone(), labels


def representatives(features: Tensor, count: int, clusters: int, seed: int) -> Tensor:
    """The samples nearest to the k-means centres of their features: nearest first, taking the centres in turn.

    The published code takes nothing when ``count`` is below its ten clusters and may take one image twice; here the
    centres, largest cluster first, each take the nearest sample that is still free until there are enough.

    Args:
        features: ``[N, F]``, N ≥ count.
        count: how many samples to take.
        clusters: k-means clusters; at most ``count`` and N are used.
        seed: of k-means; the result depends on it and the features alone.

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
    """Refuse more images per class than the smallest class holds.

    Raises:
        ConfigurationError: naming the class and its size.
    """
    counts = torch.bincount(labels, minlength=len(class_names))
    smallest = int(counts.argmin())
    if ipc > int(counts[smallest]):
        raise ConfigurationError(
            "distill.ipc",
            ipc,
            f"class {class_names[smallest]!r} has only {int(counts[smallest])} training images",
            f"give at most {int(counts[smallest])}, or set distill.init=noise",
        )
