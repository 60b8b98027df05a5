"""Soft labels that are learned (DATM), and labels of the expert at the end of a window (TESLA)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ast_lightning.callbacks import ImageAverage
from ast_lightning.config.distill import DistillSettings
from ast_lightning.data import LabelledImages, fit_preprocessing
from ast_lightning.data.selection import initial_logits
from ast_lightning.distillation import (
    Context,
    DistillModule,
    SyntheticImages,
    TrajectoryMatching,
    TrajectoryMatchingSettings,
    initial_images,
    starting_point,
)
from ast_lightning.distillation.outer import NormalizedSGD
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation.baselines import expert_logits
from ast_lightning.networks import FunctionalNetwork
from ast_lightning.randomness import keyed_generator
from ast_lightning.synthetic import DistilledDataset, save_distilled
from tests.distillation.conftest import FAMILIES, starting_labels
from tests.distillation.test_distill_resume import Kill, checkpoints

Make = Callable[..., Any]
DATM: dict[str, Any] = {
    "labels": "soft", "momentum": 0.0, "perturbation": 0.0, "balance": False, "intermediate": "none", "max_steps": 3,
    "lr_labels": 5.0, "lr_img": 10.0, "lr_lr": 1e-3,
}  # fmt: skip


def plain_loop(
    method: TrajectoryMatching, images: Tensor, logits: Tensor, settings: TrajectoryMatchingSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """DATM's outer loop with autograd through every inner step: X, Z and α after it."""
    network, augmentation = FunctionalNetwork(method._network).to("cpu", torch.float64), method._augmentation
    learned = [images.double().clone(), logits.double().clone(), torch.tensor(settings.lr_teacher, dtype=torch.float64)]
    rates, momenta = (settings.lr_img, settings.lr_labels, settings.lr_lr), (0.5, 0.9, 0.5)
    velocities = [torch.zeros_like(each) for each in learned]
    for iteration in range(settings.max_steps):
        window = method.windows.window(iteration)
        x, z, alpha = (each.requires_grad_() for each in learned)
        start, target = window.start.double(), window.targets[-1].double()
        theta, chunks = start.clone().requires_grad_(), []
        for step in range(settings.syn_steps):
            if not chunks:
                order = keyed_generator(5, "inner order", iteration, step // 2)
                chunks = list(reversed(torch.randperm(6, generator=order).split(4)))
            rows = chunks.pop(0)
            generator = keyed_generator(5, "inner augmentation", iteration, step)
            batch = augmentation.apply(x[rows], augmentation.draw(len(rows), (8, 8), generator))
            loss = -(z[rows].softmax(1) * network(theta, batch).log_softmax(1)).sum(1).mean()
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - alpha * gradient
        distance = (theta - target).square().sum() / (start - target).square().sum()
        gradients = torch.autograd.grad(distance, (x, z, alpha))
        for place, (rate, momentum, gradient) in enumerate(zip(rates, momenta, gradients, strict=True)):
            velocities[place] = momentum * velocities[place] + gradient
            learned[place] = learned[place].detach() - rate * velocities[place]
    return tuple(learned)  # type: ignore[return-value]


@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"engine": "autograd"}])
def test_iterations_are_those_of_a_plain_loop(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, changes: dict[str, Any]
) -> None:
    settings = ast_settings(**DATM, **changes)
    module = make_module(make_store(), settings, dtype=torch.float64)
    images, logits = (each.detach().clone() for each in (module.synthetic.images, module.synthetic.label_logits))
    make_trainer(settings, precision="64-true").fit(module)
    expected = plain_loop(module.method, images, logits, settings)
    found = (module.synthetic.images, module.synthetic.label_logits, module.synthetic.learning_rate)
    for before, ours, theirs in zip((images, logits, 0.05), found, expected, strict=True):
        moved = theirs - before
        assert float((ours.detach() - theirs).norm()) < 1e-9 * float(moved.norm())
        assert float(moved.norm()) > 1e-5
    labels = module.training_set().labels
    assert torch.equal(labels, found[1].detach().softmax(1))
    assert not labels.requires_grad


@pytest.mark.parametrize("outer", ["sgd", "normalized"])
def test_label_logits_have_their_own_rate_and_momentum(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, outer: str
) -> None:
    rates = {"lr_labels": 5.0} if outer == "sgd" else {"lr_labels": 0.3, "lr_img": 0.1, "alpha": "log"}
    settings = ast_settings(labels="soft", outer=outer, label_momentum=0.8, **rates)
    module = make_module(make_store(), settings)
    make_trainer(settings).fit(module)
    images, rate, logits = module.optimizers(use_pl_optimizer=False).param_groups
    assert (images["momentum"], rate["momentum"], logits["momentum"]) == (0.5, 0.5, 0.8)
    assert [group["params"][0] is each for group, each in ((images, module.synthetic.images),)] == [True]
    assert logits["params"][0] is module.synthetic.label_logits
    assert logits["initial_lr" if "initial_lr" in logits else "lr"] == settings.lr_labels


def test_the_normalized_step_of_logits_by_hand() -> None:
    """Two steps: gradients divided by their root mean square, momentum 0.9, in standard deviations of Z."""
    logits = torch.tensor([[1.0, 3.0]], dtype=torch.float64).requires_grad_()  # the standard deviation is 1
    optimizer = NormalizedSGD([{"params": [logits], "lr": 0.1, "momentum": 0.9}], momentum=0.5)
    for _ in range(2):
        logits.grad = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
        optimizer.step()
    unit = torch.tensor([[3.0, -4.0]]).double() / math.sqrt(12.5)
    torch.testing.assert_close(logits.detach(), torch.tensor([[1.0, 3.0]]).double() - 0.1 * (1 + 1.9) * unit)


def test_a_rate_of_zero_keeps_the_labels(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make
) -> None:
    settings = ast_settings(labels="soft", lr_labels=0)
    module = make_module(make_store(), settings)
    before = module.synthetic.label_logits.detach().clone()
    make_trainer(settings).fit(module)
    assert torch.equal(module.synthetic.label_logits, before)


def teacher_labels(method: TrajectoryMatching, index: int, images: Tensor) -> Tensor:
    network = FunctionalNetwork(method._network).to("cpu", images.dtype)
    with torch.no_grad():
        return network(method.windows.window(index).targets[-1].to(images), images).softmax(1)


def test_teacher_labels_are_those_of_the_end_of_the_window(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make
) -> None:
    """y = softmax of the logits of the current images under θ*_{s+M}, without a gradient; the last ones are kept."""
    settings = ast_settings(labels="teacher", max_steps=3, batch_syn=None)
    module = make_module(make_store(), settings, dtype=torch.float64)
    states: list[Tensor] = []
    module.on_train_batch_start = lambda *_: states.append(module.synthetic.images.detach().clone())
    make_trainer(settings, precision="64-true").fit(module)
    assert not module.synthetic.labels.requires_grad
    expected = teacher_labels(module.method, 2, states[2])
    torch.testing.assert_close(module.training_set().labels, expected, rtol=1e-12, atol=0)
    # the loss of a window is that of a set with these labels
    loss, _ = module.method.loss(module.method.windows.window(4), module.synthetic)
    gradient = torch.autograd.grad(loss, module.synthetic.images)[0]
    labels = teacher_labels(module.method, 4, module.synthetic.images.detach())
    plain = make_module(make_store(), ast_settings(labels="soft", batch_syn=None), dtype=torch.float64)
    with torch.no_grad():
        plain.synthetic.images.copy_(module.synthetic.images)
        plain.synthetic.learning_rate.copy_(module.synthetic.learning_rate)
        plain.synthetic.label_logits = torch.nn.Parameter(labels.log())
    plain.method.start(torch.device("cpu"), torch.float64)
    other, _ = plain.method.loss(plain.method.windows.window(4), plain.synthetic)
    torch.testing.assert_close(gradient, torch.autograd.grad(other, plain.synthetic.images)[0], rtol=1e-9, atol=1e-14)


def test_labels_of_a_rejected_iteration_are_not_kept(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ast_settings(labels="teacher", max_steps=2)
    module = make_module(make_store(), settings)
    verdicts = iter([True, False])
    monkeypatch.setattr(module.method, "accepts", lambda means: next(verdicts))
    start = module.synthetic.images.detach().clone()
    make_trainer(settings).fit(module)
    torch.testing.assert_close(module.synthetic.labels, teacher_labels(module.method, 0, start))


@pytest.mark.parametrize("kind", ["soft", "teacher"])
def test_a_run_that_diverged_goes_back_to_its_labels_too(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, kind: str
) -> None:
    settings = ast_settings(labels=kind, outer="normalized", lr_img=0.1, alpha="log", recoveries=1, max_steps=3)
    module = make_module(make_store(), settings)
    before = module.training_set().labels.clone()
    loss = module.method.loss

    def spoil(item: Any, synthetic: Any) -> tuple[Tensor, dict[str, Tensor]]:
        total, found = loss(item, synthetic)
        factor = math.nan if item.index == 2 else 1.0
        return total * factor, {**found, "train/loss": found["train/loss"] * factor}

    module.method.loss = spoil
    make_trainer(settings).fit(module)
    assert [event["iteration"] for event in module.recovery.events] == [2]
    assert torch.equal(module.training_set().labels, before)


def test_logits_that_are_not_finite_are_named(make_store: Make, make_module: Make, ast_settings: Make) -> None:
    settings = ast_settings(labels="soft", lr_labels=4.0)
    synthetic = make_module(make_store(), settings).synthetic
    assert synthetic.problem(settings) is None
    with torch.no_grad():
        synthetic.label_logits[1, 2] = math.nan
    assert synthetic.problem(settings) == ("the label logits are no longer finite", "lower distill.lr_labels (4)")


@pytest.mark.parametrize("changes", [{"labels": "soft", "lr_labels": 5.0}, {"labels": "teacher"}])
def test_a_killed_run_goes_on_bit_by_bit(
    make_store: Make, make_module: Make, make_trainer: Make, make_evaluator: Make, ast_settings: Make,
    tmp_path: Any, changes: dict[str, Any],
) -> None:  # fmt: skip
    store, settings = make_store(), ast_settings(max_steps=4, eval_every=2, **changes)

    def run(name: str, *callbacks: Any, resume: Any = None) -> tuple[DistillModule, dict[str, float]]:
        module: DistillModule = make_module(store, settings, evaluator=make_evaluator("test"))
        saver = checkpoints(tmp_path / name)
        trainer = make_trainer(settings, saver, ImageAverage(), *callbacks, enable_checkpointing=True)
        trainer.fit(module, ckpt_path=resume, weights_only=True)
        return module, {name: float(value) for name, value in trainer.callback_metrics.items()}

    whole, metrics = run("whole")
    with pytest.raises(OSError, match="killed"):
        run("killed", Kill(3))
    resumed, again = run("killed", resume=tmp_path / "killed" / "checkpoints" / "last.ckpt")
    assert metrics == again
    for name, value in whole.synthetic.state_dict().items():
        assert torch.equal(value, resumed.synthetic.state_dict()[name]), name
    start = starting_labels(settings.labels, torch.arange(3).repeat_interleave(2))
    assert not torch.equal(whole.synthetic.state_dict().get("label_logits", whole.training_set().labels), start)


def test_initial_logits_are_means_over_the_experts_that_are_right() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1)
    labels = torch.tensor([0, 0, 1, 1])
    first = torch.tensor([[3.0, 1.0], [0.0, 2.0], [1.0, 5.0], [4.0, 0.0]])  # right, wrong, right, wrong
    second = torch.tensor([[5.0, 0.0], [7.0, 4.0], [3.0, 2.0], [2.0, 1.0]])  # right, right, wrong, wrong
    experts = [lambda x, table=table: table[x.flatten().long()] for table in (first, second)]
    expected = torch.tensor([[4.0, 0.5], [7.0, 4.0], [1.0, 5.0], [4.0, 0.0]])
    assert torch.equal(initial_logits(images, labels, experts), expected)
    assert torch.equal(initial_logits(images, labels, experts, correct=False), first)


@pytest.fixture
def begin(
    network: Make, make_store: Make, synthetic_set: tuple[Tensor, Tensor], real_images: LabelledImages, tmp_path: Path
) -> Callable[..., tuple[Tensor, Tensor, float]]:
    """``starting_point`` of a run, from an earlier set with the labels ``earlier`` if these are given."""
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    names, store = ("ant", "bee", "cat"), make_store()

    def call(earlier: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor, float]:
        preprocessing = fit_preprocessing("none", pixels)
        data = SimpleNamespace(
            train=real_images, class_names=names, num_classes=3, channels=3, image_size=(8, 8), network_arguments={},
            preprocessing=preprocessing,
        )  # fmt: skip
        if earlier is not None:
            dataset = DistilledDataset(synthetic_set[0], earlier, 0.02, preprocessing, names)
            options["warm_start"] = str(save_distilled(tmp_path / "earlier", dataset))
        context = Context(data, network, 0, 1, lambda: (store, [0, 1, 2]), lambda store: None, None)  # type: ignore[arg-type]
        return starting_point(TrajectoryMatchingSettings(ipc=2, **options), context)

    call.experts = [expert_logits(network, store, index) for index in range(3)]  # type: ignore[attr-defined]
    return call


@pytest.mark.parametrize("init", ["real", "noise", "correct", "representative"])
def test_the_first_logits_are_those_of_experts(begin: Any, init: str) -> None:
    images, labels, rate = begin(init=init, labels="soft")
    classes = torch.arange(3).repeat_interleave(2)
    every = torch.stack([expert(images) for expert in begin.experts])
    right = (every.argmax(2) == classes).unsqueeze(2)
    mean = torch.where(right.any(0), (every * right).sum(0) / right.sum(0).clamp_min(1), every[0])
    torch.testing.assert_close(labels, every[0] if init in ("real", "noise") else mean)
    assert not torch.equal(every[0], mean)
    assert rate == 0.01
    if init == "correct":
        assert bool(right.any(0).all())
    assert torch.equal(begin(init=init)[1], classes)
    assert torch.equal(begin(init=init, labels="teacher")[1], F.one_hot(classes, 3).float())


def test_labels_of_an_earlier_set(begin: Any) -> None:
    classes = torch.arange(3).repeat_interleave(2)
    soft = (2 * F.one_hot(classes, 3) + torch.linspace(0, 1, 18).view(6, 3)).softmax(1)
    images, logits, rate = begin(soft, labels="soft")
    torch.testing.assert_close(logits.softmax(1), soft)
    assert rate == pytest.approx(0.02)
    assert torch.equal(begin(soft, labels="teacher")[1], soft)
    assert torch.equal(begin(soft)[1], classes)
    _, from_hard, _ = begin(classes, labels="soft", init="real")
    torch.testing.assert_close(from_hard, initial_logits(images, classes, begin.experts))
    certain = F.one_hot(classes, 3).float()
    assert bool(begin(certain, labels="soft")[1].isfinite().all())


def test_labels_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"soft labels begin as \[N, classes\] float, not \[2\]"):
        SyntheticImages(torch.zeros(2, 1, 2, 2), torch.arange(2), 0.1, label_kind="soft")


@pytest.fixture
def real() -> LabelledImages:
    """Image i has the value i; classes 0 and 1 alternate."""
    return LabelledImages(torch.arange(20.0).view(20, 1, 1, 1), torch.arange(20) % 2)


def knows(*images: int) -> Callable[[Tensor], Tensor]:
    """An expert that classifies these images correctly, and no others."""

    def logits(x: Tensor) -> Tensor:
        values = x.flatten().long()
        right = torch.isin(values, torch.tensor(images))
        return F.one_hot(torch.where(right, values % 2, 1 - values % 2), 2).float()

    return logits


def correct(real: LabelledImages, ipc: int, seed: int, *experts: Callable[[Tensor], Tensor]) -> list[list[int]]:
    settings = DistillSettings(ipc=ipc, init="correct")
    images, labels = initial_images(settings, real, ("even", "odd"), seed=seed, experts=lambda: iter(experts))
    assert labels.tolist() == [0] * ipc + [1] * ipc
    return images.flatten().long().view(2, ipc).tolist()


def test_correct_images_by_hand(real: LabelledImages) -> None:
    """Each class begins with the first expert; where it runs out, the next adds those that it knows."""
    experts = knows(4, 6, 9, 3, 1), knows(0, 4, 11), knows(2)
    order = {}
    for label in range(2):
        members = torch.arange(label, 20, 2)
        generator = keyed_generator(7, "correct initialisation", label)
        order[label] = members[torch.randperm(10, generator=generator)].tolist()
    assert correct(real, 2, 7, *experts) == [
        [each for each in order[label] if each in images][:2] for label, images in enumerate(([4, 6], [1, 3, 9]))
    ]
    even, odd = correct(real, 4, 7, *experts)
    assert even == [*(each for each in order[0] if each in (4, 6)), 0, 2]
    assert odd == [*(each for each in order[1] if each in (1, 3, 9)), 11]
    assert correct(real, 2, 8, *experts) != correct(real, 2, 7, *experts)


def test_too_few_correct_images_are_named(real: LabelledImages) -> None:
    with pytest.raises(ConfigurationError, match=r"ipc=3: the experts classify only 2 images of class 'even' corr.*=2"):
        correct(real, 3, 0, knows(4, 6, 1, 3, 5))
    with pytest.raises(ConfigurationError, match=r"distill\.init=correct: it needs a trained expert"):
        initial_images(DistillSettings(init="correct"), real, ("even", "odd"), seed=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr_labels": 1}, r"distill\.lr_labels=1: distill\.labels=hard learns no label logits.*labels=null.*=soft"),
        ({"labels": "teacher", "label_momentum": 0.5}, r"distill\.label_momentum=0\.5: distill\.labels=teacher learns"),
        ({"labels": "teacher", "windows_per_step": 2}, r"distill\.labels=teacher: with several windows"),
        ({"labels": "smooth"}, r"distill\.labels=smooth: it must be hard, soft or teacher"),
    ],
)
def test_settings_that_cannot_work(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        TrajectoryMatchingSettings(**values)


def test_rates_follow_the_outer_step() -> None:
    rate = functools.partial(TrajectoryMatchingSettings, labels="soft")
    assert rate(outer="sgd").lr_labels == 10
    assert 0 < rate().lr_labels < 1
    assert TrajectoryMatchingSettings(labels="teacher").lr_labels is None


def test_augmentation_families_matter(make_store: Make, make_module: Make, ast_settings: Make) -> None:
    """The plain loop above augments: otherwise it would not test the gradient through the augmentation."""
    method = make_module(make_store(), ast_settings(**DATM)).method
    assert "_".join(method._augmentation.families) == FAMILIES
