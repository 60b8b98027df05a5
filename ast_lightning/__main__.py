"""All commands of the package: ``ast-lightning COMMAND …``, or ``python -m ast_lightning COMMAND …``."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from ast_lightning.errors import PROGRAM

COMMANDS = {
    "train_experts": ("ast_lightning.cli.train_experts", "train expert networks on real images"),
    "distill": ("ast_lightning.cli.distill", "distil their trajectories into a few synthetic images per class"),
    "evaluate": ("ast_lightning.cli.evaluate", "train fresh networks on the synthetic images, test them on real ones"),
    "config": ("ast_lightning.config", "print every option with its type, default and meaning"),
    "trajectories": ("ast_lightning.trajectories", "list, verify and export stored trajectories"),
    "synthetic": ("ast_lightning.synthetic", "inspect, verify, export and import distilled datasets"),
    "check": ("ast_lightning.check", "check devices, precisions, compilation and DDP of this machine"),
}
"""Module and description of each command, by name."""


def main() -> None:
    """Run the command named by the first argument as a module, so that DDP can start it again in each process."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    program = "python -m ast_lightning" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name
    if name not in COMMANDS:
        asked = name in ("--help", "-h")
        lines = [f"usage: {program} COMMAND …", "", *(f"  {each:14}{what}" for each, (_, what) in COMMANDS.items())]
        end = [f"{program} COMMAND --help prints the options of a command."]
        lines += ["", *end] if asked else [f"error: there is no command {name!r}"]
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    os.environ[PROGRAM] = program
    del sys.argv[1]
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
