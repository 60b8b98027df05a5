"""Siamese augmentation against hand-computed pictures, its linearity and its derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ast_lightning.data import FAMILIES, AugmentationDraw, SiameseAugmentation
from ast_lightning.errors import ConfigurationError

ALL = "color_crop_cutout_flip_scale_rotate"


def draw_of(family: str, count: int = 3, size: tuple[int, int] = (6, 5), seed: int = 0) -> AugmentationDraw:
    return SiameseAugmentation(family).draw(count, size, torch.Generator().manual_seed(seed))


def images_of(count: int = 3, channels: int = 2, size: tuple[int, int] = (6, 5), seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *size, dtype=torch.float64, generator=generator)


def apply(images: Tensor, family: str | None, **values: Tensor) -> Tensor:
    return SiameseAugmentation(ALL).apply(images, AugmentationDraw(family, values))


def test_color_is_brightness_then_saturation_then_contrast_with_recomputed_means() -> None:
    images = images_of()
    brightness, saturation, contrast = torch.tensor([[0.3, -0.2, 0.0], [0.0, 1.7, 0.4], [1.3, 0.5, 0.9]])
    out = apply(images, "color", brightness=brightness, saturation=saturation, contrast=contrast)
    for i in range(3):
        x = images[i] + float(brightness[i])
        pixel_mean = x.mean(0, keepdim=True)
        x = (x - pixel_mean) * float(saturation[i]) + pixel_mean
        image_mean = x.mean()
        x = (x - image_mean) * float(contrast[i]) + image_mean
        torch.testing.assert_close(out[i], x)


def test_saturation_changes_nothing_on_one_channel() -> None:
    images = images_of(channels=1)
    factors = torch.tensor([0.0, 1.3, 1.9])
    out = apply(images, "color", brightness=torch.zeros(3), saturation=factors, contrast=torch.ones(3))
    torch.testing.assert_close(out, images)


@pytest.mark.parametrize(("shift_y", "shift_x"), [(0, 0), (1, 0), (0, -1), (-1, 1)])
def test_crop_shifts_and_fills_with_zeros(shift_y: int, shift_x: int) -> None:
    images = images_of(count=1)
    out = apply(images, "crop", shift_y=torch.tensor([shift_y]), shift_x=torch.tensor([shift_x]))
    height, width = images.shape[2:]
    for y in range(height):
        for x in range(width):
            source = (y + shift_y, x + shift_x)
            inside = 0 <= source[0] < height and 0 <= source[1] < width
            expected = images[0, :, source[0], source[1]] if inside else torch.zeros(2, dtype=torch.float64)
            assert torch.equal(out[0, :, y, x], expected)


@pytest.mark.parametrize(
    ("side", "centre", "hidden"),
    [
        (8, 0, [0, 1]),
        (8, 4, [2, 3, 4, 5]),
        (8, 8, [6, 7]),
        (6, 0, [0, 1]),  # ⌊0.5·6 + 0.5⌋ = 3, an odd hole: the centre is a pixel
        (6, 3, [2, 3, 4]),
        (6, 5, [4, 5]),
    ],
)
def test_cutout_hides_a_square_clipped_at_the_border(side: int, centre: int, hidden: list[int]) -> None:
    images = torch.ones(1, 1, side, side)
    middle = torch.tensor([side // 2])
    out = apply(images, "cutout", centre_y=torch.tensor([centre]), centre_x=middle)
    columns = [x for x in range(side) if out[0, 0, hidden[0], x] == 0]
    expected = torch.ones(side, side)
    for y in hidden:
        expected[y, columns] = 0
    assert torch.equal(out[0, 0], expected)
    assert len(columns) == int(side * 0.5 + 0.5)


def test_flip_mirrors_the_columns_of_the_chosen_images() -> None:
    images = images_of()
    out = apply(images, "flip", flip=torch.tensor([True, False, True]))
    assert torch.equal(out[0], images[0, :, :, [4, 3, 2, 1, 0]])
    assert torch.equal(out[1], images[1])
    assert torch.equal(out[2], images[2, :, :, [4, 3, 2, 1, 0]])


def test_scale_by_hand() -> None:
    # Five columns lie at −1, −½, 0, ½, 1. A factor of 1.2 samples at −1.2, −0.6, 0, 0.6, 1.2, which in columns is
    # −0.4, 0.8, 2, 3.2, 4.4; outside pixels are zero.
    row = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0], dtype=torch.float64)
    images = row.expand(1, 1, 5, 5).clone()
    scale = torch.tensor([1.2], dtype=torch.float64)
    out = apply(images, "scale", scale_x=scale, scale_y=torch.ones(1, dtype=torch.float64))
    expected = torch.tensor([6.0, 18.0, 30.0, 42.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(out, expected.expand(1, 1, 5, 5))
    # The two axes are scaled on their own.
    out = apply(images.mT, "scale", scale_x=torch.ones(1, dtype=torch.float64), scale_y=scale)
    torch.testing.assert_close(out, expected.expand(1, 1, 5, 5).mT)


def test_rotate_samples_at_turned_coordinates() -> None:
    # A quarter turn is outside the range drawn but exact: the value at grid position (x, y) comes from (−y, x).
    images = images_of(size=(5, 5))
    out = apply(images, "rotate", angle=torch.full((3,), math.pi / 2, dtype=torch.float64))
    torch.testing.assert_close(out, torch.rot90(images, 1, (2, 3)))
    # A small angle, one pixel, by bilinear interpolation.
    angle = 0.2
    out = apply(images, "rotate", angle=torch.full((3,), angle, dtype=torch.float64))
    column, row = 2 + 2 * 0.5 * math.cos(angle), 2 + 2 * 0.5 * math.sin(angle)  # of the pixel right of the centre
    y, x = int(row), int(column)
    fy, fx = row - y, column - x
    expected = (
        images[:, :, y, x] * (1 - fy) * (1 - fx)
        + images[:, :, y, x + 1] * (1 - fy) * fx
        + images[:, :, y + 1, x] * fy * (1 - fx)
        + images[:, :, y + 1, x + 1] * fy * fx
    )
    torch.testing.assert_close(out[:, :, 2, 3], expected)


@settings(deadline=None, max_examples=40)
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 2**31),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    a=st.floats(-2, 2),
)
def test_every_family_is_affine_in_the_pixels(family: str, seed: int, height: int, width: int, a: float) -> None:
    size = (height, width)
    draw = draw_of(family, 4, size, seed)
    augment = SiameseAugmentation(family)
    x, y = images_of(4, 3, size, 1), images_of(4, 3, size, 2)
    mixed = augment.apply(a * x + (1 - a) * y, draw)
    torch.testing.assert_close(mixed, a * augment.apply(x, draw) + (1 - a) * augment.apply(y, draw))
    if family != "color":  # brightness adds a constant; all others are linear
        torch.testing.assert_close(augment.apply(a * x + y, draw), a * augment.apply(x, draw) + augment.apply(y, draw))


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_of_first_and_second_order(family: str) -> None:
    draw = draw_of(family, 2, (4, 5), seed=3)
    augment = SiameseAugmentation(family)
    images = images_of(2, 2, (4, 5)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, draw), images)
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(x, draw).pow(3), images)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draw_depends_on_the_generator_alone_and_replays(family: str) -> None:
    images = images_of().float()
    augment = SiameseAugmentation(family)
    first = augment.apply(images, draw_of(family, seed=5))
    torch.manual_seed(123)  # the global state plays no part
    assert torch.equal(first, augment.apply(images, draw_of(family, seed=5)))
    assert any(not torch.equal(first, augment.apply(images, draw_of(family, seed=s))) for s in (6, 7, 8))
    assert first.dtype == torch.float32
    assert first.shape == images.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_draw_are_the_draw_of_the_rows(family: str) -> None:
    images, draw = images_of(7), draw_of(family, 7)
    index = torch.tensor([5, 0, 3])
    augment = SiameseAugmentation(family)
    part = augment.apply(images[index], draw.rows(index))
    torch.testing.assert_close(part, augment.apply(images, draw)[index], rtol=1e-12, atol=1e-12)


def test_ranges_of_the_parameters() -> None:
    count = 20_000
    values = {family: draw_of(family, count, (32, 28)).values for family in FAMILIES}
    expected = {
        ("color", "brightness"): (-0.5, 0.5),
        ("color", "saturation"): (0, 2),
        ("color", "contrast"): (0.5, 1.5),
        ("scale", "scale_x"): (1 / 1.2, 1.2),
        ("scale", "scale_y"): (1 / 1.2, 1.2),
        ("rotate", "angle"): (-math.pi / 12, math.pi / 12),
    }
    for (family, name), (low, high) in expected.items():
        value = values[family][name]
        assert low <= value.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < value.max() <= high + 1e-6
        assert abs(value.mean() - (low + high) / 2) < 0.02 * (high - low)
    assert values["crop"]["shift_y"].unique().tolist() == list(range(-4, 5))
    assert values["crop"]["shift_x"].unique().tolist() == list(range(-4, 5))  # ⌊0.125·28 + 0.5⌋ = 4
    assert values["cutout"]["centre_y"].unique().tolist() == list(range(33))
    assert values["cutout"]["centre_x"].unique().tolist() == list(range(29))
    assert abs(values["flip"]["flip"].float().mean() - 0.5) < 0.02
    correlation = torch.corrcoef(torch.stack([values["scale"]["scale_x"], values["scale"]["scale_y"]]))[0, 1]
    assert abs(correlation) < 0.05


def test_families_are_picked_uniformly() -> None:
    generator = torch.Generator().manual_seed(0)
    augment = SiameseAugmentation(ALL)
    picked = [augment.draw(1, (8, 8), generator).family for _ in range(3000)]
    for family in FAMILIES:
        assert abs(picked.count(family) - 500) < 100


@pytest.mark.parametrize("families", [None, "", "none", ()])
def test_no_families_mean_the_identity(families: str | None) -> None:
    augment = SiameseAugmentation(families)
    draw = augment.draw(3, (6, 5), torch.Generator())
    images = images_of()
    assert draw.family is None
    assert augment.apply(images, draw.rows(torch.tensor([0, 1, 2]))) is images


def test_order_and_form_of_the_names_do_not_matter() -> None:
    assert SiameseAugmentation(["flip", "color"]).families == SiameseAugmentation("color_flip").families


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ("color_crpo", "unknown .*color, crop, cutout"),
        ("flip_flip", "repeated"),
    ],
)
def test_wrong_families_are_refused(families: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"data\.augmentation={families}: .*{message}|{message}"):
        SiameseAugmentation(families)
