"""Checksums: files whose content has changed since they were written are rejected.

The checksums are 128-bit XXH3: they detect accidental changes, not forgeries, and are much faster than the disk. A
checksum of tensors covers their names, dtypes, shapes and values, and metadata such as expert and epoch. It therefore
detects swapped files as well as flipped bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from torch import Tensor

FIELD = "checksum"


class Damaged(ValueError):
    """The content of a file is damaged, e.g. it does not match its checksum."""


def tensor_checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> str:
    """Checksum of named tensors and their metadata, 32 hexadecimal digits; independent of the order of the entries.

    Args:
        tensors: tensors of any dtype and shape, on the CPU.
        about: metadata of the tensors, e.g. ``{"expert": "3", "epoch": "17"}``.
    """
    import torch  # late: some importers of this module must start without torch

    state = xxhash.xxh3_128(json.dumps(sorted((about or {}).items())).encode())
    for name, tensor in sorted(tensors.items()):
        state.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        state.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    The file is read, not memory-mapped. A truncated file or a disk failure therefore raises an error here, instead of
    terminating the process with a signal later.

    Raises:
        Damaged: it is not a safetensors file.
        OSError: it cannot be read.
    """
    from safetensors.torch import load  # late: as above

    content = path.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # safetensors does not document its errors for damaged files
        raise Damaged(f"it is truncated or not a safetensors file ({error})") from error
    return header.get("__metadata__") or {}, tensors


def read_checked_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Like :func:`read_tensors`, for a file whose metadata contain a ``checksum`` of its tensors and other metadata.

    Raises:
        Damaged: it is not a safetensors file, has no checksum, or does not match it.
        OSError: it cannot be read.
    """
    metadata, tensors = read_tensors(path)
    if FIELD not in metadata:
        raise Damaged("it has no checksum: an older version wrote it, or it is something else")
    about = {key: value for key, value in metadata.items() if key != FIELD}
    if metadata[FIELD] != tensor_checksum(tensors, about):
        raise Damaged("it does not match its checksum")
    return metadata, tensors


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add a ``checksum`` of all other entries, which does not depend on white space and the order of keys."""
    rest = {key: value for key, value in content.items() if key != FIELD}
    return {**rest, FIELD: _content_checksum(rest)}


def unseal(content: Any) -> dict[str, Any]:
    """Verify and remove the checksum that :func:`seal` added.

    Raises:
        Damaged: there is no checksum, or it does not match.
    """
    if not isinstance(content, dict) or not isinstance(content.get(FIELD), str):
        raise Damaged("it has no checksum")
    rest = {key: value for key, value in content.items() if key != FIELD}
    if _content_checksum(rest) != content[FIELD]:
        raise Damaged("it does not match its checksum")
    return rest


def bytes_checksum(content: bytes) -> str:
    """Checksum of a file's content, 32 hexadecimal digits."""
    return xxhash.xxh3_128(content).hexdigest()


def _content_checksum(content: Mapping[str, Any]) -> str:
    return bytes_checksum(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())
