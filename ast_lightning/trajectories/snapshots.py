"""One snapshot, one safetensors file: written with a checksum, and never read without comparing it.

The checksum covers names, types, shapes and values, and which expert, epoch and store they belong to, so that a file
that took another's place is found as well as a flipped bit. Files are read and not mapped into memory: one that is cut
short meanwhile, or a disk that fails, is an error here and not a signal that ends the process; and reading straight
into the window takes half the time.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ParameterLayout
from ast_lightning.storage.checksums import Content, Damaged, content_checksum, tensor_checksum
from ast_lightning.storage.files import write_tensors

_CHECKSUM = "checksum"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Entry(NamedTuple):
    """A tensor of a file as its header describes it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SnapshotFormat:
    """What every snapshot of a store holds.

    Args:
        store: the id of the store.
        parameters: names and shapes, in flat order.
        statistics: names and shapes of the network's buffers, such as running means; a snapshot holds all of them, in
            their own types, or none.
        dtype: of the parameters in the file.
    """

    store: str
    parameters: ParameterLayout
    statistics: ParameterLayout
    dtype: torch.dtype

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(math.prod(shape) for _, shape in self.parameters)

    @property
    def num_bytes(self) -> int:
        """Size of a file, a little more than exactly: 160 bytes of header for each tensor."""
        statistics = 8 * sum(math.prod(shape) for _, shape in self.statistics)
        header = 160 * (len(self.parameters) + len(self.statistics) + 2)
        return self.num_parameters * self.dtype.itemsize + statistics + header

    def write(self, path: Path, expert: int, epoch: int, tensors: Mapping[str, Tensor]) -> str:
        """Write a snapshot.

        Args:
            path: the file, which appears complete or not at all.
            expert: whose parameters they are.
            epoch: after which epoch.
            tensors: the parameters by name, and the statistics where they are to be kept; others are passed over.

        Returns:
            The checksum.

        Raises:
            KeyError: a parameter is missing.
            ValueError: a shape is another, or a part of the statistics is missing.
            ConfigurationError: a parameter is too large for the type.
            OSError: the file cannot be written.
        """
        kept = {name: tensors[name].detach().to("cpu") for name, _ in self.parameters}
        for name, tensor in kept.items():
            kept[name] = self._rounded(name, tensor, expert, epoch)
        statistics = [name for name, _ in self.statistics if name in tensors]
        if len(statistics) not in (0, len(self.statistics)):
            raise ValueError(f"only {', '.join(statistics)} are given of the statistics {self.statistics}")
        kept.update({name: tensors[name].detach().to("cpu") for name in statistics})
        for name, shape in (*self.parameters, *self.statistics):
            if name in kept and tuple(kept[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(kept[name].shape)}, the store expects {shape}")
            if name in kept and kept[name].dtype not in _DTYPES.values():
                raise ValueError(f"{name} has type {kept[name].dtype}, which no snapshot can hold")
        about = self._about(expert, epoch)
        checksum = tensor_checksum(kept, about)
        write_tensors(path, kept, {**about, _CHECKSUM: checksum})
        return checksum

    def read(self, path: Path, expert: int, epoch: int, into: Tensor) -> tuple[str, dict[str, Tensor]]:
        """Read a snapshot and verify it.

        Args:
            path: the file.
            expert: whose parameters they must be.
            epoch: after which epoch they must be.
            into: ``[P]`` float32, contiguous, filled with the parameters; of no use where this raises an error.

        Returns:
            The checksum, and the statistics by name; none where the file has none.

        Raises:
            Damaged: what is wrong with it.
            OSError: it cannot be read.
        """
        with path.open("rb") as stream:
            entries, metadata = _read_header(stream)
            self._check(entries)
            contents = self._places(entries, into)
            for each in entries:
                if stream.readinto(contents[each.name][2]) != each.end - each.begin:
                    raise Damaged("it is cut short")
        about = self._about(expert, epoch)
        checksum = content_checksum(contents, about)
        if checksum != metadata.get(_CHECKSUM):
            raise Damaged(_what_is_wrong(contents, metadata, about))
        if self.dtype != torch.float32:
            for name, (begin, end) in self._slices.items():
                into[begin:end].copy_(_tensor(contents[name]).view(-1))
        return checksum, {name: _tensor(contents[name]) for name, _ in self.statistics if name in contents}

    def _places(self, entries: list[_Entry], into: Tensor) -> dict[str, Content]:
        """Where the bytes of each tensor are to go: into the result where it is float32, or to a place of their own."""
        flat = into.numpy().data.cast("B")
        places = {}
        for each in entries:
            if self.dtype == torch.float32 and each.name in self._slices:
                begin, end = self._slices[each.name]
                place = flat[4 * begin : 4 * end]
            else:
                place = np.empty(each.end - each.begin, np.uint8).data
            places[each.name] = (str(each.dtype), each.shape, place)
        return places

    @functools.cached_property
    def _slices(self) -> dict[str, tuple[int, int]]:
        """Where each parameter is in the flat vector."""
        ends = list(itertools.accumulate(math.prod(shape) for _, shape in self.parameters))
        names = [name for name, _ in self.parameters]
        return dict(zip(names, itertools.pairwise([0, *ends]), strict=True))

    def _about(self, expert: int, epoch: int) -> dict[str, str]:
        return {"expert": str(expert), "epoch": str(epoch), "store": self.store}

    def _rounded(self, name: str, tensor: Tensor, expert: int, epoch: int) -> Tensor:
        rounded = tensor.to(self.dtype)
        if bool((rounded.isinf() & ~tensor.isinf()).any()):
            kind = str(self.dtype).removeprefix("torch.")
            raise ConfigurationError(
                "expert.snapshot_dtype",
                kind,
                f"{name} of expert {expert} reaches {float(tensor.abs().max()):g} after epoch {epoch}, and "
                f"{kind} ends at {torch.finfo(self.dtype).max:g}",
                "store bfloat16 or float32" if kind == "float16" else "lower expert.lr: this expert diverges",
            )
        return rounded

    def _check(self, entries: list[_Entry]) -> None:
        """Make sure that the file holds the tensors that it should.

        Raises:
            Damaged: it holds others.
        """
        found = {each.name: (each.shape, each.dtype) for each in entries}
        wanted = {name: (shape, self.dtype) for name, shape in self.parameters}
        if len(found) > len(wanted):  # statistics come in the type that the network has them in
            wanted |= {name: (shape, found[name][1]) for name, shape in self.statistics if name in found}
        if found != wanted or len(found) not in (len(self.parameters), len(self.parameters) + len(self.statistics)):
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise Damaged(f"it holds other parameters than {', '.join(names[:3]) or 'all'} of store.json")


def _read_header(stream: BinaryIO) -> tuple[list[_Entry], dict[str, Any]]:
    """The tensors in the order of the file, and the metadata."""
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if not 0 < length <= size - 8:
        raise Damaged("it is cut short, or no safetensors file")
    try:
        header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", {})
        entries = [
            _Entry(name, _DTYPES[each["dtype"]], tuple(map(operator.index, each["shape"])), *each["data_offsets"])
            for name, each in header.items()
        ]
        entries.sort(key=lambda each: (each.begin, each.end))
        position = 0
        for each in entries:
            if (each.begin, each.end) != (position, position + math.prod(each.shape) * each.dtype.itemsize):
                raise ValueError(f"{each.name} is not where it should be")
            position = each.end
        metadata.get(_CHECKSUM)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its header is damaged: {error!r}") from error
    if position != size - 8 - length:
        raise Damaged(f"it has {size} bytes where its header speaks of {position + 8 + length}")
    return entries, metadata


def _tensor(content: Content) -> Tensor:
    dtype, shape, values = content
    return torch.from_numpy(np.asarray(values)).view(getattr(torch, dtype.removeprefix("torch."))).view(shape)


def _what_is_wrong(contents: Mapping[str, Content], metadata: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """Whether the values were changed, or the file is in the place of another one."""
    theirs = {key: str(metadata.get(key)) for key in about}
    if theirs != about and content_checksum(contents, theirs) == metadata.get(_CHECKSUM):
        return (
            f"it is that of expert {theirs['expert']} after epoch {theirs['epoch']} of store {theirs['store']}, "
            f"and stands in the place of expert {about['expert']} after epoch {about['epoch']} of store "
            f"{about['store']}"
        )
    return "its content does not fit its checksum"
