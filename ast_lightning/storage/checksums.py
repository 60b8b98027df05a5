"""Checksums: what is read equals what was written, or is refused.

XXH3, 128 bits: made to find accidents, not forgeries, and far faster than the disk. A checksum of tensors covers their
names, types, shapes and values, and whatever else must belong to them (which expert, which epoch), so that files that
changed places are found as well as bits that flipped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from torch import Tensor

FIELD = "checksum"
Content = tuple[str, tuple[int, ...], memoryview]


class Damaged(ValueError):
    """Content that does not fit its checksum."""


def tensor_checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> str:
    """32 hexadecimal digits of named tensors and of what they belong to; the order of neither matters.

    Args:
        tensors: of any type and shape, on the CPU.
        about: what must not be separated from them, e.g. ``{"expert": "3", "epoch": "17"}``.
    """
    import torch  # late: this module also serves what must start without torch

    contents: dict[str, Content] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
        contents[name] = (str(tensor.dtype), tuple(tensor.shape), values.data)
    return content_checksum(contents, about)


def content_checksum(contents: Mapping[str, Content], about: Mapping[str, str] | None = None) -> str:
    """The :func:`tensor_checksum` of tensors that are at hand as bytes: type, shape and values by name."""
    state = xxhash.xxh3_128(json.dumps(sorted((about or {}).items())).encode())
    for name in sorted(contents):
        dtype, shape, values = contents[name]
        state.update(_description(name, dtype, shape))
        state.update(values)
    return state.hexdigest()


@functools.lru_cache(1024)
def _description(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    return json.dumps([name, dtype, list(shape)]).encode()


def read_checked_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file whose metadata have a ``checksum`` of its tensors and of all the rest.

    Raises:
        Damaged: it has none, or does not fit it.
        SafetensorError, OSError: the file cannot be read.
    """
    from safetensors import safe_open  # late: as above

    with safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    checksum = metadata.pop(FIELD, None)
    if checksum is None:
        raise Damaged(f"{path.name} has no checksum: an older version wrote it, or it is something else")
    if checksum != tensor_checksum(tensors, metadata):
        raise Damaged(f"{path.name} does not fit its checksum")
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
