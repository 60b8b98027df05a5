"""Where the synthetic images start: representatives of each class, random real images, noise."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from ast_lightning.config.distill import DistillSettings
from ast_lightning.data import LabelledImages
from ast_lightning.data.selection import check_ipc, representatives
from ast_lightning.distillation import initial_images
from ast_lightning.errors import ConfigurationError

NAMES = ("ant", "bee", "cat")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def real() -> LabelledImages:
    """20, 25 and 14 images of three classes in mixed order, all of them different."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate((20, 25, 14))])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return LabelledImages(normal(len(labels), 2, 4, 4, seed=1), labels[order])


def initial(init: Any, real: LabelledImages, ipc: int, clusters: int = 10, **options: Any) -> tuple[Tensor, Tensor]:
    return initial_images(DistillSettings(ipc=ipc, init=init, init_clusters=clusters), real, NAMES, **options)


def two_logits(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :2]


@given(samples=st.integers(1, 40), share=st.floats(0, 1), clusters=st.integers(1, 12), seed=st.integers(0, 2**63 - 1))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_exactly_count_distinct_samples(samples: int, share: float, clusters: int, seed: int) -> None:
    count = max(1, round(share * samples))
    features = normal(samples, 3, seed=samples)
    chosen = representatives(features, count, clusters, seed)
    assert chosen.dtype == torch.int64
    assert len(chosen) == count == len(set(chosen.tolist()))
    assert set(chosen.tolist()) <= set(range(samples))


def test_representatives_are_deterministic() -> None:
    features = normal(60, 5, seed=2)
    torch.manual_seed(1)
    first = representatives(features, 13, 10, 4)
    torch.manual_seed(2)
    assert torch.equal(first, representatives(features, 13, 10, 4))


def test_nearest_first_taking_centres_in_turn() -> None:
    """Two far clusters: the larger has its centre at −0.025, the smaller at 10.367."""
    features = torch.tensor([[10.0], [0.0], [0.3], [10.9], [0.1], [-0.5], [10.2]])
    larger, smaller = [1, 4, 2, 5], [6, 0, 3]
    assert representatives(features, 2, 2, 0).tolist() == [1, 6]
    assert representatives(features, 5, 2, 0).tolist() == [1, 6, 4, 0, 2]
    everything = representatives(features, 7, 2, 0).tolist()
    assert everything == [1, 6, 4, 0, 2, 3, 5]
    assert [each for each in everything if each in larger] == larger
    assert [each for each in everything if each in smaller] == smaller


@pytest.mark.parametrize("count", [12, 25, 40])
def test_each_centre_takes_the_nearest_sample_that_is_free(count: int) -> None:
    """Clusters that run out go on with samples of their neighbours."""
    features = normal(40, 3, seed=6).double()
    model = KMeans(6, n_init=10, random_state=11).fit(features.numpy())
    sizes = [(model.labels_ == centre).sum() for centre in range(6)]
    free, expected = set(range(40)), []
    while len(expected) < count:
        for centre in sorted(range(6), key=lambda each: -sizes[each]):
            if len(expected) < count:
                gaps = (features - torch.from_numpy(model.cluster_centers_[centre])).norm(dim=1)
                expected.append(min(free, key=lambda sample: float(gaps[sample])))
                free.remove(expected[-1])
    assert representatives(features, count, 6, 11).tolist() == expected


def test_one_cluster_takes_those_nearest_to_the_mean() -> None:
    features = normal(30, 4, seed=3)
    nearest = (features - features.mean(0)).norm(dim=1).argsort()
    assert torch.equal(representatives(features, 6, 1, 9), nearest[:6])
    assert torch.equal(representatives(features, 1, 10, 9), nearest[:1])


@pytest.mark.parametrize("distinct", [1, 3])
def test_identical_samples_are_told_apart_by_index(distinct: int) -> None:
    features = normal(distinct, 2, seed=4).repeat(12 // distinct, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for count in (1, 5, 12):
            assert len(set(representatives(features, count, 10, 0).tolist())) == count


@pytest.mark.parametrize("init", ["real", "representative"])
@pytest.mark.parametrize("ipc", [1, 10, 13])
def test_images_are_distinct_real_ones_of_their_class(real: LabelledImages, init: str, ipc: int) -> None:
    images, labels = initial(init, real, ipc, seed=5, experts=lambda: iter([two_logits]))
    assert images.shape == (3 * ipc, 2, 4, 4)
    assert labels.tolist() == [label for label in range(3) for _ in range(ipc)]
    where = (images[:, None] == real.images[None]).flatten(2).all(2)
    assert where.sum(1).tolist() == [1] * (3 * ipc)
    origin = where.int().argmax(1)
    assert len(set(origin.tolist())) == 3 * ipc
    assert torch.equal(real.labels[origin], labels)


def test_images_are_a_copy(real: LabelledImages) -> None:
    before = real.images.clone()
    images, _ = initial("real", real, 2, seed=5)
    images.zero_()
    assert torch.equal(real.images, before)


def test_representative_images_are_nearest_in_the_logits_of_their_class(real: LabelledImages) -> None:
    images, labels = initial("representative", real, 3, clusters=1, seed=0, experts=lambda: iter([two_logits]))
    for label in range(3):
        members = real.images[real.labels == label]
        features = two_logits(members)
        nearest = (features - features.mean(0)).norm(dim=1).argsort()[:3]
        assert torch.equal(images[labels == label], members[nearest])


def test_a_function_of_ones_own_gets_all_experts(real: LabelledImages) -> None:
    def own(real: LabelledImages, names: Any, settings: DistillSettings, seed: int, experts: Any) -> Any:
        assert list(experts()) == [two_logits, torch.neg]
        return initial("noise", real, settings.ipc, seed=seed)

    images, _ = initial(own, real, 2, seed=5, experts=lambda: iter([two_logits, torch.neg]))
    assert torch.equal(images, initial("noise", real, 2, seed=5)[0])


def test_random_real_images_depend_on_the_seed(real: LabelledImages) -> None:
    first, again, other = (initial("real", real, 5, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_standard_normal_and_needs_no_real_image(real: LabelledImages) -> None:
    images, labels = initial("noise", real, 40, seed=1)
    assert images.shape == (120, 2, 4, 4)
    assert torch.bincount(labels).tolist() == [40, 40, 40]
    assert float(images.mean()) == pytest.approx(0, abs=0.06)
    assert float(images.std()) == pytest.approx(1, abs=0.06)
    assert not torch.equal(images, initial("noise", real, 40, seed=2)[0])


@pytest.mark.parametrize("init", ["real", "representative"])
def test_more_images_than_the_smallest_class_holds(real: LabelledImages, init: str) -> None:
    assert len(initial(init, real, 14, seed=0, experts=lambda: iter([two_logits]))[0]) == 42
    with pytest.raises(ConfigurationError, match=r"distill\.ipc=15: class 'cat' has only 14"):
        initial(init, real, 15, seed=0, experts=lambda: iter([two_logits]))


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(ConfigurationError, match="class 'cat' has only 0"):
        check_ipc(torch.tensor([0, 0, 1, 1]), NAMES, 1)


def test_refusals(real: LabelledImages) -> None:
    with pytest.raises(ConfigurationError, match=r"distill\.init=gaussian.*representative, real, noise"):
        initial("gaussian", real, 1, seed=0)
    with pytest.raises(ConfigurationError, match=r"distill\.init=representative: it needs a trained expert"):
        initial("representative", real, 1, seed=0)
