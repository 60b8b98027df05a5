"""The errors a user can cause, each of which says what to do next.

The scripts print these without a traceback and exit with status 2: the message alone has to be enough.
"""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from pathlib import Path

_LIBRARIES = (str(Path(__file__).parent), "<frozen", *sysconfig.get_paths().values())


PROGRAM = "AST_LIGHTNING_PROGRAM"
"""Environment variable: how the commands are started where it is not by the scripts of the repository."""
_SCRIPTS = re.compile(r"(?<![\w/.-])(train_experts|distill|evaluate)\.py\b")


def printable(text: str) -> str:
    """A text for people: in one line, without control characters, which a terminal would obey, as it may come from a
    file, and with the commands named as this user starts them.
    """
    if program := os.environ.get(PROGRAM):
        text = _SCRIPTS.sub(rf"{program} \1", text)
    return "".join(each if each.isprintable() else " " if each == "\n" else "?" for each in text)


def _short(text: str, longest: int = 400) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


class ConfigurationError(ValueError):
    """A setting that cannot work, found before any long work begins.

    Args:
        option: the option as it is written on the command line, e.g. ``distill.ipc``.
        value: the value it has.
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
        return type(self), (self.option, str(self.value), self.problem, self.remedy)  # for other processes


class DistillationDiverged(RuntimeError):
    """The loss or a gradient is no longer finite, or the student learning rate is no longer positive.

    Args:
        iteration: the outer iteration, counted from 0, whose update was refused.
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
    """Where an exception was raised: the last line that is in no library, or else the last line.

    Args:
        error: None is returned where it was never raised.
        others: beginnings of the names of files that count as libraries too.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, *others))]
    return next(iter((own or frames)[-1:]), None)


def raised(error: Exception) -> str:
    """What code of the user's own raised, and where, for one line."""
    at = place(error)
    where = f" ({at.filename}, line {at.lineno})" if at else ""
    return f"it raised {type(error).__name__}: {' '.join(str(error).split())}{where}"


def foreseen(error: BaseException) -> bool:
    """Whether an error is one whose message is all that its user needs."""
    return isinstance(error, ConfigurationError | DistillationDiverged)


class WorkerFailed(RuntimeError):
    """One of several processes that share a command's work has failed; the others have been stopped.

    Args:
        number: of the process, counted from 0.
        count: of the processes.
        code: its exit status, or minus the signal that ended it.
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
