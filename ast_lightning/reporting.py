"""Error reporting of the commands: one line for the user, the traceback in a log file.

This module imports no third-party package.
"""

from __future__ import annotations

import _thread
import io
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ast_lightning.errors import WorkerFailed, as_started, foreseen, place, printable

_INTERRUPTED = "interrupted; rerun the command without fresh=true to resume"
_log_folders: list[Path] = []
_interrupts: list[int] = []
"""The SIGINTs that this process has received since :func:`take_over`."""


def local_rank() -> int:
    """The local rank of this process; valid also before a Trainer exists."""
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return int(number) if number.isdigit() else 0


def keep_logs_in(folder: Path) -> None:
    """Write tracebacks to ``folder``, which is created if needed. The fallback is a temporary folder."""
    _log_folders[:] = [folder]


@contextmanager
def boundary(*, prints: bool | None = None) -> Iterator[None]:
    """Convert every exception of the block into one line on standard error and an exit status.

    Args:
        prints: whether this process prints the line; None: only the first process of each node prints it.

    Raises:
        SystemExit: status 2 for an error that the user can fix, 130 for Ctrl-C, 1 for any other error.
    """
    error: BaseException | None
    try:
        yield
        return
    except SystemExit as end:  # Lightning raises it after Ctrl-C
        error = end.__context__
        if not isinstance(error, KeyboardInterrupt) or end.__cause__ is not None:
            raise
    except BaseException as caught:
        error = caught
    text, status = outcome(error)
    if local_rank() == 0 if prints is None else prints:
        print(f"error: {text}", file=sys.stderr, flush=True)
    raise SystemExit(status) from error


def outcome(error: BaseException) -> tuple[str, int]:
    """One line that describes an exception, and the exit status.

    The traceback of an unexpected error is written to a log file. With ``HYDRA_FULL_ERROR=1``, the traceback is
    returned instead of the line.
    """
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED, 130
    if foreseen(error) or isinstance(error, WorkerFailed):
        return printable(as_started(str(error))), getattr(error, "status", 2)
    if _interrupts:  # C code that is interrupted, such as an import of NumPy, may raise another exception
        return _INTERRUPTED, 130
    trace = "".join(traceback.format_exception(error)).rstrip()
    return trace if _shows_tracebacks() else f"{describe(error)}. {_write_log(trace)}", 1


def describe(error: BaseException) -> str:
    """Type, message and location of an exception: the last frame outside of all libraries, or else the last frame."""
    lines = str(error).strip().splitlines()
    at = place(error, str(getattr(sys.modules["__main__"], "__file__", None)))
    where = f" ({at.filename}:{at.lineno}, in {at.name})" if at else ""
    return printable(": ".join([type(error).__name__, *lines[:1]]).rstrip(".") + where)


def take_over() -> None:
    """Prepare output and exception hooks at the start of a script.

    Characters that the terminal cannot encode and a closed pipe (``| head``) do not raise. An exception outside of
    :func:`boundary`, such as Ctrl-C during an import, is printed as one line.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if (stream := getattr(sys, name)) is not None:
            buffer = io.BufferedWriter(_Output(number, "w", closefd=False))
            lines = name == "stderr" or stream.isatty()
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, "replace", line_buffering=lines))

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if local_rank() == 0:
            print(f"error: {outcome(error)[0]}", file=sys.stderr, flush=True)

    def report_thread(thread: threading.ExceptHookArgs) -> None:  # e.g. TensorBoard's on a full disk; the run continues
        if thread.exc_value is not None:
            print(f"note: a thread has ended: {outcome(thread.exc_value)[0]}", file=sys.stderr, flush=True)

    def report_ignored(event: Any) -> None:  # an exception in a destructor; Ctrl-C is repeated outside of it
        if isinstance(event.exc_value, KeyboardInterrupt):
            threading.Timer(0.1, _thread.interrupt_main).start()
        else:
            sys.__unraisablehook__(event)

    sys.excepthook, threading.excepthook, sys.unraisablehook = report, report_thread, report_ignored
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    # with HYDRA_FULL_ERROR=1, Hydra does not catch and print exceptions itself
    os.environ.setdefault("AST_LIGHTNING_TRACEBACKS", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"


def _interrupt(number: int, frame: Any) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def check_interrupted() -> None:
    """Raise again what a library has caught, such as a Ctrl-C during its optional imports.

    Raises:
        KeyboardInterrupt: this process has received SIGINT since :func:`take_over`.
    """
    if _interrupts:
        raise KeyboardInterrupt


class _Output(io.FileIO):
    """Standard output or error. If it cannot be written any more (``| head``), further output is discarded."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def _shows_tracebacks() -> bool:
    return os.environ.get("AST_LIGHTNING_TRACEBACKS", os.environ.get("HYDRA_FULL_ERROR")) == "1"


def _write_log(text: str) -> str:
    """Write a traceback to a file, and return a text with its path."""
    for folder in _log_folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}_{os.getpid()}.log"
            with path.open("a", encoding="utf-8") as stream:
                stream.write(f"{text}\n")
            return f"Traceback: {path}"
    with suppress(OSError):
        descriptor, name = tempfile.mkstemp(".log", "ast_lightning_")
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        return f"Traceback: {name}"
    return f"Traceback (it could not be written to a file):\n{text}"
