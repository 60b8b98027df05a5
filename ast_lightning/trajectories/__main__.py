"""Look at stored trajectories, and hand them on: ``python -m ast_lightning.trajectories verify|ls|info|export DIR``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.files import format_bytes
from ast_lightning.trajectories import listing
from ast_lightning.trajectories.records import STORE_FILE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: of the command line; None takes the process's.

    Returns:
        The exit status: 0, or 1 where ``verify`` found something, or 2 for what the user can mend.
    """
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'the disk'}: {error.strerror or error}", file=sys.stderr, flush=True)
        return 2
    return status


def parser() -> argparse.ArgumentParser:
    """The command line: each subcommand sets ``run``, which takes the options and returns the exit status."""
    whole = argparse.ArgumentParser(
        "python -m ast_lightning.trajectories", description="Look at stored trajectories, and hand them on."
    )
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    _add_inspection(
        commands, "verify", verify, "read every byte and list every problem with its remedy; status 1 if any"
    )
    _add_inspection(commands, "ls", ls, "the stores below a folder, or the experts of a store")
    _add_inspection(commands, "info", info, "what made a store: network, data, settings, versions")
    what = "write the complete experts of a store as replay_buffer_<n>.pt, the form of the published codes"
    command = commands.add_parser("export", help=what, description=what)
    command.add_argument("folder", type=Path, metavar="DIR", help="a store")
    command.add_argument("into", type=Path, metavar="OUT", help="a folder without such files")
    command.add_argument("--per-file", type=int, default=1, help="trajectories in a file: 1 as in AST, 10 as in MTT")
    command.set_defaults(run=export)
    return whole


def _add_inspection(commands: Any, name: str, run: Any, what: str) -> None:
    command = commands.add_parser(name, help=what, description=what)
    command.add_argument("folder", type=Path, metavar="DIR", help="a store, or a folder of stores such as runs/experts")
    command.add_argument("--json", action="store_true", help="for programs instead of people")
    command.set_defaults(run=run)


def verify(options: argparse.Namespace) -> int:
    """Read every byte of all stores at and below a folder."""
    from ast_lightning.trajectories.verification import Finding, Note, verify_store  # late: it brings torch

    folders = listing.find_stores(options.folder)
    found = [each for folder in folders for each in verify_store(folder)]
    findings = [each for each in found if isinstance(each, Finding)]
    notes = [each for each in found if isinstance(each, Note)]
    rows = [listing.list_store(folder) for folder in folders]
    if options.json:
        told = {"findings": [asdict(each) for each in findings], "notes": [asdict(each) for each in notes]}
        _print_json({"stores": listing.as_json(rows), **told})
    else:
        for note in notes:
            print(f"{note.file}: {note.note}.")
        for finding in findings:
            problem = finding.problem.removeprefix(finding.file).strip()
            print(f"{finding.file}: {problem}. Remedy: {finding.remedy}.")
        experts, size = sum(row.complete for row in rows), sum(row.bytes for row in rows)
        verdict = _count(len(findings), "problem") if findings else "all is well"
        what = f"{_count(len(rows), 'store')}, {_count(experts, 'complete expert')}"
        print(f"{what}, {format_bytes(size)} of snapshots: {verdict}")
    return 1 if findings else 0


def ls(options: argparse.Namespace) -> int:
    """The stores below a folder, or the experts of a store."""
    if (options.folder / STORE_FILE).exists():
        experts = listing.list_experts(options.folder)
        if options.json:
            _print_json(listing.as_json(experts))
        else:
            _print_experts(options.folder, experts)
        return 0
    stores = [listing.list_store(folder) for folder in listing.find_stores(options.folder)]
    if options.json:
        _print_json(listing.as_json(stores))
    else:
        _print_stores(options.folder, stores)
    return 0


def info(options: argparse.Namespace) -> int:
    """What made each store."""
    described = [listing.describe_store(folder) for folder in listing.find_stores(options.folder)]
    if options.json:
        _print_json(described[0] if len(described) == 1 else described)
        return 0
    for each in described:
        table = Table("what", "value", title=escape(each["folder"]))
        shown = {key: value for key, value in each.items() if key not in ("folder", "config")}
        shown["network"] = {
            key: value for key, value in each["network"].items() if key not in ("parameters", "buffers")
        }
        shown["bytes"] = format_bytes(each["bytes"])
        for key, value in listing.flattened(shown).items():
            table.add_row(key, escape(str(value)))
        Console().print(table)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a store in the published form."""
    from ast_lightning.trajectories.interchange import export_buffers  # late: it brings torch
    from ast_lightning.trajectories.store import TrajectoryStore

    files = export_buffers(TrajectoryStore.open(options.folder), options.into, options.per_file)
    print(f"{_count(len(files), 'file')} in {options.into}")
    return 0


def _print_stores(folder: Path, rows: list[listing.StoreRow]) -> None:
    table = Table(title=f"trajectories in {escape(str(folder))}")
    table.add_column("store", overflow="fold")
    table.add_column("data", no_wrap=True)
    for column in ("seed", "epochs", "snapshots", "experts", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        experts = f"{row.complete} + {row.incomplete} incomplete" if row.incomplete else row.complete
        values = ["?" if each is None else each for each in (row.data, row.seed, row.epochs, row.stored)]
        cells = [Path(row.folder).name, *values, experts, format_bytes(row.bytes)]
        table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)
    for row in rows:
        if row.problem:
            print(f"{row.folder}: {row.problem}")


def _print_experts(folder: Path, rows: list[listing.ExpertRow]) -> None:
    table = Table(title=escape(str(folder)))
    for column in ("expert", "snapshots", "last epoch", "size", "test %"):
        table.add_column(column, justify="right")
    table.add_column("state")
    for row in rows:
        accuracy = "" if row.test_accuracy is None else f"{row.test_accuracy:.1f}"
        last = row.epochs[-1] if row.epochs else ""
        state = row.problem or ("complete" if row.complete else "incomplete")
        cells = [row.expert, len(row.epochs), last, format_bytes(row.bytes), accuracy, state]
        table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
