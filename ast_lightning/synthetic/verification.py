"""Verification of each file of a distilled dataset against its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import bytes_checksum
from ast_lightning.storage.inspection import Finding
from ast_lightning.synthetic.dataset import AVERAGE, FILES, PICTURES, read_description, read_images, read_preprocessing

_COPY = "copy it again; no program reads it"


def verify_distilled(folder: Path | str, option: str = "folder") -> list[Finding]:
    """Compare every file with its checksum, including the pictures and the averaged dataset in the folder.

    Returns:
        The problems, and a note for each file that does not belong to a distilled dataset.

    Raises:
        ConfigurationError: the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigurationError(option, folder, "there is no such folder", "name the folder of a distilled dataset")
    third_party = sorted(path.name for path in folder.iterdir() if path.name not in (*FILES, *PICTURES, AVERAGE))
    notes = [Finding(name, "it belongs to no distilled dataset, and nothing reads it") for name in third_party]
    average = verify_distilled(folder / AVERAGE, option) if (folder / AVERAGE).is_dir() else []
    inside = [replace(finding, file=f"{AVERAGE}/{finding.file}") for finding in average]
    return [*_problems(folder, option), *inside, *notes]


def _problems(folder: Path, option: str) -> Iterator[Finding]:
    try:
        description = read_description(folder, option)
    except ConfigurationError as error:
        missing = [name for name in FILES if not (folder / name).is_file()]
        for name in missing or FILES[:1]:
            yield Finding(name, f"{error.problem}, so the other files were not compared", error.remedy)
        return
    for name, read in (("images.safetensors", read_images), ("preprocessing.safetensors", read_preprocessing)):
        try:
            read(folder, description, option)
        except ConfigurationError as error:
            yield Finding(name, error.problem, error.remedy)
    for name in PICTURES:
        path = folder / name
        if not path.is_file():
            yield Finding(name, "it is missing", _COPY)
        elif bytes_checksum(path.read_bytes()) != description["checksums"][name]:
            yield Finding(name, "it is not the picture that was written", _COPY)
