"""Grids of images: their layout, their range, and the files they are written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ast_lightning.synthetic import picture, save_picture

EDGE = 2  # pixels about each image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("classes", "ipc", "rows", "columns"),
    [(4, 1, 1, 4), (10, 1, 1, 10), (25, 1, 3, 10), (4, 3, 4, 3), (4, 10, 4, 10), (4, 20, 4, 10), (1, 3, 1, 3)],
)
def test_a_row_for_each_class(channels: int, classes: int, ipc: int, rows: int, columns: int) -> None:
    count = classes * ipc
    images = torch.linspace(0.01, 1, count).view(-1, 1, 1, 1).expand(count, channels, 8, 16)
    grid = picture(images, ipc)
    height, width = 8 * 4, 16 * 4  # enlarged until a side has 64 pixels
    assert grid.shape == (3, rows * (height + EDGE) + EDGE, columns * (width + EDGE) + EDGE)
    shown = images[:, 0, 0, 0].view(classes, ipc)[:, :10].flatten()
    for position, value in enumerate(shown.tolist()):
        row, column = divmod(position, columns)
        top, left = row * (height + EDGE) + EDGE, column * (width + EDGE) + EDGE
        tile = grid[:, top : top + height, left : left + width]
        assert (tile.min(), tile.max()) == (pytest.approx(value), pytest.approx(value))


def test_large_images_keep_their_size() -> None:
    assert picture(torch.rand(4, 3, 70, 70, generator=torch.Generator().manual_seed(0)), 2).shape == (3, 146, 146)


@pytest.mark.parametrize("stretch", [False, True])
def test_values_stay_within_the_range_of_a_picture(stretch: bool) -> None:
    images = 5 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[0, 0, 0, 0] = float("nan")
    images[1] = float("inf")
    grid = picture(images, 2, stretch=stretch)
    assert grid.isfinite().all()
    assert (grid.min(), grid.max()) == (0, 1)


def test_stretching_is_by_image() -> None:
    faint = torch.linspace(0.4, 0.5, 64 * 64).view(1, 1, 64, 64)
    images = torch.cat([faint, 100 * faint])
    tiles = picture(images, 1, stretch=True)[:, EDGE:-EDGE].split([EDGE, 64, EDGE, 64, EDGE], dim=2)[1::2]
    expected = torch.linspace(0, 1, 64 * 64).view(64, 64).expand(3, -1, -1)
    for tile in tiles:
        torch.testing.assert_close(tile, expected, rtol=0, atol=1e-3)
    assert float(picture(images, 1)[0, 30, 30]) == pytest.approx(0.444, abs=0.01)


def test_the_images_are_left_alone() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    before = images.detach().clone()
    picture(images, 2, stretch=True)
    assert torch.equal(images.detach(), before)


def test_written_files_are_the_grid(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    save_picture(tmp_path / "images.png", images, 2)
    read = torch.from_numpy(np.array(Image.open(tmp_path / "images.png"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(read, picture(images, 2), rtol=0, atol=0.51 / 255)
