"""Files of torch.save: read without executing pickled code, and written atomically as a group.

Published buffers and synthetic sets are pickles, which can contain code. Here files are read with
``torch.load(weights_only=True)``, which accepts only tensors and plain containers.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ast_lightning.storage.checksums import Damaged, bytes_checksum
from ast_lightning.storage.files import write_file
from ast_lightning.storage.reading import reading

_ZIP = b"PK\x03\x04"
_COPY = "copy it again from its source, or save it again as plain tensors"


def load_plain(path: Path, option: str) -> Any:
    """Load the tensors and plain containers of a file to the CPU.

    A file in the current (zip) format is memory-mapped, so that tensors are read from disk when they are used. A file
    in the format before torch 1.6 is read completely.

    Args:
        path: the file.
        option: the option that named it, for error messages.

    Raises:
        ConfigurationError: the file cannot be read, is damaged, or contains other objects, which are not executed.
    """
    with reading(path, _COPY, option, path):
        return _load(path, "cpu", mmap=is_zip(path))


def is_zip(path: Path) -> bool:
    """Whether a file has the zip format that torch has written since version 1.6."""
    with path.open("rb") as stream:
        return stream.read(len(_ZIP)) == _ZIP


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with path.open("rb") as stream:
        try:
            yield zipfile.ZipFile(stream)
        except Exception as error:  # zipfile does not document its errors for damaged files
            raise Damaged(f"it was changed or truncated ({error})") from error


def check_records(path: Path) -> None:
    """Verify the CRC-32 checksum of each record of a file in the zip format; nothing is unpickled.

    Raises:
        Damaged: a checksum does not match, the file is truncated, or it has another format.
        OSError: it cannot be read.
    """
    with _archive(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise Damaged(f"{damaged} in it does not match its checksum")


def load_checked(path: Path, map_location: Any = "cpu") -> Any:
    """Load the tensors and plain containers of a file in the zip format, after :func:`check_records`.

    Raises:
        Damaged: a checksum does not match, the file is truncated, or it contains other objects, which are not executed.
        OSError: it cannot be read.
    """
    check_records(path)
    return _load(path, map_location, mmap=False)


def _load(path: Path, map_location: Any, *, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location, weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # torch does not document its errors for damaged files
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if pickled:
            raise Damaged(f"it holds a pickled {pickled[1]}, which was not run") from error
        raise Damaged("it was changed, truncated, or not written by torch.save") from error


def check_content(path: Path, option: str) -> None:
    """Call :func:`check_records` for a file that an option names; the format before torch 1.6 has no checksums.

    Raises:
        ConfigurationError: a checksum does not match, or the file cannot be read.
    """
    with reading(path, _COPY, option, path):
        if is_zip(path):
            check_records(path)


def fingerprint(path: Path, option: str = "buffers") -> str:
    """Checksum of a file's content, 32 hexadecimal digits; computed from the CRC-32 values in the zip format.

    For other formats, it is computed from all bytes.

    Raises:
        ConfigurationError: the file is truncated, or its zip directory is damaged.
    """
    with reading(path, _COPY, option, path):
        if not is_zip(path):
            return bytes_checksum(path.read_bytes())
        with _archive(path) as archive:
            records = [(record.filename, record.CRC, record.file_size) for record in archive.infolist()]
    return bytes_checksum(json.dumps(records).encode())


def save_together(folder: Path, contents: Mapping[str, Callable[[], Any]]) -> list[Path]:
    """Write several files to a folder. They become visible after the last one is written; a failure leaves none.

    The files are written to a hidden folder inside ``folder`` and then renamed in reverse order. If the process is
    killed between two renames, the first file is missing. The next call for the same files deletes what remains in the
    hidden folder.

    Args:
        folder: the output folder, created if needed; it may contain other files.
        contents: functions that return the content of each file, by name; one content is in memory at a time.

    Returns:
        The paths of the files.
    """
    hidden = folder / f".{next(iter(contents))}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        for name, make in contents.items():
            write_file(hidden / name, partial(torch.save, make()))
        for name in reversed(list(contents)):
            os.replace(hidden / name, folder / name)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return [folder / name for name in contents]
