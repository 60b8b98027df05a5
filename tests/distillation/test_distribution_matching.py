"""Distribution matching against a loop written from the method; on several ranks; resumed; without experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from ast_lightning.config.distill import DistributionMatchingSettings
from ast_lightning.data import LabelledImages, SiameseAugmentation
from ast_lightning.distillation import DistillModule
from ast_lightning.distillation.distribution_matching import DistributionMatching
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ConvNet, build_network
from ast_lightning.randomness import keyed_generator

FAMILIES = "color_crop_cutout_flip_scale_rotate"
CLASSES, SEED = 3, 5
Make = Callable[..., Any]


def settings_of(**changes: Any) -> DistributionMatchingSettings:
    values = {"ipc": 2, "lr_img": 10.0, "max_steps": 3, "eval_every": 100, "real_batch": 7}
    return DistributionMatchingSettings(**{**values, **changes})


@pytest.fixture
def real() -> LabelledImages:
    generator = torch.Generator().manual_seed(8)
    return LabelledImages(torch.randn(60, 3, 8, 8, generator=generator), torch.arange(60) % CLASSES)


def network_of(normalization: str = "instance") -> Callable[[], ConvNet]:
    return lambda: ConvNet(3, CLASSES, (8, 8), width=4, depth=1, normalization=normalization)


def module_of(
    real: LabelledImages,
    start: tuple[Tensor, Tensor],
    dtype: torch.dtype = torch.float32,
    normalization: str = "instance",
    **changes: Any,
) -> DistillModule:
    families = SiameseAugmentation(FAMILIES)
    method = DistributionMatching(
        settings_of(**changes), network_of(normalization), real, augmentation=families, seed=SEED
    )
    return DistillModule(method.synthetic_set(start[0].to(dtype), start[1], 0.01), method)


def iterate(images: Tensor, real: LabelledImages, iteration: int, normalization: str) -> Tensor:
    """The loss of one iteration, class by class, from the formula."""
    network = build_network(network_of(normalization), SEED, "distribution matching", iteration).double()
    body = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    augmentation = SiameseAugmentation(FAMILIES)
    pairs = []
    for label in range(CLASSES):
        members = real.images[real.labels == label].double()
        order = torch.randperm(len(members), generator=keyed_generator(SEED, "real batch", iteration, label))
        both = []
        for batch in (members[order[:7]], images[2 * label : 2 * label + 2]):
            draw = augmentation.draw(1, (8, 8), keyed_generator(SEED, "siamese", iteration, label))
            alike = draw.rows(torch.zeros(len(batch), dtype=torch.int64))
            both.append(augmentation.apply(batch, alike))
        pairs.append(both)
    if normalization == "batch":
        ours, theirs = (body(torch.cat([pair[side] for pair in pairs])) for side in (0, 1))
        features = list(zip(ours.split(7), theirs.split(2), strict=True))
    else:
        features = [(body(ours), body(theirs)) for ours, theirs in pairs]
    return torch.stack([(a.mean(0).detach() - b.mean(0)).square().sum() for a, b in features]).sum()


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_iterations_equal_the_plain_loop(
    real: LabelledImages, synthetic_set: tuple[Tensor, Tensor], make_trainer: Make, normalization: str
) -> None:
    module = module_of(real, synthetic_set, torch.float64, normalization)
    images, buffer = synthetic_set[0].double(), torch.zeros(synthetic_set[0].shape, dtype=torch.float64)
    losses = []
    for iteration in range(3):
        images = images.detach().requires_grad_()
        loss = iterate(images, real, iteration, normalization)
        buffer = 0.5 * buffer + torch.autograd.grad(loss, images)[0]
        images, losses = images - 10.0 * buffer, [*losses, float(loss.detach())]
    trainer = make_trainer(module.settings, precision="64-true")
    trainer.fit(module)
    found = module.training_set()
    assert (images.detach() - synthetic_set[0].double()).abs().max() > 1e-3
    torch.testing.assert_close(found.images, images.detach(), rtol=1e-9, atol=1e-9)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(losses[-1], rel=1e-6)
    assert found.learning_rate == pytest.approx(0.01)


@pytest.mark.parametrize(("normalization", "ranks"), [("instance", 2), ("instance", 5), ("batch", 2)])
def test_the_mean_over_ranks_is_the_iteration(
    real: LabelledImages, synthetic_set: tuple[Tensor, Tensor], normalization: str, ranks: int
) -> None:
    """Also where there are more ranks than classes, so that some have none."""
    module = module_of(real, synthetic_set, torch.float64, normalization)
    method, synthetic = module.method, module.synthetic
    method.start(torch.device("cpu"), torch.float64)

    def gradients(rank: int, ranks: int) -> Tensor:
        (item,) = next(method.work(4, rank, ranks))
        loss, _ = method.loss(item, synthetic)
        return torch.autograd.grad(loss, [synthetic.tensors()[0]])[0]

    shared = torch.stack([gradients(rank, ranks) for rank in range(ranks)]).mean(0)
    torch.testing.assert_close(shared, gradients(0, 1), rtol=1e-9, atol=1e-12)


def test_a_resumed_run_is_bit_identical(
    real: LabelledImages, synthetic_set: tuple[Tensor, Tensor], make_trainer: Make, tmp_path: Path
) -> None:
    def fit(folder: str, steps: int, resume: Path | None = None) -> Tensor:
        module = module_of(real, synthetic_set, max_steps=steps, eval_every=2)
        keep = ModelCheckpoint(tmp_path / folder, "last", every_n_train_steps=2, enable_version_counter=False)
        make_trainer(module.settings, keep, enable_checkpointing=True).fit(module, ckpt_path=resume, weights_only=True)
        return module.training_set().images

    whole = fit("whole", 6)
    fit("parts", 2)
    assert torch.equal(fit("parts", 6, tmp_path / "parts" / "last.ckpt"), whole)


def test_a_network_without_a_linear_layer_is_rejected(real: LabelledImages) -> None:
    with pytest.raises(ConfigurationError, match="last linear layer"):
        DistributionMatching(settings_of(), lambda: nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), real)
