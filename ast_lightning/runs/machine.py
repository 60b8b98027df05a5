"""Process settings before a run: memory allocation, compiled code, and the precision of matrix products."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ast_lightning.compilation import Compilation, keep_compiled_code
from ast_lightning.parallel.devices import device_type
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.storage.provenance import versions
from ast_lightning.terminal import say

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>


def prepare(trainer: Mapping[str, Any], *, tf32: bool) -> None:
    """Set up this process for a run.

    ``tf32`` applies to convolutions as well as to matrix products, for which torch's defaults differ. Code that this
    process compiled earlier (for another job of a sweep) is dropped.

    Args:
        trainer: the ``trainer`` section.
        tf32: whether TensorFloat-32 may be used.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    keep_compiled_code()
    torch.compiler.reset()
    if device_type(trainer) == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Keep freed memory in this process instead of returning it to the system, if the C library is glibc.

    glibc returns the memory of tensors of more than 32 MiB to the system at once. Every step then allocates it again,
    page by page, and on the CPU this can take as long as the step's arithmetic.

    Returns:
        Whether the setting was applied.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def record_machine(path: Path, compilation: Compilation, processes: int, *, resumed: bool) -> None:
    """Write the machine's properties that bit-identical results depend on; a resumed run prints which have changed."""
    machine = {"compile": str(compilation), "threads": torch.get_num_threads(), "processes": processes, **versions()}
    earlier = {}
    if resumed:
        with suppress(OSError, ValueError):
            earlier = read_json(path)
    for name, value in machine.items():
        before, now = (str(each).split(" ")[0] for each in (earlier.get(name, value), value))
        if before != now:
            say(f"note: {name} was {before} and is {now} now; results may not be bit-identical to an uninterrupted run")
    write_json(path, machine)
