"""DistillModule under a Lightning Trainer against a loop written from the method, and its refusals."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

from ast_lightning.callbacks import ArtifactWriter
from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation import DistillModule, SyntheticSet, TrajectoryMatchingSettings
from ast_lightning.errors import ConfigurationError, DistillationDiverged
from ast_lightning.evaluation import NetworkEvaluator
from ast_lightning.networks import ConvNet
from ast_lightning.randomness import keyed_generator
from ast_lightning.trajectories import TrajectoryStore

SEED = 5
FAMILIES = "color_crop_cutout_flip_scale_rotate"
Make = Callable[..., Any]


class PlainDistillation:
    """Section 2 of the method as one loop, with nothing of the package but its draws and its augmentation."""

    def __init__(
        self,
        store: TrajectoryStore,
        settings: TrajectoryMatchingSettings,
        network: Callable[[], ConvNet],
        start: Tensor,
    ) -> None:
        self.store, self.settings, self.module = store, settings, network()
        self.images = start.clone()
        self.labels = torch.tensor([0, 0, 1, 1, 2, 2])
        self.rate = torch.tensor(settings.lr_teacher, dtype=start.dtype)
        self.buffers = [torch.zeros_like(start), torch.zeros_like(self.rate)]
        self.parts: dict[int, float] = {}
        self.loss = self.start_distance = self.gradient_norm = math.nan
        self.start_epoch = -1

    def snapshot(self, expert: int, epoch: int) -> dict[str, Tensor]:
        file = self.store.folder / f"expert_{expert:04d}" / f"epoch_{epoch:04d}.safetensors"
        tensors = load_file(file)
        return {name: tensors[name].to(self.images.dtype) for name, _ in self.module.named_parameters()}

    def perturbed(self, weights: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        generator = keyed_generator(SEED, "perturbation", index)
        result = {}
        for name, weight in weights.items():
            if weight.ndim == 4 and self.settings.perturbation:
                direction = torch.randn(weight.numel(), generator=generator).view_as(weight).to(weight.dtype)
                direction = direction / direction.square().sum().sqrt()
                weight = weight + self.settings.perturbation * direction * weight
            result[name] = weight
        return result

    def balance(self, epoch: int) -> float:
        if not self.settings.balance:
            return 1.0
        half = self.settings.max_start_epoch // 2
        if epoch >= half:
            return math.log(epoch - half + 8) / math.log(5)
        return math.log(5) / math.log(half - epoch + 8)

    def batch(self, images: Tensor, index: int, step: int) -> tuple[Tensor, Tensor]:
        count, size = len(images), self.settings.batch_syn or len(images)
        chunks = -(-count // size)
        turn = step // chunks
        order = torch.randperm(count, generator=keyed_generator(SEED, "inner order", index, turn))
        # the last chunk first
        position = chunks - 1 - step % chunks
        rows = order[position * size : (position + 1) * size]
        augmentation = SiameseAugmentation(FAMILIES if self.settings.augment else None)
        draw = augmentation.draw(len(rows), (8, 8), keyed_generator(SEED, "inner augmentation", index, step))
        return augmentation.apply(images[rows], draw), self.labels[rows]

    def iterate(self, index: int) -> None:
        settings = self.settings
        count, steps, epochs = len(self.store.experts()), settings.syn_steps, settings.expert_epochs
        order = torch.randperm(count, generator=keyed_generator(SEED, "expert order", index // count))
        expert = int(order[index % count])
        every = self.store.schedule.every_n_epochs
        starts = list(range(0, settings.max_start_epoch, every))
        first = starts[torch.randint(len(starts), (1,), generator=keyed_generator(SEED, "start epoch", index))]
        targets = {offset: self.snapshot(expert, first + offset) for offset in range(every, epochs + 1, every)}
        start = self.perturbed(self.snapshot(expert, first), index)
        images = self.images.clone().requires_grad_()
        rate = self.rate.clone().requires_grad_()

        weights = {name: weight.clone().requires_grad_() for name, weight in start.items()}
        momenta = {name: torch.zeros_like(weight) for name, weight in start.items()}
        path = {}
        for step in range(steps):
            inputs, labels = self.batch(images, index, step)
            inner = self.balance(first) * F.cross_entropy(functional_call(self.module, weights, inputs), labels)
            gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            for (name, weight), gradient in zip(list(weights.items()), gradients, strict=True):
                momenta[name] = settings.momentum * momenta[name] + gradient
                weights[name] = weight - rate * momenta[name]
            path[step + 1] = dict(weights)

        def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
            return torch.stack([(one[name] - other[name]).square().sum() for name in other]).sum()

        terms = {epochs: distance(path[steps], targets[epochs]) / distance(start, targets[epochs])}
        for offset in range(every, epochs, every):
            weight = {"none": 0.0, "aggregate": 1.0, "adaptive": offset / epochs}[settings.intermediate]
            if weight:
                reached = path[steps // epochs * offset]
                terms[offset] = weight * distance(reached, targets[offset]) / distance(start, targets[offset])
        loss = torch.stack(list(terms.values())).sum()
        gradients = torch.autograd.grad(loss, (images, rate))
        values, learning_rates = [self.images, self.rate], [settings.lr_img, settings.lr_lr]
        for value, gradient, buffer, step_size in zip(values, gradients, self.buffers, learning_rates, strict=True):
            buffer.mul_(settings.outer_momentum).add_(gradient)
            if value is self.images or settings.alpha == "raw":
                value.sub_(step_size * buffer)
        self.loss, self.parts = float(loss.detach()), {offset: float(each.detach()) for offset, each in terms.items()}
        self.start_distance = float(distance(start, targets[epochs]).sqrt())
        self.start_epoch, self.gradient_norm = first, float(gradients[0].norm())


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {"max_steps": 1}),
        (torch.float64, {"max_steps": 1}),
        (torch.float64, {"max_steps": 3}),
        (torch.float64, {"intermediate": "adaptive", "batch_syn": None, "perturbation": 0.5}),
        (torch.float64, {"alpha": "fixed", "max_start_epoch": 2}),
        # every second epoch is stored
        (torch.float64, {"every": 2, "expert_epochs": 4, "syn_steps": 9, "max_start_epoch": 4, "max_steps": 3}),
        (torch.float64, {"every": 2, "expert_epochs": 4, "intermediate": "adaptive"}),
        (torch.float64, {"every": 3, "expert_epochs": 3, "max_start_epoch": 1}),
        # MTT
        (
            torch.float64,
            {"intermediate": "none", "balance": False, "perturbation": 0.0, "momentum": 0.0, "augment": False},
        ),
    ],
)
def test_iterations_equal_the_plain_loop(
    make_store: Make,
    make_module: Make,
    make_trainer: Make,
    ast_settings: Make,
    network: Callable[[], ConvNet],
    synthetic_set: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    changes: dict[str, Any],
) -> None:
    changes = dict(changes)
    every = changes.pop("every", 1)
    store = make_store() if every == 1 else make_store(epochs=7, expert={"every_n_epochs": every})
    settings = ast_settings(**changes)
    images = synthetic_set[0].to(dtype)
    plain = PlainDistillation(store, settings, network, images)
    for index in range(settings.max_steps):
        plain.iterate(index)

    module = make_module(store, settings, dtype=dtype, seed=SEED)
    trainer = make_trainer(settings)
    trainer.fit(module)

    # directions of the perturbation have float32 accuracy in both computations
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-7}
    assert (plain.images - images).abs().max() > 1e-2
    torch.testing.assert_close(module.synthetic.images.detach(), plain.images, **tolerance)
    torch.testing.assert_close(module.synthetic.learning_rate.detach(), plain.rate, **tolerance)
    assert (float(plain.rate) == settings.lr_teacher) == (settings.alpha == "fixed")

    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    expected = {
        "train/loss": plain.loss,
        "train/start_distance": plain.start_distance,
        "train/start_epoch": plain.start_epoch,
        "train/image_gradient_norm": plain.gradient_norm,
        **{f"train/match_{offset}": part for offset, part in plain.parts.items()},
    }
    assert set(metrics) == {*expected, "train/student_lr"}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-3)


def test_images_and_learning_rate_are_the_only_parameters(
    make_store: Make, make_module: Make, ast_settings: Make
) -> None:
    store = make_store(experts=1)
    learned = make_module(store, ast_settings())
    assert {name for name, _ in learned.named_parameters()} == {"synthetic.images", "synthetic.learning_rate"}
    assert {name for name, _ in learned.named_buffers()} == {"synthetic.labels"}
    assert list(learned.children()) == [learned.synthetic]
    fixed = make_module(store, ast_settings(alpha="fixed"))
    assert {name for name, _ in fixed.named_parameters()} == {"synthetic.images"}
    assert {name for name, _ in fixed.named_buffers()} == {"synthetic.labels", "synthetic.learning_rate"}


def test_a_window_leaves_no_graph_behind_for_the_next(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ast_settings(max_steps=2, windows_per_step=3)
    module = make_module(make_store(), settings)
    match = module.method.loss

    def watched(window: Any, synthetic: SyntheticSet) -> tuple[Tensor, dict[str, Tensor]]:
        alive.append(sum(each() is not None for each in earlier))
        loss, found = match(window, synthetic)
        earlier.append(weakref.ref(loss))
        return loss, found

    alive: list[int] = []
    earlier: list[weakref.ref[Tensor]] = []
    monkeypatch.setattr(module.method, "loss", watched)
    make_trainer(settings).fit(module)
    assert alive == [0] * 6


def test_the_given_images_are_left_alone(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, synthetic_set: tuple[Tensor, Tensor]
) -> None:
    before = synthetic_set[0].clone()
    settings = ast_settings(max_steps=1)
    make_trainer(settings).fit(make_module(make_store(), settings))
    assert torch.equal(synthetic_set[0], before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_spoilt_snapshot_stops_the_run_and_spares_the_images(
    make_store: Make,
    make_module: Make,
    make_trainer: Make,
    ast_settings: Make,
    synthetic_set: tuple[Tensor, Tensor],
    value: float,
) -> None:
    store = make_store(experts=1, spoil={(0, epoch): value for epoch in (3, 4, 5)})
    settings = ast_settings()
    module = make_module(store, settings)
    with pytest.raises(DistillationDiverged, match=r"iteration 0: the loss is .*lower distill\.lr_img") as it:
        make_trainer(settings).fit(module)
    assert it.value.iteration == 0
    assert torch.equal(module.synthetic.images.detach(), synthetic_set[0])
    assert float(module.synthetic.learning_rate.detach()) == pytest.approx(settings.lr_teacher)


def test_divergence_keeps_the_images_of_the_last_good_iteration(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make
) -> None:
    store = make_store()
    one = ast_settings(lr_img=1e30, lr_lr=0.0, max_steps=1)
    first = make_module(store, one)
    make_trainer(one).fit(first)
    settings = ast_settings(lr_img=1e30, lr_lr=0.0, max_steps=5)
    module = make_module(store, settings)
    with pytest.raises(DistillationDiverged, match=r"lower distill\.lr_img \(1e\+30\)") as caught:
        make_trainer(settings).fit(module)
    assert caught.value.iteration == 1
    assert module.synthetic.images.isfinite().all()
    assert torch.equal(module.synthetic.images, first.synthetic.images)


def test_a_learning_rate_below_zero_stops_before_anything_is_saved(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, make_evaluator: Make, tmp_path: Path
) -> None:
    settings = ast_settings(lr_teacher=1.0, lr_lr=1e6, lr_img=1e-3)
    module = make_module(make_store(), settings, evaluator=make_evaluator("test"))

    def never(module: DistillModule, found: dict[str, Any]) -> Any:
        raise AssertionError("a set with a negative learning rate was to be written")

    writer = ArtifactWriter(tmp_path / "synthetic", never, select=False)
    with pytest.raises(DistillationDiverged, match=r"student learning rate became -.*lower distill\.lr_lr") as caught:
        make_trainer(settings, writer).fit(module)
    assert caught.value.iteration == 0
    assert caught.value.remedy.endswith("or set distill.alpha=fixed")  # not log, which has no step by SGD
    assert not (tmp_path / "synthetic").exists()


def test_batches_larger_than_the_set_are_refused(make_store: Make, make_module: Make, ast_settings: Make) -> None:
    store = make_store(experts=1)
    make_module(store, ast_settings(batch_syn=6))
    with pytest.raises(ConfigurationError, match=r"distill\.batch_syn=7: the synthetic set has only 6 images"):
        make_module(store, ast_settings(batch_syn=7))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ipc", 0), ("syn_steps", 0), ("expert_epochs", 0), ("max_start_epoch", 0), ("batch_syn", 0),
        ("eval_every", 0), ("eval_networks", 0), ("init_clusters", 0), ("max_steps", -1), ("lr_teacher", 0.0),
        ("lr_img", -1.0), ("lr_img", math.nan), ("lr_lr", -1e-9), ("perturbation", -1.0), ("momentum", 1.0),
        ("outer_momentum", -0.1), ("init", "zeros"), ("intermediate", "mean"), ("syn_steps", 2),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(ast_settings: Make, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ast_settings(**{name: value})
    assert caught.value.option == f"distill.{name}"
    assert str(value) in str(caught.value)


def test_fewer_steps_than_epochs_are_fine_without_intermediate_matching(ast_settings: Make) -> None:
    assert ast_settings(syn_steps=2, intermediate="none").syn_steps == 2


def test_validation_is_the_evaluator_on_the_current_set(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, make_evaluator: Make
) -> None:
    settings = ast_settings(max_steps=1, eval_networks=3)
    evaluator: NetworkEvaluator = make_evaluator("test", "validation")
    module = make_module(make_store(), settings, evaluator=evaluator)
    trainer: Trainer = make_trainer(settings)
    trainer.fit(module)
    found = [evaluator.run([index], lambda _: module.training_set(), torch.device("cpu")) for index in range(3)]
    for split in ("test", "validation"):
        values = torch.tensor([each[split][0] for each in found], dtype=torch.float64)
        assert float(trainer.callback_metrics[f"{split}/accuracy"]) == pytest.approx(float(values.mean()), rel=1e-5)
        assert float(trainer.callback_metrics[f"{split}/accuracy_std"]) == pytest.approx(float(values.std()), rel=1e-4)
