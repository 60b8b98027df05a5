"""Checkpoints from which an interrupted run resumes: written atomically and verified on reading.

A checkpoint is a file of ``torch.save``, which is a zip archive with a CRC-32 of every record. The previous checkpoint
is kept beside the last one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import Damaged
from ast_lightning.storage.files import set_aside, write_file
from ast_lightning.storage.torch_files import load_checked
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories.records import first_difference

FORMAT_VERSION = 1
_ABOUT = "ast_lightning"


class RunStates(TorchCheckpointIO):
    """Writes and reads the checkpoints of one run, as a plugin of Lightning's Trainer (``plugins=[RunStates(…)]``).

    Args:
        folder: the folder of ``last.ckpt`` and ``previous.ckpt``.
        belongs_to: identifies the run and its inputs; a checkpoint of another run is rejected.
        anew: the overrides that start over, recommended if a checkpoint cannot be used.

    Attributes:
        last: path of the last checkpoint, which may not exist yet.
        previous: path of the checkpoint before it.
    """

    def __init__(self, folder: Path, belongs_to: Mapping[str, Any], anew: str = "fresh=true") -> None:
        self.folder = folder
        self.last, self.previous = folder / "last.ckpt", folder / "previous.ckpt"
        self.belongs_to = dict(belongs_to)
        self._anew = anew

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint atomically: at any time, ``path`` or the previous checkpoint is complete."""
        path = Path(path)
        about = {"format": FORMAT_VERSION, "belongs_to": self.belongs_to}
        keep = self.previous if path == self.last else None
        write_file(path, partial(torch.save, {**checkpoint, _ABOUT: about}), keep)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint. Only plain data and tensors are loaded, regardless of ``weights_only``.

        Raises:
            ConfigurationError: the checkpoint is damaged, belongs to another run, or has another format version.
        """
        try:
            return self._read(Path(path), map_location or "cpu")
        except Damaged as error:
            raise _rejected(f"the checkpoint {path} cannot be used: {error}", self._anew) from error

    def find(self, *, expected: bool) -> Path | None:
        """Return the last intact checkpoint, to resume from; None if there is none.

        Args:
            expected: whether other files of the run show that a checkpoint must exist.

        Raises:
            ConfigurationError: a checkpoint is expected but missing, all are damaged, or it belongs to another run.
        """
        damaged = []
        for path in (self.last, self.previous):
            try:
                self._read(path, "cpu")
            except FileNotFoundError:
                continue
            except Damaged as error:
                damaged.append(path)
                say(f"the checkpoint {path} cannot be used: {error}")
                continue
            if damaged:
                say(f"using the previous one: {path}")
                if is_rank_zero():  # the next write must not replace the intact file with the damaged one
                    os.replace(self.last, self.folder / "damaged.ckpt")
            return path
        if damaged:
            raise _rejected(f"none of the checkpoints in {self.folder} can be used", self._anew)
        if expected:
            raise _rejected(f"there is work, but no checkpoint to resume from in {self.folder}", self._anew)
        return None

    def _read(self, path: Path, map_location: Any) -> dict[str, Any]:
        state = load_checked(path, map_location)
        about = state.get(_ABOUT) if isinstance(state, dict) else None
        if not isinstance(about, dict):
            raise Damaged("it is not a checkpoint of a run")
        if about["format"] != FORMAT_VERSION:
            raise _rejected(f"the format of the checkpoint {path} is {about['format']}", self._anew)
        require_same(f"the checkpoint {path}", about["belongs_to"], self.belongs_to, self._anew)
        return dict(state)


def require_same(what: object, recorded: Mapping[str, Any], now: Mapping[str, Any], anew: str = "fresh=true") -> None:
    """Compare the recorded inputs of a checkpoint or result with the present ones.

    Raises:
        ConfigurationError: they differ; the message names the first difference.
    """
    difference = first_difference(recorded, now)
    if difference:
        name, theirs, ours = difference
        raise _rejected(f"{what} was made with {name} = {theirs}, and now it is {ours}", anew)


def _rejected(problem: str, anew: str) -> ConfigurationError:
    remedy = f"restore a good copy, or start anew with {anew}, which moves the earlier folder aside"
    return ConfigurationError("fresh", "false", problem, remedy)


def begin_anew(folder: Path) -> None:
    """Move an existing folder aside and print its new path; only rank 0 does so."""
    moved = set_aside(folder) if is_rank_zero() else None
    if moved:
        say(f"fresh=true: what was there is now {moved}; leave fresh=true out to resume after an interruption")
