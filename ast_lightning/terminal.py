"""Terminal output, printed by rank 0 only."""

from __future__ import annotations

import threading

from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from ast_lightning.errors import as_started, printable

tqdm.set_lock(threading.RLock())  # tqdm's default lock starts a resource tracker process


def rank() -> int:
    """The global rank of this process; valid also before a Trainer exists."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def is_rank_zero() -> bool:
    """Whether this process writes and prints for all ranks."""
    return rank() == 0


def say(text: str) -> None:
    """Print a line on rank 0, above the progress bar if there is one."""
    if is_rank_zero():
        with tqdm.external_write_mode():
            print(printable(as_started(text)), flush=True)


def format_seconds(seconds: float) -> str:
    """Format a duration, e.g. ``2 h 05 min`` or ``48 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
