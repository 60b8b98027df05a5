"""The curriculum by hand, the scores against a plain loop, and where the scores are kept."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ast_lightning.data import LabelledImages
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts import TrajectoryRecorder, curriculum, difficulty, kept_in
from ast_lightning.experts.curriculum import gradient_norms
from ast_lightning.networks import build_network
from ast_lightning.randomness import keyed_generator
from ast_lightning.trajectories.records import SCORES_FILE
from ast_lightning.trajectories.verification import verify_store

RELOAD = {"reload_dataloaders_every_n_epochs": 1}
# class 0: twenty images, the easiest last; class 1: ten, in a random order
LABELS = torch.tensor([0] * 20 + [1] * 10)
ORDER = torch.tensor([3, 0, 9, 5, 1, 7, 2, 8, 6, 4])
SCORES = torch.cat([torch.arange(20).flip(0), 100 + ORDER]).float()


@pytest.mark.parametrize(
    ("epochs", "epoch", "first", "second"),
    [  # places in the order from easy to hard, of twenty and of ten images
        (100, 0, (0, 15), (0, 7)),  # the easiest three quarters
        (100, 10, (0, 17), (0, 8)),  # 7/8
        (100, 19, (0, 19), (0, 9)),  # 79/80
        (100, 20, (0, 20), (0, 10)),
        (100, 40, (0, 20), (0, 10)),
        (100, 41, (2, 20), (1, 10)),  # without the easiest tenth
        (100, 60, (2, 20), (1, 10)),
        (100, 61, (4, 20), (2, 10)),  # without the easiest fifth
        (100, 99, (4, 20), (2, 10)),
        (50, 5, (0, 17), (0, 8)),  # the same shares of half as many epochs
        (50, 10, (0, 20), (0, 10)),
        (50, 20, (0, 20), (0, 10)),
        (50, 21, (2, 20), (1, 10)),
        (50, 30, (2, 20), (1, 10)),
        (50, 31, (4, 20), (2, 10)),
        (1, 0, (0, 15), (0, 7)),
    ],
)
def test_images_of_an_epoch_by_hand(epochs: int, epoch: int, first: tuple[int, int], second: tuple[int, int]) -> None:
    ranked = torch.arange(19, -1, -1)[slice(*first)].tolist(), (20 + ORDER.argsort())[slice(*second)].tolist()
    seen = curriculum(epoch, LABELS, SCORES, epochs)
    assert seen.tolist() == sorted(ranked[0] + ranked[1])


def test_a_class_never_becomes_empty_and_ties_keep_their_order() -> None:
    labels = torch.tensor([0, 1, 1, 1, 1])
    assert curriculum(0, labels, torch.zeros(5), 10).tolist() == [0, 1, 2, 3]
    assert curriculum(9, labels, torch.zeros(5), 10).tolist() == [0, 1, 2, 3, 4]  # a fifth of four is none


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_scores_are_norms_of_the_gradients_of_single_images(lab: Any, normalization: str) -> None:
    network = build_network(functools.partial(lab.network, normalization=normalization), 0).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 1, 8, 8, generator=generator, dtype=torch.float64)
    network(images)  # moves running statistics
    labels, network = torch.arange(7), network.eval()
    wanted = []
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(network(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        wanted.append(torch.cat([each.flatten() for each in gradients]).norm())
    seen = gradient_norms(network, LabelledImages(images, labels))
    torch.testing.assert_close(seen, torch.stack(wanted), rtol=1e-12, atol=0)


def test_the_mean_over_trained_networks_depends_on_the_seed_alone(lab: Any) -> None:
    """And mislabelled images are hard."""
    train = lab.make_data().train
    images = LabelledImages(train.images.clone(), train.labels.clone())
    wrong = torch.arange(0, len(images), 10)
    images.labels[wrong] = (images.labels[wrong] + 1) % 10
    settings = dataclasses.replace(lab.settings, epochs=100)
    scores = functools.partial(difficulty, lab.network, images, settings, networks=2)
    torch.manual_seed(1)
    seen = scores(5)
    torch.manual_seed(2)
    assert torch.equal(scores(5), seen)
    assert (scores(6) - seen).norm() > 1
    easy_to_hard = seen.argsort()
    assert len({*easy_to_hard[-30:].tolist()} & {*wrong.tolist()}) >= 7  # of ten; three by chance


def test_the_networks_of_the_scores_are_trained_as_by_hand(lab: Any) -> None:
    images, settings = lab.make_data().train, dataclasses.replace(lab.settings, weight_decay=0.01)
    network = build_network(lab.network, 5, "difficulty", 0, "network")
    parameters = list(network.parameters())
    velocities = [torch.zeros_like(each) for each in parameters]
    for epoch in range(2):
        order = torch.randperm(100, generator=keyed_generator(5, "difficulty", 0, "order", epoch))
        for rows in (order[:32], order[32:64], order[64:96], order[96:]):
            loss = F.cross_entropy(network(images.images[rows]), images.labels[rows])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for own, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
                    velocity.mul_(0.9).add_(gradient + 0.01 * own)
                    own.sub_(0.03 * velocity)
    seen = difficulty(lab.network, images, settings, 5, networks=1, epochs=2)
    torch.testing.assert_close(seen, gradient_norms(network.eval(), images), rtol=1e-4, atol=1e-6)


class Rigid(nn.Module):
    """A network that asks for values, which is not possible for many images at once."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits if float(logits.sum()) > 0 else logits + 0


def test_a_network_without_gradients_of_single_images_is_named(lab: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"expert\.samples=curriculum: Rigid does not support.*of your own"):
        gradient_norms(Rigid(), lab.make_data().train)


def counted(scores: Tensor, calls: list[int]) -> Callable[[], Tensor]:
    def compute() -> Tensor:
        calls.append(1)
        return scores

    return compute


def test_scores_are_computed_once_for_a_store(lab: Any, tmp_path: Path) -> None:
    store, calls = lab.store(tmp_path / "store"), list[int]()
    scores = torch.rand(100)
    for _ in range(2):
        assert torch.equal(kept_in(store, counted(scores, calls)), scores)
    assert len(calls) == 1
    path = store.folder / SCORES_FILE
    assert not [each for each in verify_store(store.folder) if SCORES_FILE in each.file]

    other = lab.store(tmp_path / "other", dataclasses.replace(lab.settings, lr=0.01))
    (other.folder / SCORES_FILE).write_bytes(path.read_bytes())
    with pytest.raises(ConfigurationError, match=rf"experts_dir=.*it belongs to store {store.id}.*delete it"):
        kept_in(other, counted(scores, calls))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"does not match its checksum.*delete it"):
        kept_in(store, counted(scores, calls))
    assert [each.file for each in verify_store(store.folder) if SCORES_FILE in each.file] == [str(path)]
    path.unlink()
    assert torch.equal(kept_in(store, counted(scores, calls)), scores)
    assert len(calls) == 2


def slowly(store: Any, results: Any, value: float) -> None:
    def compute() -> Tensor:
        time.sleep(0.5)
        return torch.full((3,), value)

    results.put((value, float(kept_in(store, compute)[0])))


def test_two_processes_compute_them_once(lab: Any, tmp_path: Path) -> None:
    store, context = lab.store(tmp_path / "store"), multiprocessing.get_context("fork")
    results: Any = context.Queue()
    processes = [context.Process(target=slowly, args=(store, results, value)) for value in (1.0, 2.0)]
    for process in processes:
        process.start()
    seen = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({kept for _, kept in seen}) == 1


def test_an_expert_follows_the_curriculum(lab: Any) -> None:
    """Against a part of one's own that gets the same scores; each epoch has the steps that its images fill."""
    settings = dataclasses.replace(lab.settings, epochs=5, samples="curriculum")
    calls: list[tuple[int, int]] = []
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0))

    def own(epoch: int, labels: Tensor, scores: Tensor) -> Tensor:
        calls.append((epoch, len(curriculum(epoch, labels, scores, 5))))
        return curriculum(epoch, labels, scores, 5)

    data = lab.make_data()
    options = {"scores": lambda compute: scores, "limit_val_batches": 0, **RELOAD}
    seen = lab.train(TrajectoryRecorder(None), 0, settings=settings, data=data, **options)
    assert seen.trainer.global_step == data.count_steps(5) == 3 + 4 + 4 + 3 + 3  # 70, 100, 100, 90 and 80 images
    mine = lab.train(TrajectoryRecorder(None), 0, settings=dataclasses.replace(settings, samples=own), **options)
    for pair in zip(seen.network.parameters(), mine.network.parameters(), strict=True):
        assert torch.equal(*pair)
    assert {*calls} == {(0, 70), (1, 100), (2, 100), (3, 90), (4, 80)}


def test_scores_are_computed_for_parts_that_take_them(lab: Any) -> None:
    """Without a store, the expert computes them itself; with a default, the part does not get them."""
    kept: list[Tensor] = []

    def hard(epoch: int, labels: Tensor, scores: Tensor) -> Tensor:
        kept.append(scores)
        return scores.argsort()[-40:]

    settings = dataclasses.replace(lab.settings, epochs=1, samples=hard)
    lab.train(TrajectoryRecorder(None), 0, settings=settings, limit_val_batches=0, **RELOAD)
    assert torch.equal(kept[0], difficulty(lab.network, lab.make_data().train, settings, lab.seed))
    for given in (functools.partial(hard, scores=torch.arange(100)), lambda epoch, labels: torch.arange(40)):
        lab.train(
            TrajectoryRecorder(None), 0, settings=dataclasses.replace(settings, samples=given), limit_val_batches=0,
            scores=lambda compute: pytest.fail("they are not needed"), **RELOAD,
        )  # fmt: skip
    assert torch.equal(kept[-1], torch.arange(100))
