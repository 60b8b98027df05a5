"""Standardisation and ZCA whitening against their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ast_lightning.config.data import PREPROCESSINGS
from ast_lightning.errors import ConfigurationError
from ast_lightning.images import (
    Preprocessing,
    Standardization,
    ZcaWhitening,
    fit_preprocessing,
    load_preprocessing,
    preprocessing,
    save_preprocessing,
)


def pictures(count: int = 200, channels: int = 2, size: int = 5, seed: int = 0) -> Tensor:
    """Correlated uint8 images, one pixel of them constant."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, size, size, generator=generator)
    smooth = (coarse + coarse.roll(1, 3) + coarse.roll(1, 2)) / 3
    smooth[:, :, 0, 0] = 0.25
    return (smooth * 255).round().to(torch.uint8)


def unit(images: Tensor) -> Tensor:
    return images.double() / 255


def test_standardization_gives_mean_zero_and_deviation_one_per_channel() -> None:
    images = pictures()
    fitted = fit_preprocessing("standardize", images)
    out = fitted.apply(unit(images))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.ones(2).double(), atol=1e-6, rtol=0)
    assert isinstance(fitted, Standardization)
    torch.testing.assert_close(fitted.mean.double(), unit(images).mean((0, 2, 3)))


def test_published_constants_are_taken_as_they_are() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    fitted = fit_preprocessing("standardize", pictures(channels=3), mean=mean, std=std)
    assert fitted.tensors()["mean"].tolist() == pytest.approx(mean)
    assert fitted.tensors()["std"].tolist() == pytest.approx(std)
    out = fitted.apply(torch.full((1, 3, 2, 2), 0.5))
    assert out[0, :, 1, 1].tolist() == pytest.approx([(0.5 - m) / s for m, s in zip(mean, std, strict=True)])


def no_decomposition(*_: object, **__: object) -> None:
    raise AssertionError("a decomposition that is impracticable for images of this size")


@pytest.mark.parametrize("limit", [50, 49], ids=["in memory", "in parts"])
def test_zca_whitens_the_covariance_to_its_definition(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "_SVD_FEATURES", limit)
    if limit < 50:
        monkeypatch.setattr("kornia.enhance.zca_mean", no_decomposition)
    eps = 0.1
    images = pictures()
    fitted = fit_preprocessing("zca", images, zca_eps=eps)
    flat = unit(images).flatten(1)
    covariance = torch.cov(flat.T)  # over N − 1
    values, vectors = torch.linalg.eigh(covariance)
    expected = vectors @ torch.diag(values / (values + eps)) @ vectors.T
    whitened = fitted.apply(unit(images)).flatten(1)
    torch.testing.assert_close(torch.cov(whitened.T), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(whitened.mean(0), torch.zeros(50).double(), atol=1e-5, rtol=0)
    transform = fitted.tensors()["transform"].double()
    torch.testing.assert_close(
        transform, vectors @ torch.diag((values + eps).rsqrt()) @ vectors.T, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(transform, transform.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", PREPROCESSINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invert_undoes_apply(kind: str, dtype: torch.dtype) -> None:
    images = pictures()
    fitted = fit_preprocessing(kind, images)
    unseen = unit(pictures(20, seed=1)).to(dtype)
    there = fitted.apply(unseen)
    back = fitted.invert(there)
    assert there.dtype == back.dtype == dtype
    torch.testing.assert_close(back, unseen, atol=2e-6, rtol=0)
    beyond = unseen * 3 - 1
    torch.testing.assert_close(fitted.invert(fitted.apply(beyond)), beyond, atol=1e-5, rtol=0)  # no clamping


@pytest.mark.parametrize("kind", PREPROCESSINGS)
def test_saving_keeps_every_bit(kind: str, tmp_path: Path) -> None:
    fitted = fit_preprocessing(kind, pictures(), zca_eps=0.3)
    save_preprocessing(tmp_path / "preprocessing.safetensors", fitted)
    assert [entry.name for entry in tmp_path.iterdir()] == ["preprocessing.safetensors"]
    loaded = load_preprocessing(tmp_path / "preprocessing.safetensors")
    assert type(loaded) is type(fitted)
    assert loaded.describe() == fitted.describe() == json.loads(json.dumps(fitted.describe()))
    assert loaded.fingerprint() == fitted.fingerprint()
    images = unit(pictures(3)).float()
    assert torch.equal(loaded.apply(images), fitted.apply(images))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"has no checksum"):
        load_preprocessing(tmp_path / "other.safetensors")


def test_fingerprints_tell_kinds_and_statistics_apart() -> None:
    images = pictures()
    variants: list[Preprocessing] = [
        fit_preprocessing("none", images),
        fit_preprocessing("standardize", images),
        fit_preprocessing("standardize", pictures(seed=1)),
        fit_preprocessing("zca", images),
        fit_preprocessing("zca", images, zca_eps=0.2),
    ]
    prints = [variant.fingerprint() for variant in variants]
    assert len(set(prints)) == len(prints)
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in prints)
    assert fit_preprocessing("standardize", images.flip(0)).fingerprint() == prints[1]  # order plays no part


@pytest.mark.parametrize("kind", PREPROCESSINGS)
def test_constant_images_give_no_nan(kind: str) -> None:
    images = torch.full((10, 3, 4, 4), 77, dtype=torch.uint8)
    fitted = fit_preprocessing(kind, images)
    out = fitted.apply(unit(images).float())
    assert out.isfinite().all()
    torch.testing.assert_close(fitted.invert(out), unit(images).float())


def test_chunked_application_is_the_whole_application(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    fitted = fit_preprocessing("zca", images)
    whole = fitted.apply(unit(images))
    monkeypatch.setattr(preprocessing, "_CHUNK_BYTES", 4 * 50 * 7)  # seven images
    torch.testing.assert_close(fitted.apply(unit(images)), whole)
    torch.testing.assert_close(preprocessing.preprocess(fitted, images), whole.float(), atol=1e-5, rtol=1e-5)


def test_statistics_used_in_validation_serve_autograd_later() -> None:
    fitted = fit_preprocessing("zca", pictures())
    images = unit(pictures(3))
    with torch.inference_mode():
        fitted.apply(images)
    images.requires_grad_(True)
    fitted.invert(fitted.apply(images)).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, torch.ones_like(images), atol=1e-5, rtol=0)


def test_zca_of_the_abstract_form() -> None:
    eye = torch.eye(4)
    whitening = ZcaWhitening(torch.zeros(4), 2 * eye, eye / 2, eps=0.1)
    images = torch.rand(2, 1, 2, 2)
    assert torch.equal(whitening.apply(images), 2 * images)
    assert whitening.describe() == {"kind": "zca", "eps": 0.1, "features": 4}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("whiten", {}, r"data\.preprocessing=whiten: .*use one of standardize, zca, none"),
        ("zca", {"zca_max_features": 49}, r"images of 50 values.*GiB of memory"),
        ("zca", {"zca_eps": 0.0}, r"data\.zca_eps=0\.0: it must be positive"),
        ("standardize", {"mean": (0.5, 0.5)}, r"data\.mean=\(0\.5, 0\.5\): mean and std are given together"),
        ("standardize", {"std": (0.5, 0.5)}, r"mean and std are given together"),
        ("standardize", {"mean": (0.5,), "std": (0.5,)}, r"data\.mean=\[0\.5\]: 1 values for images of 2 channels"),
        ("standardize", {"mean": (0.5, 0.5), "std": (0.5, 0)}, r"data\.std=\[0\.5, 0\]: .*positive"),
    ],
)
def test_wrong_settings_are_refused(kind: str, settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit_preprocessing(kind, pictures(), **settings)


def test_zca_states_the_memory_it_would_take() -> None:
    images = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)  # 49,152 values: the two matrices alone are 18 GiB
    with pytest.raises(ConfigurationError, match=r"45\.0 GiB of memory and 18\.0 GiB in every saved copy"):
        fit_preprocessing("zca", images)
