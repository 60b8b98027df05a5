"""Arrays on disk that are computed once and memory-mapped afterwards: decoded images, and whitened ones.

An entry is the folder ``<cache>/<name>_<hash>``, with plain ``.npy`` files and their checksums in ``arrays/``. Several
processes may ask for the same entry: one of them writes it, under a lock and a temporary name, and the others wait. A
killed process therefore leaves a whole entry or none, and every file is compared with its checksum before it is used.
Entries may be deleted while no command uses them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.storage.files import clear_leftovers, format_bytes, read_json, write_file, write_folder, write_json
from ast_lightning.storage.reading import BROKEN
from ast_lightning.terminal import say

_RECORD = "checksums.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

Parts = Iterable[np.ndarray]
"""Consecutive parts of an array along its first axis."""


def entry_folder(cache: str | Path, name: str, identity: Any) -> Path:
    """The folder of an entry.

    Args:
        cache: the folder of all entries.
        name: for people; part of the folder's name.
        identity: plain containers that determine the content.
    """
    digest = xxhash.xxh3_128(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    return Path(cache).expanduser() / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)[:40]}_{digest[:16]}"


def cached_arrays(entry: Path, size: int, write: Callable[[Path], None]) -> dict[str, Tensor]:
    """The arrays of an entry by name, memory-mapped; they are written first unless they are there and intact.

    Args:
        entry: see :func:`entry_folder`.
        size: bytes of the arrays.
        write: writes them into an empty folder with :func:`write_array`.

    Raises:
        ConfigurationError: the folder cannot be created or written to, or the disk is too full. Nothing remains of the
            entry.
        OSError: the folder cannot be read.
    """
    folder = entry / "arrays"
    if not _is_intact(folder):
        lock = FolderLock(folder)
        try:
            taken = lock.take()
        except OSError as error:
            raise _rejected(folder, f"it cannot be written to ({error.strerror})") from error
        if not taken:
            say(f"waiting for {lock.holder()}, which writes {folder}")
            lock.take(-1)
        with lock:
            if not _is_intact(folder):
                if folder.exists():
                    say(f"warning: {folder} is damaged, and is written again")
                _write(folder, size, write)
    arrays = ((path.stem, np.load(path, mmap_mode="c")) for path in folder.glob("*.npy"))
    return {name: torch.from_numpy(array) for name, array in arrays}  # mode c: writable for torch, not on disk


def write_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic], parts: Parts) -> None:
    """Write an array part by part to a ``.npy`` file."""

    def fill(stream: Any) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part, dtype).data)

    write_file(path, fill)


def remembered(what: str, folder: Path | None, splits: Mapping[str, Tensor | None], compute: Callable[[], Any]) -> Any:
    """The result of ``compute``, which is recorded beside the images that it was computed from.

    Args:
        what: name of the result, a part of the file's name.
        folder: the entry that holds all the images; None computes the result each time.
        splits: the rows and labels of the images that determine the result, by name.
        compute: returns plain JSON values.
    """
    if folder is None:
        return compute()
    state = xxhash.xxh3_128()
    for name, tensor in sorted(splits.items()):
        state.update(f"{name} {None if tensor is None else len(tensor)}".encode())
        if tensor is not None:
            state.update(tensor.contiguous().numpy().data)
    path = folder / f"{what}_{state.hexdigest()[:16]}.json"
    with suppress(OSError, ValueError):
        return read_json(path)
    result = compute()
    with suppress(OSError):  # a read-only or full disk
        write_json(path, result)
    return result


def _write(folder: Path, size: int, write: Callable[[Path], None]) -> None:
    clear_leftovers(folder.parent)
    free = shutil.disk_usage(folder.parent).free
    if free < size:
        problem = f"{format_bytes(size)} of images are to be written, and the disk has {format_bytes(free)}"
        raise _rejected(folder, problem)

    def fill(hidden: Path) -> None:
        write(hidden)
        write_json(hidden / _RECORD, {path.name: _checksum(path) for path in hidden.glob("*.npy")})

    try:
        write_folder(folder, fill)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _rejected(folder, f"{error.strerror} (the images take {format_bytes(size)})") from error
        raise


def _rejected(folder: Path, problem: str) -> ConfigurationError:
    remedy = "set another folder with enough space, or data.cache=null, which prepares the images anew at each start"
    return ConfigurationError("data.cache", folder.parents[1], problem, remedy)


def _is_intact(folder: Path) -> bool:
    try:
        recorded = read_json(folder / _RECORD)
        return bool(recorded) and all(_checksum(folder / name) == value for name, value in recorded.items())
    except (OSError, *BROKEN):
        return False


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()
