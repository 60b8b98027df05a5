"""The batches of the unrolled student: order, sizes, what they are keyed by, replay."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation import DistillModule, TrajectoryMatching, TrajectoryMatchingSettings
from ast_lightning.networks import ConvNet
from ast_lightning.trajectories import TrajectoryStore

MakeModule = Callable[..., DistillModule]


@pytest.fixture
def module_of(network: Callable[[], ConvNet], make_store: Callable[..., TrajectoryStore]) -> MakeModule:
    """A module over N images, image n filled with n + 1 and labelled n."""
    store = make_store(experts=1, epochs=3)

    def make(count: int, batch: int | None, *, augment: bool = False, seed: int = 0) -> DistillModule:
        images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, 3, 8, 8)
        chosen = TrajectoryMatchingSettings(batch_syn=batch, expert_epochs=1, max_start_epoch=1, augment=augment)
        augmentation = SiameseAugmentation("color_crop_cutout_flip_scale_rotate")
        method = TrajectoryMatching(chosen, network, store, augmentation=augmentation, seed=seed)
        return DistillModule(method.synthetic_set(images, torch.arange(count), 0.01), method)

    return make


def batches(module: DistillModule, window: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    method, synthetic = module.method, module.synthetic
    assert isinstance(method, TrajectoryMatching)
    batch = method.inner_batches(window, synthetic)
    return lambda step: batch(step, *synthetic.tensors()[:-1])


def rows(batch: tuple[Tensor, Tensor]) -> list[int]:
    images, labels = batch
    assert (images[:, 0, 0, 0] - 1).tolist() == labels.tolist()
    return labels.tolist()


@given(count=st.integers(1, 23), data=st.data(), window=st.integers(0, 10**6), seed=st.integers(0, 1000))
@settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_turn_is_a_permutation_whose_small_chunk_leads(
    module_of: MakeModule, count: int, data: st.DataObject, window: int, seed: int
) -> None:
    size = data.draw(st.integers(1, count))
    batch = batches(module_of(count, size, seed=seed), window)
    steps = math.ceil(count / size)
    for turn in range(3):
        chunks = [rows(batch(turn * steps + position)) for position in range(steps)]
        assert sorted(row for chunk in chunks for row in chunk) == list(range(count))
        assert [len(chunk) for chunk in chunks] == [count - size * (steps - 1)] + [size] * (steps - 1)


def test_all_images_are_one_batch_by_default(module_of: MakeModule) -> None:
    batch = batches(module_of(7, None), 0)
    assert [sorted(rows(batch(step))) for step in range(3)] == [list(range(7))] * 3


def test_each_turn_and_window_has_an_order_of_its_own(module_of: MakeModule) -> None:
    module = module_of(12, 12)
    orders = {tuple(rows(batches(module, window)(turn))) for window in range(5) for turn in range(5)}
    assert len(orders) == 25


def test_order_depends_on_seed_and_window_alone(module_of: MakeModule) -> None:
    module = module_of(10, 4, seed=1)
    first = [rows(batches(module, 8)(step)) for step in range(6)]
    torch.manual_seed(99)
    for other in (3, 5):
        batches(module, other)(0)
    fresh = batches(module_of(10, 4, seed=1), 8)
    assert [rows(fresh(step)) for step in range(6)] == first
    backwards = {step: rows(fresh(step)) for step in reversed(range(6))}
    assert [backwards[step] for step in range(6)] == first
    reseeded = batches(module_of(10, 4, seed=2), 8)
    assert [rows(reseeded(step)) for step in range(6)] != first


def test_augmentation_replays_and_varies_by_step_and_window(module_of: MakeModule) -> None:
    module = module_of(6, None, augment=True)
    with torch.no_grad():  # one picture six times: only the draws can tell two batches apart
        module.synthetic.images.copy_(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    seen: dict[tuple[int, int], Tensor] = {}
    for window in range(4):
        batch = batches(module, window)
        for step in range(4):
            seen[window, step] = batch(step)[0].detach()
    replayed = batches(module, 2)
    for step in (3, 0, 2, 1):
        assert torch.equal(replayed(step)[0], seen[2, step])
    # two draws may coincide by chance (flips, holes beyond the border), but no two steps or windows throughout
    for along in ([(window, 0) for window in range(4)], [(0, step) for step in range(4)]):
        assert len({tuple(seen[each].flatten().tolist()) for each in along}) > 2


def test_augmentation_can_be_turned_off(module_of: MakeModule) -> None:
    plain = batches(module_of(6, None, augment=False), 0)
    assert all((image == image[0, 0, 0]).all() for step in range(6) for image in plain(step)[0])


def test_gradients_pass_through_batch_and_augmentation(module_of: MakeModule) -> None:
    module = module_of(6, 4, augment=True)
    batch = batches(module, 1)
    total = sum(batch(step)[0].square().sum() for step in range(2))
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, module.synthetic.images)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
