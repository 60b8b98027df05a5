"""The files in conf/data: every key is an argument, and every argument has a key with a comment."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ast_lightning.data import SOURCES, ImageDataModule, digits

CONF = Path(__file__).parents[2] / "conf" / "data"
FILES = sorted(CONF.glob("*.yaml"))


def load(path: Path) -> DictConfig:
    data = OmegaConf.load(path)
    return OmegaConf.create({"seed": 3, "expert": {"batch_size": 64}, "data": data})


def test_every_built_in_source_has_a_file() -> None:
    assert {path.stem for path in FILES} >= set(SOURCES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_are_the_arguments_and_have_comments(path: Path) -> None:
    keys = set(OmegaConf.load(path)) - {"_target_"}
    assert keys == set(inspect.signature(ImageDataModule).parameters)
    for line in path.read_text().splitlines():
        assert line.startswith(("#", "_target_")) or "  # " in line, line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_builds_a_datamodule(path: Path) -> None:
    config = load(path)
    if OmegaConf.is_missing(config.data, "root"):
        config.data.root = "somewhere"
    data = instantiate(config.data)
    assert isinstance(data, ImageDataModule)
    flipped = "flip" in data.augmentation.families
    assert flipped == (path.stem not in ("digits", "mnist", "svhn"))


def test_digits_from_its_file_and_a_source_of_ones_own() -> None:
    config = load(CONF / "digits.yaml")
    assert len(instantiate(config.data).train) == 1297
    config.data.source = {"_target_": "ast_lightning.data.digits", "_partial_": True}
    config.data.mean, config.data.std = [0.3], [0.4]
    data = instantiate(config.data)
    assert data.train.images.shape == digits().train.images.shape
    assert data.describe()["preprocessing"]["std"] == pytest.approx([0.4])
