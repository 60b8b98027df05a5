"""Atomic writing: after a kill or power failure, a file has either its old or its new content, never a part of it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # errors of vfat, FUSE and network drives


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file in the folder of ``path``, and rename it to ``path``."""
    write_file(path, lambda stream: stream.write(content))


def write_file(path: Path, fill: Callable[[BinaryIO], object], keep: Path | None = None) -> None:
    """Let ``fill`` write to a temporary file in the folder of ``path``, and rename it to ``path``.

    Args:
        path: the file; its folder is created if needed.
        fill: writes the whole content.
        keep: path in the same folder that the replaced file is renamed to. Between the two renames, only ``keep``
            exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = _hidden(path)
    try:
        with hidden.open("xb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        _rename(hidden, path)
    except BaseException as error:
        hidden.unlink(missing_ok=True)
        trouble = error if isinstance(error, OSError) else error.__context__  # torch.save raises another
        if isinstance(trouble, OSError) and trouble.errno and not trouble.filename:  # on a full disk, there is none
            trouble.filename = str(path)
            raise trouble from None
        raise


def write_json(path: Path, content: Any) -> None:
    """Write plain containers as indented JSON."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file written by :func:`write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to one safetensors file; equal tensors give identical bytes."""
    from safetensors.torch import save  # late: some importers of this module must start without torch

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, _settled(save(plain, metadata=dict(metadata) if metadata else None)))


def _settled(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, because the library writes them in varying order."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    return b"".join((len(text).to_bytes(8, "little"), text, content[begin:]))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create the folder ``path`` atomically: ``fill`` writes to a hidden folder next to it, which is then renamed.

    ``path`` should not exist. If it does, it is renamed first; a kill between the two renames leaves it under a hidden
    name that ends in ``.old``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = _hidden(path)
    aside = hidden.with_suffix(".old")
    try:
        hidden.mkdir()
        fill(hidden)
        if path.exists():
            os.replace(path, aside)
        _rename(hidden, path)
    except BaseException:
        if aside.exists():
            os.replace(aside, path)
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove temporary files of killed writers. Call it only while no other process writes to ``folder``.

    Incomplete files are deleted. Folders that had been renamed to ``.old`` are restored if their path is free, and
    deleted otherwise.
    """
    for path in folder.glob(".*.old"):
        place = path.with_name(path.name.removeprefix(".").removesuffix(".old").rpartition(".")[0])
        if place.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.replace(path, place)
    for path in folder.glob(".*.partial"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """Move a file or folder to a free name in the folder ``earlier/`` next to it.

    Returns:
        The new path; None if ``path`` does not exist.
    """
    if not path.exists():
        return None
    earlier = path.parent / "earlier"
    earlier.mkdir(exist_ok=True)
    free = next(name for n in itertools.count(1) if not (name := earlier / f"{path.name}_{n}").exists())
    os.replace(path, free)
    return free


def point_to(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to ``target``, replacing an existing link atomically.

    If ``link`` is a folder, which results from copying a run with ``cp -rL`` or ``scp -r``, it is moved to
    ``earlier/``. If the file system does not support links, ``link`` becomes a copy of the folder ``target``.
    """
    hidden = link.with_name(f".{link.name}.partial")
    hidden.unlink(missing_ok=True)
    try:
        hidden.symlink_to(os.path.relpath(target, link.parent))
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_folder(link, lambda folder: _copy(target, folder))
        return
    if link.is_dir() and not link.is_symlink():
        set_aside(link)
    _rename(hidden, link)


def _copy(source: Path, folder: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            write_bytes(folder / path.relative_to(source), path.read_bytes())


def _hidden(path: Path) -> Path:
    """A unique temporary name in the folder of ``path``, recognised by :func:`clear_leftovers`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _rename(path: Path, place: Path) -> None:
    """Rename ``path`` to ``place`` in the same folder, and flush the folder so that it survives a power failure."""
    os.replace(path, place)
    with suppress(OSError):  # not every file system can flush a folder
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def format_bytes(count: float) -> str:
    """A size with a binary unit, e.g. ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
