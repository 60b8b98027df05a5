"""Whether the disk can hold what is to be written, and what to do where it cannot."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.files import format_bytes

CHECKPOINT = 4 * 4
"""Bytes a parameter that the checkpoints take beside the snapshots: parameters and momentum, old and new."""


def check_room(folder: Path, needed: int) -> None:
    """Reject a folder that cannot be written, or whose disk has fewer than ``needed`` bytes free.

    Raises:
        ConfigurationError: with both numbers.
    """
    with writing(folder), tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigurationError(
            "output_dir",
            folder,
            f"{format_bytes(needed)} are still to be written, and its disk has {format_bytes(free)} free",
            "make room, set output_dir to another disk, or store less: expert.snapshot_dtype=bfloat16, "
            "expert.every_n_epochs, expert.max_epoch, num_experts",
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes ``path`` whole or not at all: name the file, and what to do where the disk rejects it.

    Raises:
        ConfigurationError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or os.strerror(error.errno or 0)
        remedy = "set output_dir to a folder that can be written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = (
                "make room and rerun the command without fresh=true: it resumes, and what was written before is intact"
            )
        raise ConfigurationError("output_dir", path, f"it cannot be written ({reason})", remedy) from error
