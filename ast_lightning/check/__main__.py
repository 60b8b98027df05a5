"""Check this machine: ``python -m ast_lightning.check``, with ``--quick`` in seconds, with ``--json`` for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

COLOURS = {"ok": "green", "failed": "bold red", "skipped": "yellow"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and print what came of them.

    Args:
        arguments: of the command line; None takes the process's.

    Returns:
        The exit status: 1 if a check failed, else 0.
    """
    about = "Check devices, precisions, compilation and DDP. Status 1 if a check failed."
    parser = argparse.ArgumentParser("python -m ast_lightning.check", description=about)
    parser.add_argument("--quick", action="store_true", help="nothing that compiles or starts processes")
    parser.add_argument("--json", action="store_true", help="for programs instead of people")
    options = parser.parse_args(arguments)

    from ast_lightning.check.checks import all_checks, run_check  # late: --help answers without torch
    from ast_lightning.compilation import keep_compiled_code

    keep_compiled_code()
    results = [run_check(check) for check in all_checks(quick=options.quick)]
    failed = sum(each["outcome"] == "failed" for each in results)
    if options.json:
        print(json.dumps({"failed": failed, "checks": results}, indent=2, ensure_ascii=False))
    else:
        Console().print(_table(results))
        print(f"{failed} of {len(results)} checks failed" if failed else "nothing failed")
    return 1 if failed else 0


def _table(rows: Iterable[dict[str, Any]]) -> Table:
    table = Table("check", "device", "outcome", Column("s", justify="right"), Column("detail", overflow="fold"))
    for row in rows:
        outcome = f"[{COLOURS[row['outcome']]}]{row['outcome']}[/]"
        table.add_row(row["check"], row["device"], outcome, f"{row['seconds']:.1f}", escape(row["detail"]))
    return table


if __name__ == "__main__":
    sys.exit(main())
