"""What the commands that look at files share: findings, tables, and errors that are one line.

This module starts without torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ast_lightning.errors import ConfigurationError, printable

_PAGE_WIDTH = 120  # where the output is no terminal


@dataclass(frozen=True)
class Finding:
    """Something to know about a file.

    Attributes:
        file: which file or folder.
        problem: what is wrong with it, as a sentence without a full stop.
        remedy: what to do, as a sentence without a full stop; empty for a note, which is no problem.
    """

    file: str
    problem: str
    remedy: str = ""

    @classmethod
    def of(cls, path: Path, error: ConfigurationError) -> Finding:
        """What an error of reading a file reports."""
        return cls(str(path), error.problem, error.remedy)


def run_command(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> int:
    """Run the subcommand that the parser sets as ``run``, which takes the options and returns the exit status.

    Args:
        parser: of the command line.
        words: of the command line; None takes the process's.

    Returns:
        The exit status: that of the subcommand, or 2 for what the user can fix, which is printed in a line.
    """
    options = parser.parse_args(words)
    try:
        return int(options.run(options))
    except ConfigurationError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or 'the disk'}: {error.strerror or error}"
    print(f"error: {printable(problem)}", file=sys.stderr, flush=True)
    return 2


def print_findings(findings: Iterable[Finding], what: str, about: dict[str, Any], *, as_json: bool) -> int:
    """Print findings and a verdict.

    Args:
        findings: problems, and notes.
        what: was verified, for people.
        about: the same for programs, which find it beside the keys ``findings`` and ``notes``.
        as_json: whether a program reads it.

    Returns:
        The exit status: 1 where there are problems.
    """
    problems = [each for each in findings if each.remedy]
    notes = [each for each in findings if not each.remedy]
    if as_json:
        print_json(
            {**about, "findings": [asdict(each) for each in problems], "notes": [asdict(each) for each in notes]}
        )
    else:
        for each in (*notes, *problems):
            problem = each.problem.removeprefix(each.file).strip()
            print(printable(f"{each.file}: {problem}." + (f" Remedy: {each.remedy}." if each.remedy else "")))
        print(f"{printable(what)}: {count(len(problems), 'problem') if problems else 'no problems'}")
    return 1 if problems else 0


def print_json(content: Any) -> None:
    """Print plain containers for a program."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; its texts may come from files of others."""
    table = Table(title=cell(title))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    console().print(table)


def console() -> Console:
    """The terminal, or a page of a fixed width."""
    return Console() if sys.stdout.isatty() else Console(width=_PAGE_WIDTH)


def cell(value: object) -> str:
    """Any text for rich, without markup and control characters."""
    return escape(printable(str(value)))


def count(number: int, word: str) -> str:
    """E.g. ``1 store``, ``2 stores``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
