"""The curriculum of easy and hard images (PAD, Li et al., 2024), and the scores that order the images.

The score of an image is GraNd (Paul et al., NeurIPS 2021): the norm of the gradient of its cross-entropy with respect
to the parameters of a network that was briefly trained, averaged over a few networks. The published experts read such
scores from files; here they are computed from the training images. Most of the time is the training of the networks.
EL2N, the norm of the error of the probabilities, would save the gradients of the images, about a sixth of the time, but
it is another order: of the hardest fifth of 2,000 images of CIFAR-10, only 60 % are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ast_lightning.config.expert import ExpertSettings
from ast_lightning.data import LabelledImages
from ast_lightning.errors import ConfigurationError, raised
from ast_lightning.networks import NetworkFactory, build_network, mathematical_attention
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.randomness import keyed_generator, keyed_global_state
from ast_lightning.storage.checksums import FIELD, tensor_checksum
from ast_lightning.storage.files import clear_leftovers, write_tensors
from ast_lightning.storage.inspection import count
from ast_lightning.terminal import say
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.records import SCORES_FILE

NETWORKS = 5
"""Networks over which a score is averaged."""
_GRADIENTS = 2**26
"""Numbers in the gradients of the images that are computed together, 256 MiB in float32."""
_QUIET = 30  # seconds between the lines of a long computation


def curriculum(epoch: int, labels: Tensor, scores: Tensor, epochs: int) -> Tensor:
    """The images of an epoch: first without the hardest of each class, later without the easiest.

    The published epochs are those of 100-epoch experts. They scale with E: an epoch e belongs to

    * e ≤ E/5: the easiest 3/4 + e/(4 · E/5) of each class;
    * e ≤ 2E/5: all images;
    * e ≤ 3E/5: all but the easiest tenth;
    * later: all but the easiest fifth.

    Args:
        epoch: e, from 0.
        labels: ``[N]`` int64 of the training images.
        scores: ``[N]``; a larger score means a harder image, and of equal scores the first counts as easier.
        epochs: E.

    Returns:
        Indices ``[M]`` int64 in ascending order.

    >>> curriculum(0, torch.zeros(4, dtype=torch.int64), torch.tensor([3.0, 1.0, 4.0, 2.0]), 100)
    tensor([0, 1, 3])
    """
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        ordered, size = members[scores[members].argsort(stable=True)], len(members)
        easiest, first = size, 0
        if 5 * epoch <= epochs:
            easiest = max(1, size * (3 * epochs + 5 * epoch) // (4 * epochs))
        elif 5 * epoch > 2 * epochs:
            first = size // (10 if 5 * epoch <= 3 * epochs else 5)
        chosen.append(ordered[first:easiest])
    return torch.cat(chosen).sort().values


def difficulty(
    network: NetworkFactory,
    images: LabelledImages,
    settings: ExpertSettings,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    networks: int = NETWORKS,
    epochs: int | None = None,
) -> Tensor:
    """The GraNd scores of training images.

    The networks are trained with the cross-entropy of un-augmented images in float32, and with the learning rate,
    momentum, weight decay and batch size of the experts.

    Args:
        network: builds a network.
        images: N preprocessed training images.
        settings: settings of the experts.
        seed: seed of all random draws.
        device: the device of the computation.
        networks: number of networks.
        epochs: how long each is trained; None: a tenth of ``expert.epochs``, rounded up.

    Returns:
        ``[N]`` float32 on the CPU; a larger score means a harder image.

    Raises:
        ConfigurationError: the network does not support gradients of single images.
    """
    epochs = -(-settings.epochs // 10) if epochs is None else epochs
    work = f"{count(networks, 'network')} of {count(epochs, 'epoch')}"
    say(f"computing the difficulty of {count(len(images), 'image')} with {work}")
    total, printed = torch.zeros(len(images)), time.monotonic()
    for index in range(networks):
        key = (seed, "difficulty", index)
        total += gradient_norms(_trained(network, images, settings, key, epochs, torch.device(device)), images)
        if time.monotonic() - printed > _QUIET:
            say(f"difficulty of the images: {index + 1} of {networks} networks")
            printed = time.monotonic()
    return total / networks


def kept_in(store: TrajectoryStore, compute: Callable[[], Tensor]) -> Tensor:
    """The scores in the file of a store. If there is none, one process computes it and the others wait.

    Args:
        store: the store of the experts.
        compute: computes the scores ``[N]``.

    Raises:
        ConfigurationError: the file is damaged, or belongs to another store.
        OSError: it cannot be written.
    """
    path = store.folder / SCORES_FILE
    with FolderLock(store.folder / "store") as lock:
        if not path.exists() and not lock.take():
            say(f"waiting for {lock.holder()}, which computes the difficulty of the images")
            lock.take(seconds=-1)
        if not path.exists():
            clear_leftovers(store.folder)
            tensors, about = {"scores": compute()}, {"store": store.id}
            write_tensors(path, tensors, {**about, FIELD: tensor_checksum(tensors, about)})
    return store.read_scores()


def _trained(
    factory: NetworkFactory,
    images: LabelledImages,
    settings: ExpertSettings,
    key: tuple[int, str, int],
    epochs: int,
    device: torch.device,
) -> nn.Module:
    network = build_network(factory, *key, "network").to(device).train()
    optimizer = torch.optim.SGD(
        network.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    with torch.enable_grad(), keyed_global_state(*key, "dropout"):
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=keyed_generator(*key, "order", epoch))
            for rows in order.split(settings.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(network(images.images[rows].to(device)), images.labels[rows].to(device))
                loss.backward()
                optimizer.step()
    return network.eval()


def gradient_norms(network: nn.Module, images: LabelledImages) -> Tensor:
    """‖∇_θ CE(net_θ(x), y)‖₂ ``[N]`` of each image, float32 on the CPU.

    Args:
        network: the network, in evaluation mode.
        images: N images, which are moved to the device of the network in parts.

    Raises:
        ConfigurationError: the network does not support gradients of single images.
    """
    parameters = {name: each.detach() for name, each in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, parameters, (image.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0))

    def norm(image: Tensor, label: Tensor) -> Tensor:
        gradients = grad(loss)(parameters, image, label)
        return torch.stack([each.square().sum() for each in gradients.values()]).sum().sqrt()

    device, size = next(iter(parameters.values())).device, sum(each.numel() for each in parameters.values())
    norms = vmap(norm, chunk_size=max(1, _GRADIENTS // size))
    parts = zip(images.images.split(512), images.labels.split(512), strict=True)
    try:
        with mathematical_attention():
            return torch.cat([norms(each.to(device), labels.to(device)).cpu() for each, labels in parts])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        problem = f"{type(network).__name__} does not support gradients of single images: {raised(error)}"
        remedy = "choose another network, or give a curriculum of your own, which needs no scores"
        raise ConfigurationError("expert.samples", "curriculum", problem, remedy) from error
