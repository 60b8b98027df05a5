"""Reading what others wrote with torch.save, without running anything that a file may hold.

The field exchanges its buffers and synthetic sets as pickles, which can carry code. Here a file is read by torch's
``weights_only`` reader, which knows tensors and plain containers and nothing else.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from ast_lightning.errors import ConfigurationError
from ast_lightning.integrity import bytes_checksum

_ZIP = b"PK\x03\x04"


def load_plain(path: Path, option: str) -> Any:
    """The tensors and plain containers of a file, on the CPU.

    A file of today's format is mapped into memory, so that its tensors are read from the disk when they are used; one
    of the format before torch 1.6 is read whole.

    Args:
        path: the file.
        option: the option that named it, for error messages.

    Raises:
        ConfigurationError: the file cannot be read, is damaged, or holds anything else. Nothing of it was run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it holds a pickled {found[1]}, which was not run" if found else "it is damaged or no file of tensors"
        remedy = "save it again as plain tensors: code from a data file is never run"
        raise _refused(option, path, what, remedy) from error
    except OSError as error:
        raise _refused(
            option, path, f"it cannot be read ({error.strerror or error})", "name a readable file"
        ) from error
    except Exception as error:  # what a damaged file makes torch raise is not documented
        what = f"it is damaged or was not written by torch.save ({_first_line(error)})"
        raise _refused(option, path, what, "copy it once more from where it came") from error


def is_zip(path: Path) -> bool:
    """Whether a file begins as those do that torch has written since version 1.6."""
    with path.open("rb") as stream:
        return stream.read(len(_ZIP)) == _ZIP


def check_content(path: Path, option: str) -> None:
    """Compare a file with the checksums that its format has; the format before torch 1.6 has none.

    Raises:
        ConfigurationError: bits of it have changed.
    """
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        damaged = _first_line(error)
    if damaged is not None:
        raise _refused(option, path, f"it is damaged ({damaged})", "copy it once more from where it came")


def fingerprint(path: Path) -> str:
    """32 hexadecimal digits of a file's content, from the checksums that its format has; else from all its bytes."""
    if not is_zip(path):
        return bytes_checksum(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, record.CRC, record.file_size) for record in archive.infolist()]
    return bytes_checksum(json.dumps(records).encode())


def _refused(option: str, path: Path, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(option, path, problem, remedy)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
