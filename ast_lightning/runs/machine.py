"""What a run asks of the machine before it computes: memory that is kept, compiled code, the precision of products."""

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

    ``tf32`` is applied as it is configured, so that torch's own default for convolutions does not differ from that
    for matrix products; earlier compiled code of this process (another job of a sweep) is dropped.

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
    """Let this process keep the memory that it frees, where the C library is glibc.

    glibc gives tensors of more than 32 MiB back to the system at once. Every step then asks for them again, page by
    page, and on the CPU this can take as long as the step's arithmetic.

    Returns:
        Whether it worked.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def record_machine(path: Path, compilation: Compilation, processes: int, *, resumed: bool) -> None:
    """Write what bit-identical results depend on beside the settings; a resumed run first prints what has changed."""
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
