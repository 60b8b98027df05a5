"""Whether the files of a distilled dataset are what was written, each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import bytes_checksum
from ast_lightning.synthetic.dataset import FILES, PICTURES, read_description, read_images, read_preprocessing


@dataclass(frozen=True)
class Finding:
    """What was found out about one file.

    Attributes:
        file: its name.
        status: ``ok``, ``damaged``, ``missing``, ``unknown`` (what stands there cannot be compared) or ``foreign`` (it
            belongs to no distilled dataset, and is read by nothing).
        problem: what is wrong, empty where nothing is.
        remedy: what to do about it.
    """

    file: str
    status: str
    problem: str = ""
    remedy: str = ""

    @property
    def bad(self) -> bool:
        """Whether the dataset is not as it was written."""
        return self.status in ("damaged", "missing", "unknown")


def verify_distilled(folder: Path | str, option: str = "folder") -> list[Finding]:
    """Compare every file with what was written; pictures, which nothing reads, as well.

    Raises:
        ConfigurationError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigurationError(option, folder, "there is no such folder", "name the folder of a distilled dataset")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in (*FILES, *PICTURES))
    others = [Finding(name, "foreign", "it belongs to no distilled dataset") for name in foreign]
    missing = [name for name in (*FILES, *PICTURES) if not (folder / name).is_file()]
    try:
        description = read_description(folder, option)
    except ConfigurationError as error:
        gone = [Finding(name, "missing", "it is not there", error.remedy) for name in missing if name in FILES]
        broken = [] if gone else [Finding("dataset.json", "damaged", error.problem, error.remedy)]
        rest = [name for name in (*FILES, *PICTURES) if name not in missing and (gone or name != "dataset.json")]
        return [*gone, *broken, *(Finding(name, "unknown", "nothing to compare it with") for name in rest), *others]
    findings = [Finding("dataset.json", "ok")]
    for name, read in (("images.safetensors", read_images), ("preprocessing.safetensors", read_preprocessing)):
        try:
            read(folder, description, option)
            findings.append(Finding(name, "ok"))
        except ConfigurationError as error:
            findings.append(Finding(name, "damaged", error.problem, error.remedy))
    findings += [_picture(folder / name, description["checksums"][name]) for name in PICTURES]
    return [*findings, *others]


def _picture(path: Path, checksum: str) -> Finding:
    remedy = "take another copy of it; no program reads it"
    if not path.is_file():
        return Finding(path.name, "missing", "it is not there", remedy)
    if bytes_checksum(path.read_bytes()) != checksum:
        return Finding(path.name, "damaged", "it is not the picture that was written", remedy)
    return Finding(path.name, "ok")
