"""Distilled datasets that were damaged at random: what is read equals what was written, or a file is named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import seal
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.synthetic import DistilledDataset, load_distilled, save_distilled
from ast_lightning.synthetic.dataset import AVERAGE
from ast_lightning.synthetic.verification import verify_distilled

Make = Callable[..., DistilledDataset]
READ = ("dataset.json", "images.safetensors", "preprocessing.safetensors")
ALL = (*READ, "images.png", "images_raw.png")
TRIALS = 200


def same(one: DistilledDataset, other: DistilledDataset) -> bool:
    ours, theirs = one.preprocessing.tensors(), other.preprocessing.tensors()
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and one.learning_rate == other.learning_rate
        and one.class_names == other.class_names
        and one.augmentation == other.augmentation
        and one.metadata == other.metadata
        and one.preprocessing.describe() == other.preprocessing.describe()
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


def damage(folder: Path, others: list[Path], chance: random.Random) -> tuple[str, str]:
    """One random accident to one random file: (what, the file)."""
    name, what = chance.choice(ALL), chance.choice(["truncate", "flip", "delete", "swap"])
    path = folder / name
    content = bytearray(path.read_bytes())
    if what == "truncate":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif what == "flip":
        # half of the flips in the first bytes, where headers are
        place = chance.randrange(min(len(content), 400) if chance.random() < 0.5 else len(content))
        content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif what == "delete":
        path.unlink()
    else:
        path.write_bytes((chance.choice(others) / name).read_bytes())
    return what, name


def attempt(folder: Path) -> tuple[DistilledDataset | None, ConfigurationError | None]:
    try:
        return load_distilled(folder), None
    except ConfigurationError as error:
        return None, error


def test_no_accident_leads_to_a_wrong_number(make_distilled: Make, tmp_path: Path) -> None:
    """Zero wrong reads; and of accidents to files that are read, those that count are refused by the file's name."""
    chance = random.Random(20)
    originals = []
    for kind in ("standardize", "zca", "none"):
        for ipc in (1, 2):
            dataset = make_distilled(kind, ipc=ipc)
            dataset.images = dataset.images + ipc
            dataset.metadata["iteration"] = ipc
            originals.append(save_distilled(tmp_path / f"{kind}{ipc}", dataset))
    loaded = {folder: load_distilled(folder) for folder in originals}
    refused = harmless = 0
    for trial in range(TRIALS):
        original = chance.choice(originals)
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        what, name = damage(copy, [other for other in originals if other != original], chance)
        context = f"trial {trial}: {what} {name} of {original.name}"
        changed = not (copy / name).exists() or (copy / name).read_bytes() != (original / name).read_bytes()
        read, error = attempt(copy)
        if read is None:
            assert name in READ, context
            assert error is not None
            assert name in error.problem, context
            assert error.value == copy, context
            assert error.remedy, context
            refused += 1
            told = [finding.file for finding in verify_distilled(copy)]
            # a whole description of another set: that it does not fit is told of what it describes
            assert name in told or (told and (what, name) == ("swap", "dataset.json")), context
        else:
            assert same(read, loaded[original]), context
            harmless += 1
            if name not in READ:  # nothing reads pictures, and yet verify tells
                assert [finding.file for finding in verify_distilled(copy)] == [name] * changed, context
    assert refused > TRIALS // 3
    assert harmless > TRIALS // 5


def test_a_whole_folder_verifies(make_distilled: Make, tmp_path: Path) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    assert verify_distilled(folder) == []


def test_every_damaged_file_is_told_and_what_does_not_belong(make_distilled: Make, tmp_path: Path) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    for name in ("images.safetensors", "images.png"):
        (folder / name).write_bytes(b"rubbish")
    (folder / "preprocessing.safetensors").write_bytes((folder / "images_raw.png").read_bytes())
    (folder / "notes.txt").touch()
    problems = {finding.file: bool(finding.remedy) for finding in verify_distilled(folder)}
    assert problems == {
        "images.safetensors": True,
        "preprocessing.safetensors": True,
        "images.png": True,
        "notes.txt": False,
    }


def test_the_average_beside_it_is_verified_as_well(make_distilled: Make, tmp_path: Path) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    average = save_distilled(folder / AVERAGE, make_distilled())
    assert verify_distilled(folder) == []
    (average / "images.png").write_bytes(b"rubbish")
    (finding,) = verify_distilled(folder)
    assert (finding.file, bool(finding.remedy)) == ("average/images.png", True)


def test_without_its_description_nothing_can_be_compared(make_distilled: Make, tmp_path: Path) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    (folder / "dataset.json").unlink()
    (finding,) = verify_distilled(folder)
    assert finding.file == "dataset.json"
    assert "not compared" in finding.problem
    assert "distil" in finding.remedy
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        verify_distilled(tmp_path / "nowhere")


def test_statistics_of_another_kind_are_told_although_their_tensors_fit(make_distilled: Make, tmp_path: Path) -> None:
    """Two whitenings of the same tensors that differ in eps: only the description tells them apart."""
    one, other = make_distilled("zca"), make_distilled("zca")
    other.preprocessing.eps = 0.2
    save_distilled(tmp_path / "one", one)
    save_distilled(tmp_path / "other", other)
    name = "preprocessing.safetensors"
    shutil.copy(tmp_path / "other" / name, tmp_path / "one" / name)
    with pytest.raises(ConfigurationError, match=f"{name} cannot be used"):
        load_distilled(tmp_path / "one")


@pytest.mark.parametrize(("version", "remedy"), [(3, "install the version"), (1, "distil again with this one")])
def test_another_version_is_named_even_where_its_seal_fits(
    make_distilled: Make, tmp_path: Path, version: int, remedy: str
) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", seal({**content, "format": version}))
    with pytest.raises(ConfigurationError, match=f"has format {version}") as caught:
        load_distilled(folder)
    assert remedy in caught.value.remedy
