"""Expert trajectories on disk: one folder per set of experts, one subfolder per expert, one file per snapshot.

    store/
      store.json                  its inputs: data, preprocessing, network, expert settings, seed, versions
      preprocessing.safetensors   the statistics that were applied to the images
      scores.safetensors          with expert.samples=curriculum, the difficulty of each training image
      expert_0000/
        epoch_0000.safetensors    the initialisation, tensors under their parameter names
        epoch_0001.safetensors    …
        expert.json               written last, with the checksum of every snapshot: the expert is complete

A window of snapshots consists of a few small files, so that only the bytes of the window are read. Every file is
written atomically and has a checksum, which is compared at every read. If ``expert.json`` is missing, the training of
the expert is not complete.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ast_lightning.config.identity import complete_record
from ast_lightning.config.schedule import Schedule
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ParameterLayout
from ast_lightning.storage.checksums import Damaged, read_checked_tensors
from ast_lightning.storage.files import format_bytes
from ast_lightning.storage.reading import reading
from ast_lightning.trajectories.listing import expert_folders, numbered_folders, snapshot_files
from ast_lightning.trajectories.records import (
    EXPERT_FILE,
    FORMAT_VERSION,
    IDENTITY,
    OPTION,
    PREPROCESSING_FILE,
    SCORES_FILE,
    STORE_FILE,
    ExpertRecord,
    expert_remedy,
    first_difference,
    identity,
    read_expert_record,
    read_store_record,
    write_expert_record,
    write_store_record,
)
from ast_lightning.trajectories.snapshots import SnapshotFormat

CHECKPOINT = 4 * 4
"""Bytes per parameter of the checkpoints: parameters and momentum, in the old and the new checkpoint."""

_ANEW = "run train_experts.py with fresh=true, which moves them aside"


class TrajectoryStore:
    """A folder of expert trajectories. Use :meth:`create` or :meth:`open`.

    Attributes:
        folder: the folder of the store.
        metadata: the content of ``store.json``: plain containers with the keys ``network``, ``data``, ``expert``,
            ``epochs``, ``seed``, ``versions``, ``format`` and ``id``.
        schedule: which epochs are stored.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.metadata = metadata
        self.schedule = Schedule.of(metadata)
        self.format = SnapshotFormat(
            self.id,
            self.layout,
            [(name, tuple(shape)) for name, shape in metadata["network"].get("buffers", [])],
            getattr(torch, (metadata.get("expert") or {}).get("snapshot_dtype", "float32")),
        )
        self._records: dict[int, ExpertRecord] = {}

    @classmethod
    def create(cls, folder: Path | str, metadata: Mapping[str, Any]) -> TrajectoryStore:
        """Create the store, or open it if it exists and has the same inputs.

        Args:
            folder: a new folder, or one that holds a store.
            metadata: ``network`` (from :func:`~ast_lightning.networks.describe_network`), ``data`` (from
                ``ImageDataModule.describe``), ``expert`` (the method settings), ``epochs``, ``seed`` and ``versions``.
                The store uses ``snapshot_dtype``, ``every_n_epochs`` and ``max_epoch`` of ``expert``.

        Raises:
            ConfigurationError: the folder holds trajectories with other inputs.
            OSError: it cannot be written.
        """
        folder = Path(folder)
        if (folder / STORE_FILE).exists():
            store = cls.open(folder)
            for key in IDENTITY:
                store.require(key, metadata.get(key))
            return store
        store = cls(folder, {"format": FORMAT_VERSION, "id": identity(metadata), **metadata})
        for expert in store.experts():  # if store.json was lost
            store.record(expert)
        write_store_record(folder, metadata)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path | str) -> TrajectoryStore:
        """Open an existing store.

        Raises:
            ConfigurationError: there is no store, it is damaged, or another version of this package wrote it.
        """
        folder = Path(folder)
        with reading(folder / STORE_FILE, "restore a copy of it", OPTION, folder):
            return cls(folder, read_store_record(folder))

    def require(self, key: str, expected: Any, *, partly: bool = False, other: str | None = None) -> None:
        """Reject a store whose entry ``key`` of ``metadata`` (``network``, ``data``, …) differs from ``expected``.

        Args:
            key: a key of ``metadata``.
            expected: the expected content.
            partly: compare only the entries that ``expected`` has.
            other: the remedy besides giving this run the content of the store; None: begin anew.

        Raises:
            ConfigurationError: an entry differs; the message gives the first one with both values.
        """
        recorded = self.metadata.get(key)
        if partly and recorded is not None:
            recorded = {name: recorded[name] for name in expected if name in recorded}
        difference = first_difference(complete_record(key, recorded, expected), expected, key)
        if difference:
            field, stored, wanted = difference
            problem = f"its trajectories were made with {field} = {stored}, and this run has {field} = {wanted}"
            remedy = f"give this run the {key} of the trajectories, or {other or _ANEW}"
            raise ConfigurationError(OPTION, self.folder, problem, remedy)

    @property
    def id(self) -> str:
        """Checksum of the inputs that determine the trajectories, 16 hexadecimal digits."""
        return str(self.metadata.get("id") or identity(self.metadata))

    @property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the parameters, in the order in which vectors are flattened."""
        return [(name, tuple(shape)) for name, shape in self.metadata["network"]["parameters"]]

    @property
    def epochs(self) -> int:
        """E, the final epoch."""
        return self.schedule.epochs

    def expert_folder(self, expert: int) -> Path:
        """The folder of an expert's snapshots."""
        return self.folder / f"expert_{expert:04d}"

    def snapshot_path(self, expert: int, epoch: int) -> Path:
        """The file of the parameters after ``epoch`` epochs; epoch 0 is the initialisation."""
        return self.expert_folder(expert) / f"epoch_{epoch:04d}.safetensors"

    def is_complete(self, expert: int) -> bool:
        """Whether the training of the expert is complete."""
        return (self.expert_folder(expert) / EXPERT_FILE).exists()

    def experts(self) -> list[int]:
        """The complete experts in ascending order."""
        return [expert for expert, path in numbered_folders(self.folder) if (path / EXPERT_FILE).exists()]

    def incomplete(self) -> list[int]:
        """The experts that have snapshots and are not complete, in ascending order."""
        return [expert for expert, _ in expert_folders(self.folder) if not self.is_complete(expert)]

    def record(self, expert: int) -> ExpertRecord:
        """The record that :meth:`finish` wrote for a complete expert; cached after the first read.

        Raises:
            ConfigurationError: it is damaged, or belongs to another expert or store.
        """
        if expert not in self._records:
            self._records[expert] = read_expert_record(self.expert_folder(expert), expert, self.id)
        return self._records[expert]

    def check_preprocessing(self) -> None:
        """Check that the preprocessing file matches the fingerprint in ``store.json``, if there is one.

        Raises:
            ConfigurationError: the file is missing or damaged, or has another fingerprint.
        """
        path, fingerprint = self.folder / PREPROCESSING_FILE, self.metadata.get("preprocessing_fingerprint")
        if fingerprint is None and not path.exists():
            return
        remedy = (
            f"restore a copy of it, or delete both it and {STORE_FILE} and run train_experts.py with the same "
            "settings: that writes them anew and keeps the complete experts"
        )
        with reading(path, remedy, OPTION, self.folder):
            found, _ = read_checked_tensors(path)
            if fingerprint not in (None, found.get("fingerprint")):
                raise Damaged(f"it is not the one that {STORE_FILE} names")

    def read_scores(self) -> Tensor:
        """The difficulty of each training image, ``[N]`` float32.

        Raises:
            ConfigurationError: the file is missing or damaged, or belongs to another store.
        """
        path = self.folder / SCORES_FILE
        remedy = "restore a copy of it, or delete it and run train_experts.py with the same settings: that computes it"
        with reading(path, remedy, OPTION, self.folder):
            found, tensors = read_checked_tensors(path)
            if found.get("store") != self.id:
                raise Damaged(f"it belongs to store {found.get('store')}, not to store {self.id}")
            return tensors["scores"]

    def summary(self, expert: int) -> dict[str, Any]:
        """The summary of a complete expert, as passed to :meth:`finish`."""
        return self.record(expert).summary

    def write_snapshot(self, expert: int, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the parameters after ``epoch`` epochs.

        Args:
            expert: index of the expert, which becomes incomplete.
            epoch: an epoch of ``schedule``.
            tensors: parameters and, optionally, all buffers of the network, by name.

        Raises:
            ConfigurationError: a parameter exceeds the range of the snapshots' dtype.
            OSError: the file cannot be written.
            ValueError: the epoch is not in the schedule, or a shape differs.
        """
        if not self.schedule.holds(epoch):
            raise ValueError(f"epoch {epoch} is not stored in {self.folder}: {self.schedule}")
        self.format.write(self.snapshot_path(expert, epoch), expert, epoch, tensors)
        self._forget(expert)

    def drop_snapshots_after(self, expert: int, epoch: int) -> None:
        """Delete temporary files and the snapshots after ``epoch``, which are newer than the checkpoint to resume from.

        If a snapshot is deleted, the expert becomes incomplete.
        """
        folder = self.expert_folder(expert)
        beyond = [path for number, path in snapshot_files(folder) if number > epoch]
        if beyond:
            self._forget(expert)
        for path in (*beyond, *folder.glob(".*.partial")):
            path.unlink(missing_ok=True)

    def check_snapshots(self, expert: int, epoch: int) -> dict[int, str]:
        """Read and verify every snapshot up to ``epoch``.

        Returns:
            Their checksums by epoch.

        Raises:
            ConfigurationError: one is missing or damaged.
        """
        return {each: self._read(expert, each)[1] for each in self.schedule.stored() if each <= epoch}

    def finish(self, expert: int, summary: Mapping[str, Any]) -> None:
        """Mark an expert as complete, after reading and verifying all its snapshots.

        Raises:
            ConfigurationError: a snapshot is missing or damaged.
            OSError: the file cannot be written.
        """
        self._forget(expert)
        record = ExpertRecord(self.check_snapshots(expert, self.epochs), dict(summary))
        write_expert_record(self.expert_folder(expert), expert, self.id, record)

    def read_snapshot(self, expert: int, epoch: int) -> Tensor:
        """The flat parameters ``[P]``, float32 on the CPU.

        Raises:
            ConfigurationError: the file is missing or damaged, or belongs to another expert or epoch.
        """
        return self._read(expert, epoch)[0]

    def read_statistics(self, expert: int, epoch: int) -> dict[str, Tensor]:
        """The network's buffers after ``epoch`` epochs, such as the running statistics of batch normalisation.

        Returns:
            Tensors by name, on the CPU; empty if the snapshot holds none, as those of imported experts.

        Raises:
            ConfigurationError: see :meth:`read_snapshot`.
        """
        path = self.snapshot_path(expert, epoch)
        with reading(path, expert_remedy(path.parent), OPTION, self.folder):
            return self.format.read_statistics(path, expert, epoch)

    def read_window(self, expert: int, start: int, length: int) -> Tensor:
        """The snapshots after epochs ``start``, ``start + n``, … ``start + length`` if every n-th epoch is stored.

        Returns:
            ``[length // n + 1, P]``, float32 on the CPU.

        Raises:
            ConfigurationError: a file is missing or damaged, or belongs to another expert or epoch.
        """
        epochs = range(start, start + length + 1, self.schedule.every_n_epochs)
        return torch.stack([self._read(expert, epoch)[0] for epoch in epochs])

    def check_files(self, experts: Iterable[int]) -> None:
        """Check that no snapshot of a complete expert is missing; the files are not read.

        Raises:
            ConfigurationError: naming the first missing file.
        """
        for expert in experts:
            there = {epoch for epoch, _ in snapshot_files(self.expert_folder(expert))}
            for epoch in self.schedule.stored():
                if epoch not in there:
                    path = self.snapshot_path(expert, epoch)
                    remedy = expert_remedy(path.parent)
                    raise ConfigurationError(OPTION, self.folder, f"{path} is missing", remedy)

    def bytes_to_write(self, experts: Iterable[int], *, anew: bool = False) -> int:
        """Size in bytes of the missing snapshots of these experts, or of all their snapshots with ``anew``."""
        paths = (self.snapshot_path(expert, epoch) for expert in experts for epoch in self.schedule.stored())
        return self.format.num_bytes * sum(anew or not path.exists() for path in paths)

    def check_room(self, experts: Iterable[int], *, anew: bool = False) -> None:
        """Reject a run if the disk space is not sufficient, before it starts.

        Raises:
            ConfigurationError: the free disk space is smaller than the files still to be written.
            OSError: the folder cannot be written.
        """
        needed = self.bytes_to_write(experts, anew=anew) + CHECKPOINT * self.format.num_parameters
        with tempfile.TemporaryFile(dir=self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < needed:
            problem = f"{format_bytes(needed)} are still to be written, and its disk has {format_bytes(free)} free"
            remedy = (
                "free disk space, set output_dir to another disk, or store less: expert.snapshot_dtype=bfloat16, "
                "expert.every_n_epochs, expert.max_epoch, num_experts"
            )
            raise ConfigurationError("output_dir", self.folder, problem, remedy)

    def _read(self, expert: int, epoch: int) -> tuple[Tensor, str]:
        path = self.snapshot_path(expert, epoch)
        recorded = self.record(expert).snapshots if self.is_complete(expert) else None
        with reading(path, expert_remedy(path.parent), OPTION, self.folder):
            theta, checksum = self.format.read(path, expert, epoch)
            if recorded is not None and checksum != recorded.get(epoch):
                raise Damaged(f"its checksum differs from {EXPERT_FILE}")
        return theta, checksum

    def _forget(self, expert: int) -> None:
        """Mark an expert as incomplete."""
        self._records.pop(expert, None)
        (self.expert_folder(expert) / EXPERT_FILE).unlink(missing_ok=True)
