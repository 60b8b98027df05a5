"""Whether the disk takes what is to be written: asked before a run, and said clearly when it refuses during one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.files import format_bytes

STATE = 4 * 4
"""Bytes a parameter that the state to resume from takes beside the snapshots: parameters and momentum, old and new."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_room(folder: Path, needed: int) -> None:
    """Refuse a folder that cannot be written, or whose disk has fewer than ``needed`` bytes free.

    Raises:
        ConfigurationError: with both numbers.
    """

    def probe() -> None:
        with tempfile.TemporaryFile(dir=folder):
            pass

    writing(folder, probe)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigurationError(
            "output_dir",
            folder,
            f"{format_bytes(needed)} are still to be written, and its disk has {format_bytes(free)} free",
            "make room, set output_dir to another disk, or store less: expert.snapshot_dtype=bfloat16, "
            "expert.every_n_epochs, expert.max_epoch, num_experts",
        )


def writing(path: Path, write: Callable[[], object]) -> None:
    """Run ``write``, which makes ``path`` or leaves no trace of it, and say what to do where the disk refuses.

    Raises:
        ConfigurationError: in place of an ``OSError``.
    """
    try:
        write()
    except OSError as error:
        reason = error.strerror or str(error) or os.strerror(error.errno or 0)
        remedy = "set output_dir to a folder that can be written"
        if error.errno in _FULL:
            remedy = (
                "make room and run the same command again, without fresh=true: what was written before is intact, and "
                "it goes on from there"
            )
        raise ConfigurationError("output_dir", path, f"it cannot be written ({reason})", remedy) from error
