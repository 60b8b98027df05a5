"""Textures against a plain loop with torch.roll; their batches, initial canvases and warm start; interruptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ast_lightning.config.distill import DistillSettings, DistributionMatchingSettings
from ast_lightning.data import LabelledImages, NoPreprocessing, SiameseAugmentation
from ast_lightning.distillation import (
    BatchDraw,
    DistillModule,
    SyntheticImages,
    Textures,
    TrajectoryMatching,
    initial_images,
    starting_point,
)
from ast_lightning.distillation.distribution_matching import DistributionMatching
from ast_lightning.distillation.trajectory_matching.method import forward_passes
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ConvNet
from ast_lightning.randomness import keyed_generator
from ast_lightning.synthetic import DistilledDataset, save_distilled

from .conftest import FAMILIES
from .test_distill_module import SEED, PlainDistillation

Make = Callable[..., Any]


def rolled(canvases: Tensor, key: tuple[Any, ...], crops: int) -> Tensor:
    """Crops of 8×8, one after the other."""
    generator = keyed_generator(*key, "crops")
    down, right = (torch.randint(side, (crops * len(canvases),), generator=generator) for side in canvases.shape[2:])
    return torch.stack([
        torch.roll(canvases[place % len(canvases)], (int(down[place]), int(right[place])), (1, 2))[:, :8, :8]
        for place in range(crops * len(canvases))
    ])  # fmt: skip


class PlainTextures(PlainDistillation):
    """The plain loop, whose batches are crops of rolled canvases."""

    def batch(self, images: Tensor, index: int, step: int) -> tuple[Tensor, Tensor]:
        crops, size = self.settings.crops, self.settings.batch_syn or len(images)
        chunks = -(-len(images) // size)
        order = torch.randperm(len(images), generator=keyed_generator(SEED, "inner order", index, step // chunks))
        position = chunks - 1 - step % chunks
        rows = order[position * size : (position + 1) * size]
        shown = rolled(images[rows], (SEED, "inner draw", index, step), crops)
        draw = SiameseAugmentation(FAMILIES).draw(
            len(shown), (8, 8), keyed_generator(SEED, "inner augmentation", index, step)
        )
        return SiameseAugmentation(FAMILIES).apply(shown, draw), self.labels[rows].repeat(crops)


@pytest.mark.parametrize("changes", [{}, {"engine": "autograd"}, {"recompute": True, "crops": 1, "canvas": 3}])
def test_iterations_equal_the_plain_loop(
    make_store: Make,
    make_module: Make,
    make_trainer: Make,
    ast_settings: Make,
    network: Callable[[], ConvNet],
    changes: dict[str, Any],
) -> None:
    # the directions of a perturbation have float32 accuracy
    settings = ast_settings(
        **{"canvas": 2, "crops": 2, "perturbation": 0.0, "max_steps": 2, "lr_img": 100.0, **changes}
    )
    store = make_store()
    module = make_module(store, settings, dtype=torch.float64, seed=SEED)
    start = module.synthetic.images.detach().clone()
    plain = PlainTextures(store, settings, network, start)
    for index in range(settings.max_steps):
        plain.iterate(index)
    make_trainer(settings, precision="64-true").fit(module)
    moved = plain.images - start
    assert (moved[:, :, 8:, 8:].flatten(1).norm(dim=1) > 1e-3).all()  # also beyond the upper left images
    torch.testing.assert_close(
        module.synthetic.images.detach() - start, moved, rtol=1e-9, atol=1e-9 * float(moved.norm())
    )
    torch.testing.assert_close(module.synthetic.learning_rate.detach(), plain.rate, rtol=1e-9, atol=0)


def test_both_engines_have_the_gradient_of_the_canvases(
    make_store: Make, make_module: Make, ast_settings: Make
) -> None:
    """With all of AST's components, soft labels of a parent included."""
    store, found = make_store(), []
    soft = F.one_hot(torch.arange(3).repeat_interleave(2), 3) * 0.7 + 0.1
    for engine in ("autograd", "adjoint"):
        module = make_module(store, ast_settings(canvas=2, crops=3, engine=engine), dtype=torch.float64)
        synthetic = module.synthetic
        synthetic.labels = soft.double().requires_grad_()
        module.method.start(torch.device("cpu"), torch.float64)
        loss, _ = module.method.loss(module.method.windows.window(1), synthetic)
        found.append(torch.autograd.grad(loss, (synthetic.images, synthetic.labels, synthetic.learning_rate)))
    for oracle, ours in zip(*found, strict=True):
        assert oracle.norm() > 0
        torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-9 * float(oracle.norm()))


@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_repeats_labels_and_depends_on_its_key_alone(soft: bool) -> None:
    canvases = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 12) + torch.linspace(0, 0.5, 192).view(16, 12)
    labels = torch.eye(4) if soft else torch.arange(4)
    synthetic = Textures(canvases, labels, 0.1, canvas=2, crops=3)
    assert synthetic.shape == (4, 1, 8, 6)
    *tensors, _ = synthetic.tensors()
    images, shown = synthetic.batch(BatchDraw(torch.tensor([2, 0]), (1, "a")), *tensors)
    assert images.shape == (6, 1, 8, 6)
    classes = shown.argmax(1) if soft else shown
    assert classes.tolist() == [2, 0, 2, 0, 2, 0]
    assert images.floor().amax((1, 2, 3)).tolist() == classes.tolist()
    assert len({tuple(each.flatten().tolist()) for each in images - classes.view(-1, 1, 1, 1)}) == 6
    torch.manual_seed(9)
    assert torch.equal(synthetic.batch(BatchDraw(torch.tensor([2, 0]), (1, "a")), *tensors)[0], images)
    assert not torch.equal(synthetic.batch(BatchDraw(torch.tensor([2, 0]), (1, "b")), *tensors)[0], images)
    found = synthetic.training_set()
    assert found.crop_size == (8, 6)
    assert torch.equal(found.images, canvases)


def test_ordinary_images_are_the_set_of_before(make_store: Make, make_module: Make, ast_settings: Make) -> None:
    module = make_module(make_store(experts=1), ast_settings())
    assert type(module.synthetic) is SyntheticImages
    assert module.training_set().crop_size is None


def test_crops_count_as_work_and_batches_count_canvases(ast_settings: Make) -> None:
    once, thrice = (forward_passes(ast_settings(canvas=2, crops=crops), 6, 1) for crops in (1, 3))
    assert thrice == 3 * once == 3 * forward_passes(ast_settings(), 6, 1)
    with pytest.raises(ConfigurationError, match="only 6 images"):
        ast_settings(canvas=2, crops=3, batch_syn=7).check_batch(6)


def test_distribution_matching_compares_crops(make_trainer: Make, real_images: LabelledImages, network: Make) -> None:
    settings = DistributionMatchingSettings(ipc=2, canvas=2, crops=3, max_steps=2, eval_every=100, real_batch=7)
    method = DistributionMatching(settings, network, real_images, augmentation=SiameseAugmentation(FAMILIES), seed=SEED)
    start = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    module = DistillModule(method.synthetic_set(start, torch.arange(3).repeat_interleave(2), 0.1), method)
    synthetic = module.synthetic
    assert isinstance(synthetic, Textures)
    method.start(torch.device("cpu"), torch.float64)
    (item,) = next(method.work(1, 0, 1))
    seen: list[Tensor] = []
    batch = synthetic.batch
    synthetic.batch = lambda draw, *tensors: (seen.append(batch(draw, *tensors)[0]), batch(draw, *tensors))[1]  # type: ignore[method-assign]
    loss, _ = method.loss(item, synthetic)
    for label, images in enumerate(seen):
        expected = rolled(start[2 * label : 2 * label + 2], (SEED, "synthetic batch", 1, label), 3)
        assert torch.equal(images, expected)
    (gradient,) = torch.autograd.grad(loss, synthetic.images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    make_trainer(settings, precision="64-true").fit(module)
    assert module.synthetic.images.isfinite().all()


@pytest.mark.parametrize("init", ["real", "representative"])
def test_canvases_are_tiled_with_different_images_of_their_class(real_images: LabelledImages, init: str) -> None:
    settings = DistillSettings(ipc=2, init=init, canvas=2)
    arguments: dict[str, Any] = {"seed": 4, "experts": lambda: iter([lambda images: images.flatten(1)[:, :2]])}
    canvases, labels = initial_images(settings, real_images, ("a", "b", "c"), **arguments)
    assert canvases.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    tiles = torch.stack([
        canvas[:, top : top + 8, left : left + 8] for canvas in canvases for top in (0, 8) for left in (0, 8)
    ])  # fmt: skip
    matches = (tiles[:, None] == real_images.images[None]).flatten(2).all(2)
    assert matches.sum(1).tolist() == [1] * 24
    origin = matches.int().argmax(1)
    assert len(set(origin.tolist())) == 24
    assert torch.equal(real_images.labels[origin], labels.repeat_interleave(4))
    plain, _ = initial_images(DistillSettings(ipc=8, init=init), real_images, ("a", "b", "c"), **arguments)
    assert torch.equal(tiles, plain)


def test_noise_of_the_size_of_a_canvas(real_images: LabelledImages) -> None:
    settings = DistillSettings(ipc=9, init="noise", canvas=2)  # more tiles than real images
    canvases, labels = initial_images(settings, real_images, ("a", "b", "c"), seed=4)
    assert canvases.shape == (27, 3, 16, 16)
    assert torch.bincount(labels).tolist() == [9, 9, 9]
    assert float(canvases.std()) == pytest.approx(1, abs=0.03)


def test_too_few_images_for_a_canvas_are_named(real_images: LabelledImages) -> None:
    settings = DistillSettings(ipc=6, init="real", canvas=2)
    with pytest.raises(ConfigurationError, match=r"distill\.canvas=2: .* 24 per class, and class 'a' has only 20"):
        initial_images(settings, real_images, ("a", "b", "c"), seed=4)


def test_too_few_correct_images_for_a_canvas_are_named(real_images: LabelledImages) -> None:
    settings = DistillSettings(ipc=2, init="correct", canvas=2)

    def logits(images: Tensor) -> Tensor:
        """All are right but most images of class b."""
        rows = (images[:, None] == real_images.images[None]).flatten(2).all(2).int().argmax(1)
        labels = real_images.labels[rows]
        return F.one_hot(torch.where((labels == 1) & (rows > 15), 0, labels), 3).float()

    with pytest.raises(ConfigurationError, match=r"distill\.canvas=2: .* 8 per class, and .*class 'b' correctly"):
        initial_images(settings, real_images, ("a", "b", "c"), seed=4, experts=lambda: iter([logits]))


def test_more_tiles_than_a_class_may_have_images_are_named(real_images: LabelledImages) -> None:
    settings = DistillSettings(ipc=25, init="noise", canvas=64)
    with pytest.raises(ConfigurationError, match=r"distill\.canvas=64: .* 102400 per class, more than 100000"):
        initial_images(settings, real_images, ("a", "b", "c"), seed=4)


def test_crops_of_ordinary_images_are_rejected() -> None:
    with pytest.raises(ConfigurationError, match=r"distill\.crops=2: .*set distill\.canvas=2"):
        DistillSettings(crops=2)


def test_a_warm_start_is_from_canvases_of_the_same_size(tmp_path: Path) -> None:
    canvases, names = torch.randn(6, 3, 16, 16), ("a", "b", "c")
    dataset = DistilledDataset(canvases, torch.arange(3).repeat_interleave(2), 0.3, NoPreprocessing(), names)
    dataset.crop_size = (8, 8)
    folder = str(save_distilled(tmp_path / "set", dataset))

    def start(side: int, **options: Any) -> tuple[Tensor, Tensor, float]:
        data: Any = SimpleNamespace(
            num_classes=3, channels=3, image_size=(side, side), class_names=names, preprocessing=NoPreprocessing()
        )
        context: Any = SimpleNamespace(data=data)
        return starting_point(DistillSettings(ipc=2, warm_start=folder, **options), context)

    images, _, rate = start(8, canvas=2)
    assert torch.equal(images, canvases)
    assert rate == 0.3
    for side, options in ((8, {}), (16, {}), (8, {"canvas": 4})):
        with pytest.raises(ConfigurationError, match=r"with crops \(8, 8\) .*distill\.canvas"):
            start(side, **options)


def test_students_see_images_of_the_size_of_the_data(
    make_store: Make, network: Callable[[], ConvNet], ast_settings: Make
) -> None:
    """The check of the student before the first iteration gets a crop, not a canvas."""
    method = TrajectoryMatching(ast_settings(canvas=2), network, make_store(experts=1), seed=SEED)
    synthetic = method.synthetic_set(torch.randn(6, 3, 16, 16), torch.arange(3).repeat_interleave(2), 0.1)
    assert synthetic.shape == (6, 3, 8, 8)
