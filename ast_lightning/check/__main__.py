"""Check this machine: ``python -m ast_lightning.check``. ``--quick`` takes seconds; ``--json`` prints JSON."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence

from ast_lightning.reporting import take_over


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and print the result of each.

    Args:
        arguments: the command-line arguments; None: those of the process.

    Returns:
        The exit status: 1 if a check failed, else 0.
    """
    about = "Check devices, precisions, compilation and DDP. Status 1 if a check failed."
    parser = argparse.ArgumentParser("python -m ast_lightning.check", description=about)
    parser.add_argument("--quick", action="store_true", help="skip checks that compile or start processes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)

    from ast_lightning.check.checks import all_checks, run_check  # late: --help does not load torch
    from ast_lightning.compilation import keep_compiled_code

    keep_compiled_code()
    results = []
    for check in all_checks(quick=options.quick):
        result = run_check(check)
        results.append(result)
        if not options.json:
            where = f" on {check.device}" if check.device else ""
            line = f"{result['outcome']:8}{check.name}{where}, {result['seconds']:.1f} s: {result['detail']}"
            print(textwrap.fill(line, 80, subsequent_indent=" " * 8), flush=True)
    failed = sum(each["outcome"] == "failed" for each in results)
    if options.json:
        print(json.dumps({"failed": failed, "checks": results}, indent=2, ensure_ascii=False))
    else:
        print(f"{failed} of {len(results)} checks failed" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    take_over()
    sys.exit(main())
