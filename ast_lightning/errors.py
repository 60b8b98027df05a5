"""Errors that a user can cause. Each message states what to do next.

The scripts print these messages without a traceback and exit with status 2.
"""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from pathlib import Path

_LIBRARIES = (str(Path(__file__).parent), "<frozen", *sysconfig.get_paths().values())


PROGRAM = "AST_LIGHTNING_PROGRAM"
"""Environment variable: how the commands were started, if not by the scripts of the repository."""
_SCRIPTS = re.compile(r"(?<![\w/.-])(train_experts|distill|evaluate)\.py\b")


def printable(text: str) -> str:
    """Format a text for the terminal: one line, without control characters.

    The text may come from a file, so that it may contain control sequences that a terminal would execute.
    """
    return "".join(each if each.isprintable() else " " if each == "\n" else "?" for each in text)


def as_started(text: str) -> str:
    """Replace the names of the scripts in a message of this package by the command that the user started."""
    program = os.environ.get(PROGRAM)
    return _SCRIPTS.sub(rf"{program} \1", text) if program else text


def _short(text: str, longest: int = 400) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


class ConfigurationError(ValueError):
    """An invalid setting, found before any long computation starts.

    Args:
        option: the option as written on the command line, e.g. ``distill.ipc``.
        value: its value.
        problem: what is wrong with it, as a sentence without a full stop.
        remedy: what to do, as a sentence without a full stop.
    """

    def __init__(self, option: str, value: object, problem: str, remedy: str) -> None:
        self.option = option
        self.value = value
        self.problem = problem
        self.remedy = remedy
        option, shown, problem, remedy = (_short(str(part)) for part in (option, value, problem, remedy))
        end = "" if remedy.endswith("?") else "."
        super().__init__(printable(f"{option}={shown}: {problem}. Remedy: {remedy}{end}"))

    def __reduce__(self) -> tuple[type[ConfigurationError], tuple[str, str, str, str]]:
        return type(self), (self.option, str(self.value), self.problem, self.remedy)  # pickled between processes


class DistillationDiverged(RuntimeError):
    """The loss or a gradient is no longer finite, or the student learning rate is no longer positive.

    Args:
        iteration: the outer iteration, counted from 0, whose update was rejected.
        problem: what was found, as a sentence without a full stop.
        remedy: what to lower, as a sentence without a full stop.
    """

    def __init__(self, iteration: int, problem: str, remedy: str) -> None:
        self.iteration = iteration
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"distillation stopped at iteration {iteration}: {problem}. Remedy: {remedy}.")

    def __reduce__(self) -> tuple[type[DistillationDiverged], tuple[int, str, str]]:
        return type(self), (self.iteration, self.problem, self.remedy)


def place(error: BaseException, *others: str) -> traceback.FrameSummary | None:
    """Where an exception was raised: the last frame outside of all libraries, or else the last frame.

    Args:
        error: the exception; the result is None if it was never raised.
        others: prefixes of further file names that count as libraries.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, *others))]
    return next(iter((own or frames)[-1:]), None)


def raised(error: Exception) -> str:
    """A one-line description of an exception raised by user code, with its location."""
    at = place(error)
    where = f" ({at.filename}, line {at.lineno})" if at else ""
    return f"it raised {type(error).__name__}: {' '.join(str(error).split())}{where}"


def foreseen(error: BaseException) -> bool:
    """Whether the message of an error is sufficient for the user, without a traceback."""
    return isinstance(error, ConfigurationError | DistillationDiverged)


class WorkerFailed(RuntimeError):
    """One of the processes that share a command's work has failed; the others have been stopped.

    Args:
        number: index of the process, counted from 0.
        count: number of processes.
        code: exit status of the process, or the negative signal number.
        last: the last line that it printed.
    """

    def __init__(self, number: int, count: int, code: int, last: str) -> None:
        how = f"ended with status {code}" if code > 0 else f"was ended by signal {-code}"
        said = f" after printing {last!r}" if last else ""
        self._made_from = (number, count, code, last)
        self.status = code if code > 0 else 128 - code
        super().__init__(
            f"process {number} of {count} {how}{said}, and the others were stopped. Remedy: fix what its lines above "
            "report, and rerun the command to resume."
        )

    def __reduce__(self) -> tuple[type[WorkerFailed], tuple[int, int, int, str]]:
        return type(self), self._made_from
