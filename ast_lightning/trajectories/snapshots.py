"""Snapshots: one safetensors file each, with a checksum that is compared at every read.

The checksum covers names, dtypes, shapes and values, and the expert, epoch and store that they belong to. It therefore
detects swapped files as well as flipped bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ParameterLayout
from ast_lightning.storage.checksums import FIELD, Damaged, read_checked_tensors, tensor_checksum
from ast_lightning.storage.files import write_tensors


@dataclass(frozen=True)
class SnapshotFormat:
    """The content of all snapshots of a store.

    Args:
        store: the id of the store.
        parameters: names and shapes, in the order in which vectors are flattened.
        statistics: names and shapes of the network's buffers, such as running means. A snapshot holds either all of
            them, in their own dtypes, or none.
        dtype: dtype of the parameters in the file.
    """

    store: str
    parameters: ParameterLayout
    statistics: ParameterLayout
    dtype: torch.dtype

    @property
    def num_parameters(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for _, shape in self.parameters)

    @property
    def num_bytes(self) -> int:
        """Upper estimate of the size of a file, with 160 bytes of header for each tensor."""
        statistics = 8 * sum(math.prod(shape) for _, shape in self.statistics)
        header = 160 * (len(self.parameters) + len(self.statistics) + 2)
        return self.num_parameters * self.dtype.itemsize + statistics + header

    def write(self, path: Path, expert: int, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a snapshot.

        Args:
            path: the file, which is written atomically.
            expert: index of the expert.
            epoch: number of completed epochs.
            tensors: the parameters by name, and all statistics or none; other tensors are ignored.

        Raises:
            ValueError: a parameter or a part of the statistics is missing, or has another shape.
            ConfigurationError: a parameter exceeds the range of the dtype.
            OSError: the file cannot be written.
        """
        layout = dict(self.parameters)
        if any(name in tensors for name, _ in self.statistics):
            layout |= dict(self.statistics)
        for name, shape in layout.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != shape:
                raise ValueError(f"{name} has shape {found}, the store expects {shape}")
        kept = {name: tensors[name].detach().to("cpu") for name in layout}
        for name, _ in self.parameters:
            kept[name] = self._rounded(name, kept[name], expert, epoch)
        about = self._about(expert, epoch)
        write_tensors(path, kept, {**about, FIELD: tensor_checksum(kept, about)})

    def read(self, path: Path, expert: int, epoch: int) -> tuple[Tensor, str]:
        """Read the snapshot of an expert after an epoch, and verify it.

        Returns:
            The flat parameters ``[P]``, float32 on the CPU, and the checksum of the file.

        Raises:
            Damaged: it was changed, or belongs to another expert, epoch or store.
            OSError: it cannot be read.
        """
        tensors, checksum = self._tensors(path, expert, epoch)
        return torch.cat([tensors[name].reshape(-1) for name, _ in self.parameters]).float(), checksum

    def read_statistics(self, path: Path, expert: int, epoch: int) -> dict[str, Tensor]:
        """Like :meth:`read`, but the statistics by name in their own dtypes; empty if the snapshot holds none."""
        tensors, _ = self._tensors(path, expert, epoch)
        return {name: tensors[name] for name, _ in self.statistics if name in tensors}

    def _tensors(self, path: Path, expert: int, epoch: int) -> tuple[dict[str, Tensor], str]:
        found, tensors = read_checked_tensors(path)
        checksum, about = found.pop(FIELD), self._about(expert, epoch)
        if found != about:
            place = "expert {expert} after epoch {epoch} of store {store}"
            raise Damaged(f"it belongs to {place.format_map(found)}, not to {place.format_map(about)}")
        return tensors, checksum

    def _about(self, expert: int, epoch: int) -> dict[str, str]:
        return {"expert": str(expert), "epoch": str(epoch), "store": self.store}

    def _rounded(self, name: str, tensor: Tensor, expert: int, epoch: int) -> Tensor:
        rounded = tensor.to(self.dtype)
        if bool((rounded.isinf() & ~tensor.isinf()).any()):
            kind = str(self.dtype).removeprefix("torch.")
            largest = f"{float(tensor.abs().max()):g} after epoch {epoch}"
            problem = f"{name} of expert {expert} reaches {largest}, and {kind} ends at {torch.finfo(self.dtype).max:g}"
            remedy = "store bfloat16 or float32" if kind == "float16" else "lower expert.lr: this expert diverges"
            raise ConfigurationError("expert.snapshot_dtype", kind, problem, remedy)
        return rounded
