"""Accidents to files: every one is named, or changes no value that anyone reads."""

from __future__ import annotations

import functools
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ast_lightning.data import fit_preprocessing, load_preprocessing, save_preprocessing
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ConvNet, build_network, describe_network
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.verification import verify_store

NETWORK = functools.partial(ConvNet, 1, 3, (4, 4), width=2, depth=1, normalization="batch")
EXPERTS, EPOCHS = 3, 2
STORES = ("one", "two")
Values = dict[str, Any]
Accident = Callable[[random.Random, Path, Path], set[Path]]


def make_stores(folder: Path) -> None:
    """Two complete stores of the same shape: another seed, other images."""
    for seed, name in enumerate(STORES):
        images = torch.randint(256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        preprocessing = fit_preprocessing("zca", images)
        metadata = {
            "network": describe_network(NETWORK),
            "data": {"name": "made up"},
            "preprocessing_fingerprint": preprocessing.fingerprint(),
            "expert": {"lr": 0.1},
            "epochs": EPOCHS,
            "seed": seed,
        }
        store = TrajectoryStore.create(folder / name, metadata)
        save_preprocessing(store.folder / "preprocessing.safetensors", preprocessing)
        for expert in range(EXPERTS):
            for epoch in range(EPOCHS + 1):
                module = build_network(NETWORK, seed, expert, epoch)
                module(torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(epoch)))
                store.write_snapshot(expert, epoch, {**dict(module.named_parameters()), **dict(module.named_buffers())})
            store.finish(expert, {"metrics": {"test/accuracy": 0.5 + seed + expert / 10}})


def read_all(folder: Path) -> tuple[Values, list[str]]:
    """Every value of both stores that can be read, and what was said of the others."""
    values: Values = {}
    messages: list[str] = []

    def attempt(key: str, read: Callable[[], Any]) -> None:
        try:
            values[key] = read()
        except ConfigurationError as error:
            messages.append(str(error))

    def statistics_of_images(store: TrajectoryStore) -> Any:
        store.check_preprocessing()
        return load_preprocessing(store.folder / "preprocessing.safetensors").tensors()

    for name in STORES:
        try:
            store = TrajectoryStore.open(folder / name)
        except ConfigurationError as error:
            messages.append(str(error))
            continue
        values[f"{name} metadata"] = dict(store.metadata)
        attempt(f"{name} preprocessing", lambda store=store: statistics_of_images(store))
        for expert in store.experts():
            key = f"{name} {expert}"
            attempt(f"{key} summary", lambda store=store, expert=expert: store.summary(expert))
            for epoch in range(EPOCHS + 1):
                attempt(f"{key} {epoch}", lambda s=store, x=expert, e=epoch: s.read_window(x, e, 0))
    return values, messages


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return bool(one == other)


def truncate(draw: random.Random, path: Path, other: Path) -> set[Path]:
    os.truncate(path, draw.randrange(path.stat().st_size))
    return {path}


def lengthen(draw: random.Random, path: Path, other: Path) -> set[Path]:
    with path.open("ab") as stream:
        stream.write(draw.randbytes(draw.randrange(1, 50)))
    return {path}


def flip(draw: random.Random, path: Path, other: Path) -> set[Path]:
    content = bytearray(path.read_bytes())
    # half of the flips into the first bytes, where a header stands
    bit = draw.randrange(8 * (len(content) if draw.random() < 0.5 else min(len(content), 200)))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return {path}


def delete(draw: random.Random, path: Path, other: Path) -> set[Path]:
    path.unlink()
    return {path}


def swap(draw: random.Random, path: Path, other: Path) -> set[Path]:
    """Two files of the same kind change places, within a store or across."""
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return {path, other}


def replace(draw: random.Random, path: Path, other: Path) -> set[Path]:
    shutil.copyfile(other, path)
    return {path}


def zero(draw: random.Random, path: Path, other: Path) -> set[Path]:
    """A block that was never written."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    length = min(len(content) - start, draw.randrange(1, 64))
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return {path}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    make_stores(folder)
    return folder


def test_nothing_is_wrong_with_stores_that_nothing_happened_to(pristine: Path) -> None:
    values, messages = read_all(pristine)
    assert messages == []
    assert len(values) == 2 * (2 + EXPERTS * (1 + EPOCHS + 1))
    assert all(verify_store(pristine / name) == [] for name in STORES)


@pytest.mark.parametrize("seed", range(8))
def test_every_accident_is_named_or_harmless(pristine: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    wanted, _ = read_all(pristine)
    files = sorted(path.relative_to(pristine) for path in pristine.rglob("*") if path.is_file())
    outcomes: Counter[str] = Counter()
    for trial in range(40):
        folder = tmp_path / str(trial)
        shutil.copytree(pristine, folder)
        accident: Accident = draw.choice([truncate, lengthen, flip, flip, delete, swap, replace, zero])
        path = draw.choice(files)
        like = [each for each in files if each != path and kind(each) == kind(path)]
        touched = accident(draw, folder / path, folder / draw.choice(like))
        changed = {each for each in touched if not same_content(each, pristine / each.relative_to(folder))}

        values, messages = read_all(folder)
        findings = [finding for name in STORES for finding in verify_store(folder / name)]
        said = " ".join([*messages, *(f"{finding.file} {finding.problem}" for finding in findings)])
        what = f"{accident.__name__} {path}"
        for key, value in values.items():
            if not key.endswith("metadata"):  # of a store.json that took another's place: all it holds is refused
                assert equal(value, wanted[key]), f"{what}: {key} is wrong"
        for each in changed:
            if named(each, said):
                outcomes["named"] += 1
                continue
            assert accident in (flip, zero), f"{what}: nothing is said"
            assert equal(values, wanted), f"{what}: nothing is said of values that are gone"
            outcomes["harmless"] += 1
        shutil.rmtree(folder)
    assert outcomes["named"] > 30, outcomes


def kind(path: Path) -> str:
    return "snapshot" if path.name.startswith("epoch_") else path.name


def same_content(path: Path, other: Path) -> bool:
    return path.exists() and path.read_bytes() == other.read_bytes()


def named(path: Path, said: str) -> bool:
    """Its own name; for a ``store.json`` that took another's place, a file that does not belong to it."""
    return str(path) in said or (path.name == "store.json" and f"{path.parent}/expert_" in said)
