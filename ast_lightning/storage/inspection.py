"""Shared code of the commands that inspect files: findings, tables, and one-line errors.

This module does not import torch.
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

from ast_lightning.errors import ConfigurationError, as_started, printable

_PAGE_WIDTH = 120  # if the output is not a terminal


@dataclass(frozen=True)
class Finding:
    """A problem with a file, or a note about it.

    Attributes:
        file: the file or folder.
        problem: what is wrong with it, as a sentence without a full stop.
        remedy: what to do, as a sentence without a full stop; empty for a note.
    """

    file: str
    problem: str
    remedy: str = ""

    @classmethod
    def of(cls, path: Path, error: ConfigurationError) -> Finding:
        """The finding that corresponds to an error raised while reading a file."""
        return cls(str(path), error.problem, error.remedy)


def run_command(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> int:
    """Run the subcommand that the parser stores as ``run``, a function of the options that returns the exit status.

    Args:
        parser: parser of the command line.
        words: arguments of the command line; None uses ``sys.argv``.

    Returns:
        The exit status of the subcommand, or 2 for an error that the user can fix, which is printed in one line.
    """
    options = parser.parse_args(words)
    try:
        return int(options.run(options))
    except ConfigurationError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or 'the disk'}: {error.strerror or error}"
    print(f"error: {printable(as_started(problem))}", file=sys.stderr, flush=True)
    return 2


def print_findings(findings: Iterable[Finding], what: str, about: dict[str, Any], *, as_json: bool) -> int:
    """Print findings and a summary.

    Args:
        findings: problems and notes.
        what: description of what was verified, for the text output.
        about: description of what was verified, for the JSON output, in addition to ``findings`` and ``notes``.
        as_json: print JSON instead of text.

    Returns:
        The exit status: 1 if there are problems, else 0.
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
            remedy = f" Remedy: {as_started(each.remedy)}." if each.remedy else ""
            print(printable(f"{each.file}: {problem}.{remedy}"))
        print(f"{printable(what)}: {count(len(problems), 'problem') if problems else 'no problems'}")
    return 1 if problems else 0


def print_json(content: Any) -> None:
    """Print plain containers as JSON."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table. Cells are escaped, because they may come from untrusted files."""
    table = Table(title=cell(title))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    console().print(table)


def console() -> Console:
    """A console with the width of the terminal, or with a fixed width if the output is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=_PAGE_WIDTH)


def cell(value: object) -> str:
    """Escape a value for rich: no markup, no control characters."""
    return escape(printable(str(value)))


def count(number: int, word: str) -> str:
    """A number with its noun, e.g. ``1 store``, ``2 stores``, ``2 classes``."""
    plural = "es" if word.endswith("s") else "s"
    return f"{number} {word}{plural * (number != 1)}"
