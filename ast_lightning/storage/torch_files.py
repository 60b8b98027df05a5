"""Files of torch.save: read without running anything that they may hold, and written all together or not at all.

The field exchanges its buffers and synthetic sets as pickles, which can carry code. Here a file is read by torch's
``weights_only`` reader, which knows tensors and plain containers and nothing else.
"""

from __future__ import annotations

import glob
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import Damaged, bytes_checksum
from ast_lightning.storage.files import write_file

_ZIP = b"PK\x03\x04"
_LABEL = b"xxh3_128:"
_COMMENT = len(_LABEL) + 32
_PIECE = 1 << 20  # bytes


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
    except Exception as error:  # what a damaged file makes zipfile raise is not documented
        damaged = _first_line(error)
    if damaged is not None:
        raise _damaged(option, path, damaged)


def fingerprint(path: Path, option: str = "buffers") -> str:
    """32 hexadecimal digits of a file's content, from the checksums that its format has; else from all its bytes.

    Raises:
        ConfigurationError: it is cut short or otherwise damaged where its checksums stand.
    """
    if not is_zip(path):
        return bytes_checksum(path.read_bytes())
    try:
        with zipfile.ZipFile(path) as archive:
            records = [(record.filename, record.CRC, record.file_size) for record in archive.infolist()]
    except Exception as error:  # as above
        raise _damaged(option, path, _first_line(error)) from error
    return bytes_checksum(json.dumps(records).encode())


def sealed_archive(content: bytes) -> bytes:
    """What torch.save wrote with its checksum after it, as the comment of the zip archive, which torch.load ignores."""
    archive = content[:-2] + _COMMENT.to_bytes(2, "little")  # an archive ends with the length of its comment
    return archive + _LABEL + bytes_checksum(archive).encode()


def check_seal(path: Path) -> None:
    """Compare a file of :func:`sealed_archive` with its checksum, in pieces; nothing of it is unpickled.

    Raises:
        Damaged: it has no checksum, or does not fit it.
        OSError: it cannot be read.
    """
    state = xxhash.xxh3_128()
    with path.open("rb") as stream:
        rest = os.fstat(stream.fileno()).st_size - _COMMENT
        while rest > 0 and (piece := stream.read(min(rest, _PIECE))):
            state.update(piece)
            rest -= len(piece)
        comment = stream.read()
    if not comment.startswith(_LABEL):
        raise Damaged("it has no checksum, so it was cut short or written by something else")
    if comment != _LABEL + state.hexdigest().encode():
        raise Damaged("it does not fit its checksum")


def save_together(folder: Path, contents: Mapping[str, Callable[[], Any]]) -> list[Path]:
    """Write files into a folder that appear when the last of them is written; a failure leaves no trace.

    They are written into a hidden folder inside ``folder``, on the same disk, and renamed in the end, the first one
    last: where a kill falls between two renames, the first one is missing. What a kill leaves in the hidden folder is
    deleted by the next call for the same files.

    Args:
        folder: is made, and may hold other files.
        contents: what makes the content of each file, by its name; one content is in memory at a time.

    Returns:
        The files.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hidden = _hidden_folder(folder, next(iter(contents)))
        try:
            for name, make in contents.items():
                write_file(hidden / name, partial(torch.save, make()))
            _move(hidden, folder, contents)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except BaseException:
        for each in made:
            with suppress(OSError):  # others may have written into it meanwhile
                each.rmdir()
        raise
    return [folder / name for name in contents]


def _hidden_folder(folder: Path, name: str) -> Path:
    for left in folder.glob(f".{glob.escape(name)}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=folder))


def _move(hidden: Path, folder: Path, names: Iterable[str]) -> None:
    try:
        for name in reversed(list(names)):
            os.replace(hidden / name, folder / name)
    except BaseException:
        for name in names:
            if not (hidden / name).exists():
                (folder / name).unlink(missing_ok=True)
        raise


def _refused(option: str, path: Path, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(option, path, problem, remedy)


def _damaged(option: str, path: Path, what: str) -> ConfigurationError:
    return _refused(option, path, f"it is damaged ({what})", "copy it once more from where it came")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
