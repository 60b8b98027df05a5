"""Circular crops against torch.roll, their adjoint, and the range of their offsets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ast_lightning.images import circular_crops, draw_offsets


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(count: int, seed: int = 0) -> Tensor:
    return draw_offsets(count, (8, 6), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(4, 3), (8, 6), (1, 5)])
def test_a_crop_is_the_upper_left_part_of_the_rolled_canvas(size: tuple[int, int]) -> None:
    canvases, offsets = normal(5, 2, 8, 6, seed=1), drawn(15)
    crops = circular_crops(canvases, offsets, size)
    for place, (down, right) in enumerate(offsets.tolist()):
        rolled = torch.roll(canvases[place % 5], (down, right), (1, 2))
        assert torch.equal(crops[place], rolled[:, : size[0], : size[1]])


def test_its_gradient_is_the_adjoint_and_it_can_be_differentiated_twice() -> None:
    canvases, offsets = normal(3, 2, 8, 6, seed=1).requires_grad_(), drawn(6)
    cotangent = normal(6, 2, 4, 3, seed=2)
    (back,) = torch.autograd.grad(circular_crops(canvases, offsets, (4, 3)), canvases, cotangent)
    expected = torch.zeros_like(canvases)
    for place, (down, right) in enumerate(offsets.tolist()):
        embedded = torch.zeros(2, 8, 6, dtype=torch.float64)
        embedded[:, :4, :3] = cotangent[place]
        expected[place % 3] += torch.roll(embedded, (-down, -right), (1, 2))
    torch.testing.assert_close(back, expected, rtol=1e-12, atol=1e-12)
    other = normal(3, 2, 8, 6, seed=3)
    products = (circular_crops(other, offsets, (4, 3)) * cotangent).sum(), (other * back).sum()
    torch.testing.assert_close(*products, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: circular_crops(x, offsets, (4, 3)).square(), canvases)


def test_offsets_are_uniform_over_the_canvas() -> None:
    offsets = drawn(4800)
    assert offsets.dtype == torch.int64
    for axis, side in enumerate((8, 6)):
        counts = torch.bincount(offsets[:, axis], minlength=side)
        assert len(counts) == side
        assert float((counts - 4800 / side).abs().max()) < 4 * (4800 / side) ** 0.5
    pairs = {tuple(pair) for pair in offsets.tolist()}
    assert len(pairs) == 48  # both are drawn independently
    assert torch.equal(offsets, drawn(4800))
    assert not torch.equal(offsets, drawn(4800, seed=1))
