"""Checksums: what is read equals what was written, or is rejected.

XXH3, 128 bits: made to find accidents, not forgeries, and far faster than the disk. A checksum of tensors covers their
names, types, shapes and values, and whatever else must belong to them (which expert, which epoch), so that files that
changed places are found as well as bits that flipped.
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
    """Content that does not fit its checksum."""


def tensor_checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> str:
    """32 hexadecimal digits of named tensors and of what they belong to; the order of neither matters.

    Args:
        tensors: of any type and shape, on the CPU.
        about: what must not be separated from them, e.g. ``{"expert": "3", "epoch": "17"}``.
    """
    import torch  # late: this module also serves what must start without torch

    state = xxhash.xxh3_128(json.dumps(sorted((about or {}).items())).encode())
    for name, tensor in sorted(tensors.items()):
        state.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        state.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    The file is read, not mapped into memory: a file that is cut short meanwhile, or a disk that fails, is an error
    here and not a signal that ends the process.

    Raises:
        Damaged: it is no safetensors file.
        OSError: it cannot be read.
    """
    from safetensors.torch import load  # late: as above

    content = path.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # what a damaged file makes safetensors raise is not documented
        raise Damaged(f"it is cut short or no safetensors file ({error})") from error
    return header.get("__metadata__") or {}, tensors


def read_checked_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """As :func:`read_tensors`, of a file whose metadata have a ``checksum`` of its tensors and of all the rest.

    Raises:
        Damaged: it is no safetensors file, has no checksum, or does not fit it.
        OSError: it cannot be read.
    """
    metadata, tensors = read_tensors(path)
    if FIELD not in metadata:
        raise Damaged("it has no checksum: an older version wrote it, or it is something else")
    about = {key: value for key, value in metadata.items() if key != FIELD}
    if metadata[FIELD] != tensor_checksum(tensors, about):
        raise Damaged("it does not fit its checksum")
    return metadata, tensors


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain containers with a ``checksum`` of all the rest; white space and the order of keys do not count."""
    rest = {key: value for key, value in content.items() if key != FIELD}
    return {**rest, FIELD: _content_checksum(rest)}


def unseal(content: Any) -> dict[str, Any]:
    """What :func:`seal` was given.

    Raises:
        Damaged: it is no sealed content, or was changed.
    """
    if not isinstance(content, dict) or not isinstance(content.get(FIELD), str):
        raise Damaged("it has no checksum")
    rest = {key: value for key, value in content.items() if key != FIELD}
    if _content_checksum(rest) != content[FIELD]:
        raise Damaged("it does not fit its checksum")
    return rest


def bytes_checksum(content: bytes) -> str:
    """32 hexadecimal digits of a file's content."""
    return xxhash.xxh3_128(content).hexdigest()


def _content_checksum(content: Mapping[str, Any]) -> str:
    return bytes_checksum(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())
