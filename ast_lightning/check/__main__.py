"""Check this machine: ``python -m ast_lightning.check``, with ``--quick`` in seconds, with ``--json`` for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLOURS = {"ok": "green", "failed": "bold red", "skipped": "yellow"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and print what came of them.

    Args:
        arguments: of the command line; None takes the process's.

    Returns:
        The exit status: 1 if a check failed, else 0.
    """
    parser = argparse.ArgumentParser(
        "python -m ast_lightning.check",
        description="Devices, precisions, compilation, one step of each kind on each device, processes that average "
        "gradients. Status 1 if anything failed.",
    )
    parser.add_argument("--quick", action="store_true", help="nothing that compiles or starts processes")
    parser.add_argument("--json", action="store_true", help="for programs instead of people")
    options = parser.parse_args(arguments)

    from ast_lightning.check.checks import Result, all_checks, run_check  # late: --help answers without torch
    from ast_lightning.compilation import keep_compiled_code

    keep_compiled_code()
    results: list[Result] = []
    for check in all_checks(quick=options.quick):
        if not options.json and sys.stderr.isatty():
            print(f"{check.name} {check.device} …", file=sys.stderr, flush=True)
        results.append(run_check(check))
    failed = sum(each.outcome == "failed" for each in results)
    if options.json:
        print(
            json.dumps({"failed": failed, "checks": [asdict(each) for each in results]}, indent=2, ensure_ascii=False)
        )
    else:
        Console().print(_table(asdict(each) for each in results))
        print(f"{failed} of {len(results)} checks failed" if failed else "nothing failed")
    return 1 if failed else 0


def _table(rows: Iterable[dict[str, str | float]]) -> Table:
    table = Table(title="this machine")
    table.add_column("check", no_wrap=True)
    table.add_column("device", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("found, or why", overflow="fold")
    for row in rows:
        outcome = str(row["outcome"])
        cells = [escape(str(row[key])) for key in ("check", "device")]
        styled = f"[{COLOURS[outcome]}]{outcome}[/]"
        table.add_row(*cells, styled, f"{float(row['seconds']):.1f}", escape(str(row["detail"])))
    return table


if __name__ == "__main__":
    sys.exit(main())
