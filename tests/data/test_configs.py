"""The files in conf/data: what they compose to is what the datamodule takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ast_lightning.config.check import checked
from ast_lightning.data import SOURCES, ImageDataModule, digits

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted((CONF / "data").glob("*.yaml"))
DECODING = {"image_size", "resize", "classes", "class_names"}
REQUIRED = {
    "torchvision": ["data.source._target_=torchvision.datasets.FakeData"],
    "huggingface": ["data.source.path=somewhere"],
}


def load(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = [*REQUIRED.get(name, ()), "seed=3", "expert.batch_size=64", *overrides]
        config = compose("config", overrides=[f"data={name}", *options])
    section: dict[str, Any] = checked(config)["data"]
    return section


def test_every_built_in_source_has_a_file() -> None:
    assert {path.stem for path in FILES} >= set(SOURCES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_are_the_arguments_and_a_file_holds_what_differs(path: Path) -> None:
    values = load(path.stem, "data.root=somewhere")
    assert set(values) == {"_target_", *inspect.signature(ImageDataModule).parameters}
    assert (values["batch_size"], values["seed"], values["name"]) == (64, 3, path.stem)
    own = yaml.safe_load(path.read_text())
    assert set(own) <= {"defaults", "source", "name", "root", "download", "mean", "std", "augmentation"} | DECODING


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_builds_a_datamodule(path: Path) -> None:
    data = instantiate(load(path.stem, "data.root=somewhere"))
    assert isinstance(data, ImageDataModule)
    flipped = "flip" in data.augmentation.families
    assert flipped == (path.stem not in ("digits", "mnist", "svhn"))


def test_digits_from_its_file_and_a_source_of_ones_own() -> None:
    values = load("digits")
    assert len(instantiate(values).train) == 1297
    own = {"_target_": "ast_lightning.data.digits", "_partial_": True}
    data = instantiate(OmegaConf.create({**values, "source": own, "mean": [0.3], "std": [0.4]}))
    assert data.train.images.shape == digits().train.images.shape
    assert data.describe()["preprocessing"]["std"] == pytest.approx([0.4])
