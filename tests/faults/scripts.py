"""Runs of the real scripts, each in a process of its own that is forked from one with all imports done."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from .instants import Counter

ROOT = Path(__file__).parents[2]
_IMPORTS = (
    "ast_lightning.commands.app",
    "ast_lightning.commands.train_experts",
    "ast_lightning.commands.distill",
    "ast_lightning.commands.evaluate",
    "torch.utils.tensorboard",
    "sklearn.datasets",
    "sklearn.model_selection",
)


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: its exit status; −9 where it was killed.
        instants: how many instants it passed, where it came to its end.
        seconds: how long it took.
        output: what it printed.
    """

    status: int
    instants: int
    seconds: float
    output: str


def prepare() -> None:
    """Import what the scripts need, once for all of them; no tensor is computed here, so that forking is safe."""
    os.chdir(ROOT)
    for name in _IMPORTS:
        import_module(name)


def run(
    script: str,
    words: Sequence[str],
    log: Path,
    *,
    fatal: int | None = None,
    seconds: float | None = None,
) -> Outcome:
    """Run a script to its end, to its ``fatal`` instant, or for so many ``seconds``.

    Args:
        script: its name without ``.py``.
        words: of the command line.
        log: a file for what it prints.
        fatal: see :class:`Counter`.
        seconds: after this time it is killed.
    """
    count = log.with_suffix(".count")
    count.unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(script, words, log, count, Counter(fatal))
    status = _wait(child, None if seconds is None else started + seconds)
    told = count.read_text() if count.exists() else ""  # nothing where the kill came between opening and writing it
    passed = int(told or 0)
    return Outcome(status, passed, time.monotonic() - started, log.read_text())


def _become(script: str, words: Sequence[str], log: Path, count: Path, counter: Counter) -> None:
    """Turn this process into one of the script; does not return."""
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = [f"{script}.py", *words]
        counter.install()
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
        status = 0
        counter.fatal = None  # the count is none of the script's files
        count.write_text(str(counter.passed))
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, deadline: float | None) -> int:
    while deadline is not None and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    if deadline is not None:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
