"""Inspect and export stored trajectories: ``python -m ast_lightning.trajectories verify|ls|info|export DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ast_lightning.errors import printable
from ast_lightning.reporting import take_over
from ast_lightning.storage.files import format_bytes
from ast_lightning.storage.inspection import count, print_findings, print_json, print_table, run_command
from ast_lightning.trajectories import listing
from ast_lightning.trajectories.records import STORE_FILE


def main(words: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit status: 0 on success, 1 if ``verify`` finds a problem, 2 for an error that the user can fix.
    """
    return run_command(parser(), words)


def parser() -> argparse.ArgumentParser:
    """The parser. Each subcommand sets ``run``, a function of the options that returns the exit status."""
    whole = argparse.ArgumentParser(
        "python -m ast_lightning.trajectories", description="List, verify and export stored trajectories."
    )
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    for run, what in (
        (verify, "read every byte and list every problem with its remedy; status 1 if any"),
        (ls, "the stores below a folder, or the experts of a store"),
        (info, "how a store was made: network, data, settings, versions"),
    ):
        command = commands.add_parser(run.__name__, help=what, description=what)
        command.add_argument(
            "folder", type=Path, metavar="DIR", help="a store, or a folder of stores such as runs/experts"
        )
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)
    what = "write the complete experts of a store as replay_buffer_<n>.pt, the form of the published codes"
    command = commands.add_parser("export", help=what, description=what)
    command.add_argument("folder", type=Path, metavar="DIR", help="a store")
    command.add_argument("into", type=Path, metavar="OUT", help="a folder without such files")
    command.add_argument("--per-file", type=int, default=1, help="trajectories in a file: 1 as in AST, 10 as in MTT")
    command.set_defaults(run=export)
    return whole


def verify(options: argparse.Namespace) -> int:
    """Read every byte of all stores in a folder and its subfolders."""
    from ast_lightning.trajectories.verification import verify_store  # late: it imports torch

    folders = listing.find_stores(options.folder)
    findings = [each for folder in folders for each in verify_store(folder)]
    rows = [listing.list_store(folder) for folder in folders]
    experts, size = (sum(row[key] for row in rows) for key in ("complete", "bytes"))
    what = f"{count(len(rows), 'store')}, {count(experts, 'complete expert')}, {format_bytes(size)} of snapshots"
    return print_findings(findings, what, {"stores": rows}, as_json=options.json)


def ls(options: argparse.Namespace) -> int:
    """List the stores below a folder, or the experts of a store."""
    folder: Path = options.folder
    is_store = (folder / STORE_FILE).exists()
    rows = listing.list_experts(folder) if is_store else [*map(listing.list_store, listing.find_stores(folder))]
    if options.json:
        print_json(rows)
    elif is_store:
        print_table(str(folder), ("expert", "snapshots", "last epoch", "size", "test %", "state"), map(_expert, rows))
    else:
        columns = ("store", "data", "seed", "epochs", "snapshots", "experts", "size")
        print_table(f"trajectories in {folder}", columns, map(_store, rows))
        for row in rows:
            if row["problem"]:
                print(printable(f"{row['folder']}: {row['problem']}"))
    return 0


def info(options: argparse.Namespace) -> int:
    """Print the description of each store: network, data, settings, versions."""
    described = [listing.describe_store(folder) for folder in listing.find_stores(options.folder)]
    if options.json:
        print_json(described[0] if len(described) == 1 else described)
        return 0
    for each in described:
        shown = {key: value for key, value in each.items() if key != "config"}
        shown["network"] = {key: each["network"].get(key) for key in ("target", "arguments")}
        shown["bytes"] = format_bytes(each["bytes"])
        print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a store in the published format."""
    from ast_lightning.trajectories.interchange import export_buffers  # late: it imports torch
    from ast_lightning.trajectories.store import TrajectoryStore

    files = export_buffers(TrajectoryStore.open(options.folder), options.into, options.per_file)
    print(f"{count(len(files), 'file')} in {options.into}")
    return 0


def _store(row: dict[str, Any]) -> list[object]:
    experts = f"{row['complete']} + {row['incomplete']} incomplete" if row["incomplete"] else row["complete"]
    made = ["?" if row[key] is None else row[key] for key in ("data", "seed", "epochs", "stored")]
    return [Path(row["folder"]).name, *made, experts, format_bytes(row["bytes"])]


def _expert(row: dict[str, Any]) -> list[object]:
    epochs, accuracy = row["epochs"], row["test_accuracy"]
    state = row["problem"] or ("complete" if row["complete"] else "incomplete")
    percent = "" if accuracy is None else f"{accuracy:.1f}"
    return [row["expert"], len(epochs), epochs[-1] if epochs else "", format_bytes(row["bytes"]), percent, state]


if __name__ == "__main__":
    take_over()
    sys.exit(main())
