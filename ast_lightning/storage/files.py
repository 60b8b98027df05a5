"""Writing files: a kill or power failure at any instant leaves the old content or the new, never a piece of either."""

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

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of vfat, FUSE, network drives


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and rename it into place."""
    write_file(path, lambda stream: stream.write(content))


def write_file(path: Path, fill: Callable[[BinaryIO], object], keep: Path | None = None) -> None:
    """Let ``fill`` write into a file beside ``path``, and rename it into place.

    Args:
        path: the file; its folder is made.
        fill: writes all of it.
        keep: where the file that is replaced goes, in the same folder; for an instant, that is the only one.
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
        trouble = error if isinstance(error, OSError) else error.__context__  # torch.save hides it behind its own
        if isinstance(trouble, OSError) and trouble.errno and not trouble.filename:  # a full disk names no file
            trouble.filename = str(path)
            raise trouble from None
        raise


def write_json(path: Path, content: Any) -> None:
    """Write plain containers as indented JSON."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what :func:`write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as one safetensors file; the same ones give the same bytes."""
    from safetensors.torch import save  # late: this module also serves what must start without torch

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, _settled(save(plain, metadata=dict(metadata) if metadata else None)))


def _settled(content: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in another one each time."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    return b"".join((len(text).to_bytes(8, "little"), text, content[begin:]))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder ``path`` in one instant: ``fill`` writes into a hidden folder beside it, which is then renamed.

    Give it a ``path`` that is not there yet: where one is, it is moved aside first, and a kill between the two renames
    leaves it aside, under a hidden name that ends in ``.old``.
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
    """Tidy up after writers that were killed: for the one who alone may write into ``folder``.

    What was being written is deleted; what had been moved aside for it returns where its place is still empty.
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
    """Move a file or folder to a free name in ``earlier/`` beside it.

    Returns:
        Where it is now; None where there was nothing.
    """
    if not path.exists():
        return None
    earlier = path.parent / "earlier"
    earlier.mkdir(exist_ok=True)
    free = next(name for n in itertools.count(1) if not (name := earlier / f"{path.name}_{n}").exists())
    os.replace(path, free)
    return free


def point_to(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to ``target``, replacing the one that is there in one instant.

    A folder in its place, which copying a run with ``cp -rL`` or ``scp -r`` leaves, is moved aside. Where the file
    system has no links, ``link`` becomes a copy of the folder ``target``.
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
    """A name beside ``path`` that no other writer uses; :func:`clear_leftovers` knows it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _rename(path: Path, place: Path) -> None:
    """Rename ``path`` to ``place`` in its folder, so that it holds after a power failure too."""
    os.replace(path, place)
    with suppress(OSError):  # not every file system can put a folder's names on the disk at once
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
