"""Files of torch.save: read without running anything that they may hold, and written all together or not at all.

The field exchanges its buffers and synthetic sets as pickles, which can carry code. Here a file is read by torch's
``weights_only`` reader, which knows tensors and plain containers and nothing else.
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
_COPY = "copy it once more from where it came, or save it again as plain tensors"


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
    with reading(path, _COPY, option, path):
        return _load(path, "cpu", mmap=is_zip(path))


def is_zip(path: Path) -> bool:
    """Whether a file begins as those do that torch has written since version 1.6."""
    with path.open("rb") as stream:
        return stream.read(len(_ZIP)) == _ZIP


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with path.open("rb") as stream:
        try:
            yield zipfile.ZipFile(stream)
        except Exception as error:  # what a damaged file makes zipfile raise is not documented
            raise Damaged(f"it was changed or cut short ({error})") from error


def check_records(path: Path) -> None:
    """Compare all that a file of today's format holds with its checksums, a CRC-32 a record; nothing is unpickled.

    Raises:
        Damaged: bits of it have changed, it was cut short, or it has another format.
        OSError: it cannot be read.
    """
    with _archive(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise Damaged(f"{damaged} in it does not fit its checksum")


def load_checked(path: Path, map_location: Any = "cpu") -> Any:
    """The tensors and plain containers of a file of today's format, after :func:`check_records`.

    Raises:
        Damaged: bits of it have changed, it was cut short, or it holds anything else. Nothing of it was run.
        OSError: it cannot be read.
    """
    check_records(path)
    return _load(path, map_location, mmap=False)


def _load(path: Path, map_location: Any, *, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location, weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # what a damaged file makes torch raise is not documented
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if pickled:
            raise Damaged(f"it holds a pickled {pickled[1]}, which was not run") from error
        raise Damaged("it was changed, cut short, or not written by torch.save") from error


def check_content(path: Path, option: str) -> None:
    """:func:`check_records` for a file that an option names; the format before torch 1.6 has no checksums.

    Raises:
        ConfigurationError: bits of it have changed, or it cannot be read.
    """
    with reading(path, _COPY, option, path):
        if is_zip(path):
            check_records(path)


def fingerprint(path: Path, option: str = "buffers") -> str:
    """32 hexadecimal digits of a file's content, from the checksums that its format has; else from all its bytes.

    Raises:
        ConfigurationError: it is cut short or otherwise damaged where its checksums stand.
    """
    with reading(path, _COPY, option, path):
        if not is_zip(path):
            return bytes_checksum(path.read_bytes())
        with _archive(path) as archive:
            records = [(record.filename, record.CRC, record.file_size) for record in archive.infolist()]
    return bytes_checksum(json.dumps(records).encode())


def save_together(folder: Path, contents: Mapping[str, Callable[[], Any]]) -> list[Path]:
    """Write files into a folder that appear when the last of them is written; a failure leaves none.

    They are written into a hidden folder inside ``folder`` and renamed in the end, the first one last: where a kill
    falls between two renames, the first one is missing. What a kill leaves in the hidden folder is deleted by the next
    call for the same files.

    Args:
        folder: is made, and may hold other files.
        contents: what makes the content of each file, by its name; one content is in memory at a time.

    Returns:
        The files.
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
