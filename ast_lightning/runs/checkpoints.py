"""The state that a killed run goes on from: written whole or not at all, checked when it is read.

A state is a file of ``torch.save``, which is a zip archive, and its checksum is the archive's comment: the two cannot
be separated, and ``torch.load`` reads the file as it is. The state before the last is kept beside it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import Damaged
from ast_lightning.storage.files import set_aside, write_bytes
from ast_lightning.storage.torch_files import check_seal, sealed_archive
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories.records import first_difference

FORMAT_VERSION = 1
_ABOUT = "ast_lightning"


class RunStates(TorchCheckpointIO):
    """The states of one run, for Lightning's Trainer (``plugins=[RunStates(…)]``) to write and to read.

    Args:
        folder: where ``last.ckpt`` and ``previous.ckpt`` are.
        belongs_to: what the run is and is made from; a state of another one is refused.
        anew: how to begin anew, for the user of a state that cannot be used.
    """

    def __init__(self, folder: Path, belongs_to: Mapping[str, Any], anew: str = "fresh=true") -> None:
        self.folder = folder
        self.belongs_to = dict(belongs_to)
        self._anew = anew

    @property
    def last(self) -> Path:
        """Where the last state is, or will be."""
        return self.folder / "last.ckpt"

    @property
    def previous(self) -> Path:
        """Where the state before it is."""
        return self.folder / "previous.ckpt"

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a state; ``path`` has the old content or the new at every instant, or its predecessor exists."""
        path = Path(path)
        about = {"format": FORMAT_VERSION, "belongs_to": self.belongs_to}
        buffer = io.BytesIO()
        torch.save({**checkpoint, _ABOUT: about}, buffer)
        write_bytes(path, sealed_archive(buffer.getvalue()), keep=self.previous if path == self.last else None)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a state: plain data and tensors only, whatever ``weights_only`` says.

        Raises:
            ConfigurationError: it is damaged, of another run, or of a newer version.
        """
        try:
            return self._read(Path(path), map_location or "cpu")
        except Damaged as error:
            raise self._lost(f"the state {path} cannot be used: {error}") from error

    def find(self, *, expected: bool) -> Path | None:
        """The state to go on from, the last one that is whole; None where there is none.

        Args:
            expected: whether there is work that a state must have been written of.

        Raises:
            ConfigurationError: there is none though one is expected, none is whole, or it is of another run.
        """
        damaged = []
        for path in (self.last, self.previous):
            try:
                self._read(path, "cpu")
            except FileNotFoundError:
                continue
            except Damaged as error:
                damaged.append(path)
                say(f"the state {path} cannot be used: {error}")
                continue
            if damaged:
                say(f"taking the one before it: {path}")
                if is_rank_zero():  # a damaged file must not take the place of the whole one at the next writing
                    os.replace(self.last, self.folder / "damaged.ckpt")
            return path
        if damaged:
            raise self._lost(f"none of the states in {self.folder} can be used")
        if expected:
            raise self._lost(f"there is work, but no state to go on from in {self.folder}")
        return None

    def _read(self, path: Path, map_location: Any) -> dict[str, Any]:
        check_seal(path)
        try:
            state = torch.load(path, map_location=map_location, weights_only=True)
        except (UnpicklingError, RuntimeError, ValueError, EOFError) as error:
            raise Damaged(f"it is no plain data ({str(error).splitlines()[0]})") from error
        about = state.get(_ABOUT) if isinstance(state, dict) else None
        if not isinstance(about, dict):
            raise Damaged("it is no state of a run")
        if about["format"] > FORMAT_VERSION:
            raise ConfigurationError(
                "fresh",
                "false",
                f"the format of the state {path} is {about['format']} and this version reads {FORMAT_VERSION}",
                "install the version of ast_lightning that wrote it",
            )
        difference = first_difference(about["belongs_to"], self.belongs_to)
        if difference:
            name, theirs, ours = difference
            raise self._lost(f"the state {path} was made with {name} = {theirs}, and now it is {ours}")
        return dict(state)

    def _lost(self, problem: str) -> ConfigurationError:
        return ConfigurationError(
            "fresh",
            "false",
            problem,
            f"put back a good copy, or start anew with {self._anew}, which moves the earlier folder aside",
        )


def begin_anew(folder: Path) -> None:
    """Move what is there aside, and say where to; the first rank does it."""
    moved = set_aside(folder) if is_rank_zero() else None
    if moved:
        say(f"fresh=true: what was there is now {moved}; leave fresh=true out to go on after an interruption")
