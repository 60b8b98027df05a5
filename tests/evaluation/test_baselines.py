"""What synthetic sets are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ast_lightning.data import LabelledImages
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import baselines
from ast_lightning.evaluation.baselines import expert_logits, held_out, random_sets, representative_set, whole_score
from ast_lightning.networks import ConvNet, build_network, describe_network
from ast_lightning.randomness import keyed_generator, keyed_seed
from ast_lightning.trajectories import TrajectoryStore

NAMES = [str(label) for label in range(10)]


def logits(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :3]


def test_each_network_has_its_own_random_images(real: LabelledImages) -> None:
    draw = random_sets(real, NAMES, 2, 5, 0.03)
    sets = [draw(index) for index in range(3)]
    for index, each in enumerate(sets):
        assert each.learning_rate == 0.03
        assert torch.equal(each.labels, torch.arange(10).repeat_interleave(2))
        own = keyed_seed(5, "random real images", index)  # these words must never change: they determine the draw
        for label in range(10):
            members = real.images[real.labels == label]
            order = torch.randperm(len(members), generator=keyed_generator(own, "real initialisation", label))
            assert torch.equal(each.images[each.labels == label], members[order[:2]])
    assert not torch.equal(sets[0].images, sets[1].images)
    assert torch.equal(sets[1].images, draw(1).images)


def test_representative_images_are_nearest_to_the_centre_of_their_class(real: LabelledImages) -> None:
    found = representative_set(real, NAMES, 3, 0, 0.03, logits, clusters=1)
    assert found.learning_rate == 0.03
    for label in range(10):
        members = real.images[real.labels == label]
        nearest = (logits(members) - logits(members).mean(0)).norm(dim=1).argsort()[:3]
        assert torch.equal(found.images[found.labels == label], members[nearest])


@pytest.mark.parametrize("name", ["random", "representative"])
def test_a_class_with_too_few_real_images_is_named(real: LabelledImages, name: str) -> None:
    few = real.take(torch.arange(25))
    make = {"random": random_sets, "representative": functools.partial(representative_set, logits=logits)}[name]
    with pytest.raises(ConfigurationError, match=r"class '5' has only 2 .* the 3 images per class") as caught:
        make(few, NAMES, 3, 0, 0.1)
    assert (caught.value.option, caught.value.value) == ("baselines", name)


def test_held_out_images_are_training_images_that_are_not_in_the_subset(
    real: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = random_sets(real, NAMES, 2, 5, 0.03)(0)
    twice = LabelledImages(torch.cat([real.images, chosen.images]), torch.cat([real.labels, chosen.labels]))
    found = held_out(twice, chosen.images, seed=1)
    assert len(found) == len(real) - len(chosen.images)  # equal images are left out too
    rows = {image.numpy().tobytes(): int(label) for image, label in zip(real.images, real.labels, strict=True)}
    assert all(
        rows.pop(image.numpy().tobytes()) == label for image, label in zip(found.images, found.labels, strict=True)
    )
    assert set(rows) == {image.numpy().tobytes() for image in chosen.images}
    assert torch.equal(held_out(twice, chosen.images, seed=1).images, found.images)
    monkeypatch.setattr(baselines, "MOST_HELD_OUT", 100)
    first, second = (held_out(real, chosen.images, seed) for seed in (1, 2))
    assert 90 < len(first) <= 100
    assert not torch.equal(first.images[:50], second.images[:50])
    assert len(held_out(real.take(torch.arange(20)), real.images[:20], seed=1)) == 20  # nothing else is there


def stored(folder: Path, factory: Callable[[], ConvNet], *metrics: Mapping[str, float]) -> TrajectoryStore:
    """A store of experts of one epoch, with these metrics."""
    about: dict[str, Any] = {"network": describe_network(factory), "data": {}, "epochs": 1, "seed": 0}
    store = TrajectoryStore.create(folder, about)
    for expert, each in enumerate(metrics):
        for epoch in (0, 1):
            store.write_snapshot(expert, epoch, dict(build_network(factory, expert, epoch).named_parameters()))
        store.finish(expert, {"metrics": each})
    return store


def test_logits_are_those_of_the_first_expert_after_its_last_epoch(
    convnet: Callable[..., Callable[[], ConvNet]], real: LabelledImages, tmp_path: Path
) -> None:
    store = stored(tmp_path, convnet(), {}, {})
    found = expert_logits(convnet(), store)(real.images[:5])
    assert not found.requires_grad
    torch.testing.assert_close(found, build_network(convnet(), 0, 1)(real.images[:5]).detach())


def test_the_whole_dataset_scores_as_its_experts(convnet: Callable[..., Callable[[], ConvNet]], tmp_path: Path) -> None:
    store = stored(tmp_path, convnet(), {"test/accuracy": 0.5, "train/loss": 1}, {"test/accuracy": 0.75})
    assert whole_score(store, [0, 1]).accuracies == (50.0, 75.0)
    assert whole_score(store, [1]).accuracies == (75.0,)


def test_experts_without_accuracies_are_no_baseline(
    convnet: Callable[..., Callable[[], ConvNet]], tmp_path: Path
) -> None:
    store = stored(tmp_path, convnet(), {"test/accuracy": 0.5}, {"train/loss": 1})
    with pytest.raises(ConfigurationError, match=r"^baselines=whole: no test accuracy"):
        whole_score(store, [0, 1])
