"""NetworkEvaluator against plain PyTorch training, alone, in groups and in every autograd mode."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ast_lightning.data import LabelledImages, SiameseAugmentation
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationSettings, NetworkEvaluator, Score
from ast_lightning.networks import ConvNet
from ast_lightning.randomness import keyed_generator, keyed_seed
from ast_lightning.synthetic import TrainingSet

CPU = torch.device("cpu")
SETTINGS = EvaluationSettings(networks=3, epochs=14, batch_size=8, lr=None, weight_decay=1e-2, at_once=1)
Convnet = Callable[..., Callable[[], ConvNet]]


def plain_training(
    factory: Callable[[], nn.Module],
    data: TrainingSet,
    key: tuple[Any, ...],
    index: int,
    augmentation: SiameseAugmentation | None,
    *,
    falls_at: int = 9,  # the first epoch after index 14 // 2 + 1 = 8
    second_momentum: float = 0.8,
    fresh: bool = True,
    weight_decay: float = 1e-2,
    rate: float = 0.05,
) -> nn.Module:
    """Section 3 of the method: SGD with momentum 0.9, one halving of the rate, momentum 0.8 from zero afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(keyed_seed(*key, "network", index))
        module = factory().train()
    velocity = [torch.zeros_like(parameter) for parameter in module.parameters()]
    momentum = 0.9
    for epoch in range(14):
        if epoch == falls_at:
            rate, momentum = rate / 2, second_momentum
            velocity = [torch.zeros_like(each) if fresh else each for each in velocity]
        generator = keyed_generator(*key, "batches", index, epoch)
        crops = keyed_generator(*key, "crops", index, epoch)
        for rows in torch.randperm(len(data.images), generator=generator).split(8):
            images = data.images[rows] if data.crop_size is None else rolled(data.images[rows], crops)
            if augmentation:
                images = augmentation.apply(images, augmentation.draw(len(rows), (8, 8), generator))
            if data.labels.ndim == 2:
                loss = -(data.labels[rows] * module(images).log_softmax(1)).sum(1).mean()
            else:
                loss = F.cross_entropy(module(images), data.labels[rows])
            gradients = torch.autograd.grad(loss, list(module.parameters()))
            with torch.no_grad():
                for position, (weight, gradient) in enumerate(zip(module.parameters(), gradients, strict=True)):
                    velocity[position] = momentum * velocity[position] + gradient + weight_decay * weight
                    weight -= rate * velocity[position]
    return module


def rolled(canvases: Tensor, generator: torch.Generator) -> Tensor:
    """The upper left 8×8 pixels of each canvas, rolled by offsets of its own."""
    down, right = (torch.randint(side, (len(canvases),), generator=generator) for side in canvases.shape[2:])
    places = zip(canvases, down.tolist(), right.tolist(), strict=True)
    return torch.stack([torch.roll(canvas, (y, x), (1, 2))[:, :8, :8] for canvas, y, x in places])


@torch.no_grad()
def relabelled(real: LabelledImages, module: nn.Module) -> LabelledImages:
    """The images with the module's own answers: a network that agrees with it everywhere scores 100 %."""
    return LabelledImages(real.images, module(real.images).argmax(1))


def only(evaluator: NetworkEvaluator, data: TrainingSet, *indices: int) -> list[float]:
    return evaluator.run(list(indices), lambda index: data, CPU)["test"]


@pytest.mark.parametrize("normalization", ["instance", "batch"])
@pytest.mark.parametrize("families", [None, "color_crop_cutout_flip_scale_rotate"])
def test_a_network_is_the_one_that_a_plain_loop_trains(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages, normalization: str, families: str | None
) -> None:
    factory, key = convnet(normalization), (6, "evaluation")
    augmentation = SiameseAugmentation(families) if families else None

    def agreement(**changes: Any) -> float:
        module = plain_training(factory, training_set, key, 2, augmentation, **changes).eval()
        evaluator = NetworkEvaluator(
            factory, SETTINGS, {"test": relabelled(real, module)}, augmentation=augmentation, seed=6
        )
        return only(evaluator, training_set, 2)[0]

    assert agreement() >= 99.9
    # the yardstick is fine enough to see each of these
    wrong: list[dict[str, Any]] = [
        {"falls_at": 8}, {"falls_at": 10}, {"second_momentum": 0.9}, {"fresh": False}, {"weight_decay": 1e-3}
    ]  # fmt: skip
    assert all(agreement(**each) < 99.9 for each in wrong)


@pytest.mark.parametrize("normalization", ["instance", "batch"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_soft_labels_have_the_soft_loss(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages, normalization: str, at_once: int
) -> None:
    """Networks trained together and modules with state; they are tested on hard labels."""
    logits = 2 * F.one_hot(training_set.labels, 10) + torch.randn(20, 10, generator=torch.Generator().manual_seed(4))
    soft = training_set._replace(labels=logits.softmax(1))
    module = plain_training(convnet(normalization), soft, (0, "evaluation"), 0, None).eval()
    settings = dataclasses.replace(SETTINGS, at_once=at_once)
    evaluator = NetworkEvaluator(convnet(normalization), settings, {"test": relabelled(real, module)})
    assert only(evaluator, soft, *evaluator.groups()[0])[0] >= 99.9
    assert only(evaluator, training_set, *evaluator.groups()[0])[0] < 99


def test_running_statistics_are_used_and_belong_to_the_network(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages
) -> None:
    """In training mode, batch norm would judge an image by its neighbours."""
    module = plain_training(convnet("batch"), training_set, (0, "evaluation"), 0, None)
    answers = relabelled(real, module.eval())
    shifted = LabelledImages(answers.images[:40] * 3 + 2, module(answers.images[:40] * 3 + 2).argmax(1))
    evaluator = NetworkEvaluator(convnet("batch"), SETTINGS, {"test": shifted})
    assert only(evaluator, training_set, 0) == [100.0]
    by_batch = module.train()(shifted.images).argmax(1)
    assert (by_batch != shifted.labels).float().mean() > 0.1


@pytest.mark.parametrize("normalization", ["instance", "batch"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_autograd_modes_around_it_change_nothing(
    convnet: Convnet,
    training_set: TrainingSet,
    real: LabelledImages,
    normalization: str,
    mode: Callable[[], AbstractContextManager[Any]],
) -> None:
    evaluator = NetworkEvaluator(
        convnet(normalization), SETTINGS, {"test": real}, augmentation=SiameseAugmentation("color_crop_flip")
    )
    outside = only(evaluator, training_set, 1)
    assert 15 < outside[0] < 100  # it has learnt, and can be told from others
    with mode():
        assert only(evaluator, training_set, 1) == outside
        made_inside = TrainingSet(training_set.images.clone(), training_set.labels.clone(), 0.05)
        assert only(evaluator, made_inside, 1) == outside
    assert only(evaluator, training_set, 1) == outside


def test_draws_depend_on_seed_purpose_and_index_alone(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages
) -> None:
    global_seeds = itertools.count()

    def accuracy(seed: int = 0, purpose: str = "evaluation", index: int = 0) -> float:
        torch.manual_seed(next(global_seeds))
        evaluator = NetworkEvaluator(convnet(), SETTINGS, {"test": real}, seed=seed, purpose=purpose)
        return only(evaluator, training_set, index)[0]

    assert accuracy() == accuracy()
    assert len({accuracy(), accuracy(seed=1), accuracy(purpose="other"), accuracy(index=1)}) == 4


def test_global_random_state_is_left_alone(convnet: Convnet, training_set: TrainingSet, real: LabelledImages) -> None:
    before = torch.get_rng_state()
    only(NetworkEvaluator(convnet(), SETTINGS, {"test": real}), training_set, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("soft", [False, True])
def test_networks_trained_at_once_are_those_trained_alone(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages, soft: bool
) -> None:
    if soft:
        training_set = training_set._replace(labels=0.9 * F.one_hot(training_set.labels, 10) + 0.01)
    together = dataclasses.replace(SETTINGS, at_once=3)
    augmentation = SiameseAugmentation("color_crop_cutout_flip_scale_rotate")
    splits = {"test": real, "few": real.take(torch.arange(7))}
    alone = NetworkEvaluator(convnet(), SETTINGS, splits, augmentation=augmentation)
    grouped = NetworkEvaluator(convnet(), together, splits, augmentation=augmentation)
    assert alone.groups() == [[0], [1], [2]]
    assert grouped.groups() == [[0, 1, 2]]
    found = grouped.run([0, 1, 2], lambda index: training_set, CPU)
    assert list(found) == ["test", "few"]
    singly = [only(alone, training_set, index)[0] for index in range(3)]
    assert found["test"] == pytest.approx(singly, abs=0.3)
    assert len(set(singly)) == 3
    assert min(abs(a - b) for a in singly for b in singly if a != b) > 0.3  # so that an exchange would show


def test_stacked_networks_predict_like_plain_ones(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages
) -> None:
    """Each network of a group is tested on the answers of its own plain loop, with a set of its own."""

    def own(index: int) -> TrainingSet:
        return training_set._replace(images=training_set.images + index * 0.2)

    together = dataclasses.replace(SETTINGS, at_once=2)
    splits = {
        f"answers {index}": relabelled(real, plain_training(convnet(), own(index), (0, "evaluation"), index, None))
        for index in range(2)
    }
    found = NetworkEvaluator(convnet(), together, splits).run([0, 1], own, CPU)
    for index in range(2):
        assert found[f"answers {index}"][index] >= 99.8
        assert found[f"answers {index}"][1 - index] < 90


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_networks_are_trained_on_crops_of_canvases_drawn_anew_for_every_batch(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages, normalization: str
) -> None:
    """Networks that are stacked, and networks with buffers, against the plain loop."""
    canvases = training_set.images.repeat(1, 1, 2, 2) + 0.1 * torch.arange(256).view(16, 16).sin()
    textures = training_set._replace(images=canvases, crop_size=(8, 8))
    augmentation = SiameseAugmentation("color_crop_flip")
    settings = dataclasses.replace(SETTINGS, at_once=2)
    splits = {}
    for index in range(2):
        module = plain_training(convnet(normalization), textures, (0, "evaluation"), index, augmentation).eval()
        splits[str(index)] = relabelled(real, module)
    evaluator = NetworkEvaluator(convnet(normalization), settings, splits, augmentation=augmentation)

    def agreement(data: TrainingSet) -> list[float]:
        found = [evaluator.run(group, lambda index: data, CPU) for group in evaluator.groups(2)]
        return [[*itertools.chain.from_iterable(each[str(index)] for each in found)][index] for index in range(2)]

    assert min(agreement(textures)) >= 99.8
    assert max(agreement(textures._replace(images=canvases.roll(1, 2)))) < 99.5
    assert max(agreement(training_set)) < 90


def test_groups(convnet: Convnet, real: LabelledImages) -> None:
    pairs = dataclasses.replace(SETTINGS, at_once=2)
    evaluator = NetworkEvaluator(convnet(), pairs, {"test": real})
    assert evaluator.groups(5) == [[0, 1], [2, 3], [4]]
    assert evaluator.groups() == [[0, 1], [2]]
    # running statistics cannot be stacked
    stateful = NetworkEvaluator(convnet("batch"), pairs, {"test": real})
    assert stateful.groups() == [[0], [1], [2]]


def test_settings_decide_rate_and_augmentation(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages
) -> None:
    def accuracy(augmentation: str | None, rate: float, **changes: Any) -> float:
        settings = dataclasses.replace(SETTINGS, **changes)
        siamese = SiameseAugmentation(augmentation) if augmentation else None
        evaluator = NetworkEvaluator(convnet(), settings, {"test": real}, augmentation=siamese)
        return only(evaluator, training_set._replace(learning_rate=rate), 0)[0]

    assert accuracy("crop", 0.05, augment=False) == accuracy(None, 0.05) != accuracy("crop", 0.05)
    assert accuracy(None, 9.0, lr=0.05) == accuracy(None, 0.05) != accuracy(None, 0.01)


def test_each_network_of_a_group_has_the_learning_rate_of_its_set(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages
) -> None:
    rates = (1e-4, 0.05, 1e6)

    def own(index: int) -> TrainingSet:
        return training_set._replace(learning_rate=rates[index])

    together = NetworkEvaluator(convnet(), dataclasses.replace(SETTINGS, at_once=3), {"test": real})
    alone = NetworkEvaluator(convnet(), SETTINGS, {"test": real})
    slow, fast, diverged = together.run([0, 1, 2], own, CPU)["test"]
    assert [slow, fast] == pytest.approx([only(alone, own(index), index)[0] for index in (0, 1)], abs=0.3)
    assert fast > slow + 10
    assert math.isnan(diverged)  # and not the accuracy of a network that gives all images one class


@pytest.mark.parametrize("normalization", ["instance", "batch"])
@pytest.mark.parametrize("epochs", [2, 14])
def test_networks_that_diverged_have_no_accuracy(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages, normalization: str, epochs: int
) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=epochs)
    evaluator = NetworkEvaluator(convnet(normalization), settings, {"test": real})
    assert math.isnan(only(evaluator, training_set._replace(learning_rate=1e6), 0)[0])
    assert not math.isnan(only(evaluator, training_set, 0)[0])


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_every_epoch_of_every_group_is_reported(
    convnet: Convnet, training_set: TrainingSet, real: LabelledImages, normalization: str
) -> None:
    evaluator = NetworkEvaluator(convnet(normalization), dataclasses.replace(SETTINGS, at_once=2), {"test": real})
    counted = itertools.count()
    evaluator.on_epoch = lambda: next(counted) and None
    for group in evaluator.groups():
        evaluator.run(group, lambda index: training_set, CPU)
    assert next(counted) == SETTINGS.epochs * len(evaluator.groups())


class Dropping(nn.Module):
    """Has no state beside its parameters, and behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.7), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.linear(self.drop(images.flatten(1)))
        return answer


@pytest.mark.parametrize("at_once", [1, 2])
def test_networks_with_dropout_are_tested_without_it(
    training_set: TrainingSet, real: LabelledImages, at_once: int
) -> None:
    """An image shown twice is answered twice alike, unless units are dropped in the test as well."""
    settings = dataclasses.replace(SETTINGS, at_once=at_once)
    one = LabelledImages(real.images[:1].expand(500, -1, -1, -1), torch.zeros(500, dtype=torch.int64))
    splits = {str(label): LabelledImages(one.images, one.labels + label) for label in range(10)}
    evaluator = NetworkEvaluator(Dropping, settings, splits)
    found = evaluator.run(evaluator.groups()[0], lambda index: training_set, CPU)
    assert {accuracy for by_network in found.values() for accuracy in by_network} == {0.0, 100.0}


def test_dropped_units_depend_on_the_key_alone(training_set: TrainingSet, real: LabelledImages) -> None:
    evaluator = NetworkEvaluator(Dropping, SETTINGS, {"test": real})
    torch.manual_seed(0)
    first = only(evaluator, training_set, 0)
    torch.manual_seed(1)
    assert only(evaluator, training_set, 0) == first


def test_score() -> None:
    values = (10.0, 20.0, 60.0)
    score = Score(values)
    assert score.mean == pytest.approx(30.0)
    assert score.std == pytest.approx((700.0) ** 0.5)
    assert score.std == pytest.approx(statistics.stdev(values))
    assert str(score) == "30.0 ± 26.5 %"
    alone = Score((41.25,))
    assert (alone.mean, alone.std, str(alone)) == (41.25, 0.0, "41.2 %")


def test_a_score_of_networks_some_of_which_diverged_has_no_number() -> None:
    score = Score((90.0, math.nan, 91.0))
    assert score.diverged == 1
    assert math.isnan(score.mean)
    assert math.isnan(score.std)
    assert str(score) == "1 of 3 networks diverged"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("networks", 0), ("epochs", 0), ("batch_size", 0), ("at_once", 0), ("lr", 0.0), ("lr", -0.1),
        ("lr_decay", 0.0), ("momentum", 1.0), ("momentum", -0.1), ("momentum_after_decay", 1.5),
        ("weight_decay", -1e-3), ("weight_decay", float("nan")), ("baseline_lr", "0.01"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        EvaluationSettings(**{name: value})
    assert caught.value.option == f"evaluation.{name}"
    assert str(value) in str(caught.value)
