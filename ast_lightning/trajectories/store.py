"""Expert trajectories on disk: one folder for a family of runs, one folder an expert, one file a snapshot.

    store/
      store.json                  what made it: data, preprocessing, network, expert settings, seed, versions
      preprocessing.safetensors   the statistics that were applied to the images
      expert_0000/
        epoch_0000.safetensors    the initialisation, tensors under their parameter names
        epoch_0001.safetensors    …
        expert.json               written last: the expert is complete

A window of M + 1 snapshots is M + 1 small files, so that reading it costs the bytes of the window. Every file comes
into being by a rename; a folder without ``expert.json`` is work in progress.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ast_lightning.errors import ConfigurationError
from ast_lightning.files import read_json, write_json, write_tensors
from ast_lightning.networks import ParameterLayout

FORMAT_VERSION = 1
OPTION = "experts_dir"


class TrajectoryStore:
    """A folder of expert trajectories. Make one with :meth:`create` or :meth:`open`.

    Attributes:
        folder: where the store is.
        metadata: the content of ``store.json``: plain containers with the keys ``network``, ``data``, ``expert``,
            ``epochs``, ``seed``, ``versions`` and ``format``.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.metadata = metadata

    @classmethod
    def create(cls, folder: Path | str, metadata: Mapping[str, Any]) -> TrajectoryStore:
        """Make the store, or open it where it exists and was made from the same things.

        Args:
            folder: a new folder, or one that holds a store.
            metadata: ``network`` (from :func:`~ast_lightning.networks.describe_network`), ``data`` (from
                ``ImageDataModule.describe``), ``expert`` (the method settings), ``epochs``, ``seed`` and ``versions``.

        Raises:
            ConfigurationError: the folder holds trajectories of something else.
        """
        folder = Path(folder)
        complete = {"format": FORMAT_VERSION, **metadata}
        if (folder / "store.json").exists():
            store = cls.open(folder)
            for key in ("network", "data", "expert", "epochs", "seed"):
                store.require(key, complete.get(key))
            return store
        write_json(folder / "store.json", complete)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path | str) -> TrajectoryStore:
        """Open an existing store.

        Raises:
            ConfigurationError: there is none, or a newer version of this package wrote it.
        """
        folder = Path(folder)
        if not (folder / "store.json").exists():
            raise ConfigurationError(
                OPTION,
                folder,
                "no trajectories are there",
                "run train_experts.py with the same settings first",
            )
        metadata = read_json(folder / "store.json")
        if metadata.get("format") != FORMAT_VERSION:
            raise ConfigurationError(
                OPTION,
                folder,
                f"its format is {metadata.get('format')} and this version reads {FORMAT_VERSION}",
                "install the version of ast_lightning that wrote it",
            )
        return cls(folder, metadata)

    def require(self, key: str, expected: Any) -> None:
        """Refuse to go on when the store was made from another ``key`` (``network``, ``data``, …).

        Raises:
            ConfigurationError: naming the first field that differs and both its values.
        """
        difference = _first_difference(self.metadata.get(key), expected, key)
        if difference:
            field, stored, wanted = difference
            raise ConfigurationError(
                OPTION,
                self.folder,
                f"its trajectories were made with {field} = {stored}, and this run has {field} = {wanted}",
                f"give this run the {key} of the trajectories, or train experts with the {key} of this run",
            )

    @property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the parameters, in the order in which vectors are flattened."""
        return [(name, tuple(shape)) for name, shape in self.metadata["network"]["parameters"]]

    @property
    def epochs(self) -> int:
        """E: a complete trajectory has E + 1 snapshots."""
        return int(self.metadata["epochs"])

    def expert_folder(self, expert: int) -> Path:
        """Where the snapshots of an expert are."""
        return self.folder / f"expert_{expert:04d}"

    def snapshot_path(self, expert: int, epoch: int) -> Path:
        """The file of the parameters after ``epoch`` epochs; epoch 0 is the initialisation."""
        return self.expert_folder(expert) / f"epoch_{epoch:04d}.safetensors"

    def is_complete(self, expert: int) -> bool:
        """Whether the expert was trained to its end."""
        return (self.expert_folder(expert) / "expert.json").exists()

    def experts(self) -> list[int]:
        """The complete experts in ascending order."""
        found = (path.parent.name.removeprefix("expert_") for path in self.folder.glob("expert_*/expert.json"))
        return sorted(int(name) for name in found if name.isdecimal())

    def summary(self, expert: int) -> dict[str, Any]:
        """What :meth:`finish` recorded of a complete expert."""
        summary: dict[str, Any] = read_json(self.expert_folder(expert) / "expert.json")
        return summary

    def write_snapshot(self, expert: int, epoch: int, parameters: Mapping[str, Tensor]) -> None:
        """Write the parameters after ``epoch`` epochs, as float32; shapes must be those of the layout."""
        tensors = {name: parameters[name].detach().to("cpu", torch.float32) for name, _ in self.layout}
        for name, shape in self.layout:
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, the store expects {shape}")
        write_tensors(self.snapshot_path(expert, epoch), tensors)

    def drop_snapshots_after(self, expert: int, epoch: int) -> None:
        """Delete the snapshots beyond ``epoch``: what a killed run wrote after the state it resumes from.

        An expert that loses a snapshot is complete no more.
        """
        snapshots = self.expert_folder(expert).glob("epoch_*.safetensors")
        beyond = [path for path in snapshots if int(path.stem.removeprefix("epoch_")) > epoch]
        if beyond:
            (self.expert_folder(expert) / "expert.json").unlink(missing_ok=True)
        for path in beyond:
            path.unlink()

    def finish(self, expert: int, summary: Mapping[str, Any]) -> None:
        """Mark an expert complete.

        Raises:
            RuntimeError: a snapshot is missing.
        """
        missing = [epoch for epoch in range(self.epochs + 1) if not self.snapshot_path(expert, epoch).exists()]
        if missing:
            raise RuntimeError(f"expert {expert} in {self.folder} cannot be complete: snapshots {missing} are missing")
        write_json(self.expert_folder(expert) / "expert.json", dict(summary))

    def read_snapshot(self, expert: int, epoch: int) -> Tensor:
        """The flat parameters ``[P]``, float32 on the CPU.

        Raises:
            ConfigurationError: the file is missing, damaged, or holds other tensors than the store says.
        """
        path = self.snapshot_path(expert, epoch)
        remedy = f"delete {self.expert_folder(expert)} and run train_experts.py again"
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(OPTION, self.folder, f"{path.name} cannot be read ({error})", remedy) from error
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != dict(self.layout):
            raise ConfigurationError(OPTION, self.folder, f"{path} holds other parameters than store.json says", remedy)
        return torch.cat([tensors[name].reshape(-1) for name, _ in self.layout])

    def read_window(self, expert: int, start: int, length: int) -> Tensor:
        """The snapshots after epochs ``start`` … ``start + length`` as one tensor ``[length + 1, P]``."""
        return torch.stack([self.read_snapshot(expert, epoch) for epoch in range(start, start + length + 1)])


def _first_difference(stored: Any, wanted: Any, field: str) -> tuple[str, Any, Any] | None:
    """The first leaf in which two trees of plain containers differ, as (path, stored, wanted)."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*stored, *wanted}):
            difference = _first_difference(stored.get(key), wanted.get(key), f"{field}.{key}")
            if difference:
                return difference
        return None
    stored, wanted = _plain(stored), _plain(wanted)
    return None if stored == wanted else (field, stored, wanted)


def _plain(value: Any) -> Any:
    """Tuples as lists, the way JSON gives them back."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
